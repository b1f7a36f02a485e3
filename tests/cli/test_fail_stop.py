"""Daemons that meet what nobody foresaw: they end, are right when started again, and outlive what always fails."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_aborts import Site, runs
from tests.cli.test_verbs import NOOP
from tests.support import wait_until
from trogdor_bus.fuse import CRASHED, ENDS

pytestmark = pytest.mark.daemons

PLANTED = """
import inspect, os
planted = os.environ.get("PLANTED", "")
def after(owner, name, fails):
    real = getattr(owner, name)
    def method(self, *arguments, **named):
        outcome = real(self, *arguments, **named)
        if fails(self, *arguments):
            raise ZeroDivisionError("nobody foresaw this " + planted)
        return outcome
    async def job(self, *arguments, **named):
        outcome = await real(self, *arguments, **named)
        if fails(self, *arguments):
            raise ZeroDivisionError("nobody foresaw this " + planted)
        return outcome
    setattr(owner, name, job if inspect.iscoroutinefunction(real) else method)
if planted:
    from trogdor_bus.agents.core import AgentCore
    from trogdor_bus.agents.machine import AgentMachine
    from trogdor_bus.agents.perform import Performer
    from trogdor_bus.coordinator import rows
    from trogdor_bus.coordinator.ledger import Ledger
    from trogdor_bus.coordinator.machine import CoordinatorMachine
    if planted == "order":
        poison = lambda self, snapshot, *rest: any(order.task.startswith("poison") for order in snapshot.orders)
        after(AgentMachine, "_snapshot", poison)
    elif planted == "task":
        after(CoordinatorMachine, "_run", lambda self, task, *rest: task.id == "bad")
    elif planted == "running task":
        after(CoordinatorMachine, "_give_up", lambda self, node, row: node.open[row.id] == "bad")
    elif planted == "row":
        after(Ledger, "_index", lambda self, task_id, *rest: task_id == "bad")
    elif planted == "stored row":
        after(rows, "task", lambda body, workers: b'"id":"bad"' in body)
    elif planted == "housekeeping":
        after(Ledger, "keep_up", lambda *_: True)
    elif planted == "outcome":
        after(AgentCore, "done", lambda *_: True)
    elif planted == "undo":
        after(Performer, "_undo_all", lambda self, entry, *rest: entry.task == "bad")
