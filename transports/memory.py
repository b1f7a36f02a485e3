"""The bus inside one process: for tests and the simulation, and for everything that runs in one process.

A `MemoryNetwork` holds frames until somebody advances its time: it loses, doubles, delays and (by different delays)
reorders them as its seeded `Random` says, and the same seed does the same again. By URL, `memory://NAME` is a network
of that name without any loss, which delivers in the running asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from random import Random
from typing import TypeVar, cast
from urllib.parse import urlsplit

from trogdor_bus.bus import MAX_FRAME_BYTES, OnFrame, OnRequest, OnTopic
from trogdor_bus.errors import BusError, NoCoordinatorError, TakenError
from trogdor_bus.platform import Endpoint
from trogdor_bus.transports import memory_log

COORDINATOR = "coordinator"
CLIENT = "client"
MONITOR = "monitor"
MAX_QUEUED = 10_000
"""Frames on their way to one end; beyond that the oldest is lost."""

log = logging.getLogger(__name__)
Delivery = Callable[[], None]
End = TypeVar("End", bound="MemoryEnd")


class MemoryEnd:
    """What the four ends have in common: a name on the network, and frames on their way to it."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self.network, self.name = network, name
        self.incoming: dict[int, tuple[str, Delivery]] = {}
        self.closed = False
        network.join(self)

    def close(self) -> None:
        """Leave the network; what is on its way to here vanishes, what was sent from here still arrives."""
        if not self.closed:
            self.closed = True
            self.incoming.clear()
            self.network.leave(self)


class MemoryCoordinator(MemoryEnd):
    """The coordinator's end of a memory network."""

    on_beat: OnFrame | None = None
    on_request: OnRequest | None = None

    def receive(self, on_beat: OnFrame, on_request: OnRequest) -> None:
        """Begin to deliver; what arrived before is lost."""
        self.on_beat, self.on_request = on_beat, on_request

    def brokers(self) -> None:
        """Return None: no Kafka carries it."""

    def publish(self, node: str, frame: bytes) -> None:
        """Send a frame to every agent of that name."""
        for end in self.network.listening(MemoryAgent, node):
            self.network.send(self, end, frame, end.deliver)

    def announce(self, topic: str, frame: bytes) -> None:
        """Send a frame to every monitor."""
        for end in self.network.listening(MemoryMonitor, MONITOR):
            self.network.send(self, end, frame, partial(end.deliver, topic))

    def links(self) -> dict[str, dict[str, bool]]:
        """Return {}: there is one link."""
        return {}

    def deliver_beat(self, frame: bytes) -> None:
        """Hand over an agent's frame."""
        if self.on_beat is not None:
            self.on_beat(frame)

    def deliver_request(self, client: MemoryClient, number: int, frame: bytes) -> None:
        """Hand over a client's request with the way to answer it."""

        def answer(reply: bytes) -> None:
            self.network.send(self, client, reply, partial(client.deliver, number))

        if self.on_request is not None:
            self.on_request(frame, answer)


class MemoryAgent(MemoryEnd):
    """An agent's end of a memory network, under the name of its node."""

    on_snapshot: OnFrame | None = None

    def receive(self, on_snapshot: OnFrame) -> None:
        """Begin to deliver; what arrived before is lost."""
        self.on_snapshot = on_snapshot

    def send(self, frame: bytes) -> None:
        """Send a frame to every coordinator."""
        for end in self.network.listening(MemoryCoordinator, COORDINATOR):
            self.network.send(self, end, frame, end.deliver_beat)

    def control(self) -> tuple[Endpoint, ...]:
        """Return (): nothing travels over IP."""
        return ()

    def trouble(self) -> str:
        """Return "" or that there is no coordinator."""
        return "" if self.network.listening(MemoryCoordinator, COORDINATOR) else "no coordinator is on this network"

    def deliver(self, frame: bytes) -> None:
        """Hand over the coordinator's frame."""
        if self.on_snapshot is not None:
            self.on_snapshot(frame)


