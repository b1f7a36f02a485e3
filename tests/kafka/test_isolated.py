"""Faults that know Kafka where controllers are nodes of their own, and brokers have a listener of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest
from confluent_kafka import Producer

from tests.e2e.steps import await_active, new_id, stop
from tests.kafka.steps import carries, creates_topic, lab_of, submit, whole_again, with_topic
from tests.support import wait_until
from trogdor_bus.cluster import NOBODY, ClusterView
from trogdor_bus.kafka.reader import Reader
from trogdor_bus.lab.kafka import PORT, PUBLISHED_PORT
from trogdor_bus.lab.kafka_lab import KafkaLab
from trogdor_bus.lab.metadata import brokers_of

pytestmark = [pytest.mark.kafka, pytest.mark.together, pytest.mark.timeout(400)]

TOPIC = "orders"
KAFKA = "kafka.Kafka"


@pytest.fixture(scope="module")
def lab() -> Iterator[KafkaLab]:
    with lab_of("i", mode="isolated") as made, with_topic(made, TOPIC, [[2, 3, 1]]):
        yield made


@pytest.fixture
def reader(lab: KafkaLab) -> Iterator[Reader]:
    """What sees the cluster, which is whole again after the test."""
    with whole_again(lab) as made:
        yield made


def frozen(lab: KafkaLab) -> set[str]:
    """Return the nodes whose JVM is stopped."""
    return {node for node in lab.nodes if psutil.Process(lab.cluster.pid(node)).status() == psutil.STATUS_STOPPED}


def lasted(what: str, began: float) -> None:
    print(f"measured: {what} after {time.monotonic() - began:.1f} s")


def test_only_the_active_controller_stops_and_a_second_loss_is_refused(lab: KafkaLab, reader: Reader) -> None:
    before = reader.read()
    first, node = before.controller, lab.cluster.controllers[before.controller]
    task, began = new_id("controller"), time.monotonic()
    code, printed = submit(lab, {"class": "kafka-stop-controller"}, "--id", task)
    assert code == 0, printed
    await_active(lab, task)
    told = lab.ask("show", task)
    assert told["chosen"] == [f"controller is controller {first} on node {node}"]
    assert told["spec"]["nodes"] == [node]
    assert frozen(lab) == {node}
    after: list[ClusterView] = []

    def moved() -> bool:
        after.append(reader.read(timeout_s=1))
        return after[-1].controller not in (first, NOBODY)

    wait_until(moved, 30, "another controller")
    lasted("another controller", began)
    assert after[-1].controller in lab.cluster.controllers
    assert set(after[-1].brokers) == set(lab.cluster.brokers)
    assert [(one.leader, one.epoch) for one in after[-1].partitions] == [
        (one.leader, one.epoch) for one in before.partitions
    ], "the brokers go on"
    assert carries(lab.cluster.bootstrap, TOPIC)

    second = {"class": "process-stop", "nodes": ["controller"], "match": KAFKA}
    code, printed = submit(lab, second)
    assert code == 2 and "no-quorum" in printed and "min-isr" not in printed, printed
    other, began = new_id("second"), time.monotonic()
    code, printed = submit(lab, second, "--id", other, "--allow", "no-quorum")
    assert code == 0, printed
    wait_until(lambda: reader.read(timeout_s=1).controller == NOBODY, 20, "no controller to be left")
    lasted("no quorum", began)
    assert len(frozen(lab)) == 2
    stop(lab, other)
    stop(lab, task)
    assert not frozen(lab)


def test_the_others_are_followers_and_too_many_of_them_are_refused(lab: KafkaLab, reader: Reader) -> None:
    active = reader.read().controller
    followers = {f"controller {number} on node {lab.cluster.controllers[number]}" for number in (101, 102, 103)}
    followers -= {f"controller {active} on node {lab.cluster.controllers[active]}"}
    stops = {"class": "process-stop", "match": KAFKA}
    one, all_of_them = ({**stops, "nodes": [role]} for role in ("one-of(controller-follower)", "controller-follower"))
    code, printed = submit(lab, one, "--dry-run")
    assert code == 0, printed
    assert sum(f"now one-of(controller-follower) is {who}" in printed for who in followers) == 1, printed
    code, printed = submit(lab, all_of_them, "--dry-run")
    assert code == 2 and "no-quorum" in printed, printed
    code, printed = submit(lab, all_of_them, "--dry-run", "--allow", "no-quorum")
    assert code == 0 and "warning: no-quorum" in printed, printed
    assert all(f"now controller-follower is {who}" in printed for who in followers), printed


def test_a_broker_cut_from_the_controllers_is_fenced_and_comes_back(lab: KafkaLab, reader: Reader) -> None:
    task, began = new_id("cut"), time.monotonic()
    code, printed = submit(lab, {"class": "kafka-cut-controllers", "brokers": ["broker(1)"]}, "--id", task)
    assert code == 0, printed
    await_active(lab, task)
    wait_until(lambda: set(reader.read().brokers) == {2, 3}, 40, "the broker to be fenced")
    lasted("fenced", began)
    assert carries(lab.cluster.bootstrap, TOPIC)
    dropped = {worker["node"]: worker["dropped"] for worker in lab.ask("show", task)["workers"]}
    print(f"measured: packets dropped {dropped}")
    assert dropped.keys() == {"broker1", *lab.cluster.controllers.values()}
    assert dropped["broker1"] and any(dropped[node] for node in lab.cluster.controllers.values()), "both ways"
    began = time.monotonic()
    stop(lab, task)
    wait_until(lambda: set(reader.read().brokers) == {1, 2, 3}, 60, "the broker to be back")
    lasted("back", began)


def test_all_brokers_cut_from_the_controllers_decide_nothing(lab: KafkaLab, reader: Reader) -> None:
    cut = {"class": "kafka-cut-controllers"}
    code, printed = submit(lab, cut)
    assert code == 2 and "below-min-isr" in printed and "brokers 1, 2 and 3 would be gone" in printed, printed
    task = new_id("cut-all")
    code, printed = submit(lab, cut, "--id", task, "--allow", "below-min-isr")
    assert code == 0, printed
    await_active(lab, task)
    assert not creates_topic(lab, "during"), "nobody is there who could decide where it is"
    assert carries(lab.cluster.bootstrap, TOPIC), "who led before leads on"
    stop(lab, task)
    wait_until(lambda: creates_topic(lab, f"after-{time.monotonic_ns()}"), 90, "a topic to be created again")


def test_clients_are_cut_and_brokers_go_on_among_themselves(lab: KafkaLab, reader: Reader) -> None:
    seen = reader.read(ports=True)
    ports = [(one.port, one.inside_port, one.client_ports) for one in seen.brokers.values()]
    assert ports == [(PORT, PORT, (PUBLISHED_PORT,))] * 3
    block = {"class": "kafka-block-clients", "brokers": [f"leader({TOPIC}, 0)"]}
    code, printed = submit(lab, block, "--dry-run")
    assert code == 0 and "would lose" not in printed and "would be gone" not in printed, printed
    task = new_id("clients")
    code, printed = submit(lab, block, "--id", task)
    assert code == 0, printed
    await_active(lab, task)
    assert lab.ask("show", task)["spec"]["ports"] == [PUBLISHED_PORT]
    partition = seen.partition(TOPIC, 0)
    assert partition is not None
    hit = partition.leader
    from_outside = {number: f"127.0.0.1:{lab.cluster.ports[node]}" for number, node in lab.cluster.brokers.items()}
    assert {number for number, address in from_outside.items() if brokers_of(address, 3)} == {1, 2, 3} - {hit}
    assert carries(lab.cluster.bootstrap_inside, TOPIC), "all replicas take it"
    now = reader.read().partition(TOPIC, 0)
    assert now is not None and now.is_whole and (now.leader, now.epoch) == (hit, partition.epoch)
    stop(lab, task)
    wait_until(lambda: brokers_of(from_outside[hit]) == {1, 2, 3}, 20, "clients to be let in again")
    shared = {"class": "port-block", "nodes": [f"leader({TOPIC}, 0)"], "ports": [PORT]}
    code, printed = submit(lab, shared)
    assert code == 2 and "below-min-isr" in printed, f"that port is the one between brokers: {printed}"


def test_coordinators_and_racks_are_found(lab: KafkaLab, reader: Reader) -> None:
    producer = Producer({"bootstrap.servers": lab.cluster.bootstrap, "transactional.id": "pay"})
    producer.init_transactions(60)
    seen = reader.read((), ("group:shop", "transaction:pay"), timeout_s=30).coordinators
    wait_until(lambda: not any(reader.read().broken()), 60, "the new topics to be whole")
    for role, number in (
        ("group-coordinator(shop)", seen["group:shop"]),
        ("transaction-coordinator(pay)", seen["transaction:pay"]),
        ("rack(r2)", 2),
    ):
        code, printed = submit(lab, {"class": "kafka-isolate-broker", "broker": role}, "--dry-run")
        assert code == 0 and f"now {role} is broker {number} on node broker{number}" in printed, printed
