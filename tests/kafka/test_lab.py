"""The lab of Kafka: faults that a user submits hit real brokers, and end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from tests.conftest import require_kafka
from tests.e2e.steps import await_active, new_id, stop
from tests.kafka.steps import end_everything, lab_of, timed, with_topic
from tests.support import require_namespaces, wait_until
from trogdor_bus.lab.containers import Containers
from trogdor_bus.lab.kafka_lab import KafkaLab
from trogdor_bus.lab.labs import existing
from trogdor_bus.lab.metadata import brokers_of
from trogdor_bus.lab.processes import with_token
from trogdor_bus.lab.site import ROOT

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

BROKERS = ("broker1", "broker2", "broker3")
TOPIC = "everywhere"
FREEZE = {"class": "process-stop", "nodes": ["broker1"], "match": "kafka.Kafka"}


@pytest.fixture(scope="module")
def made(made_kafka_lab: KafkaLab) -> Iterator[KafkaLab]:
    """A lab of three brokers with a topic whose partition N is led by broker N+1 and is on all of them."""
    with with_topic(made_kafka_lab, TOPIC, [[1, 2, 3], [2, 3, 1], [3, 1, 2]]) as lab:
        yield lab


@pytest.fixture
def lab(made: KafkaLab) -> Iterator[KafkaLab]:
    """The lab; after the test no task runs, no rule and no stopped process is left, and every replica is in sync."""
    yield made
    end_everything(made)
    for node in BROKERS:
        assert state(made, node) == "S"
        assert not rules(made, node)
    wait_until(lambda: whole(made), 60, "every replica to be in sync again")


def in_sync(lab: KafkaLab, broker: str) -> dict[int, set[int]]:
    """Return the brokers in sync of each partition, as a broker tells; {} while it does not answer."""
    client = AdminClient({"bootstrap.servers": f"127.0.0.1:{lab.cluster.ports[broker]}", "log_level": 0})
    try:
        partitions = client.list_topics(TOPIC, timeout=5).topics[TOPIC].partitions
    except KafkaException:
        return {}
    return {number: set(partition.isrs) for number, partition in partitions.items()}


def whole(lab: KafkaLab) -> bool:
    """Return whether every broker says that every replica is in sync."""
    return all(in_sync(lab, broker) == {partition: {1, 2, 3} for partition in range(3)} for broker in BROKERS)


def produced(lab: KafkaLab, partition: int, within_s: float = 15) -> KafkaError | None:
    """Write a record with acks=all; return why that failed, None if it did not."""
    told: list[KafkaError | None] = []
    limits = {"message.timeout.ms": int(within_s * 1000), "linger.ms": 0, "log_level": 0}
    producer = Producer({"bootstrap.servers": lab.cluster.bootstrap, "acks": "all", **limits})
    producer.produce(TOPIC, b"x", partition=partition, on_delivery=lambda error, record: told.append(error))
    producer.flush(within_s + 5)
    assert len(told) == 1
    return told[0]


def state(lab: KafkaLab, node: str) -> str:
    """Return the state of a node's JVM as /proc has it; the moods of one that sleeps count as one."""
    text = Path(f"/proc/{lab.cluster.pid(node)}/stat").read_text()
    letter = text.rpartition(")")[2].split()[0]
    return "S" if letter in "SDIR" else letter


def rules(lab: KafkaLab, node: str) -> list[str]:
    printed = lab.run(node, "iptables-save").stdout
    return [line for line in printed.splitlines() if "TB-" in line]


def submit(lab: KafkaLab, word: str, spec: dict[str, Any]) -> str:
    """Submit a spec from the coordinator's node, wait until it is in force, and return the task's id."""
    task = new_id(word)
    done = lab.trogdor("submit", "-", "--id", task, given=json.dumps({"durationMs": 120_000, **spec}))
    assert done.returncode == 0, done.stdout + done.stderr
    await_active(lab, task)
    return task


def test_every_node_is_heard_and_known_by_its_address(lab: KafkaLab) -> None:
    told = {row["name"]: row["addresses"] for row in lab.ask("nodes")["nodes"] if row["alive"]}
    assert told == {node: [lab.cluster.addresses[node]] for node in BROKERS}


