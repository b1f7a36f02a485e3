"""Tells monitors on the bus of every event, and each beat what they compare their views with."""

from __future__ import annotations

import logging
from typing import Protocol

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.messages import EVENT_TOPIC, VIEW_TOPIC, AnyEvent, Noted, Pulse, encode

log = logging.getLogger("trogdor_bus.coordinator")
MOST_TEXT = 2_000


class Announces(Protocol):
    """The part of a `CoordinatorBus` that speaks to monitors."""

    def announce(self, topic: str, frame: bytes) -> None:
        """Send a frame about `topic` to every monitor."""
        ...


class Herald:
    """Subscribes to an `EventHub` for all monitors of a bus."""

    def __init__(self, bus: Announces) -> None:
        self._bus = bus

    def hear(self, event: AnyEvent) -> None:
        """Announce an event; one that no frame can carry is told without its row."""
        frame = encode(event)
        if len(frame) > MAX_FRAME_BYTES:
            said = f"{event.text[:MOST_TEXT]} (what changed has {len(frame)} bytes, and the bus carries at most "
            text = f"{said}{MAX_FRAME_BYTES}: monitors do not show it)"
            log.error("%s", text)
            frame = encode(Noted(seq=event.seq, at_ms=event.at_ms, text=text))
        self._bus.announce(EVENT_TOPIC, frame)

    def beat(self, pulse: Pulse) -> None:
        """Announce that the coordinator is there, and what its view is."""
        self._bus.announce(VIEW_TOPIC, encode(pulse))
