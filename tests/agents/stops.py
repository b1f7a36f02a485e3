"""Processes that are stopped and continued: in a table in memory, and real ones of a node."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import pytest

from tests.agents.platforms.nodes import Node, end, known
from tests.agents.simdisk import CrashPoints
from tests.support import wait_until
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.agents.platforms.linux import processes, signals
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Platform, ProcessIdentity, Step

FIRST_PID = 2**22 + 1
"""Above what the kernel gives."""
LATE = 2**40
"""Clock ticks: each process begins later than any fault that is asked for before."""


class Place(Protocol):
    """Where processes are, each known by a word of its command line."""

    platform: Platform
    points: CrashPoints
    """Moments at which the agent can die, around each signal, where that can be had."""

    def start(self, word: str) -> None: ...

    def stop(self, word: str) -> None: ...

    def go_on(self, word: str) -> None: ...

    def end(self, word: str) -> None: ...

    def lives(self, word: str) -> bool: ...

    def stands(self, word: str) -> bool: ...

    def pid(self, word: str) -> int: ...

    def refuse(self, times: int) -> None:
        """Let the next so many signals fail, where that can be had."""


class _Unlocked(LinuxPlatform):
    """Its processes are nowhere, and so nobody else acts on them."""

    def alone(self, steps: Sequence[Step]) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


class Table:
    """A table of processes in memory, in the place of /proc and of the kernel's signals."""

    def __init__(self) -> None:
        self.platform: Platform = _Unlocked()
        self.points = CrashPoints()
        self.processes: dict[int, processes.Process] = {}
        self.stopped: set[int] = set()
        self.opened: dict[int, int] = {}
        self._refuse = 0
        self._next = FIRST_PID

    @contextlib.contextmanager
    def installed(self) -> Iterator[Table]:
        """Let the Linux platform see this table and nothing else."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processes.Look, "find", lambda _, match, around: self._find(match))
            for module in (processes, signals):
                patch.setattr(module, "identify", self._identify)
                patch.setattr(module, "thread_states", self._thread_states)
            patch.setattr(signals, "FREEZE_S", 0.01)
            patch.setattr(os, "pidfd_open", self._open)
            patch.setattr(signal, "pidfd_send_signal", self._send)
            yield self

    def start(self, word: str) -> None:
        identity = ProcessIdentity(boot_id(), self._next, LATE + self._next)
        self.processes[self._next] = processes.Process(identity, ("sleep", word))
        self._next += 1

    def stop(self, word: str) -> None:
        self.stopped.add(self.pid(word))

    def go_on(self, word: str) -> None:
        self.stopped.discard(self.pid(word))

    def end(self, word: str) -> None:
        pid = self.pid(word)
        self.stopped.discard(pid)
        del self.processes[pid]

    def lives(self, word: str) -> bool:
        return any(word in process.argv for process in self.processes.values())

    def stands(self, word: str) -> bool:
        return self.pid(word) in self.stopped

    def refuse(self, times: int) -> None:
        self._refuse = times

    def pid(self, word: str) -> int:
        return next(pid for pid, process in self.processes.items() if word in process.argv)

    def _find(self, match: ProcessMatch) -> processes.Found:
        found = tuple(process for process in self.processes.values() if match.command in process.argv)
        return processes.Found(found, "" if found else "no process matches")

    def _identify(self, pid: int) -> ProcessIdentity | None:
        return self.processes[pid].identity if pid in self.processes else None

    def _thread_states(self, process: ProcessIdentity) -> dict[int, str]:
        if self._identify(process.pid) != process:
            return {}
        return {process.pid: "T" if process.pid in self.stopped else "S"}

    def _open(self, pid: int) -> int:
        if pid not in self.processes:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        descriptor = os.eventfd(0)
        self.opened[descriptor] = pid
        return descriptor

    def _send(self, descriptor: int, number: int) -> None:
        if self._refuse:
            self._refuse -= 1
            raise PermissionError(errno.EPERM, "Operation not permitted")
        pid = self.opened[descriptor]
        self.points.visit("before the signal")
        if number == signal.SIGSTOP:
            self.stopped.add(pid)
        else:
            assert number == signal.SIGCONT
            self.stopped.discard(pid)
        self.points.visit("after the signal")


class RealPlace:
    """Real processes in a namespace of the test's own; only those are ever signalled."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.platform: Platform = node.platform
        self.points = CrashPoints()
        self._pids: dict[str, ProcessIdentity] = {}

    def start(self, word: str) -> None:
        self._pids[word] = known(self.node.spawn("sleep", word))

    def stop(self, word: str) -> None:
        self._signal(word, signal.SIGSTOP)
        wait_until(lambda: self.stands(word), what="the stop")

    def go_on(self, word: str) -> None:
        self._signal(word, signal.SIGCONT)
        wait_until(lambda: not self.stands(word), what="the process to go on")

    def end(self, word: str) -> None:
        end(self._pids.pop(word))

    def lives(self, word: str) -> bool:
        return word in self._pids

    def stands(self, word: str) -> bool:
        return signals.is_stopped(self._pids[word])

    def pid(self, word: str) -> int:
        return self._pids[word].pid

    def refuse(self, times: int) -> None:
        """The kernel lets root signal."""

    def _signal(self, word: str, number: signal.Signals) -> None:
        assert known(self._pids[word].pid) == self._pids[word]
        os.kill(self._pids[word].pid, number)
