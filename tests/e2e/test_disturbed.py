"""What somebody changes of a fault is told with its time, and put back if the spec says so."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from typing import Any

import pytest

from tests.e2e.steps import await_active, await_done, await_matrix, new_id, partition, stop, submit
from tests.support import wait_until
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.demo import cut_between, silent, whole

pytestmark = pytest.mark.e2e

CUT = cut_between([["node1", "node2"], ["node3"]])
TWO_BEATS_S = 2.0
SLACK_S = 3.0
"""What a busy machine may add."""


def chain(lab: Lab, node: str) -> str:
    found = re.search(r"-j (TB-[0-9a-f]{16})", lab.run(node, "iptables", "-S", "INPUT").stdout)
    assert found
    return found[1]


def change(lab: Lab, node: str, *argv: str, given: str = "") -> None:
    done = lab.run(node, *argv, given=given)
    assert done.returncode == 0, done.stderr


def worker(lab: Lab, task: str, node: str) -> Any:
    return next(one for one in lab.ask("show", task)["workers"] if one["node"] == node)


def await_disturbed(lab: Lab, task: str, node: str, words: str, *, mended: bool) -> dict[str, Any]:
    """Wait until the worker is disturbed in these words, and return the disturbance."""
    found: list[dict[str, Any]] = []

    def seen() -> bool:
        told = worker(lab, task, node)["disturbed"]
        found[:] = [one for one in told if words in one["text"] and one["mended"] is mended]
        return bool(found)

    wait_until(seen, 10, f"{task} to be disturbed: {words}, mended {mended}")
    return found[0]


def test_a_flushed_chain_is_told_with_its_time_and_left_so(lab: Lab) -> None:
    task = new_id("flushed")
    submit(lab, task, partition(["node1", "node2"], ["node3"]))
    await_active(lab, task)
    began, ours = time.monotonic(), chain(lab, "node3")
    change(lab, "node3", "iptables", "-F", ours)
    disturbance = await_disturbed(lab, task, "node3", "holds other rules than ours", mended=False)
    assert 0 <= disturbance["afterMs"] <= (time.monotonic() - began + 20) * 1000
    shown = " ".join(lab.trogdor("show", task).stdout.split())
    assert re.search(r"ours \(\d+\.\d s in\)", shown), shown
    time.sleep(TWO_BEATS_S)
    assert "-A" not in lab.run("node3", "iptables", "-S", ours).stdout
    stop(lab, task)


def await_chain(lab: Lab, node: str) -> str:
    """Wait for our chain, and return it; quicker than asking for the task, which may be short."""
    wait_until(lambda: "TB-" in lab.run(node, "iptables", "-S", "INPUT").stdout, what=f"a chain on {node}")
    return chain(lab, node)


def awaited(lab: Lab, task: str, spec: dict[str, Any]) -> tuple[int, str]:
    """Wait for the end of a task as `submit --wait` does (the same id and spec are the same task)."""
    done = lab.trogdor("submit", "-", "--id", task, "--wait", given=json.dumps(spec))
    return done.returncode, " ".join(done.stdout.split())


def test_who_waits_for_a_fault_that_somebody_took_away_is_told_that_it_was_disturbed(lab: Lab) -> None:
    task, spec = new_id("taken-away"), {"class": "port-block", "durationMs": 5_000, "nodes": ["node3"], "ports": [9]}
    submit(lab, task, spec)
    change(lab, "node3", "iptables", "-F", await_chain(lab, "node3"))
    code, out = awaited(lab, task, spec)
    assert code == 1, out
    error = r"it did not hold to its end: chain TB-\w+ holds other rules than ours \(\d\.\d s in\)"
    assert re.search(rf"Task {task}: disturbed\. DISTURBED at \S+ after \ds Disturbed: {error}", out), out
    shown = lab.ask("show", task)
    assert (shown["state"], shown["outcome"], shown["cancelled"]) == ("DONE", "disturbed", False)
    assert re.fullmatch(error, shown["error"]), shown
    assert f"{task} port-block DONE DISTURBED at" in " ".join(lab.trogdor("tasks").stdout.split())


def test_who_waits_for_a_fault_that_was_put_back_is_told_how_often(lab: Lab) -> None:
    task = new_id("put-back")
    spec = {"class": "port-block", "durationMs": 5_000, "nodes": ["node3"], "ports": [9], "onDisturbed": "reapply"}
    submit(lab, task, spec)
    change(lab, "node3", "iptables", "-F", await_chain(lab, "node3"))
    code, out = awaited(lab, task, spec)
    assert (code, "warning: it was disturbed, and put back once" in out) == (0, True), out


def test_a_block_that_no_packet_met_says_so(lab: Lab) -> None:
    spec = {"class": "port-block", "durationMs": 500, "nodes": ["node3"], "ports": [9]}
    code, out = awaited(lab, new_id("unmet"), spec)
    assert code == 0 and ": done. FINISHED at" in out, out
    assert "node3 done" in out and "warning: no packet met it: nothing was cut that anybody sent" in out, out


def test_a_process_that_ends_while_it_is_to_stand_is_disturbed(lab: Lab) -> None:
    task, echo = new_id("ended"), lab.process("echo", "node2")
    spec = {"class": "process-stop", "durationMs": 4_000, "nodes": ["node2"], "port": 9092}
    submit(lab, task, spec)
    await_active(lab, task)
    assert echo.state() == "stopped"
    try:
        assert echo.send(signal.SIGKILL)
        code, out = awaited(lab, task, spec)
        assert code == 1 and re.search(r"did not hold to its end: process \d+ \(\w+\) ended", out), out
    finally:
        lab.start_echo("node2")
        await_matrix(lab, whole, "the new service to answer")


def test_a_flushed_chain_and_a_reloaded_firewall_are_put_back_within_two_beats(lab: Lab) -> None:
    task, reload = new_id("reapplied"), lab.run("node3", "iptables-save").stdout
    submit(lab, task, partition(["node1", "node2"], ["node3"]) | {"onDisturbed": "reapply"})
    await_active(lab, task)

    def rules() -> str:
        return lab.run("node3", "iptables", "-S").stdout

    held = rules()
    change(lab, "node3", "iptables", "-F", chain(lab, "node3"))
    assert rules() != held
    wait_until(lambda: rules() == held, TWO_BEATS_S + SLACK_S, "our chain to be put back")
    first = await_disturbed(lab, task, "node3", "holds other rules than ours", mended=True)
    change(lab, "node3", "iptables-restore", given=reload)
    assert "TB-" not in rules()
    wait_until(lambda: sorted(rules().splitlines()) == sorted(held.splitlines()), TWO_BEATS_S + SLACK_S, "all of it")
    second = await_disturbed(lab, task, "node3", "firewall rules were reloaded", mended=True)
    assert first["afterMs"] <= second["afterMs"]
    await_matrix(lab, CUT, "the cut")
    shown = " ".join(lab.trogdor("show", task).stdout.split())
    assert re.search(r"\(\d+\.\d s in, put back\)", shown), shown
    stop(lab, task)


def test_a_rule_above_ours_is_told_and_ours_comes_first_again(lab: Lab) -> None:
    task = new_id("above")
    submit(lab, task, partition(["node1", "node2"], ["node3"]) | {"onDisturbed": "reapply"})
    await_active(lab, task)
    theirs = ["INPUT", "-s", lab.member("node1").ipv4, "-j", "ACCEPT"]
    change(lab, "node3", "iptables", "-I", *theirs)
    try:
        found = await_disturbed(lab, task, "node3", "rule 1 of INPUT is not ours and comes first", mended=True)
        assert lab.member("node1").ipv4 in found["text"]
        await_matrix(lab, CUT, "the cut")
        stop(lab, task)
        first = lab.run("node3", "iptables", "-S", "INPUT", "1").stdout
        assert lab.member("node1").ipv4 in first, "the rule of somebody else is there still"
    finally:
        change(lab, "node3", "iptables", "-D", *theirs)


def test_a_process_that_somebody_lets_run_is_frozen_again_if_asked(lab: Lab) -> None:
    echo = lab.process("echo", "node2")
    for extra, state in (({}, "running"), ({"onDisturbed": "reapply"}, "stopped")):
        task = new_id("continued")
        spec = {"class": "process-stop", "durationMs": 60_000, "nodes": ["node2"], "port": 9092}
        submit(lab, task, spec | extra)
        await_active(lab, task)
        echo.send(signal.SIGCONT)
        await_disturbed(lab, task, "node2", "runs again: somebody else let it", mended=bool(extra))
        assert echo.state() == state
        stop(lab, task)
        assert echo.state() == "running"


def test_a_killed_process_that_somebody_starts_is_killed_again_and_the_restart_runs_once(lab: Lab) -> None:
    pid_file, ran = lab.directory / "node1" / "echo.pid", lab.directory / "node1" / "restarts"
    service = f"{sys.executable} -m trogdor_bus.lab.echo :: 9092 {pid_file}"
    restart = ["/bin/sh", "-c", f"echo once >>{ran}; exec {service}"]
    config = lab.directory / "agent.yaml"
    config.write_text(json.dumps({"agent": {"allowCommands": [restart]}}))
    lab.end(lab.process("agent", "node1"))
    lab.start_agent("node1", "--config", str(config))
    lab.wait_ready()
    task = new_id("kill")
    spec = {
        "class": "process-kill",
        "durationMs": 60_000,
        "nodes": ["node1"],
        "pidFile": str(pid_file),
        "restart": {"command": restart},
        "onDisturbed": "reapply",
    }
    try:
        submit(lab, task, spec)
        await_matrix(lab, silent("node1"), "the service of node1 to be gone")
        by_somebody = lab.start_echo("node1")
        wait_until(lambda: by_somebody.state() == "gone", TWO_BEATS_S + SLACK_S, "the new process to be killed")
        found = await_disturbed(lab, task, "node1", "started again by somebody", mended=True)
        assert str(by_somebody.pid) in found["text"]
        assert not ran.exists()
        stop(lab, task)
        told = await_done(lab, task)
        assert told["outcome"] == "cancelled", told
        await_matrix(lab, whole, "the restarted service to answer")
        assert ran.read_text() == "once\n"
    finally:
        lab.run("node1", "kill", "-KILL", pid_file.read_text().strip())
        lab.start_echo("node1")
        lab.end(lab.process("agent", "node1"))
        lab.start_agent("node1")
        lab.wait_ready()
