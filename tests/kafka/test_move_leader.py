"""The leadership of a partition is moved, on a real cluster, and comes back: at the end, and whoever dies.

And brokers are restarted one after another.
"""

from __future__ import annotations

import itertools
import json
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.steps import await_active, await_done, below_guard, kill_guard_and_agent, new_id, stop, submit
from tests.kafka.steps import with_topic
from tests.support import wait_until
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.journal import Journal, JournalState
from trogdor_bus.cluster import NOBODY, ClusterView
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.reader import Reader
from trogdor_bus.lab.kafka_lab import KafkaLab

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

TOPIC = "orders"
FOUND = (2, 3, 1)
MOVED = (3, 2, 1)
ASKING = "broker1"
"""The node of the lowest broker that neither leads nor will."""
MOVE = {"class": "kafka-move-leader", "topic": TOPIC, "partition": 0, "durationMs": 120_000}


@pytest.fixture(scope="module")
def lab(made_kafka_lab: KafkaLab) -> Iterator[KafkaLab]:
    with with_topic(made_kafka_lab, TOPIC, [FOUND]) as made:
        yield made


@pytest.fixture
def reader(lab: KafkaLab) -> Iterator[Reader]:
    """What sees the cluster, on which nothing is moved before and after the test."""
    with Reader(Access(lab.cluster.bootstrap_inside)) as made:
        wait_until(lambda: whole(made.read()) and order(made) == FOUND, 90, "the cluster to be whole")
        yield made
        assert order(made) == FOUND


def whole(view: ClusterView) -> bool:
    return len(view.brokers) == 3 and view.controller != NOBODY and not any(view.broken())


def order(reader: Reader) -> tuple[int, ...]:
    """Return the replicas, the leader first in all cases, or () if it is not the first one."""
    seen = reader.read((TOPIC,), quorum=False).partition(TOPIC, 0)
    return seen.replicas if seen is not None and seen.leader == seen.replicas[0] else ()


def moved(lab: KafkaLab, reader: Reader, expected: tuple[int, ...] = MOVED, **more: object) -> str:
    """Have the leader moved; return the task."""
    task = new_id("move")
    submit(lab, task, {**MOVE, **more})
    await_active(lab, task)
    assert order(reader) == expected
    return task


@pytest.mark.core
def test_another_replica_leads_until_the_end_of_the_fault(lab: KafkaLab, reader: Reader) -> None:
    before = reader.read().partition(TOPIC, 0)
    assert before is not None
    done = lab.trogdor("submit", "-", "--dry-run", given=json.dumps(MOVE))
    assert done.returncode == 0, done.stderr
    assert f"make broker 3 lead {TOPIC}-0" in done.stdout and ASKING in done.stdout, done.stdout
    task = moved(lab, reader, durationMs=15_000)
    line = f"leader({TOPIC}, 0) is broker 2 on node broker2 (leader epoch {before.epoch})"
    assert f"task {task}: {line}" in lab.log("coordinator", "coordinator")
    refused = lab.trogdor("submit", "-", given=json.dumps(MOVE))
    assert refused.returncode == 2 and f"task {task} moves the leader of {TOPIC}-0 already" in refused.stderr
    told = await_done(lab, task, 30)
    assert (told.get("error", ""), told["chosen"]) == ("", [line])
    assert (told["spec"]["node"], told["spec"]["to"]) == (ASKING, 3)
    assert order(reader) == FOUND


def test_stopped_it_ends_at_once(lab: KafkaLab, reader: Reader) -> None:
    task = moved(lab, reader, (1, 2, 3), to=1)
    stop(lab, task)
    assert order(reader) == FOUND


def test_an_agent_that_dies_leaves_it_to_its_guard(lab: KafkaLab, reader: Reader) -> None:
    task = moved(lab, reader)
    below_guard(lab, ASKING).send(signal.SIGKILL)
    wait_until(lambda: order(reader) == FOUND, 30, "the guard to restore the order")
    line = f"task {task}: agent restarted, fault undone"
    wait_until(lambda: line in lab.log("agent", ASKING), 30, "the guard to say so")
    await_done(lab, task, 30)


@pytest.mark.core
def test_an_agent_that_dies_while_it_moves_leaves_nothing(lab: KafkaLab, reader: Reader) -> None:
    def intended() -> bool:
        live = Journal.read_only(FileDisk(lab.directory / ASKING)).live()
        return any(entry.task == task and entry.state is JournalState.INTENDED for entry in live)

    task = new_id("move")
    agent = below_guard(lab, ASKING)
    submit(lab, task, MOVE)
    wait_until(intended, 30, "the undo to be on disk")
    agent.send(signal.SIGKILL)
    await_done(lab, task, 60)
    line = f"task {task}: agent restarted, fault undone"
    wait_until(lambda: line in lab.log("agent", ASKING), 30, "the guard to say so")
    assert order(reader) == FOUND


def test_what_nobody_undoes_a_person_can(lab: KafkaLab, reader: Reader) -> None:
    task = moved(lab, reader)
    kill_guard_and_agent(lab, ASKING)
    dry = lab.trogdor("heal", "--dry-run", "--state-dir", str(lab.directory / ASKING))
    by_hand = dry.stdout.partition("by hand: ")[2].strip()
    assert shlex.split(by_hand)[-1] == "restore", dry.stdout + dry.stderr
    assert order(reader) == MOVED
    for _ in range(2):
        healed = lab.trogdor("heal", "--state-dir", str(lab.directory / ASKING))
        assert healed.returncode == 0, healed.stdout + healed.stderr
        assert order(reader) == FOUND
    subprocess.run(["sh", "-c", by_hand], check=True, timeout=60)
    assert order(reader) == FOUND
    lab.start_agent(ASKING)
    await_done(lab, task, 60)


def test_brokers_are_restarted_one_after_another_the_active_controller_last(lab: KafkaLab, tmp_path: Path) -> None:
    nodes = {f"broker{number}" for number in (1, 2, 3)}
    before = {node: lab.cluster.pid(node) for node in nodes}
    with Reader(Access(lab.cluster.bootstrap_inside)) as reader:
        active = f"broker{reader.read().controller}"
        spec = json.dumps({"class": "kafka-rolling-restart", "downMs": 1000})
        argv = ("experiment", "run", "-", "--id", "rolling", "--out", str(tmp_path / "out"), "--json")
        done = lab.trogdor(*argv, given=spec, timeout_s=300)
        result = json.loads(done.stdout)
        told = json.dumps([result["reasons"], result["faults"]], indent=1)
        assert (done.returncode, result["verdict"]) == (0, "Pass"), told
        print(told)
        assert whole(reader.read())
    faults = result["faults"]
    hit = [lab.ask("show", f"rolling-f{number}")["spec"]["nodes"] for number in (1, 2, 3)]
    assert {node for one in hit for node in one} == nodes and hit[-1] == [active]
    for one, following in itertools.pairwise(faults):
        assert one["recoveredMs"] >= 0 and following["startMs"] >= one["endMs"] + one["recoveredMs"]
    assert len(faults) == 3
    assert all(lab.cluster.pid(node) not in (0, before[node]) for node in nodes)
