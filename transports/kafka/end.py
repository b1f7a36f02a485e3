"""What all ends share: one thread around a producer and a consumer of librdkafka."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.transports.address import address_and_port
from trogdor_bus.transports.kafka.address import Address, parse
from trogdor_bus.transports.kafka.inbox import Inbox
from trogdor_bus.transports.kafka.record import Record, record_of
from trogdor_bus.transports.kafka.seal import Seal
from trogdor_bus.transports.kafka.settings import TELLS_NOTHING, Clients, code, reason, words
from trogdor_bus.transports.kafka.topics import Topic

POLL_S = 0.1
BATCH = 500
LOOK_S = 0.25
ASK_S = 1.0
"""How long one question to the brokers may take; nothing else of an end's thread blocks longer."""
FLUSH_S = 0.5
JOIN_S = 3.5
QUIET_S = 5.0
"""So long after the last record an end begins anew at another broker."""
ROUND_S = 30.0
"""And so long after it has done so at every broker."""
REFUSED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
ACLS = "see the ACLs in docs/how-to/kafka-as-the-bus.md"

log = logging.getLogger("trogdor_bus.transports.kafka")


class End:
    """An end: `reads` is read from the end of the topics, and what is for us is put into the inbox."""

    reads: Sequence[Topic] = ()
    writes: Sequence[Topic] = ()
    moves = True
    """Whether it begins anew at another broker when nothing comes."""

    def __init__(self, url: str, keys: Path | None) -> None:
        self.dropped = 0
        self.address: Address = parse(url)
        self._seal = Seal(keys)
        self._clients = Clients(self.address)
        self._inbox: Inbox[tuple[Record, bytes]] = Inbox()
        self._closed = False
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._unready = f"no answer from {self.address} yet"
        self._lost = ""
        self._refused: dict[tuple[str, str], str] = {}
        self._losing: set[str] = set()
        self._fatal = False
        self._renewed_s = 0.0
        self._counts: dict[str, int] = {}
        self._servers = list(self.address.servers)
        self._turns = 0
        self._quiet_since_s = time.monotonic()
        self._consumer: Consumer | None = self._clients.consumer(self._on_error)
        self._producer: Producer | None = self._new_producer() if self.writes else None
        self._thread = threading.Thread(target=self._run, name=f"kafka {type(self).__name__}", daemon=True)

    def close(self) -> None:
        """Send what is queued, for at most half a second, and let go of everything."""
        if self._closed:
            return
        self._closed = True
        self._inbox.close()
        self._stopping.set()
        if self._thread.ident is None:
            self._part()
            return
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            log.warning("%s: librdkafka did not end within %g s; it is left behind", self.address, JOIN_S)

    def _trouble(self) -> str:
        """Return "" or why nothing can be read or written, as far as it is known."""
        if not self._ready.is_set():
            return self._unready
        return "; ".join(self._refused.values())

    def _wants(self, topic: str, key: bytes) -> bool:
        """Tell whether a record of that key is for us, before its seal is looked at."""
        return True

    def _take(self, record: Record, value: bytes) -> None:
        """Take what we want, in the thread."""
        self._inbox.put((record, value), len(value))

    def _suspect(self, trouble: str) -> None:
        """Learn, in the thread, that a record had the wrong seal."""

    def _places(self, partitions: Mapping[str, int]) -> list[tuple[str, int]]:
        """Return which partitions to read, given how many each topic has."""
        return [(name, number) for name in self._names(self.reads) for number in range(partitions[name])]

    def _tick(self, now_s: float) -> None:
        """Do what is due, in the thread, ten times a second or more often."""

    def _say_goodbye(self) -> None:
        """Say the last word, in the thread."""

    def _found(self) -> None:
        """Learn, in the thread, that the topics were found, and that reading from their ends has begun."""

    def _send(
        self, topic: Topic, key: bytes, value: bytes, fields: Mapping[str, bytes] | None = None, partition: int = -1
    ) -> None:
        """Queue a record, or drop it and count that."""
        if self._closed:
            return
        if len(value) > MAX_FRAME_BYTES:
            log.warning("dropped a frame of %d bytes: the bus carries at most %d", len(value), MAX_FRAME_BYTES)
            self.dropped += 1
        elif not self._ready.is_set():
            self.dropped += 1
        else:
            self._produce(topic, key, value, fields or {}, partition)

    def _produce(
        self, topic: Topic, key: bytes, value: bytes, fields: Mapping[str, bytes], partition: int = -1
    ) -> None:
        name = self.address.topic(topic.name)
        headers = self._seal.headers(Record(name, key, fields, value))
        producer = self._producer
        try:
            if producer is not None:
                producer.produce(name, value, key, partition, headers=headers)
        except BufferError:  # the queue is full
            self.dropped += 1
        except KafkaException as error:
            self.dropped += 1
            if code(error) in REFUSED:
                self._refuse("write", name)
            elif code(error) in GONE:
                self._ready.clear()
            else:
                log.warning("dropped a frame for %s: %s", name, reason(error))

    def _names(self, topics: Sequence[Topic]) -> list[str]:
        return [self.address.topic(topic.name) for topic in topics]

    def _new_producer(self) -> Producer:
        return self._clients.producer(self._on_error, self._on_delivery, **self._asking())

    def _asking(self) -> dict[str, str]:
        """Return which brokers new clients ask first: all in the first turn, then one after the other."""
        turn = self._turns % (len(self._servers) + 1)
        return {"bootstrap.servers": self._servers[turn - 1]} if turn else {}

    def _move(self, now_s: float) -> None:
        """Begin anew at another broker if nothing has come for long.

        A broker that is cut off from the others goes on claiming to lead, and who asks only that one hears nothing new:
        librdkafka goes on asking the one that it knows best.
        """
        round_is_over = self._turns > 0 and self._turns % (len(self._servers) + 1) == 0
        if not self.moves or now_s - self._quiet_since_s < (ROUND_S if round_is_over else QUIET_S):
            return
        self._turns += 1
        self._quiet_since_s = now_s
        log.debug("%s: nothing comes; asking %s", self.address, self._asking() or "all")
        self._ready.clear()
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._clients.consumer(self._on_error, **self._asking())
        if self._producer is not None:
            self._producer.purge()
            self._producer.poll(0)
            self._producer = self._new_producer()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:
                log.exception("%s: a bug; the bus goes on", self.address)
                self._stopping.wait(ASK_S)
        self._part()

    def _turn(self) -> None:
        assert self._consumer is not None
        if self._ready.is_set() or self._look():
            first = self._consumer.poll(POLL_S)
            if first is not None:
                for message in (first, *self._consumer.consume(BATCH, 0)):
                    self._see(message)
        else:
            self._stopping.wait(LOOK_S)
        if self._producer is not None:
            self._report(self._producer)
        self._tick(time.monotonic())
        self._move(time.monotonic())

    def _report(self, producer: Producer) -> None:
        """Hear what became of what was sent; a producer that can do no more is replaced, once a second at most."""
        try:
            producer.poll(0)
        except KafkaException as error:
            log.debug("%s: %s", self.address, reason(error))
            self._fatal = True
        if self._fatal and time.monotonic() - self._renewed_s > ASK_S:
            self._fatal, self._renewed_s = False, time.monotonic()
            self._producer = self._new_producer()

    def _look(self) -> bool:
        """Find the topics and begin to read at their ends; False if that cannot be, and `_unready` says why."""
        try:
            partitions = self._partitions()
            if partitions is None:
                return False
            places = [self._end_of(name, number) for name, number in self._places(partitions)]
        except KafkaException as error:
            assert self._consumer is not None
            self._consumer.poll(0)  # librdkafka says more than its exception
            why = self._lost or reason(error)
            self._unready = f"no answer from {self.address}: {why}"
            return False
        assert self._consumer is not None
        self._lost = ""
        self._counts = partitions
        self._consumer.assign(places)
        self._ready.set()
        self._found()
        return True

    def _partitions(self) -> dict[str, int] | None:
        """Return how many partitions each topic has, None if one is missing or kept from us."""
        found: dict[str, int] = {}
        missing: list[str] = []
        refused: list[str] = []
        for name in dict.fromkeys(self._names((*self.reads, *self.writes))):
            error, count = self._ask(name)
            if error is None and count:
                found[name] = count
            elif error is not None and error.code() in REFUSED:
                refused.append(name)
            else:
                missing.append(name)
        if refused:
            self._unready = f"{self.address}: we may not use {', '.join(refused)}: {ACLS}"
        elif missing:
            self._miss(missing)
        return None if refused or missing else found

    def _recount(self, name: str) -> int:
        """Return how many partitions a topic has now; one that is gone is looked for again. Or KafkaException."""
        error, count = self._ask(name)
        if error is not None and error.code() in GONE:
            self._ready.clear()
        return count or self._counts[name]

    def _miss(self, names: Sequence[str]) -> None:
        """Learn, in the thread, that topics are not there."""
        self._unready = f"{self.address}: no coordinator has made {', '.join(names)} yet"

    def _ask(self, name: str) -> tuple[KafkaError | None, int]:
        assert self._consumer is not None
        metadata = self._consumer.list_topics(name, timeout=ASK_S)
        known = sorted(address_and_port(str(one.host), one.port) for one in metadata.brokers.values())
        self._servers = known or self._servers
        topic = metadata.topics[name]
        return topic.error, len(topic.partitions)

    def _end_of(self, name: str, number: int) -> TopicPartition:
        assert self._consumer is not None
        _, end = self._consumer.get_watermark_offsets(TopicPartition(name, number), timeout=ASK_S)
        return TopicPartition(name, number, end)

    def _see(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            self._on_error(error, message.topic() or "")
            if error.code() in GONE:
                self._ready.clear()  # somebody removed the topic: look again
            return
        self._lost = ""
        self._quiet_since_s, self._turns = time.monotonic(), 0
        record = record_of(message)
        self._refused.pop(("read", record.topic), None)
        if record.value is None or not self._wants(record.topic, record.key):
            return
        if trouble := self._seal.trouble(record):
            self._suspect(trouble)
        else:
            self._take(record, record.value)

    def _on_error(self, error: KafkaError, topic: str = "") -> None:
        """Note what librdkafka says: it goes on by itself, unless it is fatal for the producer."""
        if error.fatal():
            self._fatal = True
        if error.code() in REFUSED:
            self._refuse("read" if topic else "write", topic)
        elif error.code() not in TELLS_NOTHING:
            self._lost = words(error)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        name = message.topic() or ""
        if error is None:
            self._lost = ""
            self._refused.pop(("write", name), None)
            self._refused.pop(("write", ""), None)
            self._losing.discard(name)
            return
        self.dropped += 1
        if error.code() in REFUSED:
            self._refuse("write", name)
        elif error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
            self._lost = self._lost or words(error)
            if name not in self._losing:
                self._losing.add(name)
                log.info("losing frames for %s: %s", name, words(error))
            if error.code() in GONE:
                self._ready.clear()

    def _refuse(self, operation: str, topic: str) -> None:
        """Note that we may not do something, and say it once until it works."""
        if (operation, topic) not in self._refused:
            what = topic or "any topic"
            self._refused[operation, topic] = f"{self.address}: we may not {operation} {what}: {ACLS}"
            log.warning("%s", self._refused[operation, topic])

    def _part(self) -> None:
        """Let go of librdkafka: what is queued gets half a second."""
        if self._producer is not None:
            self._say_goodbye()
            with suppress(KafkaException):  # a producer that can do no more
                self._producer.flush(FLUSH_S)
                self._producer.purge()
                self._producer.poll(0)
            self._producer = None
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
