"""The coordinator's presence: a small record each second on every partition of the control topic, and a last one."""

from __future__ import annotations

import time

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from trogdor_bus import late
from trogdor_bus.transports.kafka.record import record_of
from trogdor_bus.transports.kafka.seal import Seal

KEY = b""
EACH_S = 1.0
SILENT_S = 3.0
"""A coordinator unheard for so long is not there."""
TAIL = 200
"""The newest presence is at most so many records from the end, or long ago."""
ASK_S = 1.0
AGAIN_S = 0.1


class Presence(msgspec.Struct, frozen=True):
    """Which coordinator (a random id of its life), how many partitions it writes to, whether this is its last word."""

    id: str
    count: int
    partitions: int
    gone: bool = False


def encode(presence: Presence) -> bytes:
    """Return the record's value."""
    return msgspec.json.encode(presence)


def decode(value: bytes) -> Presence | None:
    """Return what the value says, None if it is no presence."""
    try:
        return msgspec.json.decode(value, type=Presence)
    except late.UNREADABLE:
        return None


class Watch:
    """Finds out whether a coordinator is there, from the first partition of the control topic."""

    def __init__(self, consumer: Consumer, seal: Seal, topic: str) -> None:
        """`consumer` tells the end of a partition (`enable.partition.eof`); KafkaException if it cannot read."""
        self._consumer, self._seal, self._topic = consumer, seal, topic

    def alive(self, timeout_s: float) -> Presence | None:
        """Return the presence of a coordinator that is there, None after its last word, or 3 s of silence.

        `timeout_s` is for finding the partition's leader.
        """
        low, high = self._offsets(time.monotonic() + timeout_s)
        begin = max(low, high - TAIL)
        self._consumer.assign([TopicPartition(self._topic, 0, begin)])
        newest = self._next(end=True)
        if low == high or (newest is None and begin == low) or (newest is not None and newest.gone):
            return None
        fresh = self._next(end=False)
        return None if fresh is None or fresh.gone else fresh

    def _offsets(self, deadline_s: float) -> tuple[int, int]:
        while True:
            try:
                low, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, 0), timeout=ASK_S)
            except KafkaException:  # it was made just now: its leader is not known everywhere
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(AGAIN_S)
            else:
                return low, high

    def _next(self, *, end: bool) -> Presence | None:
        """Return the last presence up to the partition's end, or the next one that comes within 3 s."""
        found: Presence | None = None
        deadline_s = time.monotonic() + SILENT_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            message = self._consumer.poll(left_s)
            if message is None:
                continue
            if (error := message.error()) is not None:
                if end and error.code() == KafkaError._PARTITION_EOF:
                    break
                continue
            heard = self._presence(message)
            if heard is not None:
                found = heard
                if not end:
                    break
        return found

    def _presence(self, message: Message) -> Presence | None:
        record = record_of(message)
        if record.key != KEY or record.value is None or self._seal.trouble(record):
            return None
        return decode(record.value)
