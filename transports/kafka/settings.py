"""How we use librdkafka: what its clients are told, and where their own words go."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from trogdor_bus.errors import BusError, TrogdorBusError
from trogdor_bus.properties import Properties
from trogdor_bus.transports.kafka.address import Address
from trogdor_bus.transports.kafka.topics import MAX_RECORD_BYTES

COMMON = {
    "client.id": "trogdor-bus",
    "allow.auto.create.topics": False,
    "socket.nagle.disable": True,
    "socket.keepalive.enable": True,
    "socket.timeout.ms": 3000,  # a frozen broker is given up, and its successor found
    "socket.connection.setup.timeout.ms": 2000,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,
    "retry.backoff.ms": 50,
    "retry.backoff.max.ms": 250,
    "topic.metadata.refresh.interval.ms": 5000,
}
PRODUCER = COMMON | {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 0,
    "request.timeout.ms": 2000,
    "message.timeout.ms": 3000,  # the next beat supersedes
    "message.max.bytes": MAX_RECORD_BYTES,
    "queue.buffering.max.messages": 10_000,
    "queue.buffering.max.kbytes": 64 << 10,
    "compression.type": "lz4",
    "partitioner": "consistent",
}
CONSUMER = COMMON | {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "latest",
    "isolation.level": "read_uncommitted",  # a stranger's hanging transaction stops nobody
    "fetch.wait.max.ms": 500,
    "fetch.min.bytes": 1,
    "fetch.error.backoff.ms": 50,
    "fetch.queue.backoff.ms": 50,
    "fetch.message.max.bytes": MAX_RECORD_BYTES,
    "receive.message.max.bytes": 100_000_000,
    "queued.min.messages": 1000,
    "queued.max.messages.kbytes": 64 << 10,
}
FOREVER_MS = 0
"""As `message.timeout.ms`: the producer never gives up."""

Client = TypeVar("Client")
TELLS_NOTHING = (
    KafkaError._ALL_BROKERS_DOWN,  # which, and why, comes with other errors
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError._FATAL,
    KafkaError.GROUP_AUTHORIZATION_FAILED,  # librdkafka looks for the group's coordinator; we have no use for it
)
OnError = Callable[[KafkaError], None]
OnDelivery = Callable[[KafkaError | None, Message], None]


class _Words:
    """Takes librdkafka's log lines: what matters of them comes as errors, too, and they repeat themselves."""

    def __init__(self) -> None:
        self._log = logging.getLogger("trogdor_bus.transports.kafka.librdkafka")

    def log(self, level: int, text: str, *values: object) -> None:
        self._log.debug(text, *values)


WORDS = _Words()


class Clients:
    """Makes clients of librdkafka for one address; the properties file is read once."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._properties = Properties(address.config)

    def producer(self, on_error: OnError, on_delivery: OnDelivery, **changes: Any) -> Producer:
        """Return an idempotent producer; SpecError names the line of the properties file that is wrong."""
        callbacks = {"error_cb": on_error, "on_delivery": on_delivery}
        return self._made(lambda config: Producer(config, logger=WORDS), PRODUCER | callbacks, changes)

    def consumer(self, on_error: OnError, **changes: Any) -> Consumer:
        """Return a consumer that is to be assigned; SpecError as for `producer`."""
        name = {"group.id": self._address.prefix, "error_cb": on_error}
        return self._made(lambda config: Consumer(config, logger=WORDS), CONSUMER | name, changes)

    def admin(self, on_error: OnError) -> AdminClient:
        """Return a client that makes and describes topics; SpecError as for `producer`."""
        return self._made(lambda config: AdminClient(config, logger=WORDS), COMMON | {"error_cb": on_error}, {})

    def _made(self, make: Callable[[dict[str, Any]], Client], ours: dict[str, Any], changes: dict[str, Any]) -> Client:
        config = ours | self._properties | {"bootstrap.servers": self._address.bootstrap} | changes
        try:
            return make(config)
        except (KafkaException, ValueError, TypeError) as error:
            raise self._blamed(error) from None

    def _blamed(self, error: Exception) -> TrogdorBusError:
        words = reason(error)
        if blamed := self._properties.blame(words):
            return blamed
        where = "" if self._address.config is None else f" with {self._address.config}"
        return BusError(f"librdkafka cannot start{where}: {words}")


def reason(error: Exception) -> str:
    """Return what librdkafka says is wrong."""
    first = error.args[0] if error.args else error
    return words(first) if isinstance(first, KafkaError) else str(first)


def words(error: KafkaError) -> str:
    """Return librdkafka's words for an error, without what differs each time."""
    return re.sub(r" \(after \d+ms in state [^)]*\)", "", error.str())


def code(error: Exception) -> int:
    """Return the code of a KafkaException, as the constants of KafkaError."""
    first = error.args[0] if error.args else None
    return first.code() if isinstance(first, KafkaError) else KafkaError.UNKNOWN