"""
"""What is planted: errors after something was done, as bad as can be."""


class Planted(Site):
    """A site whose daemons meet what nobody foresaw while `planted`."""

    planted = ""

    def environment(self) -> dict[str, str]:
        """Return the variables by which a program meets what is planted."""
        (self.directory / "sitecustomize.py").write_text(PLANTED)
        paths = os.pathsep.join(filter(None, [str(self.directory), os.environ.get("PYTHONPATH")]))
        return {"PYTHONPATH": paths, "PLANTED": self.planted} if self.planted else {}

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def submit(self, task: str, **fields: object) -> None:
        spec = {"class": "noop", "durationMs": 60_000, **fields}
        assert self.run("submit", json.dumps(spec), "--id", task).code == 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Planted]:
    made = Planted(tmp_path)
    try:
        yield made
    finally:
        made.down()


def crash_again_and_again(site: Planted, times: int = ENDS) -> None:
    """See the coordinator crash so often, and start it each time."""
    before = site.log("coordinator").count("so this process ends")
    for number in range(before, before + times):
        assert site.daemons["coordinator"].wait(30) == CRASHED
        assert site.log("coordinator").count("so this process ends") == number + 1
        site.start("coordinator")


def mend(site: Planted, name: str) -> None:
    site.planted = ""
    assert site.end(name) == 0
    site.start(name)
    site.await_alive("node1")


def row(site: Planted, task: str) -> dict[str, Any]:
    found: dict[str, Any] = site.json("show", task)
    return found


def test_a_coordinator_crashes_and_the_task_at_which_it_does_is_set_aside_for_good(site: Planted) -> None:
    site.planted = "task"
    site.up("node1")
    site.submit("good")
    site.submit("bad", startMs=time.time_ns() // 1_000_000 + 8_000)
    crash_again_and_again(site)
    site.await_alive("node1")
    status = site.json("status")
    assert "ZeroDivisionError: nobody foresaw this task; set aside: bad" in status["trouble"]
    assert "Takes and starts no task until it is ended and started anew: it crashed" in site.run("status").out
    assert {name: task["state"] for name, task in site.json("tasks")["tasks"].items()} == {
        "good": "RUNNING",
        "bad": "DONE",
    }
    refused = site.run("submit", NOOP % 100)
    assert (refused.code, "takes no task until it is ended and started anew" in refused.err) == (2, True), refused
    assert site.run("stop", "good", "--wait").code == 0
    assert site.run("abort").code == 0
    assert site.run("resume").code == 0
    mend(site, "coordinator")
    assert "trouble" not in site.json("status")
    told = row(site, "bad")
    assert (told["state"], told["outcome"]) == ("DONE", "failed")
    assert told["error"].startswith("set aside, and its faults ended early: the coordinator crashed at it")
    assert site.run("destroy", "bad").code == 0


def test_a_fault_that_is_set_aside_ends_early_and_is_never_said_to_have_lasted(site: Planted) -> None:
    site.up("node1")
    _, victim = site.freeze("node1", "bad")
    site.planted = "running task"
    assert site.end("coordinator") == 0
    site.start("coordinator")
    crash_again_and_again(site)
    wait_until(lambda: runs(victim), 20, "the agent to end a fault that nobody wants")
    site.await_alive("node1")
    mend(site, "coordinator")
    told = row(site, "bad")
    assert (told["outcome"], told["error"][:9]) == ("failed", "set aside")


@pytest.mark.parametrize("planted", ["row", "stored row"])
def test_a_row_that_cannot_even_be_read_costs_all_tasks_and_not_the_coordinator(site: Planted, planted: str) -> None:
    site.up("node1")
    _, victim = site.freeze("node1", "bad")
    site.submit("good")
    site.planted = planted
    assert site.end("coordinator") == 0
    site.start("coordinator")
    crash_again_and_again(site, ENDS + 1)
    site.await_alive("node1")
    assert "all tasks are set aside" in site.json("status")["trouble"]
    assert site.json("tasks")["tasks"] == {}
    assert site.run("abort").code == 0
    assert runs(victim)
    mend(site, "coordinator")
    expected = {"row": "DONE", "stored row": "RUNNING"}[planted]  # what cannot be read cannot be set aside
    assert row(site, "good")["state"] in (expected, "DONE")


def test_what_is_no_task_s_fault_sets_none_aside(site: Planted) -> None:
    site.up("node1")
    _, victim = site.freeze("node1", "good")
    site.planted = "housekeeping"
    assert site.end("coordinator") == 0
    site.start("coordinator")
    for _ in range(ENDS):
        assert site.daemons["coordinator"].wait(30) == CRASHED
        site.start("coordinator")
    wait_until(lambda: "no task is set aside" in site.log("coordinator"), 30, "it to say what it does without")
    site.daemons["coordinator"].kill()
    site.daemons["coordinator"].wait(30)
    (site.directory / "coordinator" / "crashes.json").unlink()
    site.planted = ""
    site.start("coordinator")
    site.await_alive("node1")
    assert row(site, "good")["state"] == "RUNNING"
    assert not runs(victim)


def test_an_abort_in_the_place_of_a_coordinator_that_crashes_says_that_nothing_is_proven(site: Planted) -> None:
    site.up("node1")
    site.submit("bad")
    site.planted = "row"
    assert site.end("coordinator") == 0
    done = site.run("abort", "--state-dir", str(site.state_dir), **site.environment())
    assert (done.code, "nothing is proven" in done.err, "Traceback" in done.err) == (4, True, False), done
    assert not (site.directory / "coordinator" / "crashes.json").exists()


def test_an_agent_crashes_is_undone_and_without_starting_anything_it_comes_up(site: Planted) -> None:
    site.planted = "order"
    site.up("node1")
    _, victim = site.freeze("node1")
    site.submit("poison")
    wait_until(lambda: runs(victim), 20, "the watchdog to undo")
    wait_until(lambda: site.log("node1").count("so this process ends") >= ENDS, 60, "the agent to crash")
    assert f"died: exit code {CRASHED}" in site.log("node1")
    assert site.run("destroy", "poison").code in (0, 3)
    site.await_alive("node1")
    wait_until(lambda: "it crashed again and again" in site.nodes()["node1"]["note"], 20, "it to say why")
    ran = site.run("submit", json.dumps({"class": "noop", "durationMs": 100}), "--wait")
    assert (ran.code, "nothing starts on node node1 until its agent is ended and started anew" in ran.out) == (1, True)
    mend(site, "node1")
    wait_until(lambda: site.nodes()["node1"]["note"] == "", 20, "the note to go")
    assert site.run("submit", json.dumps({"class": "noop", "durationMs": 100}), "--wait").code == 0


def test_an_agent_crashes_at_what_came_of_a_chore_and_the_watchdog_undoes(site: Planted) -> None:
    site.up("node1")
    site.planted = "outcome"
    assert site.end("node1") == 0
    site.start("node1")
    site.await_alive("node1")
    _, victim = site.freeze("node1", wait=False)
    wait_until(lambda: f"died: exit code {CRASHED}" in site.log("node1"), 30, "the agent to crash")
    wait_until(lambda: runs(victim), 20, "the watchdog to undo")


def test_an_entry_whose_undo_always_fails_is_stuck_and_keeps_no_other_fault(site: Planted) -> None:
    site.up("node1")
    _, first = site.freeze("node1", "good")
    _, second = site.freeze("node1", "bad")
    site.planted = "undo"
    for process in site.family(site.daemons["node1"]):
        process.kill()
    site.daemons["node1"].wait(20)
    site.start("node1")
    site.await_alive("node1")
    wait_until(lambda: runs(first), 20, "the undo of the other fault")
    wait_until(lambda: site.nodes()["node1"]["dirty"], 20, "the node to be dirty")
    assert "internal error: ZeroDivisionError" in json.dumps(site.json("show", "bad"))
    assert runs(second), "it was undone before the error, which the agent cannot know"
    site.planted = ""
    assert site.end("node1") == 1, "it knows that it leaves something"
    site.start("node1")
    wait_until(lambda: site.nodes()["node1"]["alive"] and not site.nodes()["node1"]["dirty"], 30, "it to be clean")
