"""Kafka as the bus: every frame is one record of a topic, its value; nobody needs yesterday's.

    topic             key         value                    from, to
    PREFIX.control    node        snapshot                 coordinator, agents (and the coordinator's presence, key "")
    PREFIX.status     node        beat                     agents, coordinator
    PREFIX.events     topic       announcement             coordinator, monitors
    PREFIX.requests   client id   request                  clients, coordinator
    PREFIX.replies    client id   reply                    coordinator, clients
    PREFIX.state      key         row                      coordinator, coordinator

Everybody reads from the end of assigned partitions; there are no groups, commits or transactions. Each end is one
thread around a producer and a consumer of librdkafka. With a directory of keys every record is sealed.
"""

from __future__ import annotations

from pathlib import Path

from trogdor_bus.transports.kafka.address import DEFAULT_PORT, DEFAULT_PREFIX
from trogdor_bus.transports.kafka.agent import KafkaAgent, KafkaMonitor
from trogdor_bus.transports.kafka.client import KafkaClient
from trogdor_bus.transports.kafka.coordinator import KafkaCoordinator
from trogdor_bus.transports.kafka.statelog import KafkaLog

__all__ = [
    "DEFAULT_PORT",
    "DEFAULT_PREFIX",
    "open_agent",
    "open_client",
    "open_coordinator",
    "open_log",
    "open_monitor",
]


def open_coordinator(url: str, keys: Path | None) -> KafkaCoordinator:
    """Make the topics and be present, with keys made at the first start; TakenError if another coordinator is there."""
    return KafkaCoordinator(url, keys)


def open_agent(url: str, node: str, keys: Path | None) -> KafkaAgent:
    """Read and write as the agent of `node`; brokers and topics need not be there yet."""
    return KafkaAgent(url, node, keys)


def open_client(url: str, keys: Path | None) -> KafkaClient:
    """Ask as a client; brokers and topics need not be there yet."""
    return KafkaClient(url, keys)


def open_monitor(url: str, keys: Path | None) -> KafkaMonitor:
    """Read what is announced; brokers and topics need not be there yet."""
    return KafkaMonitor(url, keys)


def open_log(url: str, keys: Path | None) -> KafkaLog:
    """Return the log of a coordinator's state; it makes its topic and writes as soon as brokers let it."""
    return KafkaLog(url, keys)
