"""A coordinator's state on a Kafka topic, compacted by key: the newest value of each key stays."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.errors import BusError
from trogdor_bus.transports.kafka import topics
from trogdor_bus.transports.kafka.address import Address, parse
from trogdor_bus.transports.kafka.coordinator import ensure_keys
from trogdor_bus.transports.kafka.making import make_topics
from trogdor_bus.transports.kafka.record import Record, record_of
from trogdor_bus.transports.kafka.seal import Seal
from trogdor_bus.transports.kafka.settings import FOREVER_MS, TELLS_NOTHING, Clients, reason, words

POLL_S = 0.1
ASK_S = 1.0
AGAIN_S = 1.0
MAKE_S = 2.0
FLUSH_S = 1.5
JOIN_S = 3.9
MAX_UNDER_WAY = 500
NOT_YET = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
)
"""What a broker says that has not heard of a new topic yet."""
ONLY_PARTITION = 0
"""Everything goes there, however many there are: what is kept of several is no prefix."""

log = logging.getLogger("trogdor_bus.transports.kafka")


class KafkaLog:
    """Writes in a thread, in the order of the appends, for as long as it takes: what is kept is a prefix of them."""

    def __init__(self, url: str, keys: Path | None) -> None:
        ensure_keys(keys)
        self.address: Address = parse(url)
        self._seal = Seal(keys)
        self._clients = Clients(self.address)
        self._topic = self.address.topic(topics.STATE.name)
        self._lock = threading.Lock()
        self._unsent: deque[tuple[str, bytes]] = deque()
        self._failed: list[tuple[str, bytes]] = []
        self._under_way = 0
        self._too_large: set[str] = set()
        self._said: set[str] = set()
        self._fatal = False
        self._made = False
        self._work = threading.Event()
        self._stopping = threading.Event()
        self._producer: Producer | None = self._new_producer()
        self._thread = threading.Thread(target=self._run, name="kafka state", daemon=True)
        self._thread.start()

    def append(self, key: str, value: bytes) -> None:
        """Queue a value, b"" to remove the key; one that is too large is never written, and counts as unwritten."""
        if self._stopping.is_set():
            return
        with self._lock:
            self._too_large.discard(key)
            if len(value) > MAX_FRAME_BYTES:
                self._too_large.add(key)
                log.error("%s of %d bytes cannot be kept on Kafka: at most %d", key, len(value), MAX_FRAME_BYTES)
            else:
                self._unsent.append((key, value))
        self._work.set()

    def unwritten(self) -> int:
        """Return how many values are not known to be kept."""
        with self._lock:
            return len(self._unsent) + self._under_way + len(self._failed) + len(self._too_large)

    def read(self, timeout_s: float) -> dict[str, bytes]:
        """Return the newest value of each key; BusError if the log cannot be read in time, or has other keys' seals."""
        deadline_s = time.monotonic() + timeout_s
        make_topics(self._clients, self.address, (topics.STATE,), timeout_s)
        lost: list[str] = []
        while True:
            consumer = self._clients.consumer(lambda error: lost.append(words(error)), **{"enable.partition.eof": True})
            try:
                return self._rows(consumer, deadline_s)
            except (KafkaException, TimeoutError) as error:
                known = isinstance(error, KafkaException) and error.args[0].code() in NOT_YET
                if not known or time.monotonic() + AGAIN_S > deadline_s:
                    why = lost[-1] if lost else reason(error)
                    raise BusError(f"{self.address}: cannot read {self._topic} within {timeout_s:g} s: {why}") from None
            finally:
                consumer.close()
            time.sleep(POLL_S)

    def close(self) -> None:
        """Write what is queued, for at most a second and a half, and let go of everything."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._work.set()
        self._thread.join(JOIN_S)

    def _rows(self, consumer: Consumer, deadline_s: float) -> dict[str, bytes]:
        count = len(consumer.list_topics(self._topic, timeout=ASK_S).topics[self._topic].partitions)
        consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in range(count)])
        rows: dict[str, bytes] = {}
        unread, wrong = set(range(count)), ""
        while unread:
            message = consumer.poll(max(0.0, min(POLL_S, deadline_s - time.monotonic())))
            if message is None:
                if time.monotonic() > deadline_s:
                    raise TimeoutError("it did not end")
                continue
            if (error := message.error()) is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.partition() or 0)
                elif not error.retriable() and error.code() not in TELLS_NOTHING:
                    raise KafkaException(error)
                continue
            record = record_of(message)
            if trouble := self._seal.trouble(record):
                wrong = trouble
            else:
                rows.pop(record.key.decode(errors="surrogatepass"), None)
                if record.value is not None:
                    rows[record.key.decode(errors="surrogatepass")] = record.value
        if wrong and not rows:
            raise BusError(f"{self.address}: nothing in {self._topic} can be trusted: {wrong}")
        return rows

    def _new_producer(self) -> Producer:
        return self._clients.producer(self._on_error, self._on_delivery, **{"message.timeout.ms": FOREVER_MS})

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:
                log.exception("%s: a bug; the log goes on", self.address)
                self._stopping.wait(AGAIN_S)
        self._part()

    def _turn(self) -> None:
        assert self._producer is not None
        if not self._made:
            self._make()
            return
        if not self._under_way:
            self._work.wait(POLL_S)
        self._work.clear()
        self._report(POLL_S if self._under_way else 0)
        if self._fatal:
            self._begin_anew()
        if self._failed and not self._under_way:
            self._stopping.wait(AGAIN_S)
            with self._lock:
                self._unsent.extendleft(reversed(self._failed))
                self._failed.clear()
        if not self._failed:
            self._send()

    def _make(self) -> None:
        try:
            make_topics(self._clients, self.address, (topics.STATE,), MAKE_S)
            self._made = True
        except BusError as error:
            self._say(str(error))
            self._stopping.wait(AGAIN_S)

    def _send(self) -> None:
        """Hand what waits to librdkafka, the oldest first."""
        while self._under_way < MAX_UNDER_WAY:
            with self._lock:
                if not self._unsent or self._producer is None:
                    return
                key, value = self._unsent[0]
                record = Record(self._topic, key.encode(errors="surrogatepass"), {}, value or None)
                try:
                    headers = self._seal.headers(record)
                    self._producer.produce(record.topic, record.value, record.key, ONLY_PARTITION, headers=headers)
                except BufferError:
                    return
                self._unsent.popleft()
                self._under_way += 1

    def _begin_anew(self) -> None:
        """Take another producer: this one can write no more, and gives back what it had."""
        assert self._producer is not None
        self._producer.purge()
        self._report(ASK_S)
        self._stopping.wait(AGAIN_S)
        self._fatal, self._producer = False, self._new_producer()

    def _report(self, timeout_s: float) -> None:
        """Hear what became of what was sent."""
        assert self._producer is not None
        try:
            self._producer.poll(timeout_s)
        except KafkaException as error:
            log.debug("%s: %s", self.address, reason(error))
            self._fatal = True

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = True
        if error.code() not in TELLS_NOTHING and (self._unsent or self._under_way):
            self._say(f"{self.address}: {words(error)}")

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        with self._lock:
            self._under_way -= 1
            key = (message.key() or b"").decode(errors="surrogatepass")
            if error is not None:
                self._failed.append((key, message.value() or b""))
            else:
                self._said.clear()
                self._failed = [failed for failed in self._failed if failed[0] != key]  # a newer value is kept
        if error is not None:
            self._say(f"{self.address}: cannot write {self._topic}: {words(error)}")

    def _say(self, trouble: str) -> None:
        """Say in the log what is wrong, each trouble once until something can be written: brokers take turns."""
        if trouble not in self._said:
            self._said.add(trouble)
            log.warning("%s; the state waits here", trouble)

    def _part(self) -> None:
        assert self._producer is not None
        if self._made:
            self._send()
        with suppress(KafkaException):  # a producer that can do no more
            self._producer.flush(FLUSH_S if self._made else 0)
        self._producer.purge()
        self._report(0)
        self._producer = None
