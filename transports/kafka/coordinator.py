"""The coordinator's end of a Kafka bus."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Message

from trogdor_bus import keys as key_files
from trogdor_bus.bus import Answer, BusBrokers, OnFrame, OnRequest
from trogdor_bus.errors import BusError, TakenError
from trogdor_bus.transports.kafka import topics
from trogdor_bus.transports.kafka.client import NUMBER, TICKET
from trogdor_bus.transports.kafka.end import ASK_S, End
from trogdor_bus.transports.kafka.making import make_topics
from trogdor_bus.transports.kafka.presence import EACH_S, KEY, Presence, Watch, encode
from trogdor_bus.transports.kafka.record import Record
from trogdor_bus.transports.kafka.settings import reason
from trogdor_bus.transports.kafka.sight import Sight
from trogdor_bus.transports.kafka.tickets import Tickets

OPEN_S = 10.0
"""How long brokers may take to answer when a coordinator starts."""
COUNT_S = 10.0

log = logging.getLogger("trogdor_bus.transports.kafka")


def ensure_keys(keys: Path | None) -> None:
    """Make whatever keys of a coordinator are missing."""
    if keys is not None:
        from trogdor_bus.transports.zmq import new_key_pair

        key_files.ensure(keys, new_key_pair)


class KafkaCoordinator(End):
    """The coordinator's end: makes the topics, and is present on every partition of the control topic."""

    reads = (topics.STATUS, topics.REQUESTS)
    writes = topics.BUS

    def __init__(self, url: str, keys: Path | None) -> None:
        ensure_keys(keys)
        self._id = secrets.token_hex(8)
        self._tickets = Tickets()
        self._number = 0
        self._present_s = self._counted_s = 0.0
        self._heard = False
        self._sight: Sight | None = None
        super().__init__(url, keys)
        try:
            make_topics(self._clients, self.address, topics.BUS, OPEN_S)
            self._refuse_another()
            self._thread.start()
            self._wait_until_heard()
            self._sight = Sight(self._clients, self._names(topics.BUS))
        except BaseException:
            self.close()
            raise

    def receive(self, on_beat: OnFrame, on_request: OnRequest) -> None:
        """Begin to deliver in the running loop: beats, and requests with the way to answer each."""
        status, requests = self._names(self.reads)

        def take(item: tuple[Record, bytes]) -> None:
            record, value = item
            if record.topic == status:
                on_beat(value)
            elif record.topic == requests and (answer := self._admitted(record)) is not None:
                on_request(value, answer)

        self._inbox.open(take)

    def publish(self, node: str, frame: bytes) -> None:
        """Send a frame to the agents of that name."""
        key = topics.node_key(node)
        if self._ready.is_set():
            self._send(topics.CONTROL, key, frame, partition=topics.partition_of(key, self._control_partitions()))

    def announce(self, topic: str, frame: bytes) -> None:
        """Send a frame to every monitor."""
        self._send(topics.EVENTS, topic.encode(), frame)

    def brokers(self) -> BusBrokers:
        """Return the cluster as it was seen last, without brokers before that."""
        return self._sight.seen if self._sight else BusBrokers()

    def close(self) -> None:
        """Send what is queued, for at most half a second, and let go of everything."""
        if self._sight:
            self._sight.close()
        super().close()

    def links(self) -> dict[str, dict[str, bool]]:
        """Return {}: there is one link."""
        return {}

    def _admitted(self, record: Record) -> Answer | None:
        """Return the way to answer a request, None for one that was heard before or has no good ticket."""
        now_s = time.monotonic()
        number, ticket = record.fields.get(NUMBER, b""), record.fields.get(TICKET, b"")
        if not self._tickets.knows(ticket, now_s):
            self._send(topics.REPLIES, record.key, b"", {NUMBER: number, TICKET: self._tickets.now(now_s)})
            return None
        if not self._tickets.admit(ticket, record.key, number):
            return None
        return partial(self._send, topics.REPLIES, record.key, fields={NUMBER: number})

    def _refuse_another(self) -> None:
        consumer = self._clients.consumer(self._on_error, **{"enable.partition.eof": True})
        name = self.address.topic(topics.CONTROL.name)
        try:
            other = Watch(consumer, self._seal, name).alive(OPEN_S)
        except KafkaException as error:
            raise BusError(f"{self.address}: cannot read {name}: {reason(error)}") from None
        finally:
            consumer.close()
        if other is not None:
            raise TakenError(
                f"another coordinator (its id is {other.id}) is present at {self.address}: stop it, or choose another "
                "‹topic-prefix›"
            )

    def _wait_until_heard(self) -> None:
        """Wait until the topics' ends are known and a presence is written: what is sent from now on is heard."""
        deadline_s = time.monotonic() + OPEN_S
        while not (self._ready.is_set() and self._heard):
            if time.monotonic() > deadline_s:
                raise BusError(f"{self._trouble() or self._lost or 'nothing can be written'} (tried for {OPEN_S:g} s)")
            self._ready.wait(0.01) if not self._ready.is_set() else time.sleep(0.01)

    def _tick(self, now_s: float) -> None:
        """Be present, and see whether the topics are there, and whether the control topic got more partitions."""
        if not self._ready.is_set():
            return
        if now_s - self._counted_s >= COUNT_S:
            self._counted_s = now_s
            self._recount_all()
        if now_s - self._present_s >= EACH_S:
            self._present_s = now_s
            self._be_present(gone=False)

    def _miss(self, names: Sequence[str]) -> None:
        """Make again what somebody removed."""
        log.warning("%s: %s is gone; making it again", self.address, ", ".join(names))
        try:
            make_topics(self._clients, self.address, topics.BUS, ASK_S)
        except BusError as error:
            self._unready = str(error)

    def _recount_all(self) -> None:
        for name, known in list(self._counts.items()):
            try:
                count = self._recount(name)
            except KafkaException:  # nobody answers
                return
            if count > known and name == self.address.topic(topics.CONTROL.name):
                log.info("%s has %d partitions now, it had %d", name, count, known)
                self._counts[name] = count

    def _be_present(self, *, gone: bool) -> None:
        partitions = self._control_partitions()
        self._number += 1
        value = encode(Presence(self._id, self._number, partitions, gone))
        for partition in range(partitions):
            self._produce(topics.CONTROL, KEY, value, {}, partition)

    def _control_partitions(self) -> int:
        return self._counts[self.address.topic(topics.CONTROL.name)]

    def _say_goodbye(self) -> None:
        if self._heard:
            self._be_present(gone=True)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        super()._on_delivery(error, message)
        self._heard = self._heard or (error is None and message.topic() == self.address.topic(topics.CONTROL.name))
