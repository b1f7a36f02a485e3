"""Which processes belong to a child: those below it, and those that carry its mark. Guard and keepers use it, too.

It imports nothing of ours and little else, so that they stay small.
"""

from __future__ import annotations

import _thread  # `threading` is larger
import contextlib
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself would be a tenth of a guard's memory
    from collections.abc import Iterable

    Family = dict[int, tuple[int, int, int]]

KEEPER = "TROGDOR_BUS_KEEPER"
"""The variable in which a keeper carries the mark of its child."""
CHILD = "TROGDOR_BUS_CHILD"
"""The variable in which a child, and what it starts, carries its mark."""
PATIENCE_S = 1.0
"""How long a process may take to tell its environment: one that waits for a dead disk never does."""
_NONE_OF_OURS = (FileNotFoundError, ProcessLookupError, PermissionError)
"""What is said of a process that has ended, or that is not ours to look at."""


def living() -> Family:
    """Return parent, session and start (ticks since boot) of each living process by pid; OSError if nobody tells.

    One that ends while it is looked at has left nobody unseen: what it started before is looked at, too.
    """
    found: Family = {}
    known: set[str] = set()
    while new := set(os.listdir("/proc")) - known:
        known |= new
        for name in new:
            if name.isdecimal() and (kin := _kin(int(name))):
                found[int(name)] = kin
    return found


def below(roots: Iterable[int], family: Family) -> set[int]:
    """Return the descendants of the roots."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in family.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    left = list(roots)
    while left:
        new = set(children.get(left.pop(), ())) - found
        found |= new
        left += new
    return found


def mark_of(pid: int) -> tuple[str, bool]:
    """Return the mark that a process carries, as `marks_of`."""
    return marks_of([pid])[pid]


def marks_of(pids: Iterable[int]) -> dict[int, tuple[str, bool]]:
    """Return the mark that each process carries, "" if none, and whether it is a keeper.

    One that hangs may not tell: it is not waited for. OSError if the machine refuses what that takes.
    """
    left = list(pids)
    found: dict[int, tuple[str, bool]] = dict.fromkeys(left, ("", False))
    while left:
        look = _Look(left, found)
        look.wait()
        left = left[look.at + 1 :]
    return found


class _Look:
    """One thread that reads the environments of processes, one after the other; it is given up where it hangs."""

    def __init__(self, pids: list[int], found: dict[int, tuple[str, bool]]) -> None:
        self.at = 0
        self._pids, self._found, self._given_up = pids, found, False
        self._refused: OSError | None = None
        self._done = _thread.allocate_lock()
        self._done.acquire()

    def wait(self) -> None:
        """Return when all is read, or when it hangs `at` a process."""
        try:
            _thread.start_new_thread(self._read, ())
        except RuntimeError:  # the machine refuses one
            self._read()
        at = -1
        while not self._done.acquire(timeout=PATIENCE_S):
            if at == self.at:
                self._given_up = True
                return
            at = self.at
        if self._refused:
            raise self._refused

    def _read(self) -> None:
        try:
            for at, pid in enumerate(self._pids):
                self.at = at
                with contextlib.suppress(*_NONE_OF_OURS), open(f"/proc/{pid}/environ", "rb") as file:
                    environ = file.read()
                    if self._given_up:
                        return
                    self._found[pid] = _mark_in(environ)
        except OSError as error:
            self._refused = error
        finally:
            self._done.release()


def _mark_in(environ: bytes) -> tuple[str, bool]:
    for entry in environ.split(b"\0"):
        name, _, mark = entry.partition(b"=")
        if name in (KEEPER.encode(), CHILD.encode()):
            return mark.decode(errors="replace"), name == KEEPER.encode()
    return "", False


def of_child(mark: str, session: int, family: Family) -> list[int]:
    """Return whatever belongs to the child with that mark: who carries it, is of its session (0: unknown), or below."""
    roots = {pid for pid, (_, of, _) in family.items() if session and of == session}
    roots |= {pid for pid, (carried, _) in marks_of(family.keys() - roots).items() if carried == mark}
    return sorted(roots | below(roots, family))


def of_children(ancestor: int, family: Family, *, but: str = "") -> list[int]:
    """Return whatever belongs to any child below the ancestor; those that carry the mark `but` are none."""
    roots = {pid for pid, (mark, _) in marks_of(below([ancestor], family)).items() if mark not in ("", but)}
    return sorted(roots | below(roots, family))


def kill(pids: Iterable[int], family: Family) -> None:
    """Kill these processes of the family, keepers only when nobody else is left: what is below them stays so.

    OSError if the machine refuses what that takes.
    """
    marks = marks_of(pids)
    keepers = {pid for pid in marks if marks[pid][1]}
    others = {pid for pid in marks if pid not in keepers}
    for group in _groups_within(others, family):  # at once, before any of them starts another one
        with contextlib.suppress(*_NONE_OF_OURS):
            os.killpg(group, signal.SIGKILL)
    for pid in others or keepers:
        with contextlib.suppress(*_NONE_OF_OURS):
            fd = os.pidfd_open(pid)
            try:
                if (now := _kin(pid)) and now[2] == family[pid][2]:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)


def _groups_within(pids: set[int], family: Family) -> set[int]:
    """Return the process groups of which every living member is one of these."""
    members: dict[int, set[int]] = {}
    for pid in family:
        with contextlib.suppress(*_NONE_OF_OURS):
            members.setdefault(os.getpgid(pid), set()).add(pid)
    return {group for group, those in members.items() if those and those <= pids and group > 1}


def _kin(pid: int) -> tuple[int, int, int] | None:
    """Return parent, session and start of a process (proc(5), fields 4, 6 and 22); None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except _NONE_OF_OURS:
        return None
    return None if fields[0] in (b"Z", b"X") else (int(fields[1]), int(fields[3]), int(fields[19]))
