"""Freezing processes: each stands still until it is let go, unless another fault still wants it so."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trogdor_bus.actions.process import Suspend
from trogdor_bus.agents.platforms.linux import newcomers, processes, signals
from trogdor_bus.agents.platforms.linux.newcomers import Watch, Watched
from trogdor_bus.agents.platforms.linux.operations import PROCESSES, SEARCH, Note, Operation, read, step
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Prepared, ProcessIdentity, Seen, Step, Surroundings

if TYPE_CHECKING:
    from trogdor_bus.agents.platforms.linux.node import Node


class Freeze(Watched, frozen=True, tag="freeze"):
    """Stop a process; `leave`: it was already stopped by somebody else, and stays so afterwards."""

    leave: bool
    watch: Watch | None = None

    performs = (Suspend,)

    @classmethod
    def prepares_in(cls, action: Suspend) -> str:
        """Return the lane of the search."""
        return SEARCH

    @classmethod
    def prepare(cls, on: Node, worker: int, action: Suspend, around: Surroundings, held: Sequence[Step]) -> Prepared:
        """Return a step for each process that matches."""
        with on.open() as namespace:
            watch = newcomers.watch(action.match)  # whoever is started later is no target
            found = processes.find(action.match, namespace, around).needed(action.required)
        watch = watch.but(found.processes)
        stops = _stops(on, held)
        steps: list[Step] = []
        for process in found.processes:
            leave = signals.is_stopped(process.identity) and not stops.wanted(process.identity)
            do = cls(process.identity, process.name, leave, watch)
            steps.append(step(do, Thaw(process.identity, process.name, leave)))
        return Prepared(tuple(steps), found.warnings())

    def do(self, on: Node, undo: Operation) -> None:
        """Stop it, and see that every thread stands."""
        signals.freeze(self, on.patience)

    def holds(self, on: Node) -> Seen:
        """Return whether it stands; it is unsure where others may have taken its place."""
        states = processes.thread_states(self.process)
        if not states and self.watch is not None:
            return Seen(unsure=True)
        return Seen(signals.frozen_disturbance(self, states))

    def watched(self) -> Watch | None:
        """Return the watch."""
        return self.watch

    def met(self, found: Sequence[processes.Process]) -> Seen:
        """Return who runs in the place of a process that ended."""
        if running := _running(found):
            return Seen(f"{signals.called(self)} was replaced: {newcomers.named(running)} runs")
        return Seen() if found else Seen(signals.frozen_disturbance(self, {}))

    def again(self, on: Node, step: Step, around: Surroundings) -> tuple[Step, ...]:
        """Return the stop of the process, if it lives, else those of who took its place."""
        if processes.thread_states(self.process):
            return (_stop(self.process, self.name, self.watch),)
        found = _running(self.newer(on, around))
        return tuple(_stop(process.identity, process.name, self.watch) for process in found)


class Thaw(Operation, frozen=True, tag="thaw"):
    """Let a process run again, unless `leave`."""

    process: ProcessIdentity
    name: str
    leave: bool

    def undo(self, on: Node, do: Operation, held: Sequence[Step], note: Note) -> str:
        """Let it run, and see that it does; a note says why it stays stopped, or that it is gone."""
        wanted = _stops(on, held).wanted(self.process)
        return signals.thaw(self, on.patience, leave=self.leave, wanted=wanted)

    def leftovers(self, on: Node, held: Sequence[Step]) -> tuple[str, ...]:
        """Return that it is still stopped, if nobody wants that."""
        if self.leave or not signals.is_stopped(self.process) or _stops(on, held).wanted(self.process):
            return ()
        return (f"{signals.called(self)} is still stopped",)

    def manual(self, on: Node, do: Operation) -> str:
        """Return the command that lets it run."""
        return "" if self.leave else f"kill -CONT {self.process.pid}"

    def resource(self) -> str:
        """Return the processes."""
        return PROCESSES


class Stops:
    """The stops among steps, by process: each step is read once, however many processes are asked about.

    A step that cannot be read stops nothing.
    """

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self._steps = steps
        self._found: dict[ProcessIdentity, list[Freeze]] = {}
        for one in steps:
            with contextlib.suppress(HostError):
                operation = read(one.do)
                if isinstance(operation, Freeze):
                    self._found.setdefault(operation.process, []).append(operation)

    def of(self, process: ProcessIdentity) -> Sequence[Freeze]:
        """Return the operations that stop this very process."""
        return self._found.get(process, ())

    def wanted(self, process: ProcessIdentity) -> bool:
        """Return whether a fault that found the process running wants it stopped."""
        return any(not freeze.leave for freeze in self.of(process))

    def among(self, steps: Sequence[Step]) -> Stops:
        """Return the stops among those steps: these if they are the same, which cannot have changed."""
        return self if steps is self._steps and isinstance(steps, tuple) else Stops(steps)


class _Known:
    """The stops of other workers, as they were read last."""

    def __init__(self, _: Node) -> None:
        self.stops = Stops()


def _stops(on: Node, held: Sequence[Step]) -> Stops:
    """Return the stops of other workers; within one prepare or undo they are read once."""
    known = on.memory(_Known)
    stops = known.stops = known.stops.among(held)  # lanes call this at the same time
    return stops


def _stop(process: ProcessIdentity, name: str, watch: Watch | None) -> Step:
    """Return the stop of a process that runs: its undo lets it run, whatever it did before the fault."""
    return step(Freeze(process, name, leave=False, watch=watch), Thaw(process, name, leave=False))


def _running(found: Sequence[processes.Process]) -> Sequence[processes.Process]:
    return [process for process in found if not signals.is_stopped(process.identity)]
