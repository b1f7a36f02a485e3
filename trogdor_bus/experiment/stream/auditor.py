"""A consumer of a stream: reads everything from the beginning, by assignment or as a group, and notes when it came."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from trogdor_bus.clock import Clock
from trogdor_bus.experiment.ledger import NOTHING_MS, Read
from trogdor_bus.experiment.records import Corrupt, decode
from trogdor_bus.experiment.stream.settings import Troubles, made

LISTEN_S = 0.1
BATCH = 500
JOIN_S = 10.0


class Auditor:
    """One consumer and one thread. `broken` says which bug ended it; `last_ms` is the last delivery by partition.

    When an election has truncated what was read, it reads from the beginning again, and delivers again what it
    delivered: the first delivery of a record is the one that counts.
    """

    def __init__(
        self, settings: dict[str, Any], topic: str, partitions: int, clock: Clock, *, by_group: bool = False
    ) -> None:
        self.delivered: list[Read] = []
        self.last_ms = [NOTHING_MS] * partitions
        self.troubles = Troubles()
        self.broken = ""
        self._topic, self._by_group, self._clock = topic, by_group, clock
        self._consumer: Consumer = made(Consumer, settings, self.troubles.hear)
        self._next = [0] * partitions
        self._caught_up: set[int] = set()
        self._ready, self._stopping, self._over = threading.Event(), threading.Event(), threading.Event()
        self._wanted: Mapping[int, int] = {}
        self._deadline_s = 0.0
        self._thread = threading.Thread(target=self._work, name="stream auditor", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Return whether it has read each partition to its end, once, within this time."""
        return self._ready.wait(timeout_s)

    def stop(self, wanted: Mapping[int, int], within_s: float) -> None:
        """End when the offset of each partition in `wanted` has been read, or after `within_s`."""
        self._wanted, self._deadline_s = wanted, time.monotonic() + within_s
        self._stopping.set()
        if self._thread.ident is None:
            self._consumer.close()
            return
        self._thread.join(within_s + JOIN_S)
        if not self._over.is_set():
            self.broken = self.broken or f"the consumer did not end within {within_s + JOIN_S:g} s"

    def _work(self) -> None:
        try:
            self._read()
            self._over.set()
            self._consumer.close()  # a group may wait here for its coordinator
        except Exception as error:  # a bug, or a broken machine: the experiment must know
            self.broken = f"the consumer's thread ended: {type(error).__name__}: {error}"

    def _read(self) -> None:
        if self._by_group:
            self._consumer.subscribe([self._topic])
        else:
            numbers = range(len(self._next))
            self._consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in numbers])
        while not self._is_done():
            first = self._consumer.poll(LISTEN_S)
            if first is not None:
                for message in (first, *self._consumer.consume(BATCH, 0)):
                    self._take(message)

    def _is_done(self) -> bool:
        if not self._stopping.is_set():
            return False
        read = all(self._next[partition] > offset for partition, offset in self._wanted.items())
        return read or time.monotonic() > self._deadline_s

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is None:
            one = read_of(message, self._clock.now_ms())
            self.delivered.append(one)
            self.last_ms[one.partition] = one.read_ms
            self._next[one.partition] = one.offset + 1
            self.troubles.last = ""
        elif error.code() != KafkaError._PARTITION_EOF:
            self.troubles.hear(error)
            return
        if not self._ready.is_set():
            self._caught_up.add(message.partition() or 0)
            if len(self._caught_up) == len(self._next):
                self._ready.set()


def read_of(message: Message, read_ms: int) -> Read:
    """Return what a message without error holds."""
    partition, offset = message.partition(), message.offset()
    assert partition is not None and offset is not None
    match decode(message.value() or b""):
        case Corrupt(why):
            return Read(partition, offset, read_ms, None, why)
        case record:
            return Read(partition, offset, read_ms, record)
