"""The client verbs against a real coordinator."""

from __future__ import annotations

import json
import time

import pytest

from tests.e2e.steps import await_done, new_id, partition, stop, submit
from trogdor_bus.lab.cluster import Lab

pytestmark = pytest.mark.e2e

NOOP = {"class": "org.apache.kafka.trogdor.task.NoOpTaskSpec", "durationMs": 1000}


def test_the_same_id_and_spec_is_the_same_task(lab: Lab) -> None:
    task = new_id("twice")
    submit(lab, task, NOOP)
    submit(lab, task, NOOP)
    assert list(lab.ask("tasks", "--id", task)["tasks"]) == [task]
    assert len(await_done(lab, task)["workers"]) == 3
    submit(lab, task, NOOP)  # even after its end
    assert lab.ask("show", task)["state"] == "DONE"


def test_the_same_id_with_another_spec_is_a_conflict(lab: Lab) -> None:
    task = new_id("twice")
    submit(lab, task, NOOP)
    done = lab.trogdor("submit", "-", "--id", task, given=json.dumps(NOOP | {"durationMs": 2000}))
    assert done.returncode == 2, done.stdout + done.stderr
    assert task in done.stderr and "Traceback" not in done.stderr
    await_done(lab, task)


def test_an_unknown_node_is_bad_input(lab: Lab) -> None:
    done = lab.trogdor("submit", "-", given=json.dumps(partition(["node1"], ["nowhere"])))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("address", ["10.89.0.254:7000", "10.89.0.77"])  # a closed port; nobody
def test_no_coordinator_is_exit_code_4_within_3_s(lab: Lab, address: str) -> None:
    began = time.monotonic()
    done = lab.trogdor("nodes", "--coordinator", address)
    assert done.returncode == 4, done.stdout + done.stderr
    assert time.monotonic() - began < 3 + 3  # and the start of an interpreter on a busy machine
    assert address.partition(":")[0] in done.stderr and "Traceback" not in done.stderr


def test_a_monitor_hears_every_event_of_a_task(lab: Lab) -> None:
    task = new_id("watched")
    monitor = lab.begin_trogdor("monitor", "--json", "--for", "6s")
    time.sleep(1.5)  # a subscription that comes late misses events; the view repairs that
    submit(lab, task, NOOP)
    await_done(lab, task)
    said, complained = monitor.communicate(timeout=20)
    assert monitor.returncode == 0, complained
    lines = [json.loads(line) for line in said.splitlines()]
    tasks = [line["task"] for line in lines if line.get("event") == "task" and line["task"]["id"] == task]
    assert [one for one in tasks if one.get("state") == "RUNNING"]
    assert tasks[-1]["state"] == "DONE"
    ended = {
        line["worker"]["node"]
        for line in lines
        if line.get("event") == "worker" and line.get("taskId") == task and line["worker"].get("state") == "DONE"
    }
    assert ended == {"node1", "node2", "node3"}


def test_nodes_status_and_uptime(lab: Lab) -> None:
    rows = {row["name"]: row for row in lab.ask("nodes")["nodes"]}
    for name in lab.nodes:
        member = lab.member(name)
        assert {member.ipv4, member.ipv6} == set(rows[name]["addresses"])
    for verb in ("nodes", "status", "uptime", "tasks"):
        done = lab.trogdor(verb)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_stopping_twice_is_harmless_and_an_unknown_id_is_not_found(lab: Lab) -> None:
    task = new_id("stopped")
    submit(lab, task, partition(["node1"], ["node2"]))
    stop(lab, task)
    stop(lab, task)
    told = lab.ask("show", task)
    assert (told["state"], told["outcome"], told["cancelled"]) == ("DONE", "cancelled", True)
    assert lab.trogdor("stop", "never-heard-of").returncode == 2
