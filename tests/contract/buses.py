"""The buses that the contract suite runs on, and ends that remember what they got."""

from __future__ import annotations

import itertools
import random
import secrets
import socket
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import async_wait_until
from trogdor_bus.bus import AgentBus, Answer, ClientBus, CoordinatorBus, MonitorBus
from trogdor_bus.transports import several, transport

ZMQ_PORTS = 4
KINDS = (
    "memory",
    "zmq",
    "zmq-curve",
    "fan",
    "fan-mixed",
    "fan-elsewhere",
    pytest.param("kafka", marks=pytest.mark.kafka),
    pytest.param("kafka-sealed", marks=[pytest.mark.kafka, pytest.mark.core]),
    pytest.param("kafka+zmq", marks=pytest.mark.kafka),
)
_names = itertools.count()


def free_ports() -> int:
    """Return the first of four TCP ports in a row that are free on loopback now, none of them ephemeral."""
    while True:
        base = random.randrange(10_000, 32_000)
        with ExitStack() as stack:
            try:
                for port in range(base, base + ZMQ_PORTS):
                    stack.enter_context(closing(socket.socket())).bind(("127.0.0.1", port))
            except OSError:
                continue
            return base


@dataclass(frozen=True)
class Bus:
    """One bus to test: where it is and which keys it uses; `seat` is where the coordinator of several links is."""

    url: str
    keys: Path | None = None
    impatience_s: float = 0.3
    """A client that gives up so soon has asked, though nobody had time to answer."""
    seat: str = ""

    def coordinator(self) -> CoordinatorBus:
        if self.seat:
            return several().open_coordinator(self.seat, self.keys)
        return transport(self.url).open_coordinator(self.url, self.keys)

    def agent(self, node: str) -> AgentBus:
        return transport(self.url).open_agent(self.url, node, self.keys)

    def client(self) -> ClientBus:
        return transport(self.url).open_client(self.url, self.keys)

    def monitor(self) -> MonitorBus:
        return transport(self.url).open_monitor(self.url, self.keys)


def make_bus(kind: str, directory: Path, bootstrap: str = "") -> Bus:
    """Return a bus of that kind that nobody else uses; Kafka's kinds need brokers."""
    if kind == "memory":
        return Bus(memory_url())
    if kind == "fan":
        return Bus(f"{memory_url()} {memory_url()}")
    if kind == "fan-mixed":
        return Bus(f"{memory_url()} zmq://127.0.0.1:{free_ports()}")
    if kind == "fan-elsewhere":  # two addresses, of which one is nobody's
        seat = f"zmq://127.0.0.1:{free_ports()}"
        return Bus(f"zmq://127.0.0.1:{free_ports()} {seat}", seat=seat)
    keys = None
    if kind in ("zmq-curve", "kafka-sealed", "kafka+zmq"):
        from trogdor_bus.keys import ensure
        from trogdor_bus.transports.zmq import new_key_pair

        keys = directory / "keys"
        ensure(keys, new_key_pair)
    if kind.startswith("kafka"):
        kafka = f"kafka://{bootstrap}/test-{secrets.token_hex(4)}"
        both = f"{kafka} zmq://127.0.0.1:{free_ports()}"
        return Bus(both if kind == "kafka+zmq" else kafka, keys, impatience_s=2.0)
    return Bus(f"zmq://127.0.0.1:{free_ports()}", keys)


def memory_url() -> str:
    """Return the URL of a bus inside this process that nobody else uses."""
    return f"memory://test-{next(_names)}"


class Coordinator:
    """A coordinator that remembers what it got and echoes requests, except those in `mute`."""

    def __init__(self, bus: Bus) -> None:
        self.beats: list[bytes] = []
        self.requests: list[bytes] = []
        self.answers: dict[bytes, Answer] = {}
        self.mute: set[bytes] = set()
        self.bus = bus.coordinator()
        self.bus.receive(self.beats.append, self._on_request)

    def _on_request(self, frame: bytes, answer: Answer) -> None:
        self.requests.append(frame)
        self.answers[frame] = answer
        if frame not in self.mute:
            answer(b"echo " + frame)


class Agent:
    """An agent that remembers what it got."""

    def __init__(self, bus: Bus, node: str) -> None:
        self.node = node
        self.snapshots: list[bytes] = []
        self.bus = bus.agent(node)
        self.bus.receive(self.snapshots.append)


class Monitor:
    """A monitor that remembers what it got."""

    def __init__(self, bus: Bus) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.bus = bus.monitor()
        self.bus.receive(lambda topic, frame: self.seen.append((topic, frame)))


async def reach(coordinator: Coordinator, agent: Agent, frame: bytes) -> None:
    """Publish the frame again and again until the agent has it."""

    def reached() -> bool:
        coordinator.bus.publish(agent.node, frame)
        return frame in agent.snapshots

    await async_wait_until(reached, what=f"frame to {agent.node!r} (trouble: {agent.bus.trouble()!r})")


async def be_heard(agent: Agent, coordinator: Coordinator, frame: bytes) -> None:
    """Send the frame again and again until the coordinator has it."""

    def heard() -> bool:
        agent.bus.send(frame)
        return frame in coordinator.beats

    await async_wait_until(heard, what=f"frame from {agent.node!r} (trouble: {agent.bus.trouble()!r})")


async def be_seen(coordinator: Coordinator, monitor: Monitor, topic: str, frame: bytes) -> None:
    """Announce the frame again and again until the monitor has it."""

    def seen() -> bool:
        coordinator.bus.announce(topic, frame)
        return (topic, frame) in monitor.seen

    await async_wait_until(seen, what=f"announcement of {topic!r}")
