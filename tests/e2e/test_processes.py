"""Faults of processes on real nodes, by the command line."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from tests.e2e.steps import await_active, await_done, await_matrix, new_id, stop, submit
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.demo import silent, whole

pytestmark = pytest.mark.e2e


def test_a_frozen_service_is_silent_and_runs_again_by_itself(lab: Lab) -> None:
    echo, task = lab.process("echo", "node3"), new_id("freeze")
    spec = {"class": "process-stop", "durationMs": 4000, "nodes": ["node3"], "port": 9092}
    waiting = lab.begin_trogdor("submit", json.dumps(spec), "--id", task, "--wait", "--json")
    await_matrix(lab, silent("node3"), "node3's service to fall silent")
    assert echo.state() == "stopped"
    said, complained = waiting.communicate(timeout=30)
    assert waiting.returncode == 0, said + complained
    assert echo.state() == "running"
    assert lab.matrix().agrees(whole)


def test_only_processes_of_the_node_are_frozen_and_two_tasks_count(lab: Lab) -> None:
    first, second = new_id("freeze"), new_id("freeze")
    spec = {"class": "process-stop", "durationMs": 60_000, "nodes": ["node2"], "match": "trogdor_bus.lab.echo"}
    submit(lab, first, spec)
    submit(lab, second, spec)
    await_active(lab, first)
    await_active(lab, second)
    assert lab.matrix().agrees(silent("node2"))
    stop(lab, first)
    assert lab.process("echo", "node2").state() == "stopped"
    stop(lab, second)
    assert lab.process("echo", "node2").state() == "running"


def test_a_process_that_was_stopped_before_is_left_stopped(lab: Lab) -> None:
    sleeper, task = lab.process("sleeper", "node1"), new_id("freeze")
    match = "a-process-stopped-before"
    submit(lab, task, {"class": "process-stop", "durationMs": 60_000, "nodes": ["node1"], "match": match})
    await_active(lab, task)
    stop(lab, task)
    assert sleeper.state() == "stopped"


def test_no_match_is_a_failure_with_exit_code_1(lab: Lab) -> None:
    spec = {"class": "process-stop", "durationMs": 60_000, "nodes": ["node1"], "match": "no-such-process-anywhere"}
    done = lab.trogdor("submit", "-", "--wait", "--json", given=json.dumps(spec))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no-such-process-anywhere" in json.loads(done.stdout)["error"]


def test_trogdors_process_stop_without_a_match_met_nothing(lab: Lab) -> None:
    spec = {
        "class": "org.apache.kafka.trogdor.fault.ProcessStopFaultSpec",
        "durationMs": 1000,
        "nodeNames": ["node1"],
        "javaProcessName": "no.such.Main",
    }
    done = lab.trogdor("submit", "-", "--wait", "--json", given=json.dumps(spec))
    assert done.returncode == 1, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["outcome"] == "disturbed" and told["error"].startswith("it met nothing: "), told
    assert any("no.such.Main" in warning for warning in told["workers"][0]["warnings"])


def test_kill_with_a_restart_the_agent_allows(lab: Lab) -> None:
    pid_file = lab.directory / "node1" / "echo.pid"
    restart = [sys.executable, "-m", "trogdor_bus.lab.echo", "::", "9092", str(pid_file)]
    config = lab.directory / "agent.yaml"
    config.write_text(json.dumps({"agent": {"allowCommands": [restart]}}))
    spec = {
        "class": "process-kill",
        "durationMs": 3000,
        "nodes": ["node1"],
        "pidFile": str(pid_file),
        "restart": restart,
    }
    refused = lab.trogdor("submit", "-", "--wait", "--json", given=json.dumps(spec))
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "allowCommands" in json.loads(refused.stdout)["error"]
    assert lab.process("echo", "node1").state() == "running"

    lab.end(lab.process("agent", "node1"))
    lab.start_agent("node1", "--config", str(config))
    lab.wait_ready()
    task = new_id("kill")
    try:
        submit(lab, task, spec)
        await_matrix(lab, silent("node1"), "the service of node1 to be gone")
        assert lab.process("echo", "node1").state() == "gone"
        told = await_done(lab, task)
        assert told["outcome"] == "done", told
        await_matrix(lab, whole, "the restarted service to answer")
    finally:
        restarted = int(pid_file.read_text())
        lab.run("node1", "kill", "-KILL", str(restarted))
        lab.start_echo("node1")
        lab.end(lab.process("agent", "node1"))
        lab.start_agent("node1")
        lab.wait_ready()


def test_a_process_that_dies_while_frozen_is_no_trouble(lab: Lab) -> None:
    victim = lab.begin("node2", "sleep", "654321")
    task = new_id("freeze")
    submit(lab, task, {"class": "process-stop", "durationMs": 60_000, "nodes": ["node2"], "match": "sleep 654321"})
    await_active(lab, task)
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=5)
    stop(lab, task)
    told = lab.ask("show", task)
    assert (told["state"], told["outcome"], told.get("error", "")) == ("DONE", "cancelled", "")
