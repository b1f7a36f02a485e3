"""What brokers say of themselves: the lab's border to Kafka's client."""

from __future__ import annotations

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient


def brokers_of(bootstrap: str, timeout_s: float = 2.0) -> set[int]:
    """Return the ids of the brokers that the one at HOST:PORT knows; empty while it does not answer."""
    quiet = {"log_level": 0, "socket.timeout.ms": int(timeout_s * 1000), "reconnect.backoff.max.ms": 200}
    admin = AdminClient({"bootstrap.servers": bootstrap, **quiet})
    try:
        return set(admin.list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return set()
