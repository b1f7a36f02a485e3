"""Kafka 3 with ZooKeeper: brokers that are cut off from it lose their sessions, and come back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.e2e.steps import await_active, new_id, stop
from tests.kafka.steps import carries, creates_topic, lab_of, submit, timed
from tests.support import wait_until
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.reader import Reader
from trogdor_bus.lab.kafka import LAST_WITH_ZOOKEEPER
from trogdor_bus.lab.kafka_lab import KafkaLab

pytestmark = [pytest.mark.kafka, pytest.mark.together, pytest.mark.timeout(400)]

ZOOKEEPER = "zookeeper1"
ASK = "exec 3<>/dev/tcp/127.0.0.1/2181 && echo dump >&3 && cat <&3"
ALL = {1, 2, 3}


@pytest.fixture(scope="module")
def lab() -> Iterator[KafkaLab]:
    session = {"zookeeper.session.timeout.ms": "9000"}  # its own is 18 s
    with lab_of("z", mode="zookeeper", version=LAST_WITH_ZOOKEEPER, settings=session) as made:
        yield made


def dump(lab: KafkaLab) -> str:
    """Return what ZooKeeper tells of its sessions."""
    told: list[str] = []

    def whole() -> bool:  # it may hang up before it has said all
        told.append(lab.cluster.run(ZOOKEEPER, "bash", "-c", ASK))
        return "Connections Sets" in told[-1]

    wait_until(whole, 20, "ZooKeeper to tell of its sessions")
    return told[-1]


def registered(lab: KafkaLab) -> set[int]:
    """Return the brokers whose sessions ZooKeeper keeps, as it says itself."""
    told = dump(lab)
    return {number for number in ALL if f"/brokers/ids/{number}\n" in told}


def controller(lab: KafkaLab) -> int:
    """Return the broker whose session holds /controller in ZooKeeper."""
    session = next(part for part in dump(lab).split("0x") if "/controller\n" in part)
    return next(number for number in ALL if f"/brokers/ids/{number}\n" in session)


def test_every_node_has_an_agent_and_no_broker_is_a_kraft_one(lab: KafkaLab) -> None:
    rows = {row["name"]: row["broker"] for row in lab.ask("nodes")["nodes"] if row["alive"]}
    assert rows == {"broker1": 1, "broker2": 2, "broker3": 3, ZOOKEEPER: None}
    assert registered(lab) == ALL
    for node in lab.nodes:
        assert "java" in lab.cluster.run(node, "cat", "/proc/1/cmdline").split("\0")[0]
    assert "process.roles" not in lab.cluster.run("broker1", "cat", "/proc/1/cmdline")


@pytest.fixture
def reader(lab: KafkaLab) -> Iterator[Reader]:
    with Reader(Access(lab.cluster.bootstrap_inside)) as made:
        yield made


def test_brokers_cut_off_from_zookeeper_lose_their_sessions_and_come_back(lab: KafkaLab, reader: Reader) -> None:
    inside = lab.cluster.bootstrap_inside
    assert creates_topic(lab, "before")
    assert carries(inside, "before")
    view = reader.read()
    assert (view.quorum, view.controller) == (None, controller(lab))
    code, printed = submit(lab, {"class": "kafka-stop-controller"}, "--dry-run")
    assert code == 0, printed
    assert f"now controller is broker {view.controller} on node broker{view.controller}" in printed
    cut = {"class": "kafka-cut-controllers", "durationMs": 180_000, "zookeeper": [ZOOKEEPER]}
    code, printed = submit(lab, cut)
    assert code == 2 and "below-min-isr" in printed and "brokers 1, 2 and 3 would be gone" in printed, printed
    task = new_id("cut")
    code, printed = submit(lab, cut, "--id", task, "--allow", "below-min-isr")
    assert code == 0, printed
    await_active(lab, task)
    timed("the sessions of all brokers to expire", lambda: not registered(lab), 60)
    assert lab.cluster.logs(ZOOKEEPER).count("Expiring session") >= len(ALL)
    assert carries(inside, "before"), "brokers reach each other, and who led before leads on"
    assert not creates_topic(lab, "during"), "nobody is there who could decide where it is"
    stop(lab, task)
    dropped = {worker["node"]: worker["dropped"] for worker in lab.ask("show", task)["workers"]}
    print(f"measured: packets dropped {dropped}")
    assert dropped.keys() == set(lab.nodes) and all(dropped.values())
    timed("all brokers to be registered again", lambda: registered(lab) == ALL, 90)
    timed("a topic to be created again", lambda: creates_topic(lab, f"after-{time.monotonic_ns()}"), 90)
    wait_until(lambda: reader.read().controller == controller(lab), 20, "the new controller to be seen")
    assert carries(inside, "before")


def test_a_broker_that_was_killed_is_started_again_when_its_session_is_over(lab: KafkaLab) -> None:
    task, before = new_id("kill"), lab.cluster.pid("broker2")
    kill = {"class": "process-kill", "durationMs": 60_000, "nodes": ["broker2"], "match": "kafka.Kafka"}
    given = json.dumps(kill | {"signal": "SIGKILL", "restart": {"found": True, "aliveMs": 20_000}})
    done = lab.trogdor("submit", "-", "--id", task, given=given)
    assert done.returncode == 0, done.stdout + done.stderr
    await_active(lab, task)
    timed("the session of a killed broker to expire", lambda: registered(lab) == {1, 3}, 60)
    stop(lab, task)
    assert lab.cluster.pid("broker2") not in (0, before)
    timed("the broker to be registered again", lambda: registered(lab) == ALL, 90)
