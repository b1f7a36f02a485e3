"""Killing processes: told to end, seen to their end, and, if that was asked for, started again (`restarts.py`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from signal import Signals
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import msgspec

from trogdor_bus.actions.process import MOST_GRACE_MS, Kill
from trogdor_bus.agents.platforms.linux import newcomers, processes, signals
from trogdor_bus.agents.platforms.linux.endings import Endings, outlived
from trogdor_bus.agents.platforms.linux.newcomers import Watch, Watched
from trogdor_bus.agents.platforms.linux.operations import PROCESSES, SEARCH, Note, Nothing, Operation, step
from trogdor_bus.agents.platforms.linux.operations.restarts import Restart
from trogdor_bus.errors import HostError, RefusedError
from trogdor_bus.platform import Prepared, ProcessIdentity, Seen, Step, Surroundings

if TYPE_CHECKING:
    from trogdor_bus.agents.platforms.linux.node import Node

GraceMs = Annotated[int, msgspec.Meta(ge=0, le=MOST_GRACE_MS)]
Signal = Literal["SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT", "SIGABRT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGSEGV"]


class Deliver(Watched, frozen=True, tag="signal"):
    """Send a signal to a process, and SIGKILL if it lives `grace_ms` later (0: it may live).

    Of several that one fault kills, one carries the `watch` for all.
    """

    signal: Signal
    watch: Watch | None = None
    grace_ms: GraceMs = 0

    performs = (Kill,)

    @classmethod
    def prepares_in(cls, action: Kill) -> str:
        """Return the lane of the search, one for each thing that is to be started again."""
        if action.restart is None:
            return SEARCH
        return f"{SEARCH} {action.restart.unit or action.restart.container or ' '.join(action.restart.command)}"

    @classmethod
    def prepare(cls, on: Node, worker: int, action: Kill, around: Surroundings, held: Sequence[Step]) -> Prepared:
        """Return a step for each process that matches; the restart is the undo of the first one."""
        if action.signal not in get_args(Signal):
            raise RefusedError(
                f"{action.signal} is not a signal that can be sent; use one of {', '.join(get_args(Signal))}"
            )
        with on.open() as namespace:
            watch = newcomers.watch(action.match)  # whoever is started later is no target
            found = processes.find(action.match, namespace, around).needed(action.required)
            for process in found.processes:
                if not action.grace_ms and (why := signals.deaf_to(process.pid, Signals[action.signal])):
                    raise HostError(f"process {process.pid} ({process.name}) {why}")
            undo: Operation = Nothing()
            if action.restart and found.processes:
                undo = Restart.of(action, found.processes, namespace, on)
        watch = watch.but(found.processes)
        steps: list[Step] = []
        for process in found.processes:  # the first speaks for all: it is undone last
            watched, undone = (None, Nothing()) if steps else (watch, undo)
            do = cls(process.identity, process.name, action.signal, watched, action.grace_ms)  # type: ignore[arg-type]
            steps.append(step(do, undone))
        return Prepared(tuple(steps), found.warnings())

    def do(self, on: Node, undo: Operation) -> Operation | None:
        """Send the signal; returns the undo of a process that was told to end now: before, it is not waited for."""
        signals.deliver(self, self.signal, self.grace_ms, on.patience, on.memory(Endings).told)
        told_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        kill_ms = told_ms + self.grace_ms if self.grace_ms else 0
        if isinstance(undo, Restart):
            return msgspec.structs.replace(undo, told_ms=told_ms, kill_ms=kill_ms)
        return Finish((self.process,), kill_ms) if kill_ms else None

    def holds(self, on: Node) -> Seen:
        """Return that it is unsure where somebody may have started again what was killed."""
        return Seen(unsure=newcomers.may_be_replaced(self.watch, self.process))

    def watched(self) -> Watch | None:
        """Return the watch."""
        return self.watch

    def met(self, found: Sequence[processes.Process]) -> Seen:
        """Return whether somebody started again what was killed."""
        return Seen(f"started again by somebody: {newcomers.named(found)}" if found else "")

    def missed(self) -> str:
        """Return "", or how it outlived the signal."""
        return "" if self.grace_ms else outlived(self, self.signal)

    def again(self, on: Node, step: Step, around: Surroundings) -> tuple[Step, ...]:
        """Return the same signal for each that was started again."""
        return tuple(_again(self, process) for process in self.newer(on, around))


class Finish(Operation, frozen=True, tag="finish"):
    """Wait for the end of who was told to end; who still lives at `kill_ms` (CLOCK_BOOTTIME) is killed."""

    dying: tuple[ProcessIdentity, ...]
    kill_ms: int

    def undo(self, on: Node, do: Operation, held: Sequence[Step], note: Note) -> str:
        """See to the end; NotYetError while one has time."""
        on.memory(Endings).finish(self.dying, self.kill_ms)
        return ""

    def manual(self, on: Node, do: Operation) -> str:
        """Return the command that kills them."""
        return f"kill -KILL {' '.join(str(process.pid) for process in self.dying)}"

    def resource(self) -> str:
        """Return the processes."""
        return PROCESSES


def _again(killed: Deliver, process: processes.Process) -> Step:
    do = Deliver(process.identity, process.name, killed.signal, grace_ms=killed.grace_ms)
    return step(do, Nothing())
