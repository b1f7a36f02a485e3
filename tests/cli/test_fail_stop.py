"""Daemons that meet what nobody foresaw: they end, are right when started again, and outlive what always fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import clean_environment
from tests.cli.test_aborts import Site, runs
from tests.cli.test_verbs import NOOP
from tests.support import wait_until
from trogdor_bus.fuse import CRASHED, ENDS

PLANTED = """
import os
if os.environ.get("PLANTED"):
    from trogdor_bus.agents.machine import AgentMachine
    from trogdor_bus.coordinator.machine import CoordinatorMachine
    heard, run = AgentMachine._snapshot, CoordinatorMachine._run
    def snapshot(self, snapshot, *rest):
        heard(self, snapshot, *rest)
        if any(order.task.startswith("poison") for order in snapshot.orders):
            raise ZeroDivisionError("nobody foresaw this order")
    def begin(self, task, *rest):
        run(self, task, *rest)
        if task.id == "bad":
            raise ZeroDivisionError("nobody foresaw this task")
    AgentMachine._snapshot, CoordinatorMachine._run = snapshot, begin
"""
"""What is planted: an error at every word with an order of such a task, and at the start of such a task."""


class Planted(Site):
    """A site whose daemons meet what nobody foresaw while `planted`."""

    planted = True

    def start(self, name: str) -> None:
        command = [*self.command(name), "--state-dir", str(self.directory / name)]
        (self.directory / "sitecustomize.py").write_text(PLANTED)
        paths = os.pathsep.join(filter(None, [str(self.directory), os.environ.get("PYTHONPATH")]))
        extra = {"PYTHONPATH": paths, "PLANTED": "yes"} if self.planted else {}
        with (self.directory / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [sys.executable, "-m", "trogdor_bus", *command, *self.trust],
                stdout=log,
                stderr=log,
                env=clean_environment(**extra),
            )

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


def test_a_coordinator_ends_and_without_the_task_that_always_fails_it_comes_up(site: Planted) -> None:
    site.up("node1")
    site.submit("good")
    site.submit("bad", startMs=time.time_ns() // 1_000_000 + 1_500)
    for number in range(ENDS):
        assert site.daemons["coordinator"].wait(30) == CRASHED
        assert site.log("coordinator").count("so this process ends") == number + 1
        site.start("coordinator")
    site.await_alive("node1")
    status = site.json("status")
    assert "at bad: ZeroDivisionError('nobody foresaw this task')" in status["trouble"]
    assert "Takes no new task until it is started anew: it ended 3 times" in site.run("status").out
    assert list(site.json("tasks")["tasks"]) == ["good"]
    refused = site.run("submit", NOOP % 100)
    assert (refused.code, "takes no new task until it is started anew" in refused.err) == (2, True), refused
    assert site.run("stop", "good", "--wait").code == 0
    assert site.run("abort").code == 0
    assert site.run("resume").code == 0
    site.planted = False
    assert site.end("coordinator") == 0
    site.start("coordinator")
    site.await_alive("node1")
    assert "trouble" not in site.json("status")
    assert set(site.json("tasks")["tasks"]) == {"good", "bad"}, "it was set aside, not forgotten"


def test_an_agent_ends_is_undone_and_without_starting_anything_it_comes_up(site: Planted) -> None:
    site.up("node1")
    _, victim = site.freeze("node1")
    site.submit("poison")
    wait_until(lambda: runs(victim), 20, "the watchdog to undo")
    wait_until(lambda: "going on without it" in site.log("node1"), 60, "the agent to come up")
    assert f"died: exit code {CRASHED}" in site.log("node1")
    assert site.log("node1").count("so this process ends") == ENDS
    site.await_alive("node1")
    assert "it ended 3 times within 60 s" in site.nodes()["node1"]["note"]
    assert site.run("destroy", "poison").code in (0, 3)
    ran = site.run("submit", json.dumps({"class": "noop", "durationMs": 100}), "--wait")
    assert (ran.code, "nothing starts on node node1 until its agent is started anew" in ran.out) == (1, True)
    site.planted = False
    assert site.end("node1") == 0
    site.start("node1")
    site.await_alive("node1")
    wait_until(lambda: site.nodes()["node1"]["note"] == "", 20, "the note to go")
    assert site.run("submit", json.dumps({"class": "noop", "durationMs": 100}), "--wait").code == 0
