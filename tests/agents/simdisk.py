"""A disk that really loses what was not synced, fails when told to, and can stop the world at any primitive."""

from __future__ import annotations

from random import Random

from trogdor_bus.errors import HostError, NotFoundError


class Crash(BaseException):
    """The process, or the whole machine, ends here."""


class CrashPoints:
    """The moments at which the world can end, in the order in which a run passes them; it ends at number `at`."""

    def __init__(self, at: int = -1) -> None:
        self.at = at
        self.passed: list[str] = []

    def visit(self, moment: str) -> None:
        """Pass one moment, or raise Crash there."""
        self.passed.append(moment)
        if len(self.passed) - 1 == self.at:
            raise Crash(moment)


class _File:
    """The content of a file, and what of it the platters have: `durable` is None until the first sync."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.durable: bytes | None = None


class SimDisk:
    """A `Disk` in memory. A process that ends loses nothing; `crash()` (power cut) loses what was not synced.

    POSIX at its worst: after a power cut every name that was changed since the last `sync_directory` is, on its own, in
    any of the states that it went through, and a file that was never synced holds any prefix of its content.
    """

    def __init__(self, random: Random, points: CrashPoints | None = None) -> None:
        self._random = random
        self.points = points or CrashPoints()
        self.full = self.gone = False
        self._failures: dict[str, int] = {}
        self._states: dict[str, list[_File | None]] = {}

    def fail(self, op: str, n: int = 1) -> None:
        """Make the n-th call of `op` from now on fail with a HostError, and only that one."""
        self._failures[op] = n

    def crash(self) -> None:
        """Cut the power: what is left is durable, and is what the next life sees."""
        left: dict[str, list[_File | None]] = {}
        for name, states in sorted(self._states.items()):
            survivor = self._random.choice(states)
            if survivor is not None:
                if survivor.durable is None:
                    survivor.durable = survivor.data[: self._random.randint(0, len(survivor.data))]
                survivor.data = survivor.durable
                left[name] = [survivor]
        self._states = left

    def wipe(self, *, gone: bool) -> None:
        """Let somebody remove every file, durably, and with `gone` the directory, until `mend`."""
        self._states, self.gone = {}, gone

    def mend(self) -> None:
        """Take back every `fail`, `full` and `gone`."""
        self._failures.clear()
        self.full = self.gone = False

    def read(self, name: str) -> bytes:
        self._may_fail("read", name)
        return self._file(name).data

    def names(self) -> tuple[str, ...]:
        self._may_fail("names", ".")
        return tuple(sorted(name for name, states in self._states.items() if states[-1] is not None))

    def create(self, name: str, data: bytes) -> None:
        self._before("create", name)
        if self.full:
            self._enter(name, _File(data[: len(data) // 2]))
            raise HostError(f"cannot write {name}: No space left on device")
        self._enter(name, _File(data))
        self._after("create", name)

    def sync(self, name: str) -> None:
        self._before("sync", name)
        file = self._file(name)
        file.durable = file.data
        self._after("sync", name)

    def rename(self, old: str, new: str) -> None:
        self._before("rename", new)
        self._enter(new, self._file(old))
        self._enter(old, None)
        self._after("rename", new)

    def sync_directory(self) -> None:
        self._before("sync_directory", ".")
        self._states = {name: states[-1:] for name, states in self._states.items() if states[-1] is not None}
        self._after("sync_directory", ".")

    def remove(self, name: str) -> None:
        self._before("remove", name)
        if name in self.names():
            self._enter(name, None)
        self._after("remove", name)

    def _enter(self, name: str, file: _File | None) -> None:
        self._states.setdefault(name, [None]).append(file)

    def _file(self, name: str) -> _File:
        file = self._states.get(name, [None])[-1]
        if file is None:
            raise NotFoundError(f"there is no file {name}")
        return file

    def _before(self, op: str, name: str) -> None:
        self.points.visit(f"before {op} {name}")
        self._may_fail(op, name)

    def _after(self, op: str, name: str) -> None:
        self.points.visit(f"after {op} {name}")

    def _may_fail(self, op: str, name: str) -> None:
        if self.gone:
            raise HostError(f"cannot {op} {name}: No such file or directory")
        left = self._failures.pop(op, 0) - 1
        if left == 0:
            raise HostError(f"cannot {op} {name}: Input/output error")
        if left > 0:
            self._failures[op] = left


class NeverSyncs(SimDisk):
    """A disk on which syncing a file does nothing: what a journal that forgets to sync would live with."""

    def sync(self, name: str) -> None:
        """Do nothing."""


class NeverSyncsDirectory(SimDisk):
    """A disk on which syncing the directory does nothing."""

    def sync_directory(self) -> None:
        """Do nothing."""
