"""Brokers are never exempt: what cuts them from each other does so on every transport, and heals."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic, PartitionMetadata

from tests.cli.command import Ran
from tests.kafka.outside import Outside
from tests.support import require_namespaces, wait_until
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.lab.kafka import PORT, KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

TRANSPORTS = ("zmq", pytest.param("kafka", marks=pytest.mark.core), "kafka+zmq")
CUT = {
    "class": "partition",
    "durationMs": 120_000,
    "partitions": [["broker1"], ["broker2", "broker3"]],
}
FREEZE_TWO = {"class": "process-stop", "durationMs": 60_000, "nodes": ["broker1", "broker2"], "match": "kafka.Kafka"}
QUIET = logging.getLogger("quiet")
COUNTED = re.compile(r"^\[(\d+):\d+\] -A TB-\S+ .*-j DROP", re.M)


def reaches(cluster: KafkaCluster, one: str, other: str) -> bool:
    """Return whether a connection from the namespace of one node to the brokers' listener of another comes about."""

    def connect() -> bool:
        try:
            socket.create_connection((cluster.addresses[other], PORT), 1).close()
        except TimeoutError:
            return False
        return True

    with Namespace(f"/proc/{cluster.pid(one)}/ns/net") as namespace:
        return namespace.call(connect)


def dropped(cluster: KafkaCluster, node: str) -> int:
    """Return how many packets the chains of ours have dropped in the namespace of a node."""
    tools = [tool for tool in ("iptables-nft-save", "iptables-legacy-save") if shutil.which(tool)]

    def read() -> int:
        saved = [subprocess.run([tool, "-c"], capture_output=True, text=True, check=True).stdout for tool in tools]
        return sum(int(count) for text in saved for count in COUNTED.findall(text))

    with Namespace(f"/proc/{cluster.pid(node)}/ns/net") as namespace:
        return namespace.call(read)


class Topic:
    """A topic of three replicas as it is seen where broker2 stands: a broker that is cut off tells old tales."""

    def __init__(self, cluster: KafkaCluster, name: str) -> None:
        self.name = name
        addresses = ",".join(f"{cluster.addresses[node]}:{PORT}" for node in ("broker2", "broker3"))
        common = {
            "bootstrap.servers": addresses,
            "socket.timeout.ms": 3000,
        }  # a broker that does not answer is given up
        taking = {"acks": "all", "message.timeout.ms": 20_000, "request.timeout.ms": 5_000}
        with Namespace(f"/proc/{cluster.pid('broker2')}/ns/net") as namespace:  # librdkafka's threads stay in there
            self._admin: AdminClient = namespace.call(lambda: AdminClient(common, logger=QUIET))
            self._producer: Producer = namespace.call(lambda: Producer(common | taking, logger=QUIET))
        if self.name not in self._admin.list_topics(timeout=20).topics:
            self._admin.create_topics([NewTopic(self.name, 3, 3)])[self.name].result(30)

    def in_sync(self) -> list[set[int]]:
        """Return the replicas in sync of each partition."""
        return [set(partition.isrs) for partition in self._partitions()]

    def leaders(self) -> set[int]:
        """Return who leads any partition."""
        return {partition.leader for partition in self._partitions()}

    def led_by(self, broker: int) -> int:
        """Return a partition that the broker leads."""
        return next(partition.id for partition in self._partitions() if partition.leader == broker)

    def take(self, partition: int) -> bool:
        """Return whether the partition takes a record, from enough replicas, within 20 s."""
        errors: list[object] = []
        self._producer.produce(
            self.name, b"word", partition=partition, on_delivery=lambda error, message: errors.append(error)
        )
        wait_until(lambda: self._producer.flush(1) == 0, 40, "a word about the record")
        return errors[0] is None  # to a KafkaError an equality with None is an error of its own

    def _partitions(self) -> list[PartitionMetadata]:
        found: list[PartitionMetadata] = []

        def answered() -> bool:
            with contextlib.suppress(KafkaException):  # nobody in time
                found.extend(self._admin.list_topics(self.name, timeout=5).topics[self.name].partitions.values())
            return bool(found)

        wait_until(answered, 60, "the brokers to tell of the topic")
        return found


