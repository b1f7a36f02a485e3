"""What one event leads to, gathered while it is handled."""

from __future__ import annotations

from trogdor_bus.coordinator.changes import Change
from trogdor_bus.coordinator.events import EndExperiment, Exit, LookAtCluster, StartExperiment

Order = LookAtCluster | StartExperiment | EndExperiment


class Turn:
    """It begins empty at each event, whatever became of the one before.

    `changes` must be stored before anything else happens. `changed` are the nodes of which something else is wanted
    now, `answer` those that are to be told again what is wanted of them. Times are epoch ms.
    """

    def __init__(self, now_ms: int) -> None:
        self.begin(now_ms)

    def begin(self, now_ms: int) -> None:
        """Begin with the next event."""
        self.now_ms = now_ms
        self.changes: list[Change] = []
        self.orders: list[Order] = []
        self.exits: list[Exit] = []
        self.changed: set[str] = set()
        self.answer: set[str] = set()
