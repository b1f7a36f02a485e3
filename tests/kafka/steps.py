"""What the tests of faults on a real Kafka do again and again."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.conftest import SETTINGS, require_kafka, started
from tests.support import require_namespaces, wait_until
from trogdor_bus.cluster import NOBODY, ClusterView
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.reader import Reader
from trogdor_bus.lab.kafka import DEFAULT_VERSION
from trogdor_bus.lab.kafka_lab import KafkaLab

WHOLE_S = 90.0


@contextlib.contextmanager
def lab_of(name: str, **options: Any) -> Iterator[KafkaLab]:
    """Give a lab of three brokers that nobody else uses."""
    require_namespaces()
    require_kafka(options.get("version", DEFAULT_VERSION))
    options["settings"] = SETTINGS | options.get("settings", {})
    with started(KafkaLab(3, f"{name}{os.getpid()}", print, **options)) as lab:
        yield lab


@contextlib.contextmanager
def with_topic(lab: KafkaLab, topic: str, placed: Sequence[Sequence[int]]) -> Iterator[KafkaLab]:
    """Give the lab with a topic whose replicas are placed so, two of them in sync at least; it is removed after."""
    config = {"min.insync.replicas": "2"}
    wanted = NewTopic(topic, len(placed), replica_assignment=[*map(list, placed)], config=config)
    client = AdminClient({"bootstrap.servers": lab.cluster.bootstrap, "log_level": 0})
    client.create_topics([wanted])[topic].result(60)
    yield lab
    end_everything(lab)
    client.delete_topics([topic], operation_timeout=30)[topic].result(60)


def end_everything(lab: KafkaLab) -> None:
    """Stop every task that is left, and bring up every node."""
    for task in [task for task, told in lab.ask("tasks")["tasks"].items() if told["state"] != "DONE"]:
        lab.trogdor("stop", task, "--wait")
    lab.cluster.mend()


def timed(what: str, predicate: Callable[[], object], timeout_s: float) -> None:
    """Wait until it comes true and print how long that took."""
    began = time.monotonic()
    wait_until(predicate, timeout_s, what)
    print(f"measured: {what} {time.monotonic() - began:.1f} s")


@contextlib.contextmanager
def whole_again(lab: KafkaLab) -> Iterator[Reader]:
    """Give what sees the cluster, which is whole before and again after: every task ended, every node up."""
    with Reader(Access(lab.cluster.bootstrap_inside)) as reader:
        wait_until(lambda: whole(reader.read()), WHOLE_S, "the cluster to be whole")
        yield reader
        end_everything(lab)
        wait_until(lambda: whole(reader.read()), WHOLE_S, "the cluster to be whole again")


def whole(view: ClusterView) -> bool:
    """Return whether three brokers have all partitions in sync, and all controllers hear the active one."""
    voters = view.quorum.voters if view.quorum else ()
    heard = all(0 <= one.behind_ms < 3000 for one in voters)
    return len(view.brokers) == 3 and view.controller != NOBODY and heard and not any(view.broken())


def submit(lab: KafkaLab, spec: dict[str, Any], *options: str) -> tuple[int, str]:
    """Return the exit code of `submit`, and all that it printed."""
    done = lab.trogdor("submit", "-", *options, given=json.dumps({"durationMs": 60_000, **spec}))
    return done.returncode, done.stdout + done.stderr


def creates_topic(lab: KafkaLab, name: str) -> bool:
    """Return whether a topic of one partition can be made within a few seconds."""
    client = AdminClient({"bootstrap.servers": lab.cluster.bootstrap, "log_level": 0})
    created = client.create_topics([NewTopic(name, 1, 3)], operation_timeout=5, request_timeout=8)[name]
    try:
        created.result(30)
    except KafkaException:
        return False
    return True


def carries(bootstrap: str, topic: str, timeout_s: float = 30) -> bool:
    """Return whether a record goes round by partition 0."""
    word = uuid.uuid4().bytes
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "log_level": 0})
    producer.produce(topic, word, partition=0)
    if producer.flush(timeout_s):
        return False
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])

    def arrived() -> bool:
        record = consumer.poll(1)
        return record is not None and record.value() == word

    try:
        wait_until(arrived, timeout_s, f"the record in {topic}")
    finally:
        consumer.close()
    return True
