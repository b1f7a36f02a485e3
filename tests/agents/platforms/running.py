"""A whole agent in this process: its loop, its journal, and a bus that carries what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NoReturn

from trogdor_bus.actions import Action
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.lanes import run
from trogdor_bus.agents.perform import Performer
from trogdor_bus.agents.service import Service
from trogdor_bus.bus import OnFrame
from trogdor_bus.config import AgentSettings
from trogdor_bus.fuse import Fuse
from trogdor_bus.messages import Beat, Echo, Order, Report, Snapshot, Stamp, decode, encode
from trogdor_bus.platform import Endpoint, Platform
from trogdor_bus.spec import Texts

TEXTS = Texts("starting it", "it runs", "stopping it", "it is over")


class Loud(Fuse):
    """Ends the test, not its process, at what nobody foresaw."""

    def blow(self, error: BaseException, about: str = "") -> NoReturn:
        raise error


class Bus:
    """The agent's end of a bus on which nobody is but the test."""

    def __init__(self) -> None:
        self.beats: list[Beat] = []
        self.tell: OnFrame = lambda _: None

    def receive(self, on_snapshot: OnFrame) -> None:
        self.tell = on_snapshot

    def send(self, frame: bytes) -> None:
        self.beats.append(decode(frame, Beat))

    def control(self) -> tuple[Endpoint, ...]:
        return ()

    def trouble(self) -> str:
        return ""

    def close(self) -> None:
        """Nothing is queued."""


class Running:
    """An agent that runs, and its coordinator."""

    def __init__(self, performer: Performer) -> None:
        self.performer = performer
        self.bus = Bus()
        self._orders: dict[int, Order] = {}
        self._revision = 0

    def order(self, worker: int, action: Action, lasts_ms: int) -> None:
        self._orders[worker] = Order(
            worker=worker,
            journal=self.performer.journal.id,
            task=f"t{worker}",
            texts=TEXTS,
            actions=(action,),
            duration_ms=lasts_ms,
            remaining_ms=lasts_ms,
            force=True,
        )
        self._tell()

    def stop(self, worker: int) -> None:
        del self._orders[worker]
        self._tell()

    def stop_all(self) -> None:
        self._orders.clear()
        self._tell()

    def report(self, worker: int) -> Report:
        return next(report for report in self.bus.beats[-1].reports if report.worker == worker)

    def says(self, worker: int) -> str:
        """Return its state and status, "" while it says nothing of the worker."""
        return next((f"{one.state}: {one.status}" for one in self.bus.beats[-1].reports if one.worker == worker), "")

    async def reports(self, worker: int, state: str, within_s: float = 20) -> Report:
        """Return what it says of a worker when it is in that state."""
        await until(
            lambda: any(one.worker == worker and one.state == state for one in self.bus.beats[-1].reports), within_s
        )
        return self.report(worker)

    def _tell(self) -> None:
        self._revision += 1
        echo = Echo(self.performer.journal.id, self.bus.beats[-1].counter)
        stamp = Stamp(1, "c1", self._revision)
        self.bus.tell(encode(Snapshot(node="n1", stamp=stamp, echo=echo, orders=tuple(self._orders.values()))))


async def until(true: Callable[[], object], within_s: float = 20) -> float:
    """Return how many seconds it took to come true."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s, "it does not come true"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


@contextlib.asynccontextmanager
async def running(platform: Platform, state: Path) -> AsyncIterator[Running]:
    """Run an agent; it has ended afterwards."""
    made = Running(Performer(Journal(FileDisk(state)), platform))
    run(made.performer.recover(), time.sleep)
    settings = AgentSettings(node="n1", url="test://", state_dir=state, keys=None, beat_ms=200)
    ending = asyncio.Event()
    agent = asyncio.create_task(Service(settings, made.performer, made.bus, Loud(state)).run(ending))
    try:
        await until(lambda: made.bus.beats or agent.done())
        yield made
    finally:
        ending.set()
        await agent
