"""The ends of agents and monitors of a Kafka bus."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from confluent_kafka import KafkaException

from trogdor_bus.bus import OnFrame, OnTopic
from trogdor_bus.platform import Endpoint
from trogdor_bus.transports.kafka import topics
from trogdor_bus.transports.kafka.end import End
from trogdor_bus.transports.kafka.presence import SILENT_S, decode
from trogdor_bus.transports.kafka.record import Record

LOOK_AGAIN_S = 3.0


class KafkaAgent(End):
    """An agent's end: reads its own partition of the control topic, and the coordinator's presence there."""

    reads = (topics.CONTROL,)
    writes = (topics.STATUS,)

    def __init__(self, url: str, node: str, keys: Path | None) -> None:
        self._key = topics.node_key(node)
        self._heard_s: float | None = None
        self._gone = False
        self._announced = 0
        self._suspicion = ""
        self._looked_s = 0.0
        super().__init__(url, keys)
        self._thread.start()

    def receive(self, on_snapshot: OnFrame) -> None:
        """Begin to deliver the frames for this node in the running loop."""
        self._inbox.open(lambda item: on_snapshot(item[1]))

    def send(self, frame: bytes) -> None:
        """Send a frame to the coordinator, if the topics are known."""
        self._send(topics.STATUS, self._key, frame)

    def control(self) -> tuple[Endpoint, ...]:
        """Return (): brokers are never exempt from a fault."""
        return ()

    def trouble(self) -> str:
        """Return "" while a coordinator is heard and we may write, else what is known about why not."""
        if trouble := self._trouble():
            return trouble
        heard_s = self._heard_s
        if heard_s is None:
            why = self._suspicion or "no coordinator has been heard there yet"
        elif self._gone:
            why = "the coordinator has ended; no coordinator is there"
        elif (silent_s := time.monotonic() - heard_s) < SILENT_S:
            return ""
        else:
            why = f"no coordinator has been heard for {silent_s:.0f} s"
        return f"{self.address}: {why}" + (f" ({self._lost})" if self._lost else "")

    def _places(self, partitions: Mapping[str, int]) -> list[tuple[str, int]]:
        (name,) = self._names(self.reads)
        return [(name, topics.partition_of(self._key, partitions[name]))]

    def _found(self) -> None:
        self._looked_s = time.monotonic()

    def _wants(self, topic: str, key: bytes) -> bool:
        return key in (self._key, b"")

    def _take(self, record: Record, value: bytes) -> None:
        presence = None if record.key == self._key else decode(value)
        if presence is not None:
            self._announced = presence.partitions
        self._gone = presence is not None and presence.gone
        self._heard_s, self._suspicion = time.monotonic(), ""
        if record.key == self._key:
            super()._take(record, value)

    def _suspect(self, trouble: str) -> None:
        self._suspicion = trouble

    def _tick(self, now_s: float) -> None:
        """Look at the topic again if it may have got more partitions: one is announced, or nothing is heard."""
        if not self._ready.is_set() or now_s - self._looked_s < LOOK_AGAIN_S:
            return
        (name,) = self._names(self.reads)
        known = self._counts[name]
        grown = self._announced not in (0, known)
        if grown or self._heard_s is None or now_s - self._heard_s > LOOK_AGAIN_S:
            self._looked_s = now_s
            with suppress(KafkaException):  # nobody answers
                if self._recount(name) != known:
                    self._ready.clear()


class KafkaMonitor(End):
    """A monitor's end."""

    reads = (topics.EVENTS,)

    def __init__(self, url: str, keys: Path | None) -> None:
        super().__init__(url, keys)
        self._thread.start()

    def receive(self, on_topic: OnTopic) -> None:
        """Begin to deliver (topic, frame) of all that is announced, in the running loop."""
        self._inbox.open(lambda item: on_topic(item[0].key.decode(errors="replace"), item[1]))