@pytest.mark.core
def test_a_stopped_broker_is_frozen_and_clients_time_out(lab: KafkaLab) -> None:
    task = submit(lab, "freeze", FREEZE)
    assert state(lab, "broker1") == "T"
    assert state(lab, "broker2") == state(lab, "broker3") == "S"
    failed = produced(lab, 0, 2)
    if failed is None:  # on a slow machine the others may have taken over by now
        assert 1 not in in_sync(lab, "broker2")[0]
    else:
        assert failed.code() == KafkaError._MSG_TIMED_OUT
    assert not brokers_of(f"127.0.0.1:{lab.cluster.ports['broker1']}", 2)
    timed("the others to take over", lambda: 1 not in in_sync(lab, "broker2").get(0, {1}), 60)
    assert produced(lab, 0) is None
    stop(lab, task)
    assert state(lab, "broker1") == "S"


def test_a_partitioned_broker_loses_its_replicas_and_nobody_elses_packets_pass(lab: KafkaLab) -> None:
    task = submit(lab, "cut", {"class": "partition", "partitions": [["broker1"], ["broker2", "broker3"]]})
    for node, others in (("broker1", BROKERS[1:]), ("broker2", BROKERS[:1]), ("broker3", BROKERS[:1])):
        text = "\n".join(rules(lab, node))
        assert all(f"-s {lab.cluster.addresses[other]}/32" in text for other in others), text
    before = dropped(lab, "broker2")
    timed("the replicas on broker1 to fall out of sync", lambda: in_sync(lab, "broker2").get(1) == {2, 3}, 90)
    wait_until(lambda: dropped(lab, "broker2") > before, 30, "more packets of broker 1 to be dropped")
    assert produced(lab, 1) is None
    stop(lab, task)
    timed("the replicas to be in sync again", lambda: whole(lab), 90)


def dropped(lab: KafkaLab, node: str) -> int:
    """Return how many packets our rules dropped."""
    printed = lab.run(node, "iptables-save", "--counters").stdout
    counts = [line.split("]")[0].strip("[").split(":")[0] for line in printed.splitlines() if "-j DROP" in line]
    return sum(map(int, counts))


@pytest.mark.core
def test_a_killed_broker_takes_its_container_along_and_is_started_again(lab: KafkaLab) -> None:
    container, before = lab.cluster.container("broker2"), lab.cluster.pid("broker2")
    address = lab.cluster.addresses["broker2"]
    kill = {"class": "process-kill", "nodes": ["broker2"], "match": "kafka.Kafka"}
    task = submit(lab, "kill", {**kill, "restart": ["docker", "start", container]})
    wait_until(lambda: lab.cluster.pid("broker2") == 0, what="Docker to see the end")
    assert lab.cluster.containers.get("broker2").attrs["State"]["ExitCode"] == 128 + signal.SIGKILL
    stop(lab, task)
    assert lab.cluster.pid("broker2") not in (0, before)
    assert lab.run("broker2", "ip", "-br", "address").stdout.count(address) == 1
    timed("the broker to be back", lambda: brokers_of(f"127.0.0.1:{lab.cluster.ports['broker2']}", 2) == {1, 2, 3}, 60)


def test_a_fault_ends_by_itself(lab: KafkaLab) -> None:
    spec = json.dumps({**FREEZE, "nodes": ["broker3"], "durationMs": 2000})
    done = lab.trogdor("submit", "-", "--wait", "--json", given=spec)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "done"
    assert state(lab, "broker3") == "S"


