"""The full re-read of a topic, once everything is over: what its log holds, from the first offset to the last."""

from __future__ import annotations

import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from trogdor_bus.clock import Clock
from trogdor_bus.errors import HostError
from trogdor_bus.experiment.ledger import Read
from trogdor_bus.experiment.stream.auditor import BATCH, LISTEN_S, read_of
from trogdor_bus.experiment.stream.settings import Troubles, made
from trogdor_bus.experiment.stream.topic import ASK_S, PAUSE_S, Topic
from trogdor_bus.transports.kafka.settings import words

PLACE_LOST = (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION)


class Reread:
    """One pass over a topic by a consumer of its own, `settings`, which must not move to another offset by itself."""

    def __init__(self, settings: dict[str, Any], topic: str, partitions: int, clock: Clock, timeout_s: float) -> None:
        self._name, self._partitions, self._clock, self._timeout_s = topic, partitions, clock, timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._troubles = Troubles()
        self._consumer: Consumer = made(Consumer, settings, self._troubles.hear)
        self._topic = Topic(self._consumer, topic, partitions, self._troubles)
        self._found: list[Read] = []

    def read(self) -> list[Read]:
        """Return every record below the end offsets, which are taken first; HostError in words if not in time."""
        try:
            if why := self._topic.wait_led(self._deadline_s):
                raise self._late(why)
            ends = {number: self._end(number) for number in range(self._partitions)}
            self._read_to(ends)
        finally:
            self._consumer.close()
        return self._found

    def _end(self, number: int) -> int:
        """Return the end offset of a partition; HostError if it is not known in time, or if the log begins after 0."""
        place = TopicPartition(self._name, number)
        while True:
            left_s = self._deadline_s - time.monotonic()
            try:
                first, end = self._consumer.get_watermark_offsets(place, max(0.1, min(ASK_S, left_s)))
                break
            except KafkaException as error:
                why = self._topic.complaint(error)
                if time.monotonic() > self._deadline_s:
                    raise self._late(f"the end of partition {number} is not known: {why}") from None
                self._consumer.poll(PAUSE_S)
        if first > 0:
            raise HostError(
                f"{self._name} cannot be audited: partition {number} begins at offset {first}, so its first records "
                f"were deleted (by its retention, or by somebody)"
            )
        return end

    def _read_to(self, ends: dict[int, int]) -> None:
        waiting = {number: end for number, end in ends.items() if end > 0}
        self._consumer.assign([TopicPartition(self._name, number, 0) for number in waiting])
        while waiting:
            if time.monotonic() > self._deadline_s:
                partitions = ", ".join(f"{number} (to offset {end})" for number, end in waiting.items())
                why = f": {self._troubles.last}" if self._troubles.last else ""
                raise self._late(
                    f"{len(self._found)} of {sum(ends.values())} records are read, not partition {partitions}{why}"
                )
            first = self._consumer.poll(LISTEN_S)
            if first is not None:
                for message in (first, *self._consumer.consume(BATCH, 0)):
                    self._take(message, waiting, ends)

    def _take(self, message: Message, waiting: dict[int, int], ends: dict[int, int]) -> None:
        partition, offset, error = message.partition(), message.offset(), message.error()
        assert partition is not None
        if error is None:
            assert offset is not None
            if offset < ends[partition]:
                self._found.append(read_of(message, self._clock.now_ms()))
            offset += 1
        elif error.code() in PLACE_LOST:
            raise HostError(f"{self._name} changed while it was re-read: partition {partition}: {words(error)}")
        elif error.code() != KafkaError._PARTITION_EOF:
            self._troubles.hear(error)
            return
        if offset is not None and offset >= ends[partition]:
            waiting.pop(partition, None)

    def _late(self, why: str) -> HostError:
        return HostError(f"{self._name} could not be re-read within {self._timeout_s:g} s: {why}")
