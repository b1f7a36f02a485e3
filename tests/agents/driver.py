"""An agent's machine with a clock, and a coordinator that says what it is told to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from trogdor_bus.agents.events import (
    Effect,
    Event,
    Heal,
    Injected,
    SendBeat,
    SnapshotHeard,
    Ticked,
)
from trogdor_bus.agents.machine import (
    AgentMachine,
    Limits,
)
from trogdor_bus.agents.worker import Worker
from trogdor_bus.messages import Beat, Echo, Order, Report, Snapshot, Stamp, decode, encode
from trogdor_bus.spec import Texts
from trogdor_bus.states import WorkerState

TEXTS = Texts("starting it", "it runs", "stopping it", "it is over")


def order(worker: int = 1, *, remaining_ms: int = 10_000, journal: str = "j1", **fields: Any) -> Order:
    given: dict[str, Any] = {"task": f"t{worker}", "texts": TEXTS, "actions": (), "duration_ms": remaining_ms, **fields}
    return Order(worker=worker, journal=journal, remaining_ms=remaining_ms, **given)


class Agent:
    """A machine with a clock, and a coordinator that says what it is told to say."""

    def __init__(self, *workers: Worker, latch: str = "", **limits: Any) -> None:
        self.now = 100_000
        self.revision = 0
        self.machine = AgentMachine("n1", "j1", 3, workers, Limits(**limits), now_ms=self.now, latch=latch)
        self.beats: list[Beat] = []
        self.due: dict[int, int] = {}
        self.give(Ticked())

    def give(self, event: Event) -> list[Effect]:
        """Give an event; return the effects other than beats, which are kept, and when undos are due, as is that."""
        effects: list[Effect] = []
        for effect in self.machine.handle(event, self.now):
            if isinstance(effect, SendBeat):
                self.beats.append(effect.beat)
            elif isinstance(effect, Heal):
                self.due[effect.worker] = effect.due_ms
                effects.append(msgspec.structs.replace(effect, due_ms=0))
            else:
                effects.append(effect)
        return effects

    def after(self, ms: int) -> list[Effect]:
        """Let time pass in one step, then tick."""
        self.now += ms
        return self.give(Ticked())

    def pass_(self, ms: int) -> list[Effect]:
        """Let time pass, ticking whenever it is due."""
        end, effects = self.now + ms, []
        while self.machine.deadline() <= end:
            self.now = max(self.now, self.machine.deadline())
            effects += self.give(Ticked())
        self.now = end
        return effects

    def hear(self, *orders: Order, stamp: Stamp | None = None, echo: Echo | None = None, **fields: Any) -> list[Effect]:
        """Hear a new word that answers the last beat, unless told otherwise."""
        self.revision += 1
        stamp = stamp or Stamp(1, "c1", self.revision)
        echo = echo or Echo("j1", self.beats[-1].counter)
        return self.take(Snapshot(node="n1", stamp=stamp, echo=echo, orders=orders, **fields))

    def hear_skewed(self, skew: Callable[[Any], None], *orders: Order, **fields: Any) -> list[Effect]:
        """Hear a new word whose JSON a coordinator of another version wrote, which `skew` stands in for."""
        self.revision += 1
        stamp, echo = Stamp(1, "c1", self.revision), Echo("j1", self.beats[-1].counter)
        return self.take(Snapshot(node="n1", stamp=stamp, echo=echo, orders=orders, **fields), skew)

    def take(self, snapshot: Snapshot, skew: Callable[[Any], None] = lambda frame: None) -> list[Effect]:
        """Take in a frame."""
        frame = msgspec.json.decode(encode(snapshot))
        skew(frame)
        return self.give(SnapshotHeard(decode(msgspec.json.encode(frame), Snapshot)))

    def run(self, worker: int = 1, **fields: Any) -> Worker:
        """Order a worker, and let it be injected."""
        assert self.hear(order(worker, **fields)) != []
        self.give(Injected(worker))
        assert self.worker(worker).state is WorkerState.RUNNING
        return self.worker(worker)

    def worker(self, worker: int = 1) -> Worker:
        return self.machine.workers[worker]

    def report(self, worker: int = 1) -> Report:
        return next(report for report in self.beats[-1].reports if report.worker == worker)
