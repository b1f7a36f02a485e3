"""The one way out of a coordinator: a single stream of numbered events, to which whoever wants to know subscribes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trogdor_bus.coordinator.changes import AppendEvent, Change
from trogdor_bus.messages import AnyEvent

Keep = Callable[[Sequence[Change]], None]
Hear = Callable[[AnyEvent], None]


class EventHub:
    """What was decided at once goes to those who keep it, then its events, in order, to each who hears.

    Whoever keeps and cannot raises a TrogdorBusError: then nobody hears of it.
    """

    def __init__(self) -> None:
        self._keepers: list[Keep] = []
        self._hearers: list[Hear] = []

    def keep(self, keep: Keep) -> None:
        """Let somebody keep all that changes from now on, before anybody hears of it; the first one is first."""
        self._keepers.append(keep)

    def subscribe(self, hear: Hear) -> Callable[[], None]:
        """Let somebody hear every event from now on; return what ends that."""
        self._hearers.append(hear)
        return lambda: self._hearers.remove(hear) if hear in self._hearers else None

    def publish(self, changes: Sequence[Change]) -> None:
        """Have what was decided at once kept, then heard."""
        if changes:
            for keep in self._keepers:
                keep(changes)
        for change in changes:
            if isinstance(change, AppendEvent):
                for hear in tuple(self._hearers):
                    hear(change.event)
