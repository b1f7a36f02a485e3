"""The topics of a Kafka bus and their settings; which partition a node's frames take; the commands that make them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.transports.kafka.address import Address

OVERHEAD_BYTES = 64 << 10
"""What a record may have beside its frame: key, headers, Kafka's own."""
MAX_RECORD_BYTES = MAX_FRAME_BYTES + OVERHEAD_BYTES
MAX_REPLICAS = 3
MINUTE_MS = 60_000

LARGEST = "max.message.bytes"
POLICY = "cleanup.policy"


@dataclass(frozen=True, eq=False)
class Topic:
    """A topic: its name after the prefix, its partitions when we make it, and its settings."""

    name: str
    partitions: int
    settings: Mapping[str, str]


def _compacted(tombstones_ms: int) -> dict[str, str]:
    return {
        POLICY: "compact",
        LARGEST: str(MAX_RECORD_BYTES),
        "segment.ms": str(10 * MINUTE_MS),
        "segment.bytes": str(64 << 20),
        "min.cleanable.dirty.ratio": "0.1",
        "max.compaction.lag.ms": str(10 * MINUTE_MS),
        "delete.retention.ms": str(tombstones_ms),
    }


def _passing(retention_ms: int) -> dict[str, str]:
    return {
        POLICY: "delete",
        LARGEST: str(MAX_RECORD_BYTES),
        "retention.ms": str(retention_ms),
        "segment.ms": str(retention_ms // 2),
    }


CONTROL = Topic("control", 8, _compacted(60 * MINUTE_MS))
STATUS = Topic("status", 1, _compacted(60 * MINUTE_MS))
EVENTS = Topic("events", 1, _passing(60 * MINUTE_MS))
REQUESTS = Topic("requests", 1, _passing(10 * MINUTE_MS))
REPLIES = Topic("replies", 1, _passing(10 * MINUTE_MS))
STATE = Topic("state", 1, _compacted(24 * 60 * MINUTE_MS))
BUS = (CONTROL, STATUS, EVENTS, REQUESTS, REPLIES)
ALL = (*BUS, STATE)


def node_key(node: str) -> bytes:
    """Return the key of a node's records."""
    return node.encode(errors="surrogatepass")


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key, of that many: librdkafka's partitioner `consistent` says the same."""
    return crc32(key) % partitions


def settings(topic: Topic, replicas: int) -> dict[str, str]:
    """Return the settings of a new topic of that many replicas."""
    return {**topic.settings, "min.insync.replicas": "2" if replicas >= MAX_REPLICAS else "1"}


def create_command(address: Address, topic: Topic, replicas: int = MAX_REPLICAS) -> str:
    """Return the command that makes a topic, to paste."""
    configs = [word for name, value in settings(topic, replicas).items() for word in ("--config", f"{name}={value}")]
    size = ["--partitions", str(topic.partitions), "--replication-factor", str(replicas)]
    tool = ["kafka-topics", "--bootstrap-server", address.bootstrap]
    return shlex.join([*tool, "--create", "--topic", address.topic(topic.name), *size, *configs])


def alter_command(address: Address, topic: Topic, changes: Mapping[str, str]) -> str:
    """Return the command that changes settings of a topic, to paste."""
    added = ",".join(f"{name}={value}" for name, value in changes.items())
    which = ["--entity-type", "topics", "--entity-name", address.topic(topic.name)]
    tool = ["kafka-configs", "--bootstrap-server", address.bootstrap]
    return shlex.join([*tool, "--alter", *which, "--add-config", added])