@pytest.fixture
def cluster(kafka_cluster: KafkaCluster) -> Iterator[KafkaCluster]:
    require_namespaces()
    yield kafka_cluster


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_partition_cuts_brokers_from_each_other_and_heals(
    transport: str, cluster: KafkaCluster, tmp_path: Path
) -> None:
    topic = Topic(cluster, "cut")
    wait_until(lambda: topic.in_sync() == [{1, 2, 3}] * 3, 90, "every replica to be in sync")
    assert reaches(cluster, "broker1", "broker2")
    with Outside(cluster, transport, tmp_path) as outside:
        rows = {row["name"]: row["broker"] for row in outside.json("nodes")["nodes"]}
        assert rows == {"broker1": 1, "broker2": 2, "broker3": 3}
        protected(outside, yes=transport == "kafka")
        outside.submit("cut", CUT)
        for pair in (("broker1", "broker2"), ("broker2", "broker1"), ("broker3", "broker1")):
            assert not reaches(cluster, *pair), pair
        assert reaches(cluster, "broker2", "broker3")
        wait_until(lambda: topic.in_sync() == [{2, 3}] * 3, 90, "broker 1 to fall out of every replica set")
        assert topic.leaders() <= {2, 3}
        counts = {node: dropped(cluster, node) for node in ("broker1", "broker2", "broker3")}
        assert all(counts.values()), counts
        assert outside.json("show", "cut")["active"], "the bus lives, and so does the fault"
        wait_until(lambda: outside.ask("stop", "cut", "--wait").code == 0, 60, "the task to be stopped")
        assert reaches(cluster, "broker1", "broker2") and reaches(cluster, "broker3", "broker1")
        assert [dropped(cluster, node) for node in counts] == [0, 0, 0]
        wait_until(lambda: topic.in_sync() == [{1, 2, 3}] * 3, 90, "broker 1 to be back in every replica set")


def protected(outside: Outside, *, yes: bool) -> None:
    """Assert whether a fault that silences a bus on Kafka alone is refused."""
    if not yes:
        wait_until(lambda: outside.ask("submit", "-", "--dry-run", spec=FREEZE_TWO).code == 0, 60, "a dry run")
        return
    told: list[Ran] = []

    def refused() -> bool:
        told.append(outside.ask("submit", "-", "--id", "freeze", "--dry-run", spec=FREEZE_TWO))
        return told[-1].code == 2

    wait_until(refused, 60, "the brokers to be seen")
    assert (
        "this fault would silence it for 60 s (the lease, after which agents undo everything, is 30 s): brokers 1 and "
        "2 (nodes broker1 and broker2) would be gone, and broker 3 (node broker3) is too few (the bus needs 2 replicas "
        "in sync)"
    ) in told[-1].err
    forced = ["submit", "-", "--dry-run", "--force"]
    wait_until(lambda: "warning: the bus runs on Kafka alone" in outside.ask(*forced, spec=FREEZE_TWO).out, 60, "force")
    one = {**FREEZE_TWO, "nodes": ["broker1"]}
    wait_until(lambda: outside.ask("submit", "-", "--dry-run", spec=one).code == 0, 60, "a dry run for one broker")


def test_a_broker_whose_port_is_shut_keeps_its_partitions(cluster: KafkaCluster, tmp_path: Path) -> None:
    """Why one shut port silences a bus on Kafka alone: the controllers still hear the broker, so nobody takes over."""
    topic = Topic(cluster, "shut")  # a new one: its leaders are spread
    wait_until(lambda: topic.leaders() == {1, 2, 3}, 60, "every broker to lead")
    assert topic.take(topic.led_by(1))
    shut = {"class": "port-block", "durationMs": 120_000, "nodes": ["broker1"], "ports": [PORT]}
    with Outside(cluster, "zmq", tmp_path) as outside:
        outside.submit("shut", shut)
        assert not reaches(cluster, "broker2", "broker1")
        partition = topic.led_by(1)
        assert not topic.take(partition), "longer than a broker that nobody hears would stay leader"
        assert topic.led_by(1) == partition
        assert topic.take(topic.led_by(2))
