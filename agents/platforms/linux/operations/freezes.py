"""Freezing processes: each stands still until it is let go, unless another fault still wants it so."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
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
        if self.watch is not None:
            on.memory(_Stands).begin(self.watch, self.process)

    def holds(self, on: Node) -> Seen:
        """Return whether it stands; it is unsure where others may have taken its place, or were just being started."""
        states = processes.thread_states(self.process)
        disturbance = signals.frozen_disturbance(self, states)
        if self.watch is not None and (not states or (not disturbance and self._last(on) is not None)):
            return Seen(unsure=True)
        return Seen(disturbance)

    def watched(self) -> Watch | None:
        """Return the watch."""
        return self.watch

    def watching(self, on: Node) -> Watch | None:
        """Return the watch also of the process that stood last, as long as no search has shown that none got away."""
        if last := self._last(on):
            last.searched = True
            return self.watch
        return super().watching(on)

    def met(self, on: Node, found: Sequence[processes.Process]) -> Seen:
        """Return who runs in the place of a process that ended, or was started before the last one stood."""
        states = processes.thread_states(self.process)
        running = self._meant(on, found, states)
        if not states:
            if running:
                return Seen(f"{signals.called(self)} was replaced: {newcomers.named(running)} runs")
            return Seen() if found else Seen(signals.frozen_disturbance(self, states))
        if running:
            return Seen(f"started while the others were being stopped, and running: {newcomers.named(running)}")
        if (last := self._last(on)) and last.searched:
            last.over = True
        return Seen(signals.frozen_disturbance(self, states))

    def again(self, on: Node, step: Step, around: Surroundings) -> tuple[Step, ...]:
        """Return the stop of the process, if it runs, and those of who took its place, or got away."""
        states = processes.thread_states(self.process)
        ours = states and signals.frozen_disturbance(self, states)
        found = self._meant(on, self.newer(on, around), states)
        stops = (_stop(process.identity, process.name, self.watch) for process in found)
        return (*((_stop(self.process, self.name, self.watch),) if ours else ()), *stops)

    def _last(self, on: Node) -> _Last | None:
        """Return what is known of it if it is the one that stood last, and it is not yet known that none got away."""
        return on.memory(_Stands).last(self.watch, self.process)

    def _meant(
        self, on: Node, found: Sequence[processes.Process], states: Mapping[int, str]
    ) -> Sequence[processes.Process]:
        """Return those newcomers that run: if it lives, only who was there when it stood, for then it starts nobody."""
        last = self._last(on)
        return [
            process
            for process in found
            if not signals.is_stopped(process.identity)
            and (not states or (last is not None and process.identity.start_ticks <= last.ticks))
        ]


class Thaw(Operation, frozen=True, tag="thaw"):
    """Let a process run again, unless `leave`."""

    process: ProcessIdentity
    name: str
    leave: bool

    def undo(self, on: Node, do: Operation, held: Sequence[Step], note: Note) -> str:
        """Let it run, and see that it does; a note says why it stays stopped, or that it is gone."""
        if isinstance(do, Freeze):
            on.memory(_Stands).forget(do.watch)
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


class _Last:
    """The process of a watch that stood last, and when: whoever it had started until then may have got away.

    `searched`: a search for them began since; it is `over` when that found none.
    """

    def __init__(self, process: ProcessIdentity) -> None:
        self.process, self.ticks = process, processes.now_ticks()
        self.searched = self.over = False


class _Stands:
    """Who stood last, by the watch that those of one fault have in common. Lanes ask at the same time."""

    def __init__(self, _: Node) -> None:
        self._last: dict[Watch, _Last] = {}

    def begin(self, watch: Watch, process: ProcessIdentity) -> None:
        """Note that this one stands now."""
        self._last[watch] = _Last(process)

    def last(self, watch: Watch | None, process: ProcessIdentity) -> _Last | None:
        """Return what is known of this one, if it stood last, and that is not over."""
        last = self._last.get(watch) if watch is not None else None
        return last if last is not None and last.process == process and not last.over else None

    def forget(self, watch: Watch | None) -> None:
        """Forget who stood last."""
        if watch is not None:
            self._last.pop(watch, None)


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
