"""Several links at once: every frame goes out on all of them, and whichever comes first counts.

By URL, `zmq://10.0.0.1:5560 zmq://10.0.0.2:5560` (one blank between) is a fan of two links. It is made of other
transports' ends and knows of bytes and names only. What is doubled is harmless: snapshots are stamped, beats counted,
events numbered, and requests numbered here (see `envelope.py`). A link that cannot be opened is tried again in the
background, and does not keep the others from working.

The coordinator's end serves one URL as well: agents and clients of several addresses may dial it beside others.
"""

from __future__ import annotations

from pathlib import Path

from trogdor_bus.bus import AgentBus, ClientBus, CoordinatorBus, MonitorBus
from trogdor_bus.transports.fan.coordinator import FanCoordinator
from trogdor_bus.transports.fan.ends import FanAgent, FanClient, FanMonitor

__all__ = ["open_agent", "open_client", "open_coordinator", "open_monitor"]


def open_coordinator(url: str, keys: Path | None) -> CoordinatorBus:
    """Bind or join every URL that can be now, at least one; TakenError if another coordinator has one of them."""
    return FanCoordinator(url, keys)


def open_agent(url: str, node: str, keys: Path | None) -> AgentBus:
    """Dial every URL as the agent of `node`; the error of its links if none can be opened now."""
    return FanAgent(url, node, keys)


def open_client(url: str, keys: Path | None) -> ClientBus:
    """Dial every URL as a client; the error of its links if none can be opened now."""
    return FanClient(url, keys)


def open_monitor(url: str, keys: Path | None) -> MonitorBus:
    """Dial every URL as a monitor; the error of its links if none can be opened now."""
    return FanMonitor(url, keys)
