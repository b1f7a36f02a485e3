"""The producer of a stream: hands records over at a steady rate, and hears what became of them."""

from __future__ import annotations

import threading
import time
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from trogdor_bus.clock import Clock
from trogdor_bus.errors import HostError
from trogdor_bus.experiment.ledger import NO_OFFSET, Ledger
from trogdor_bus.experiment.records import Record, encode
from trogdor_bus.experiment.stream.settings import Access, StreamSettings, Troubles, made
from trogdor_bus.experiment.stream.topic import Topic
from trogdor_bus.transports.kafka.settings import reason, words

SECOND_NS = 1_000_000_000
LISTEN_S = 0.1
JOIN_S = 10.0
SURELY_NOT_WRITTEN = (
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_MSG_SIZE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)
"""Errors of sends that brokers refuse each time.

All others leave it open. Of librdkafka's own ones, too: it does not tell Python whether a record that timed out, or was
purged from the queue, had been sent before and waited there to be sent again.
"""


class Writer:
    """One producer and one thread. What became of each send is in `ledger`; `broken` says which bug ended the thread.

    `late_ms` is how long after its time a record was handed over at worst: this process was kept waiting that long.
    """

    def __init__(
        self, access: Access, topic: str, partitions: int, settings: StreamSettings, run: str, *, clock: Clock
    ):
        self.ledger = Ledger()
        self.troubles = Troubles()
        self.late_ms = 0
        self.broken = ""
        self._topic, self._partitions, self._settings, self._run, self._clock = topic, partitions, settings, run, clock
        self._producer: Producer = made(Producer, settings.producer(access), self.troubles.hear)
        self._stopping = threading.Event()
        self._flush_s = 0.0
        self._thread = threading.Thread(target=self._work, name="stream writer", daemon=True)

    def find_topic(self, timeout_s: float) -> None:
        """Return when the topic has all its partitions, each with a leader; HostError in words if not in time."""
        topic = Topic(self._producer, self._topic, self._partitions, self.troubles)
        if why := topic.wait_led(time.monotonic() + timeout_s):
            raise HostError(f"the stream cannot begin within {timeout_s:g} s: {why}")

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self, flush_s: float) -> None:
        """Send no more; what has no answer after `flush_s` is indeterminate."""
        self._flush_s = flush_s
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(flush_s + JOIN_S)
            if self._thread.is_alive():
                self.broken = self.broken or f"the producer did not end within {flush_s + JOIN_S:g} s"

    def last_offsets(self) -> dict[int, int]:
        """Return the highest acknowledged offset of each partition that has one."""
        last: dict[int, int] = {}
        for one in self.ledger.sent():
            if one.offset >= 0:
                last[one.partition] = max(one.offset, last.get(one.partition, NO_OFFSET))
        return last

    def _work(self) -> None:
        try:
            self._send_steadily()
            self._finish()
        except Exception as error:  # a bug, or a broken machine: the experiment must know
            self.broken = f"the producer's thread ended: {type(error).__name__}: {error}"

    def _send_steadily(self) -> None:
        begun_ns = time.monotonic_ns()
        while not self._stopping.is_set():
            ahead_ns = begun_ns + len(self.ledger) * SECOND_NS // self._settings.rate - time.monotonic_ns()
            if ahead_ns > 0:
                self._producer.poll(min(LISTEN_S, max(0.001, ahead_ns / SECOND_NS)))
            else:
                self.late_ms = max(self.late_ms, -ahead_ns // 1_000_000)
                self._send()

    def _send(self) -> None:
        partition, sent_ms = len(self.ledger) % self._partitions, self._clock.now_ms()
        number = self.ledger.hand_over(partition, sent_ms)
        data = encode(Record(self._run, number, sent_ms), self._settings.record_bytes)
        try:
            self._producer.produce(
                self._topic, data, partition=partition, on_delivery=partial(self._on_delivery, number)
            )
        except BufferError:
            self.ledger.fail(number, "the local queue is full")
        except KafkaException as error:
            self.ledger.fail(number, reason(error))

    def _on_delivery(self, number: int, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            note = self.ledger.fail if error.code() in SURELY_NOT_WRITTEN else self.ledger.doubt
            note(number, words(error))
        elif self._settings.acks == "0":
            self.ledger.doubt(number, "with acks=0 brokers acknowledge nothing")
        else:
            offset = message.offset()
            self.ledger.acknowledge(
                number, self._clock.now_ms(), NO_OFFSET if offset is None else max(offset, NO_OFFSET)
            )
            self.troubles.last = ""

    def _finish(self) -> None:
        """Hear the last answers, for so long, and note of what has none that it is indeterminate."""
        deadline_s = time.monotonic() + self._flush_s
        while self.ledger.open and (left_s := deadline_s - time.monotonic()) > 0:
            self._producer.poll(min(LISTEN_S, left_s))
        self._producer.purge()
        self._producer.poll(0)
        self.ledger.doubt_open("the stream ended before there was an answer")
