"""A performer whose jobs are done here and now, one call after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from trogdor_bus.actions import Peer
from trogdor_bus.agents.events import ReadBack
from trogdor_bus.agents.hands import Hands
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.lanes import run
from trogdor_bus.agents.perform import Performer
from trogdor_bus.messages import Order
from trogdor_bus.platform import Platform, Surroundings
from trogdor_bus.states import Outcome


class Inline:
    """See `Performer`, whose methods these are; `sleep` is called for its pauses."""

    def __init__(
        self,
        journal: Journal,
        platform: Platform,
        sleep: Callable[[float], None] = time.sleep,
        kind: type[Performer] = Performer,
    ) -> None:
        self.journal, self._sleep = journal, sleep
        self.performer = kind(journal, platform, within=lambda seconds, work: work())

    @property
    def platform(self) -> Platform:
        return self.performer.platform

    @platform.setter
    def platform(self, platform: Platform) -> None:
        self.performer.platform, self.performer._hands = platform, Hands(platform)

    def inject(self, order: Order, ends_ms: int, surroundings: Surroundings) -> tuple[str, ...]:
        return run(self.performer.inject(order, ends_ms, surroundings), self._sleep)

    def heal(
        self,
        worker: int,
        outcome: Outcome,
        error: str,
        held_ms: int = 0,
        saw: Callable[[ReadBack], object] = lambda _: None,
    ) -> tuple[str, ...]:
        return run(self.performer.heal(worker, outcome, error, held_ms, saw=saw), self._sleep)

    def recover(self, *, wait: bool = False) -> tuple[str, ...]:
        return run(self.performer.recover(wait=wait), self._sleep)

    def look(self, worker: int) -> ReadBack:
        return run(self.performer.look(worker), self._sleep)

    def look_again(self, workers: Sequence[int]) -> tuple[str, ...]:
        return run(self.performer.look_again(workers), self._sleep)

    def reapply(self, worker: int, drift: tuple[Peer, ...] = ()) -> ReadBack:
        return run(self.performer.reapply(worker, drift), self._sleep)

    def by_hand(self, worker: int) -> tuple[str, ...]:
        return run(self.performer.by_hand(worker), self._sleep)

    def forget(self, worker: int) -> None:
        run(self.performer.forget(worker), self._sleep)
