"""A performer with its simulated machine and disk."""

from __future__ import annotations

from random import Random

from tests.agents.inline import Inline
from tests.agents.model import Machine, order
from tests.agents.simdisk import SimDisk
from trogdor_bus.agents.journal import Entry, Journal
from trogdor_bus.platform import Surroundings

AROUND = Surroundings()


class Agent:
    """A performer with its simulated machine and disk; the pauses between attempts are counted, not slept."""

    def __init__(self, machine: Machine | None = None) -> None:
        self.disk = SimDisk(Random(7))
        self.machine = machine or Machine()
        self.machine.points = self.disk.points
        self.pauses: list[float] = []
        self.start()

    def start(self) -> None:
        self.journal = Journal(self.disk)
        self.performer = Inline(self.journal, self.machine, self.pauses.append)

    def inject(self, worker: int = 1) -> tuple[str, ...]:
        return self.performer.inject(order(worker), 99, AROUND)

    def on_disk(self, worker: int = 1) -> Entry:
        return Journal.read_only(self.disk).entries[worker]
