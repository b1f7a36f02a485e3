"""A real Kafka cluster in containers: it comes up, carries records, and its nodes can be broken and mended."""

from __future__ import annotations

import os

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.conftest import require_kafka
from trogdor_bus.lab.containers import OFFICIAL, Containers
from trogdor_bus.lab.kafka import DEFAULT_VERSION, KafkaCluster
from trogdor_bus.lab.metadata import brokers_of

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.mark.core
def test_records_go_round(bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic("round", 3, 3)])["round"].result(30)
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    producer.produce("round", b"hello", partition=0)
    assert producer.flush(30) == 0
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False})
    consumer.assign([TopicPartition("round", 0, 0)])
    record = consumer.poll(30)
    consumer.close()
    assert record is not None and record.value() == b"hello"


def test_both_ways_in_lead_to_every_broker(kafka_cluster: KafkaCluster) -> None:
    everybody = set(kafka_cluster.brokers)
    assert kafka_cluster.nodes == ("broker1", "broker2", "broker3")
    for address in (*kafka_cluster.bootstrap.split(","), *kafka_cluster.bootstrap_inside.split(",")):
        assert brokers_of(address, 10) == everybody


def test_the_official_variables_and_the_layout_are_there_and_pid_1_is_the_jvm(kafka_cluster: KafkaCluster) -> None:
    settings = kafka_cluster.run("broker1", "cat", "/opt/kafka/config/server.properties").splitlines()
    assert {"node.id=1", "process.roles=broker,controller", "min.insync.replicas=2"} <= set(settings)
    assert "java" in kafka_cluster.run("broker1", "cat", "/proc/1/cmdline").split("\0")[0]
    topics = kafka_cluster.run(
        "broker1", "/opt/kafka/bin/kafka-topics.sh", "--bootstrap-server", "broker1:9092", "--list"
    )
    assert "Exception" not in topics


@pytest.mark.core
@pytest.mark.parametrize(("version", "mode"), [("3.9.2", "combined"), (DEFAULT_VERSION, "isolated")])
def test_both_lines_and_both_modes_come_up(version: str, mode: str) -> None:
    require_kafka(version)
    with KafkaCluster(1, f"v{os.getpid()}", print, mode=mode, version=version) as cluster:
        assert cluster.nodes == ("broker1", *(["controller1"] if mode == "isolated" else []))
        assert brokers_of(cluster.bootstrap, 10) == {1}
        stopped = cluster.pid("broker1")
        cluster.stop("broker1")
        assert cluster.pid("broker1") == 0
        cluster.mend()
        assert cluster.pid("broker1") not in (0, stopped)


@pytest.mark.registry
def test_the_official_image_comes_from_its_registry_and_works_alike() -> None:
    containers = Containers("none")
    try:
        assert containers.pull(DEFAULT_VERSION) == f"{OFFICIAL}:{DEFAULT_VERSION}"
    finally:
        containers.close()
    with KafkaCluster(3, f"o{os.getpid()}", print) as cluster:
        assert cluster.find_image().startswith(OFFICIAL)
        assert "java" in cluster.run("broker1", "cat", "/proc/1/cmdline").split("\0")[0]
