"""What an agent that hears nobody tells people to check. Pure."""

from __future__ import annotations

from trogdor_bus.remedies import Remedy


def likely_causes(url: str) -> str:
    """Return what people should check when no coordinator answers at that URL."""
    schemes = {one.partition("://")[0] for one in url.split(" ")}
    dialled = "kafka" not in schemes or len(schemes) > 1
    kind = Remedy("transport", {"kind": "kafka+zmq" if dialled else "kafka"})
    option = "‹bind› ADDRESS" if "kafka" not in schemes else f"{kind} ..."
    asked = [f"Is it running there (`‹start-coordinator› {option}`)"]
    asked += ["is the address right, does a firewall block the port"] if dialled else []
    asked += ["are these its brokers and topics"] if "kafka" in schemes else []
    return ", ".join(asked)
