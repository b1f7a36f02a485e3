"""Tells monitors on the bus of every event, and each beat what they compare their views with."""

from __future__ import annotations

import logging
from typing import Protocol

import msgspec

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.messages import (
    EVENT_TOPIC,
    UNTOLD,
    VIEW_TOPIC,
    AnyEvent,
    Noted,
    Pulse,
    TaskChanged,
    TaskGone,
    encode,
)
from trogdor_bus.states import TaskState

log = logging.getLogger("trogdor_bus.coordinator")
MOST_TEXT = 2_000
SMALL_BYTES = 1_000
"""Specs that are not larger are told each time."""


class Announces(Protocol):
    """The part of a `CoordinatorBus` that speaks to monitors."""

    def announce(self, topic: str, frame: bytes) -> None:
        """Send a frame about `topic` to every monitor."""
        ...


class Herald:
    """Subscribes to an `EventHub` for all monitors of a bus."""

    def __init__(self, bus: Announces) -> None:
        self._bus = bus
        self._specs: dict[str, tuple[bytes, bytes]] = {}
        """The large specs that were told, by task."""

    def hear(self, event: AnyEvent) -> None:
        """Announce an event; one that no frame can carry is told without its row."""
        event = self._without_specs(event)
        frame = encode(event)
        if len(frame) > MAX_FRAME_BYTES:
            said = f"{event.text[:MOST_TEXT]} (what changed has {len(frame)} bytes, and the bus carries at most "
            text = f"{said}{MAX_FRAME_BYTES}: monitors do not show it)"
            log.error("%s", text)
            frame = encode(Noted(seq=event.seq, at_ms=event.at_ms, text=text))
        self._bus.announce(EVENT_TOPIC, frame)

    def _without_specs(self, event: AnyEvent) -> AnyEvent:
        """Return an event without the specs of its task, if those are large and were told before."""
        if isinstance(event, TaskGone):
            self._specs.pop(event.id, None)
        if not isinstance(event, TaskChanged):
            return event
        task, specs = event.task, (bytes(event.task.original), bytes(event.task.spec))
        before = self._specs.pop(task.id, None)
        if sum(map(len, specs)) <= SMALL_BYTES:
            return event
        if task.state is not TaskState.DONE:
            self._specs[task.id] = specs
        if specs != before:
            return event
        task = msgspec.structs.replace(task, original=UNTOLD, spec=UNTOLD)
        return msgspec.structs.replace(event, task=task, same_specs=True)

    def beat(self, pulse: Pulse) -> None:
        """Announce that the coordinator is there, and what its view is."""
        self._bus.announce(VIEW_TOPIC, encode(pulse))