class MemoryClient(MemoryEnd):
    """A client's end of a memory network; `request` needs a running loop."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        super().__init__(network, name)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0

    async def request(self, frame: bytes, timeout_s: float) -> bytes:
        """Return the answer; NoCoordinatorError if there is none in time, BusError if the frame is too large."""
        if len(frame) > MAX_FRAME_BYTES:
            raise BusError(f"the request has {len(frame)} bytes, the bus carries at most {MAX_FRAME_BYTES}")
        self._number += 1
        number, future = self._number, asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        for end in self.network.listening(MemoryCoordinator, COORDINATOR):
            self.network.send(self, end, frame, partial(end.deliver_request, self, number))
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise NoCoordinatorError(f"no coordinator answered on the memory network within {timeout_s:g} s") from None
        finally:
            del self._waiting[number]

    def close(self) -> None:
        """Leave the network; requests still waiting end with BusError."""
        super().close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BusError("the bus was closed before the answer came"))

    def deliver(self, number: int, reply: bytes) -> None:
        """Hand over the answer to that request, if anybody still waits for it."""
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(reply)


class MemoryMonitor(MemoryEnd):
    """A monitor's end of a memory network."""

    on_topic: OnTopic | None = None

    def receive(self, on_topic: OnTopic) -> None:
        """Begin to deliver; what arrived before is lost."""
        self.on_topic = on_topic

    def deliver(self, topic: str, frame: bytes) -> None:
        """Hand over an announcement."""
        if self.on_topic is not None:
            self.on_topic(topic, frame)


class MemoryNetwork:
    """Frames between named ends, in the hands of a seeded `Random`; `advance` is its only clock.

    `loss` and `duplication` are probabilities per frame, `delay_ms` the least and the most that a frame takes; all may
    be changed at any time. Ends are called "coordinator", "client", "monitor", or as their node.
    """

    def __init__(
        self,
        random: Random,
        *,
        loss: float = 0.0,
        duplication: float = 0.0,
        delay_ms: tuple[int, int] = (0, 0),
    ) -> None:
        self.loss, self.duplication, self.delay_ms = loss, duplication, delay_ms
        self._ends: dict[tuple[type[MemoryEnd], str], list[MemoryEnd]] = {}
        self._random = random
        self._cuts: set[tuple[str, str]] = set()
        self._heap: list[tuple[int, int, MemoryEnd]] = []
        self._order = 0
        self._now_ms = 0

    def coordinator(self) -> MemoryCoordinator:
        """Return a new coordinator's end; several hear the same agents and reach the same agents."""
        return MemoryCoordinator(self, COORDINATOR)

    def agent(self, node: str) -> MemoryAgent:
        """Return a new agent's end; several under one name hear the same frames."""
        return MemoryAgent(self, node)

    def client(self) -> MemoryClient:
        """Return a new client's end."""
        return MemoryClient(self, CLIENT)

    def monitor(self) -> MemoryMonitor:
        """Return a new monitor's end."""
        return MemoryMonitor(self, MONITOR)

    def cut(self, src: str, dst: str) -> None:
        """Lose every frame from `src` to `dst`, those on their way included, until `heal`; the way back is not cut."""
        self._cuts.add((src, dst))

    def heal(self, src: str, dst: str) -> None:
        """End a cut."""
        self._cuts.discard((src, dst))

    def detach(self, name: str) -> None:
        """Let every end of that name crash: what is on its way to it vanishes, what it sent still arrives."""
        for end in [end for ends in self._ends.values() for end in ends if end.name == name]:
            end.close()

    def join(self, end: MemoryEnd) -> None:
        """Let an end listen under its name; its constructor does so."""
        self._ends.setdefault((type(end), end.name), []).append(end)

    def leave(self, end: MemoryEnd) -> None:
        """Let an end listen no more; its `close` does so."""
        self._ends[type(end), end.name].remove(end)

    def listening(self, kind: type[End], name: str) -> list[End]:
        """Return the ends of that kind and name, oldest first."""
        return cast(list[End], self._ends.get((kind, name), []))

    def send(self, src: MemoryEnd, dst: MemoryEnd, frame: bytes, deliver: OnFrame) -> None:
        """Put a frame on its way, or lose it, or double it."""
        if len(frame) > MAX_FRAME_BYTES:
            log.warning("dropped a frame of %d bytes from %s to %s: too large", len(frame), src.name, dst.name)
            return
        if src.closed or dst.closed or (src.name, dst.name) in self._cuts:
            return
        if self.loss and self._random.random() < self.loss:
            return
        self._queue(src, dst, lambda: deliver(frame))
        if self.duplication and self._random.random() < self.duplication:
            self._queue(src, dst, lambda: deliver(frame))

    def next_due_ms(self) -> int | None:
        """Return when the next frame is due, or None when nothing is on its way."""
        while self._heap and self._heap[0][1] not in self._heap[0][2].incoming:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def advance(self, now_ms: int) -> int:
        """Deliver all that is due, in order, and what it causes to be due; return how many frames were delivered.

        Frames sent from now on count their delay from `now_ms`.
        """
        self._now_ms = now_ms
        delivered = 0
        while self._heap and self._heap[0][0] <= now_ms:
            delivered += self._deliver_first()
        return delivered

    def _deliver_first(self) -> bool:
        """Take the first frame off the heap; return False if it was lost on its way."""
        _, order, dst = heappop(self._heap)
        src, deliver = dst.incoming.pop(order, ("", None))
        if deliver is None or (src, dst.name) in self._cuts:
            return False
        deliver()
        return True

    def _queue(self, src: MemoryEnd, dst: MemoryEnd, deliver: Delivery) -> None:
        least, most = self.delay_ms
        delay = least if most <= least else least + int(self._random.random() * (most - least + 1))
        self._order += 1
        if len(dst.incoming) >= MAX_QUEUED:
            del dst.incoming[next(iter(dst.incoming))]
        dst.incoming[self._order] = (src.name, deliver)
        heappush(self._heap, (self._now_ms + delay, self._order, dst))


