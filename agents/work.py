"""What an agent's machine asks for that touches the node or the disk, as jobs that are done in lanes."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from trogdor_bus.agents.events import (
    Event,
    Forget,
    Heal,
    Healed,
    Inject,
    Injected,
    KeepLatch,
    LatchKept,
    Look,
    Looked,
    NotHealed,
    NotInjected,
    NotYet,
    ReadBack,
    Reapplied,
    Reapply,
)
from trogdor_bus.agents.lanes import All, Job
from trogdor_bus.agents.perform import NotInjectedError, Performer
from trogdor_bus.errors import CannotHealError, HostError, NotYetError, TrogdorBusError
from trogdor_bus.platform import Endpoint, Surroundings
from trogdor_bus.states import Outcome

log = logging.getLogger("trogdor_bus.agents")
Chore = Inject | Heal | Look | Reapply | KeepLatch | Forget


class Work:
    """The jobs of an agent's chores. `control` tells what no fault may cut, `directory` is where the journal is."""

    def __init__(
        self, performer: Performer, control: Callable[[], tuple[Endpoint, ...]] = tuple, directory: Path = Path()
    ) -> None:
        self._performer, self._journal = performer, performer.journal
        self._control, self._directory = control, directory

    def jobs(self, chore: Chore) -> Iterator[tuple[Job[Event | None], Hashable]]:
        """Yield jobs that do a chore, each with the key of those that must come one after the other.

        A job returns what came of it, None for what is not told; it raises for nothing that can be foreseen.
        """
        match chore:
            case Inject():
                yield self._inject(chore), chore.order.worker
            case Heal():
                yield self._heal(chore), chore.worker
            case Look(workers=workers):
                for together in self._by_lanes(workers):
                    yield self._look(together), None
            case Reapply():
                yield self._reapply(chore), chore.worker
            case KeepLatch(id=latch):
                yield self._keep_latch(latch), "latch"
            case Forget(worker=worker):
                yield self._forget(worker), worker

    def look_at(self, name: str) -> tuple[str, ...]:
        """Return what a person would type about a file of the journal that cannot be read."""
        path = shlex.quote(str(self._directory / name))
        return (f"cat {path}  # look whether its fault is gone, or undo it; then: rm {path}",)

    def _by_lanes(self, workers: Iterable[int]) -> Iterable[Sequence[int]]:
        """Return the workers, those together that are looked at in the same lanes."""
        lanes: dict[frozenset[str], list[int]] = {}
        for worker in workers:
            lanes.setdefault(self._performer.lanes(worker), []).append(worker)
        return lanes.values()

    async def _look(self, workers: Sequence[int]) -> Event:
        seen = await All([partial(self._performer.look, worker) for worker in workers])
        return Looked({worker: one for worker, one in zip(workers, seen, strict=True) if isinstance(one, ReadBack)})

    async def _inject(self, effect: Inject) -> Event:
        order = effect.order
        surroundings = Surroundings(
            control=self._control(), coordinator=effect.coordinator, force=order.force, task=order.task
        )
        try:
            warnings = await self._performer.inject(order, effect.ends_ms, surroundings)
        except NotInjectedError as error:
            by_hand = await self._performer.by_hand(order.worker) if error.stuck else ()
            return NotInjected(order.worker, str(error), error.residue, by_hand, error.stuck)
        except NotYetError as error:
            return NotYet(order.worker, str(error), error.notes)
        return Injected(order.worker, warnings, self._journal.entries[order.worker].met_nothing)

    async def _heal(self, effect: Heal) -> Event:
        worker, seen = effect.worker, list[ReadBack]()
        if not self._journal.knows(worker):
            return Healed(worker, last=None)  # it was stopped before anything was written down
        try:
            notes = await self._performer.heal(
                worker, effect.outcome, effect.error, effect.held_ms, saw=seen.append, due_ms=effect.due_ms
            )
        except NotYetError as error:
            return NotYet(worker, str(error), error.notes, seen[0] if seen else None, error.overdue)
        except CannotHealError as error:
            entry = self._journal.entries.get(worker)
            residue, by_hand = entry.residue if entry else (), await self._performer.by_hand(worker)
            if name := self._journal.unreadable.get(worker):
                residue, by_hand = (f"{name} cannot be read",), self.look_at(name)
            return NotHealed(worker, str(error), residue, by_hand, seen[0] if seen else None)
        entry = self._journal.entries.get(worker)
        how = (entry.outcome, entry.error, entry.late_ms) if entry else (Outcome.NONE, "", 0)
        return Healed(worker, notes, seen[0] if seen else None, *how)

    async def _reapply(self, effect: Reapply) -> Event:
        try:
            after = await self._performer.reapply(effect.worker, effect.drift)
        except TrogdorBusError as error:
            return Reapplied(effect.worker, str(error))
        return Reapplied(effect.worker, after=after, blocked=effect.drift)

    async def _keep_latch(self, latch: str) -> Event:
        try:
            await self._performer.keep_latch(latch)
        except HostError as error:
            return LatchKept(latch, str(error))
        return LatchKept(latch)

    async def _forget(self, worker: int) -> None:
        if worker in self._journal.entries:
            try:
                await self._performer.forget(worker)
            except TrogdorBusError as error:
                log.warning("worker %d stays in the journal: %s", worker, error)
