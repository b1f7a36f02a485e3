"""What a stream is like, and what its clients of librdkafka are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from confluent_kafka import KafkaError, KafkaException

from trogdor_bus.errors import SpecError
from trogdor_bus.transports.kafka.settings import TELLS_NOTHING, reason, words

Acks = Literal["all", "1", "0"]
OnError = Callable[[KafkaError], None]
Client = TypeVar("Client")

_COMMON = {
    "client.id": "trogdor-bus-stream",
    "log_level": 0,  # what matters of it comes as errors, too
    "allow.auto.create.topics": False,
    "socket.nagle.disable": True,
    "socket.keepalive.enable": True,
    "socket.connection.setup.timeout.ms": 2000,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,
    "retry.backoff.ms": 50,
    "retry.backoff.max.ms": 250,
    "topic.metadata.refresh.interval.ms": 500,  # how late a new leader may be noticed: it is not told
    "metadata.max.age.ms": 900_000,  # else 1.5 s, and a topic would be forgotten while no broker answers
}
_CONSUMER = {
    "enable.partition.eof": True,
    "fetch.min.bytes": 1,  # a fetch is answered when there is something
    "fetch.wait.max.ms": 100,
    "fetch.error.backoff.ms": 50,
    "fetch.queue.backoff.ms": 50,
    "queued.max.messages.kbytes": 16 << 10,
}


class Access(Protocol):
    """How the cluster is reached."""

    def librdkafka(self) -> dict[str, str]:
        """Return the settings of librdkafka, with `bootstrap.servers`."""
        ...


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`rate` records a second of `record_bytes`, at least; `group`: a consumer group reads as well.

    After `delivery_timeout_ms` a send is given up, and is indeterminate; after `request_timeout_ms` a broker is.
    """

    rate: int = 100
    record_bytes: int = 200
    acks: Acks = "all"
    idempotent: bool = True
    request_timeout_ms: int = 5000
    delivery_timeout_ms: int = 120_000
    group: bool = False

    @property
    def is_idempotent(self) -> bool:
        """Return whether the producer is idempotent: not without acks=all, for Kafka has it only there."""
        return self.idempotent and self.acks == "all"

    @property
    def queue_records(self) -> int:
        """Return how many records the producer may hold: all that can be undecided, and then some."""
        return self.rate * (self.delivery_timeout_ms + self.request_timeout_ms) // 1000 + 1000

    def producer(self, access: Access) -> dict[str, Any]:
        """Return the settings of the producer."""
        records = self.queue_records
        return {
            **self._common(access),
            "acks": self.acks,
            "enable.idempotence": self.is_idempotent,
            "max.in.flight.requests.per.connection": 5,
            "linger.ms": 0,
            "request.timeout.ms": self.request_timeout_ms,
            "message.timeout.ms": self.delivery_timeout_ms,
            "queue.buffering.max.messages": records,
            "queue.buffering.max.kbytes": records * (self.record_bytes + 200) // 1024 + 1024,
            "compression.type": "none",
        }

    def consumer(self, access: Access, group: str, *, reset: str = "earliest", commits: bool = False) -> dict[str, Any]:
        """Return the settings of a consumer; one that is assigned has to name a group, too, but does not use it."""
        return {
            **self._common(access),
            **_CONSUMER,
            "group.id": group,
            "auto.offset.reset": reset,
            "enable.auto.commit": commits,
            "auto.commit.interval.ms": 1000,
        }

    def _common(self, access: Access) -> dict[str, Any]:
        # This bounds how long a request waits for an answer; the broker is to give up first, and to say so.
        return {"socket.timeout.ms": self.request_timeout_ms + 1000, **_COMMON, **access.librdkafka()}


class Troubles:
    """What a client of librdkafka complains about. `last` is its last complaint, `fatal` why it can do no more."""

    def __init__(self) -> None:
        self.last = self.fatal = ""

    def hear(self, error: KafkaError) -> None:
        """Take an error: librdkafka goes on by itself unless it is fatal."""
        if error.fatal():
            self.fatal = self.fatal or words(error)
        elif error.code() not in TELLS_NOTHING:
            self.last = words(error)


def made(make: Callable[[dict[str, Any]], Client], settings: dict[str, Any], on_error: OnError) -> Client:
    """Return a client of librdkafka; SpecError with its words if it refuses the settings."""
    try:
        return make({**settings, "error_cb": on_error})
    except (KafkaException, ValueError, TypeError) as error:
        raise SpecError(f"librdkafka cannot start: {reason(error)}") from None
