"""Faults that know Kafka, on a real cluster: they hit whoever holds the role, and not what the data cannot spare."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.steps import await_active, new_id, stop
from tests.kafka.steps import submit, whole_again, with_topic
from tests.support import wait_until
from trogdor_bus.cluster import NOBODY
from trogdor_bus.kafka.reader import Reader
from trogdor_bus.lab.kafka_lab import KafkaLab

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

TOPIC = "orders"
PLACED = ([2, 3, 1], [3, 1, 2], [1, 2, 3])


@pytest.fixture(scope="module")
def lab(made_kafka_lab: KafkaLab) -> Iterator[KafkaLab]:
    with with_topic(made_kafka_lab, TOPIC, PLACED) as made:
        yield made


@pytest.fixture
def reader(lab: KafkaLab) -> Iterator[Reader]:
    """What sees the cluster, which is whole again after the test."""
    with whole_again(lab) as made:
        yield made


@pytest.mark.core
def test_the_leader_is_killed_and_started_again_and_the_log_names_it(lab: KafkaLab, reader: Reader) -> None:
    seen = reader.read().partition(TOPIC, 0)
    assert seen is not None
    node = f"broker{seen.leader}"
    line = f"leader({TOPIC}, 0) is broker {seen.leader} on node {node} (leader epoch {seen.epoch})"
    spec = {"class": "kafka-kill-leader", "topic": TOPIC, "durationMs": 4_000}
    code, printed = submit(lab, spec, "--dry-run")
    assert code == 0, printed
    assert f"now {line}" in printed
    assert f"broker {seen.leader} on node {node} would be gone, which also takes controller {seen.leader}" in printed
    assert f"would lose the replica on broker {seen.leader}" in printed and f"{TOPIC}-0" in printed
    pid = lab.cluster.pid(node)
    task = new_id("leader")
    code, printed = submit(lab, spec, "--id", task, "--wait")
    assert code == 0, printed + lab.log("coordinator", "coordinator")
    assert f"task {task}: {line}" in lab.log("coordinator", "coordinator")
    told = lab.ask("show", task)
    assert told["chosen"] == [line]
    assert told["spec"]["nodes"] == [node]
    wait_until(lambda: lab.cluster.pid(node) not in (0, pid), 60, "the broker to be started again")

    def moved() -> bool:  # the broker is back sooner than its session expires, and waits for that
        after = reader.read().partition(TOPIC, 0)
        return after is not None and after.leader not in (seen.leader, NOBODY) and after.epoch > seen.epoch

    wait_until(moved, 40, "another leader")


@pytest.mark.core
def test_the_controller_is_followed_and_a_second_loss_refused(lab: KafkaLab, reader: Reader) -> None:
    first = reader.read().controller
    freeze = {"class": "kafka-stop-controller"}
    task = new_id("controller")
    code, printed = submit(lab, freeze, "--id", task)
    assert code == 0, printed
    await_active(lab, task)
    assert lab.ask("show", task)["chosen"] == [f"controller is controller {first} on node broker{first}"]
    other = {"class": "process-stop", "nodes": [f"broker({1 + first % 3})"], "match": "kafka.Kafka"}
    code, printed = submit(lab, other)
    assert code == 2, printed
    assert "below-min-isr" in printed and f"{TOPIC}-" in printed and "no-quorum" in printed, printed
    wait_until(lambda: reader.read().controller not in (first, NOBODY), 60, "another controller")
    second = reader.read().controller
    allowed = [word for rule in ("below-min-isr", "no-quorum", "under-replicated") for word in ("--allow", rule)]
    code, printed = submit(lab, freeze, "--dry-run", *allowed)
    assert code == 0, printed
    assert f"now controller is controller {second} on node broker{second}" in printed
    gone = f"controller {second} (the active one) on node broker{second} would be gone"
    assert f"{gone}, which also takes broker {second}" in printed
    assert "warning: no-quorum" in printed
    stop(lab, task)
