"""Brokers are never exempt: what cuts them from each other does so on every transport, and heals."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic, PartitionMetadata
from trogdor_bus.lab.kafka import PORT, KafkaCluster

from tests.kafka.daemons import Daemons
from tests.support import require_namespaces, wait_until
from trogdor_bus.agents.platforms.linux.namespace import Namespace

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

TRANSPORTS = ("zmq", "kafka", "kafka+zmq")
CUT = {
    "class": "partition",
    "durationMs": 120_000,
    "partitions": [["broker1"], ["broker2", "broker3"]],
}
FREEZE_TWO = {"class": "process-stop", "durationMs": 60_000, "nodes": ["broker1", "broker2"], "match": "kafka.Kafka"}
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


class Isr:
    """What is said of a topic of three replicas where broker2 stands: a broker that is cut off tells old tales."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self.name = f"cut{cluster.name}"
        addresses = ",".join(f"{cluster.addresses[node]}:{PORT}" for node in ("broker2", "broker3"))
        with Namespace(f"/proc/{cluster.pid('broker2')}/ns/net") as namespace:  # librdkafka's threads stay in there
            self._admin: AdminClient = namespace.call(lambda: AdminClient({"bootstrap.servers": addresses}))
        if self.name not in self._admin.list_topics(timeout=20).topics:
            self._admin.create_topics([NewTopic(self.name, 3, 3)])[self.name].result(30)

    def now(self) -> list[set[int]]:
        """Return the replicas in sync of each partition; [] if nobody answers."""
        return [set(partition.isrs) for partition in self._partitions()]

    def leaders(self) -> set[int]:
        """Return who leads any partition."""
        return {partition.leader for partition in self._partitions()}

    def _partitions(self) -> list[PartitionMetadata]:
        try:
            return list(self._admin.list_topics(self.name, timeout=5).topics[self.name].partitions.values())
        except KafkaException:
            return []


@pytest.fixture
def cluster(kafka_cluster: KafkaCluster) -> Iterator[KafkaCluster]:
    require_namespaces()
    yield kafka_cluster


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_partition_cuts_brokers_from_each_other_and_heals(
    transport: str, cluster: KafkaCluster, tmp_path: Path
) -> None:
    isr = Isr(cluster)
    wait_until(lambda: isr.now() == [{1, 2, 3}] * 3, 60, "every replica to be in sync")
    assert reaches(cluster, "broker1", "broker2")
    with Daemons(cluster, transport, tmp_path) as daemons:
        rows = {row["name"]: row["broker"] for row in daemons.json("nodes")["nodes"]}
        assert rows == {"broker1": 1, "broker2": 2, "broker3": 3}
        daemons.submit("cut", CUT)
        for pair in (("broker1", "broker2"), ("broker2", "broker1"), ("broker3", "broker1")):
            assert not reaches(cluster, *pair), pair
        assert reaches(cluster, "broker2", "broker3")
        wait_until(lambda: isr.now() == [{2, 3}] * 3, 90, "broker 1 to fall out of every replica set")
        assert isr.leaders() <= {2, 3}
        counts = {node: dropped(cluster, node) for node in ("broker1", "broker2", "broker3")}
        assert all(counts.values()), counts
        assert daemons.json("show", "cut")["active"], "the bus lives, and so does the fault"
        wait_until(lambda: daemons.ask("stop", "cut", "--wait").code == 0, 60, "the task to be stopped")
        assert reaches(cluster, "broker1", "broker2") and reaches(cluster, "broker3", "broker1")
        assert [dropped(cluster, node) for node in counts] == [0, 0, 0]
        wait_until(lambda: isr.now() == [{1, 2, 3}] * 3, 90, "broker 1 to be back in every replica set")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_only_a_bus_on_kafka_alone_is_protected(transport: str, cluster: KafkaCluster, tmp_path: Path) -> None:
    with Daemons(cluster, transport, tmp_path) as daemons:
        if transport != "kafka":
            assert daemons.ask("submit", "-", "--dry-run", spec=FREEZE_TWO).code == 0
            return
        wait_until(
            lambda: daemons.ask("submit", "-", "--dry-run", spec=FREEZE_TWO).code == 2, 15, "the brokers to be seen"
        )
        said = daemons.ask("submit", "-", "--id", "freeze", spec=FREEZE_TWO)
        assert said.code == 2
        assert (
            "this fault would silence it for 60 s (the lease, after which agents undo everything, is 30 s): brokers 1 "
            "and 2 (nodes broker1 and broker2) would be gone, and broker 3 (node broker3) is too few (the bus needs 2 "
            "replicas in sync)"
        ) in said.err
        assert daemons.ask("submit", "-", "--dry-run", spec={**FREEZE_TWO, "nodes": ["broker1"]}).code == 0
        forced = daemons.ask("submit", "-", "--dry-run", "--force", spec=FREEZE_TWO)
        assert (forced.code, "warning: the bus runs on Kafka alone" in forced.out) == (0, True)


def test_a_broker_whose_port_is_shut_keeps_its_partitions(cluster: KafkaCluster, tmp_path: Path) -> None:
    """Why one shut port silences a bus on Kafka alone: the controllers still hear the broker, so nobody takes over."""
    isr = Isr(cluster)
    wait_until(lambda: isr.now() == [{1, 2, 3}] * 3 and isr.leaders() == {1, 2, 3}, 90, "every broker to lead")
    shut = {"class": "port-block", "durationMs": 120_000, "nodes": ["broker1"], "ports": [PORT]}
    with Daemons(cluster, "zmq", tmp_path) as daemons:
        daemons.submit("shut", shut)
        assert not reaches(cluster, "broker2", "broker1")
        wait_until(lambda: {1} in isr.now(), 90, "the others to fall behind broker 1")  # noticed after 30 s, not 9
        assert 1 in isr.leaders()