class _LiveNetwork(MemoryNetwork):
    """A network without loss or delay that delivers in the running loop, one frame per turn."""

    def __init__(self, name: str) -> None:
        super().__init__(Random(0))  # noqa: S311 - never asked: nothing is lost here
        self.name = name

    def leave(self, end: MemoryEnd) -> None:
        super().leave(end)
        if not any(self._ends.values()):
            del _NETWORKS[self.name]

    def _queue(self, src: MemoryEnd, dst: MemoryEnd, deliver: Delivery) -> None:
        super()._queue(src, dst, deliver)
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        try:
            while self._heap and not self._deliver_first():
                pass
        except Exception:
            log.exception("a receiver on memory://%s failed; the frame is lost", self.name)


_NETWORKS: dict[str, _LiveNetwork] = {}


def _network(url: str) -> _LiveNetwork:
    name = urlsplit(url).netloc
    return _NETWORKS.setdefault(name, _LiveNetwork(name))


def open_coordinator(url: str, keys: Path | None) -> MemoryCoordinator:
    """Join the network of that name as its coordinator; TakenError if it has one."""
    network = _network(url)
    if network.listening(MemoryCoordinator, COORDINATOR):
        raise TakenError(f"{url} has another coordinator: close it first, or use another name")
    return network.coordinator()


def open_agent(url: str, node: str, keys: Path | None) -> MemoryAgent:
    """Join the network of that name as the agent of `node`."""
    return _network(url).agent(node)


def open_client(url: str, keys: Path | None) -> MemoryClient:
    """Join the network of that name as a client."""
    return _network(url).client()


def open_monitor(url: str, keys: Path | None) -> MemoryMonitor:
    """Join the network of that name as a monitor."""
    return _network(url).monitor()


open_log = memory_log.open_log
