"""The port to the bus: frames between names. A transport knows bytes and names, never specs.

Nothing here promises delivery: frames may be lost, doubled, late or reordered, and the protocol lives with that.
Every end belongs to one asyncio loop; `receive` begins to deliver frames by calling back in that loop, one at a time.
`send`, `publish` and `announce` never block: what cannot be queued is dropped, the next beat repeats it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from trogdor_bus.platform import Endpoint

MAX_FRAME_BYTES = 8 << 20
"""No transport carries a larger frame: it is dropped, and said so in the log."""

OnFrame = Callable[[bytes], None]
Answer = Callable[[bytes], None]
OnRequest = Callable[[bytes, Answer], None]
OnTopic = Callable[[str, bytes], None]


class BusBroker(msgspec.Struct, frozen=True, kw_only=True):
    """One Kafka broker as its cluster advertises it; `addresses` are those of `host`, () if it cannot be resolved."""

    id: int
    host: str
    port: int
    addresses: tuple[str, ...] = ()


class BusBrokers(msgspec.Struct, frozen=True, kw_only=True):
    """The Kafka cluster that carries the bus, and what its topics need.

    `brokers` are those that are up, () while nothing is known. `replicas` are the replica sets of the bus's
    partitions, each set once (() = unknown), and `min_in_sync` how many of a set must be in sync. `quorum` are the ids
    of the controllers; () = unknown, as the brokers themselves.
    """

    brokers: tuple[BusBroker, ...] = ()
    replicas: tuple[tuple[int, ...], ...] = ()
    min_in_sync: int = 1
    quorum: tuple[int, ...] = ()


class CoordinatorBus(Protocol):
    """The coordinator's end."""

    def receive(self, on_beat: OnFrame, on_request: OnRequest) -> None:
        """Begin to deliver the agents' frames, and clients' requests with the way to answer each (once)."""
        ...

    def brokers(self) -> BusBrokers | None:
        """Return the Kafka cluster without which the bus is silent, as last seen; None if it does not hang on one."""
        ...

    def publish(self, node: str, frame: bytes) -> None:
        """Send a frame to whoever listens under that node name."""
        ...

    def announce(self, topic: str, frame: bytes) -> None:
        """Send a frame about `topic` to every monitor."""
        ...

    def links(self) -> dict[str, dict[str, bool]]:
        """Return, by node, the name of each link to its agent and whether it is alive; {} where there is one link."""
        ...

    def close(self) -> None:
        """Send what is queued (bounded in time) and let go of everything."""
        ...


class AgentBus(Protocol):
    """An agent's end."""

    def receive(self, on_snapshot: OnFrame) -> None:
        """Begin to deliver frames published to this node's name."""
        ...

    def send(self, frame: bytes) -> None:
        """Send a frame to the coordinator."""
        ...

    def control(self) -> tuple[Endpoint, ...]:
        """Return the addresses and TCP ports of the control traffic, which no fault of ours may cut."""
        ...

    def trouble(self) -> str:
        """Return "" or what the transport knows about why nobody answers."""
        ...

    def close(self) -> None:
        """Send what is queued (bounded in time) and let go of everything."""
        ...


class ClientBus(Protocol):
    """A client's end."""

    async def request(self, frame: bytes, timeout_s: float) -> bytes:
        """Return the answer; NoCoordinatorError if there is none in time."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class MonitorBus(Protocol):
    """A monitor's end."""

    def receive(self, on_topic: OnTopic) -> None:
        """Begin to deliver (topic, frame) of everything that is announced."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class StateLog(Protocol):
    """A log of (key, value) on other machines, compacted by key: where a coordinator's state outlives its machine."""

    def append(self, key: str, value: bytes) -> None:
        """Put a value after all before it, b"" to remove the key; never blocks, and goes on trying while cut off."""
        ...

    def unwritten(self) -> int:
        """Return how many of the appended values are not known to be kept yet, 0 if the log holds everything."""
        ...

    def read(self, timeout_s: float) -> dict[str, bytes]:
        """Return the newest value of each key, all that is in the log now; blocks; BusError if it cannot be read."""
        ...

    def close(self) -> None:
        """Write what is queued (bounded in time) and let go of everything."""
        ...
