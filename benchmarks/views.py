"""What each monitor hears: bytes a second, idle and while states change, beside the least that could tell of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.bus import free_ports
from benchmarks.results import Aim, Result, Table, ms, ratio
from trogdor_bus.bus import Answer
from trogdor_bus.client import Client
from trogdor_bus.coordinator.commands import Commands, answer
from trogdor_bus.coordinator.core import CoordinatorCore
from trogdor_bus.coordinator.events import CreateRequested
from trogdor_bus.coordinator.fleet import Fleet
from trogdor_bus.coordinator.machine import CoordinatorMachine
from trogdor_bus.coordinator.place import Limits, Place
from trogdor_bus.coordinator.store import Store
from trogdor_bus.errors import HostError
from trogdor_bus.faults.noop import NoOpTaskSpec
from trogdor_bus.messages import EVENT_TOPIC, VIEW_TOPIC, AnyEvent, Beat, Pulse, Report, decode, encode
from trogdor_bus.mirror import Mirror
from trogdor_bus.spec import wire
from trogdor_bus.states import WorkerState
from trogdor_bus.transports import transport

MIB = 1 << 20
TASKS, CHANGES, SECONDS = 20, 100, 3
NODES, QUICK_NODES = 5_000, 500
START_MS = 1_700_000_000_000
ROUND_S = 30.0


def measure(*, quick: bool) -> Result:
    """Return the table for idle time and for changes."""
    nodes = QUICK_NODES if quick else NODES
    table = Table(
        title=f"Views: what each monitor hears of {nodes:,} nodes with {TASKS} tasks each (bytes a second)",
        columns=("", "bytes/s", "floor", "ratio", "whole views"),
        notes=(
            "Us: the coordinator's core with its machine and SQLite store, its bus on ZeroMQ without CURVE, and a "
            f"monitor that keeps a view by what it hears; a second of the coordinator's clock is a beat of each node. "
            f"Changes: {CHANGES} workers say something new each second. Bytes are of frames and topics, without those "
            "of ZMTP, TCP and IP. After each second the monitor's view has the digest of the coordinator's.",
            "Floor: a JSON array of the worker's id and its new status per change, and each second the number of the "
            "newest one. Whole views: everything each second, as versions before this one sent it.",
        ),
    )
    result = Result(table=table)
    figures = asyncio.run(_measured(nodes, SECONDS))
    result.figures = figures
    for name, text in (("idle", "idle"), ("changing", f"{CHANGES} changes a second")):
        us, floor = figures[name]["bytes_per_s"], figures[name]["floor_bytes_per_s"]
        cells = (text, f"{us:,.0f}", f"{floor:,.0f}", ratio(us, floor), f"{figures['whole_bytes']:,.0f}")
        table.rows.append(cells)
        if nodes == NODES:
            result.aims.append(Aim(f"at most 1 MiB/s to each monitor, {text}", f"{us / MIB:.3f} MiB/s", us <= MIB))
    table.notes += (
        f"The whole view, when a monitor begins: {figures['whole_bytes'] / MIB:.1f} MiB in {figures['pages']} pages, "
        f"{ms(figures['whole_s'])} ms.",
    )
    return result


class Crowd:
    """Agents that say what they are told to say, and their coordinator on a bus; its clock goes as it is told."""

    def __init__(self, nodes: int, directory: Path, url: str) -> None:
        self.now_ms = START_MS
        self.names = [f"node{number:05d}.example.org" for number in range(nodes)]
        self.status: dict[str, str] = {}
        self.counter = 0
        self.store = Store(directory)
        self.bus = transport(url).open_coordinator(url, None)
        machine = CoordinatorMachine(
            self.store.load(), Fleet(None, 1_000), Place(me="c"), Limits(beat_ms=1_000, lease_ms=30_000), self.now_ms
        )
        self.machine = machine
        self.core = CoordinatorCore(
            machine,
            self.store,
            self,
            lambda: self.now_ms,
            soon=lambda flush: None,
            follow=lambda changes: None,
            look=lambda order: None,
            ended=_ended,
            shutdown=lambda: None,
            behind_ms=None,
            fed=lambda: None,
            broken=_broken,
        )
        self.told = False
        self._beside: set[asyncio.Task[None]] = set()
        self.commands = Commands(self.core.api, look=_unasked, told=_unasked)
        self.bus.receive(lambda frame: None, lambda frame, reply: self.soon(self._answer(frame, reply)))

    def soon(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done beside, and wait for it at the end."""
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _answer(self, frame: bytes, reply: Answer) -> None:
        reply(await answer(self.commands, frame))

    def publish(self, node: str, frame: bytes) -> None:
        """Nobody needs the orders here."""

    def announce(self, topic: str, frame: bytes) -> None:
        """Tell monitors, once somebody listens."""
        if self.told:
            self.bus.announce(topic, frame)

    def settle(self) -> None:
        """Let all nodes join, the coordinator lead, and every worker of every task run."""
        for _ in range(3):
            self.second()
        spec = NoOpTaskSpec(duration_ms=3_600_000)
        for number in range(TASKS):
            self.core.feed(CreateRequested(f"task{number:02d}", spec, wire(spec)))
        self.second()

    def second(self, changing: int = 0) -> list[tuple[int, str]]:
        """Let a second pass, in which each node beats; return the workers that said something new, and what."""
        self.now_ms += 1_000
        self.counter += 1
        changed = []
        for name in self.names:
            workers = self.machine.fleet.nodes[name].open if name in self.machine.fleet.nodes else {}
            if changing:
                changing -= 1
                self.status[name] = f"moved {self.counter} of 100 partitions"
                changed.append((next(iter(workers)), self.status[name]))
            self.core.hear(encode(self._beat(name, workers)))
            self.core.flush()
        self.core.tick()
        return changed

    def _beat(self, name: str, workers: dict[int, str]) -> Beat:
        first = next(iter(workers), None)
        reports = tuple(
            Report(
                worker=worker,
                task=task,
                state=WorkerState.RUNNING,
                status=self.status.get(name, "active") if worker == first else "active",
                remaining_ms=3_000_000,
            )
            for worker, task in workers.items()
        )
        return Beat(node=name, journal=f"j-{name}", counter=self.counter, reports=reports)


