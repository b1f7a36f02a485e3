"""A real Kafka cluster in containers: it comes up, carries records, and its nodes can be broken and mended."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from trogdor_bus.lab.kafka import KafkaCluster
from trogdor_bus.lab.metadata import brokers_of

pytestmark = pytest.mark.kafka


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
    for address in (*kafka_cluster.bootstrap.split(","), *kafka_cluster.bootstrap_inside.split(",")):
        assert brokers_of(address, 10) == everybody
