"""Processes that do not end when they are asked to: killed when the grace is over, and started again, whoever dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.steps import await_active, await_done, below_guard, new_id, stop, submit
from tests.support import wait_until
from trogdor_bus.host import identity
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.processes import LabProcess

pytestmark = pytest.mark.e2e

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: open(sys.argv[1] + ".asked", "a").close())
with open(sys.argv[1], "a") as starts:
    starts.write(f"{os.getpid()}\\n")
while True:
    time.sleep(600)
"""
"""Notes that it was started, and that it was asked to end, which it does not."""


class Service:
    """A stubborn process on node2, and an agent there that may start it again."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self._starts = lab, folder / "starts"
        self.asked = folder / "starts.asked"
        self.argv = [sys.executable, "-c", STUBBORN, str(self._starts)]

    def begin(self) -> subprocess.Popen[str]:
        child = self.lab.begin("node2", *self.argv)
        wait_until(lambda: len(self.pids()) == 1, what="the service to be deaf")
        return child

    def spec(self, grace_ms: int) -> dict[str, Any]:
        process = {"match": str(self._starts), "signal": "SIGTERM", "graceMs": grace_ms, "restart": self.argv}
        return {"class": "process-kill", "durationMs": 60_000, "nodes": ["node2"], **process}

    def pids(self) -> list[int]:
        """Return the pids of all that were started, in order."""
        text = self._starts.read_text() if self._starts.exists() else ""
        return [int(line) for line in text.splitlines() if text.endswith("\n")]

    def process(self) -> LabProcess:
        pid = self.pids()[-1]
        return LabProcess("stubborn", "node2", pid, identity(pid).start_ticks)


@pytest.fixture
def service(lab: Lab, tmp_path: Path) -> Iterator[Service]:
    made = Service(lab, tmp_path)
    config = tmp_path / "agent.yaml"
    config.write_text(json.dumps({"agent": {"allowCommands": [made.argv]}}))
    lab.end(lab.process("agent", "node2"))
    lab.start_agent("node2", "--config", str(config))
    lab.wait_ready()
    child = made.begin()
    yield made
    for pid in made.pids()[1:]:
        lab.run("node2", "kill", "-KILL", str(pid))
    child.kill()
    child.communicate(timeout=10)
    lab.end(lab.process("agent", "node2"))
    lab.start_agent("node2")
    lab.wait_ready()


def test_it_is_killed_in_mid_fault_and_started_again_at_the_end(service: Service) -> None:
    lab, task, victim = service.lab, new_id("grace"), service.process()
    began = time.monotonic()
    submit(lab, task, service.spec(2_000))
    await_active(lab, task)
    wait_until(lambda: victim.state() == "gone", what="the service to be killed")
    assert time.monotonic() - began > 2
    assert service.asked.exists()
    assert lab.ask("show", task)["active"]
    assert len(service.pids()) == 1
    stop(lab, task)
    told = lab.ask("show", task)
    assert (told["state"], told["outcome"], told.get("error", "")) == ("DONE", "cancelled", "")
    wait_until(lambda: len(service.pids()) == 2, what="the service to be started again")


def test_an_end_before_the_grace_is_over_waits_for_it_and_the_beats_go_on(service: Service) -> None:
    lab, task, victim = service.lab, new_id("grace"), service.process()
    began = time.monotonic()
    submit(lab, task, service.spec(6_000))
    await_active(lab, task)
    stopping = lab.begin_trogdor("stop", task, "--wait")
    while stopping.poll() is None:
        assert lab.alive() >= {"node1", "node2", "node3"}, "a beat is missing"
        assert victim.state() == "running" or time.monotonic() - began > 6
        time.sleep(0.2)
    said, complained = stopping.communicate(timeout=10)
    assert stopping.returncode == 0, said + complained
    assert time.monotonic() - began > 6
    assert victim.state() == "gone"
    wait_until(lambda: len(service.pids()) == 2, what="the service to be started again")


def test_if_the_agent_dies_it_is_killed_and_started_again_all_the_same(service: Service) -> None:
    lab, task, victim = service.lab, new_id("grace"), service.process()
    began = time.monotonic()
    submit(lab, task, service.spec(4_000))
    await_active(lab, task)
    below_guard(lab, "node2").send(signal.SIGKILL)
    wait_until(lambda: len(service.pids()) == 2, what="the service to be started again")
    assert time.monotonic() - began > 4
    assert victim.state() == "gone"
    assert await_done(lab, task)["outcome"] == "agent-restarted"
    lab.wait_ready()
    assert len(service.pids()) == 2