class Ear:
    """A monitor that counts what it hears, and keeps a view of it."""

    def __init__(self) -> None:
        self.bytes, self.mirror, self.agrees_ms = 0, Mirror(), -1

    def hear(self, topic: str, frame: bytes) -> None:
        """Take in one frame."""
        self.bytes += len(topic) + len(frame)
        if topic == EVENT_TOPIC:
            self.mirror.hear(decode(frame, AnyEvent))
        elif topic == VIEW_TOPIC:
            pulse = decode(frame, Pulse)
            if self.mirror.beat(pulse):
                self.agrees_ms = pulse.at_ms


async def _measured(nodes: int, seconds: int) -> dict[str, Any]:
    url = f"zmq://127.0.0.1:{free_ports()}"
    with tempfile.TemporaryDirectory(prefix="trogdor-bus-bench-") as name, _crowd(nodes, Path(name), url) as crowd:
        crowd.settle()
        ear, monitor = Ear(), transport(url).open_monitor(url, None)
        try:
            monitor.receive(ear.hear)
            async with Client(transport(url).open_client(url, None), url, timeout_s=ROUND_S) as client:
                return await _rates(crowd, ear, client, seconds)
        finally:
            monitor.close()


@contextlib.contextmanager
def _crowd(nodes: int, directory: Path, url: str) -> Iterator[Crowd]:
    crowd = Crowd(nodes, directory, url)
    try:
        yield crowd
    finally:
        crowd.bus.close()
        crowd.store.close()


async def _rates(crowd: Crowd, ear: Ear, client: Client, seconds: int) -> dict[str, Any]:
    crowd.told = True
    await _connected(crowd, ear)
    begun = time.perf_counter()
    found = await client.view()
    took_s = time.perf_counter() - begun
    ear.mirror.take(found)
    figures: dict[str, Any] = {}
    await _pass(crowd, ear, 0)
    for name, changing in (("idle", 0), ("changing", CHANGES)):
        before, floor = ear.bytes, 0
        for _ in range(seconds):
            floor += await _pass(crowd, ear, changing)
        ours = (ear.bytes - before) / seconds
        figures[name] = {"bytes_per_s": round(ours), "floor_bytes_per_s": round(floor / seconds)}
    return figures | {"whole_bytes": len(encode(ear.mirror.world())), "pages": len(found), "whole_s": took_s}


async def _connected(crowd: Crowd, ear: Ear) -> None:
    deadline = time.monotonic() + ROUND_S
    while not ear.bytes:
        if time.monotonic() > deadline:
            raise HostError(f"the monitor heard nothing within {ROUND_S:g} s")
        crowd.core.beat()
        await asyncio.sleep(0.05)


async def _pass(crowd: Crowd, ear: Ear, changing: int) -> int:
    """Let a second pass, and the monitor hear of it; return the bytes of the least that could tell of it."""
    changed = crowd.second(changing)
    crowd.core.beat()
    deadline = time.monotonic() + ROUND_S
    while ear.agrees_ms != crowd.now_ms:
        if time.monotonic() > deadline:
            raise HostError(f"the monitor's view is not that of the coordinator after {ROUND_S:g} s")
        await asyncio.sleep(0.002)
    least = [json.dumps(change, separators=(",", ":")) for change in changed]
    return sum(map(len, least)) + len(json.dumps([crowd.machine.view.seq]))


async def _unasked(*_: object) -> NoReturn:
    raise HostError("nobody asks that here")


def _ended(reason: str, fenced: bool) -> None:
    raise HostError(reason)


def _broken(error: Exception) -> None:
    raise error