def test_an_agent_on_a_seat_of_its_own_can_be_cut_off_alone() -> None:
    require_namespaces()
    require_kafka()
    with KafkaLab(1, f"s{os.getpid()}", print, seats=("seat",)) as lab:
        lab.end(lab.process("agent", "broker1"))
        lab.start_agent("broker1", seat="seat")
        wait_until(lambda: lab.alive() == {"broker1"}, 30, "the agent to be heard from its seat")
        assert lab.run("seat", "iptables", "-A", "OUTPUT", "-d", lab.address, "-j", "DROP").returncode == 0
        wait_until(lambda: not lab.alive(), 30, "the coordinator to miss the agent")
        assert brokers_of(lab.cluster.bootstrap, 5) == {1}
        assert lab.run("seat", "iptables", "-F").returncode == 0
        wait_until(lambda: lab.alive() == {"broker1"}, 30, "the agent to be heard again")
        assert {member["name"] for member in existing(lab.name).status()["members"]} == {
            "broker1",
            "coordinator",
            "seat",
        }


def test_who_waits_on_a_bus_of_kafka_alone_outlasts_the_freeze_of_a_leader() -> None:
    with lab_of("w", transport="kafka") as lab:
        metadata = AdminClient({"bootstrap.servers": lab.cluster.bootstrap}).list_topics(timeout=10)
        leader = metadata.topics["trogdor.requests"].partitions[0].leader
        spec = json.dumps({**FREEZE, "nodes": [lab.cluster.brokers[leader]], "durationMs": 14_000})
        done = lab.trogdor("submit", "-", "--wait", "--json", given=spec)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["outcome"] == "done"


# --- the command ------------------------------------------------------------------------------------------------------

TROGDOR = (sys.executable, "-m", "trogdor_bus")


def trogdor(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TROGDOR, *argv], capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture
def name() -> Iterator[str]:
    require_namespaces()
    require_kafka()
    name = f"c{os.getpid()}"
    yield name
    down = trogdor("lab", "down", "--name", name)
    assert down.returncode == 0, down.stderr


def begin(name: str, *options: str) -> subprocess.Popen[str]:
    """Start `lab --kafka` and return it when it has told what to type."""
    argv = [*TROGDOR, "lab", "--kafka", "--name", name, *options]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    assert child.stdout is not None
    said = []
    for line in child.stdout:
        said.append(line)
        if line.startswith("end: Ctrl-C"):
            return child
    pytest.fail(f"it ended {child.wait()}: {''.join(said)}")


def left(name: str) -> list[str]:
    """Return what is left of a lab: its directory, its containers, its network."""
    containers = Containers(name)
    try:
        found = [*containers._all(), *containers._networks()]
    finally:
        containers.close()
    return [*([str(ROOT / f"lab-{name}")] if (ROOT / f"lab-{name}").exists() else []), *(one.name for one in found)]


@pytest.mark.core
def test_one_command_is_enough_and_leaves_nothing(name: str) -> None:
    with begin(name, "--brokers", "1") as child:
        variables = (ROOT / f"lab-{name}" / "env").read_text()
        script = f'. {ROOT}/lab-{name}/env && exec "$@"'
        nodes = subprocess.run(
            ["sh", "-c", script, "sh", *TROGDOR, "nodes", "--json"], capture_output=True, text=True, check=True
        )
        assert [row["name"] for row in json.loads(nodes.stdout)["nodes"]] == ["broker1"], variables
        told = json.loads(trogdor("lab", "status", "--json", "--name", name).stdout)
        assert [member["state"] for member in told["members"]] == ["running", "running"]
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 0
    assert left(name) == []


def test_lab_down_removes_what_a_killed_lab_left(name: str) -> None:
    with begin(name, "--brokers", "1") as child:
        token = json.loads((ROOT / f"lab-{name}" / "lab.json").read_text())["token"]
        child.kill()
    assert with_token(token) and len(left(name)) == 4
    (ROOT / f"lab-{name}" / "lab.json").rename(ROOT / f"lab-{name}" / "lost.json")  # the containers have their labels
    done = trogdor("lab", "down", "--name", name)
    assert done.stdout == f"lab {name} is gone\n", done.stderr
    assert left(name) == []


def test_an_image_that_is_not_there_ends_it_and_leaves_nothing(name: str) -> None:
    done = trogdor("lab", "up", "--kafka", "--name", name, "--version", "0.0")
    assert done.returncode != 0 and "contrib/kafka-image/build --version 0.0" in done.stderr
    assert left(name) == []
