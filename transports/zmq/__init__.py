"""The default bus: ZeroMQ over TCP, four ports of the coordinator in a row, everybody else only dials out.

    port      coordinator  others            what
    P         PUB          SUB (agents)      control: [`node/NAME/`, frame]
    P + 1     ROUTER       DEALER (agents)   status: [frame]
    P + 2     PUB          SUB (monitors)    monitor: [topic, frame]
    P + 3     ROUTER       DEALER (clients)  request and answer: [number, frame]

Plain sockets, drained when asyncio sees their descriptor (zmq.asyncio costs 17 times as much per frame). With a
directory of keys every socket is CURVE and the coordinator lets in only keys that it knows.
"""

from __future__ import annotations

from pathlib import Path

from trogdor_bus.transports.zmq.coordinator import ZmqCoordinator
from trogdor_bus.transports.zmq.ends import ZmqAgent, ZmqClient, ZmqMonitor
from trogdor_bus.transports.zmq.sockets import DEFAULT_PORT, PORTS, new_key_pair

__all__ = [
    "DEFAULT_PORT",
    "PORTS",
    "new_key_pair",
    "open_agent",
    "open_client",
    "open_coordinator",
    "open_monitor",
]


def open_coordinator(url: str, keys: Path | None) -> ZmqCoordinator:
    """Bind the four ports, all or none, with keys made at the first start; BusError if one is taken."""
    return ZmqCoordinator(url, keys)


def open_agent(url: str, node: str, keys: Path | None) -> ZmqAgent:
    """Dial as the agent of `node`; BusError if the host's name cannot be resolved (now: try again)."""
    return ZmqAgent(url, node, keys)


def open_client(url: str, keys: Path | None) -> ZmqClient:
    """Dial as a client; BusError if the host's name cannot be resolved."""
    return ZmqClient(url, keys)


def open_monitor(url: str, keys: Path | None) -> ZmqMonitor:
    """Dial as a monitor; BusError if the host's name cannot be resolved."""
    return ZmqMonitor(url, keys)
