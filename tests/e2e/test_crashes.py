"""What dies, and what must be undone all the same."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.e2e.steps import (
    await_active,
    await_done,
    await_matrix,
    below_guard,
    kill_guard_and_agent,
    new_id,
    partition,
    stop,
    submit,
)
from tests.support import wait_until
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.demo import cut_between, silent, whole
from trogdor_bus.lab.namespaces import COORDINATOR

pytestmark = pytest.mark.e2e

CUT = cut_between([["node1", "node2"], ["node3"]])


def rules(lab: Lab, node: str) -> str:
    return "\n".join(lab.snapshot(node).lines())


def test_an_agent_told_to_end_undoes_reports_and_ends(lab: Lab) -> None:
    task = new_id("sigterm")
    submit(lab, task, partition(["node1", "node2"], ["node3"]))
    await_matrix(lab, CUT, "the cut")
    assert "TB-" in rules(lab, "node3")
    try:
        assert lab.end(lab.process("agent", "node3"), signal.SIGTERM) == 0
        assert "TB-" not in rules(lab, "node3")
        assert "SIGTERM" in lab.log("agent", "node3")
        worker = next(one for one in lab.ask("show", task)["workers"] if one["node"] == "node3")
        assert worker["state"] == "DONE", worker
    finally:
        lab.start_agent("node3")
        lab.wait_ready()
    lab.trogdor("stop", task, "--wait")
    assert await_done(lab, task)["state"] == "DONE"


def test_the_guard_undoes_what_a_killed_agent_left_and_starts_another(lab: Lab) -> None:
    task = new_id("sigkill")
    submit(lab, task, partition(["node1", "node2"], ["node3"]))
    await_matrix(lab, CUT, "the cut")
    assert "TB-" in rules(lab, "node3")
    below_guard(lab, "node3").send(signal.SIGKILL)
    wait_until(lambda: "TB-" not in rules(lab, "node3"), 5, "the guard to undo")
    told = await_done(lab, task)
    assert (told["outcome"], told["error"]) == ("agent-restarted", "agent restarted, fault undone")
    await_matrix(lab, whole, "healing")


def test_the_guard_kills_a_frozen_agent_and_undoes(lab: Lab) -> None:
    task, agent = new_id("frozen"), below_guard(lab, "node3")
    submit(lab, task, partition(["node1", "node2"], ["node3"]))
    await_matrix(lab, CUT, "the cut")
    agent.send(signal.SIGSTOP)
    wait_until(lambda: "TB-" not in rules(lab, "node3"), 15, "the guard to undo")
    assert agent.state() == "gone"  # so that it cannot inject after the healing
    assert await_done(lab, task)["outcome"] == "agent-restarted"
    await_matrix(lab, whole, "healing")


def test_an_agent_without_its_guard_undoes_and_ends(lab: Lab) -> None:
    task, agent = new_id("guardless"), below_guard(lab, "node3")
    submit(lab, task, partition(["node1", "node2"], ["node3"]))
    await_matrix(lab, CUT, "the cut")
    try:
        lab.end(lab.process("agent", "node3"), signal.SIGKILL)
        wait_until(lambda: "TB-" not in rules(lab, "node3"), 5, "the agent to undo")
        wait_until(lambda: agent.state() == "gone", 5, "the agent to end")
    finally:
        lab.start_agent("node3")
        lab.wait_ready()
    assert await_done(lab, task)["error"] == "agent stopped, fault undone"


def test_heal_undoes_by_hand_without_bus_or_coordinator(lab: Lab) -> None:
    task = new_id("byhand")
    submit(lab, task, partition(["node1", "node2"], ["node3"]))
    await_matrix(lab, CUT, "the cut")
    heal = ("trogdor-bus", "heal", "--state-dir", str(lab.directory / "node3"))
    busy = lab.run("node3", *heal)
    assert (busy.returncode, "is used by" in busy.stderr or "pid" in busy.stderr) == (2, True), busy.stderr
    try:
        kill_guard_and_agent(lab, "node3")
        assert "TB-" in rules(lab, "node3")
        plan = lab.run("node3", *heal, "--dry-run")
        assert plan.returncode == 0 and task in plan.stdout and "TB-" in rules(lab, "node3"), plan.stdout + plan.stderr
        assert "iptables -D INPUT -j TB-" in plan.stdout or "iptables-nft -D INPUT -j TB-" in plan.stdout, plan.stdout
        done = lab.run("node3", *heal)
        assert (done.returncode, task in done.stdout) == (0, True), done.stdout + done.stderr
        assert "TB-" not in rules(lab, "node3")
        assert lab.run("node3", *heal).stdout.strip() == "nothing to undo"
    finally:
        lab.start_agent("node3")
        lab.wait_ready()
    assert await_done(lab, task)["outcome"] == "agent-restarted"


def test_an_agent_that_is_killed_heals_when_it_comes_back_and_the_task_says_so(lab: Lab) -> None:
    task = new_id("sigkill")
    spec = partition(["node1", "node2"], ["node3"], duration_ms=8000)
    submit(lab, task, spec)
    await_matrix(lab, CUT, "the cut")
    kill_guard_and_agent(lab, "node3")
    assert "TB-" in rules(lab, "node3")  # nobody is there to undo
    lab.start_agent("node3")
    wait_until(lambda: "TB-" not in rules(lab, "node3"), what="the new life to undo what the old one left")
    lab.wait_ready()
    waiting = lab.trogdor("submit", "-", "--id", task, "--wait", given=json.dumps(spec))
    assert waiting.returncode == 1, waiting.stdout + waiting.stderr
    told = await_done(lab, task)
    assert told["outcome"] == "agent-restarted", told
    assert "restarted" in told["error"]
    time.sleep(1.5)
    assert "TB-" not in rules(lab, "node3")  # never applied again


def test_a_coordinator_that_is_killed_mid_task_resumes_and_each_agent_acts_once(lab: Lab) -> None:
    task = new_id("coordinator")
    began = time.monotonic()
    submit(lab, task, partition(["node1", "node2"], ["node3"], duration_ms=9000))
    await_matrix(lab, CUT, "the cut")
    lab.end(lab.process("coordinator", COORDINATOR), signal.SIGKILL)
    assert lab.matrix().agrees(CUT)
    lab.start_coordinator()
    lab.wait_ready()
    assert lab.matrix().agrees(CUT)
    assert lab.ask("show", task)["state"] == "RUNNING"
    told = await_done(lab, task, 20)
    assert 8.5 <= time.monotonic() - began <= 20
    assert (told["outcome"], told.get("error", "")) == ("done", "")
    await_matrix(lab, whole, "healing")
    for node in lab.nodes:
        log = lab.log("agent", node)
        assert log.count(f"task {task}: creating network partition") == 1
        assert log.count(f"task {task}: undoing") == 1


def test_faults_end_on_time_without_a_coordinator(lab: Lab) -> None:
    task = new_id("alone")
    submit(lab, task, {"class": "process-stop", "durationMs": 3000, "nodes": ["node1"], "port": 9092})
    await_matrix(lab, silent("node1"), "the service to freeze")
    lab.end(lab.process("coordinator", COORDINATOR), signal.SIGKILL)
    try:
        await_matrix(lab, whole, "the fault to end by the agent's own clock")
    finally:
        lab.start_coordinator()
        lab.wait_ready()
    assert await_done(lab, task)["outcome"] == "done"


def test_a_silent_agent_shows_and_comes_back(lab: Lab) -> None:
    both = (lab.process("agent", "node2"), below_guard(lab, "node2"))  # as when a container is paused
    for process in both:
        process.send(signal.SIGSTOP)
    try:
        wait_until(lambda: "node2" not in lab.alive(), what="node2 to be called silent")
    finally:
        for process in both:
            process.send(signal.SIGCONT)
    lab.wait_ready()


def test_an_agent_frozen_over_the_end_of_its_fault_undoes_late_and_says_so(lab: Lab) -> None:
    task, both = new_id("late"), (lab.process("agent", "node3"), below_guard(lab, "node3"))
    submit(lab, task, partition(["node1", "node2"], ["node3"], duration_ms=3000))
    await_matrix(lab, CUT, "the cut")
    for process in both:
        process.send(signal.SIGSTOP)
    try:
        time.sleep(4)  # over the end
        assert "TB-" in rules(lab, "node3")
    finally:
        for process in both:
            process.send(signal.SIGCONT)
    await_matrix(lab, whole, "healing")
    assert await_done(lab, task)["state"] == "DONE"


def test_an_agent_outside_acts_on_the_namespace_it_is_attached_to(lab: Lab) -> None:
    member, task = lab.member("node2"), new_id("attached")
    lab.end(lab.process("agent", "node2"))
    where, state = f"netns:{member.namespace}", str(lab.directory / "node2")
    outside = lab.begin_trogdor("agent", "--node", "node2", "--attach", where, "--state-dir", state)
    try:
        wait_until(lambda: "node2" in lab.alive(), what="the agent outside to be heard")
        row = next(row for row in lab.ask("nodes")["nodes"] if row["name"] == "node2")
        assert {member.ipv4, member.ipv6} == set(row["addresses"])
        submit(lab, task, {"class": "process-stop", "durationMs": 60_000, "nodes": ["node2"], "port": 9092})
        await_active(lab, task)
        assert lab.matrix().agrees(silent("node2"))
        stop(lab, task)
        submit(lab, f"{task}b", partition(["node2"], ["node1"]))
        await_matrix(lab, cut_between([["node2"], ["node1"]]), "the attached node to be cut off")
        stop(lab, f"{task}b")
    finally:
        outside.send_signal(signal.SIGTERM)
        _, log = outside.communicate(timeout=10)
        lab.start_agent("node2")
        lab.wait_ready()
    assert outside.returncode == 0, log


def test_what_would_stop_or_cut_the_coordinator_is_refused_unless_forced(lab: Lab) -> None:
    task, state = new_id("forced"), str(lab.directory / "beside")
    beside = lab.begin_trogdor("agent", "--node", "beside", "--state-dir", state)
    freeze = {"class": "process-stop", "durationMs": 2000, "nodes": ["beside"], "match": "trogdor_bus coordinator"}
    close = {"class": "port-block", "durationMs": 2000, "nodes": ["beside"], "ports": [5560, 5561]}
    try:
        wait_until(lambda: "beside" in lab.alive(), what="the agent beside the coordinator to be heard")
        for spec in (freeze, close):
            refused = lab.trogdor("submit", "-", "--wait", given=json.dumps(spec))
            assert refused.returncode in (1, 2), refused.stdout + refused.stderr
            assert "--force" in refused.stdout + refused.stderr
        coordinator = lab.process("coordinator", COORDINATOR)
        assert coordinator.state() == "running"
        submit(lab, task, freeze, "--force")
        wait_until(lambda: coordinator.state() == "stopped", what="the coordinator to freeze, as was insisted on")
        wait_until(
            lambda: coordinator.state() == "running", what="the coordinator to run again by the agent's own clock"
        )
        assert await_done(lab, task)["state"] == "DONE"
    finally:
        beside.send_signal(signal.SIGTERM)
        _, log = beside.communicate(timeout=10)
    assert beside.returncode == 0, log
