"""A coordinator on another machine goes on with the state on Kafka: real coordinators, agents and brokers."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.command import clean_environment
from tests.cli.test_aborts import runs
from tests.kafka.test_daemons import KafkaSite
from tests.support import wait_until
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.journal import Journal
from trogdor_bus.lab.kafka import KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

OTHER = "other"
LEAD_S = 45.0


class Pair(KafkaSite):
    """A site with a second coordinator, which has a state directory of its own, on the same topics."""

    def up(self, *nodes: str) -> None:
        """Start the first coordinator and agents; brokers that are busy take their time."""
        self.begin("coordinator")
        wait_until((self.directory / "keys" / "member.json").exists, 60, "the keys")
        for node in nodes:
            self.start(node)

        def alive() -> bool:
            heard = self.nodes()
            return all(node in heard and heard[node]["alive"] for node in nodes)

        wait_until(alive, 90, f"{nodes} to be heard: {self.said('coordinator')}")

    def begin(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        """Start a coordinator under a name; its log is NAME.log."""
        command = [*self.command("coordinator"), *options, "--state-dir", str(self.directory / name), *self.trust]
        with (self.directory / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [sys.executable, "-m", "trogdor_bus", *command], stdout=log, stderr=log, env=clean_environment()
            )
        return self.daemons[name]

    def ended(self, name: str, within_s: float = 60.0) -> tuple[int, str]:
        """Return the exit code of a coordinator that ends by itself, and what it said."""
        code = self.daemons[name].wait(within_s)
        return code, self.said(name)

    def said(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def status(self) -> dict[str, Any]:
        ran = self.run("status", "--json")
        return dict(json.loads(ran.out)) if ran.code == 0 else {}

    def await_lead(self, after: int = 0) -> dict[str, Any]:
        """Return the status of a coordinator that leads in a later epoch than that, with everything replicated."""
        found: dict[str, Any] = {}

        def leads() -> bool:
            found.update(self.status())
            return bool(found.get("replicated")) and not found["listening"] and found["epoch"] > after

        wait_until(leads, LEAD_S, f"a coordinator to lead and replicate: {self.said('coordinator')}")
        return found

    def submit(self, task: str, duration_ms: int, node: str = "node1") -> psutil.Process:
        """Freeze a process of our own, and return it once it is frozen."""
        victim = subprocess.Popen(["sleep", "3600"])
        self.victims.append(victim)
        pid_file = self.directory / f"{task}.pid"
        pid_file.write_text(f"{victim.pid}")
        spec = {"class": "process-stop", "durationMs": duration_ms, "nodes": [node], "pidFile": str(pid_file)}
        found = self.json("submit", json.dumps(spec), "--id", task)
        assert found == {"id": task, "replicated": True}, found
        wait_until(lambda: self._begun(task), 40, f"{task} to be active")
        return psutil.Process(victim.pid)

    def _begun(self, task: str) -> bool:
        """Return whether a task is active, or was: a short one may be over before a slow machine looks."""
        told = self.json("show", task)
        return bool(told["active"]) or told["state"] == "DONE"

    def outcome(self, task: str) -> str:
        """Return how a task ends."""
        wait_until(lambda: self.json("show", task)["state"] == "DONE", 90, f"{task} to end")
        return str(self.json("show", task)["outcome"])

    def performed(self, task: str, node: str = "node1") -> int:
        """Return how often an agent froze the process of a task, by its log; its journal knows one worker at most."""
        entries = Journal.read_only(FileDisk(self.directory / node)).entries.values()
        assert len({entry.worker for entry in entries if entry.task == task}) <= 1
        return len(re.findall(rf"\btask {task}: stopping the process", self.said(node)))


@pytest.fixture
def make(tmp_path: Path, bootstrap: str) -> Iterator[Callable[[str], Pair]]:
    with contextlib.ExitStack() as stack:

        def made(transport: str) -> Pair:
            pair = Pair(tmp_path, transport, bootstrap)
            stack.callback(pair.down)
            return pair

        yield made


Make = Callable[[str], Pair]


@pytest.mark.parametrize("transport", ["kafka", pytest.param("kafka+zmq", marks=pytest.mark.core)])
def test_another_coordinator_goes_on_in_the_middle_of_a_task(make: Make, transport: str) -> None:
    pair = make(transport)
    pair.up("node1")
    first = pair.await_lead()
    victim = pair.submit("long", 40_000)
    pair.end("coordinator", signal.SIGKILL)

    pair.begin(OTHER)
    code, said = pair.ended(OTHER)
    assert code == 2 and "start with --take-over" in said, said
    pair.begin(OTHER, "--take-over")
    second = pair.await_lead(first["epoch"])
    assert second["coordinator"] != first["coordinator"]
    assert pair.json("show", "long")["state"] == "RUNNING" and not runs(victim)
    assert pair.outcome("long") == "done" and runs(victim)
    assert pair.performed("long") == 1

    pair.begin("coordinator")
    code, said = pair.ended("coordinator")
    assert code == 2 and f"the log has a state of epoch {second['epoch']}" in said, said
    assert pair.noop().code == 0


def test_an_old_coordinator_that_wakes_up_is_fenced_and_cannot_spoil_the_log(make: Make) -> None:
    pair = make("kafka")
    pair.up("node1")
    first = pair.await_lead()
    pair.submit("long", 60_000)
    pair.daemons["coordinator"].send_signal(signal.SIGSTOP)
    pair.begin(OTHER, "--take-over")
    second = pair.await_lead(first["epoch"])
    pair.submit("new", 5_000)
    pair.daemons["coordinator"].send_signal(signal.SIGCONT)
    code, said = pair.ended("coordinator")
    assert code == 1 and "fenced" in said and f"of epoch {second['epoch']}" in said, said
    assert pair.outcome("new") == "done"
    assert pair.json("stop", "long")["replicated"] is True
    assert pair.outcome("long") == "cancelled"
    pair.end(OTHER, signal.SIGKILL)
    pair.begin("third", "--take-over")
    pair.await_lead(second["epoch"])
    assert {task: pair.json("show", task)["outcome"] for task in ("long", "new")} == {
        "long": "cancelled",
        "new": "done",
    }
    assert pair.performed("long") == pair.performed("new") == 1


def test_while_kafka_is_out_submit_says_so_and_nobody_takes_over(make: Make, kafka_cluster: KafkaCluster) -> None:
    pair = make("kafka+zmq")
    pair.up("node1")
    pair.await_lead()
    for node in kafka_cluster.nodes:
        kafka_cluster.pause(node)
    began = time.monotonic()
    ran = pair.run("submit", '{"class": "noop", "durationMs": 500}', "--id", "out", "--wait")
    assert ran.code == 0 and "accepted, not replicated" in ran.out, ran
    assert time.monotonic() - began < 20, "nobody waits for the log"
    assert pair.json("submit", '{"class": "noop", "durationMs": 500}', "--id", "out2")["replicated"] is False
    assert "Replicated: not since" in pair.run("status").out
    pair.begin(OTHER, "--take-over")
    code, said = pair.ended(OTHER)
    assert code == 2 and "nobody may take over while the log is out" in said, said
    for node in kafka_cluster.nodes:
        kafka_cluster.unpause(node)
    wait_until(lambda: pair.status().get("replicated") is True, 60, "the log to catch up")
    assert "Replicated: everything" in pair.run("status").out
    pair.end("coordinator", signal.SIGKILL)
    pair.begin(OTHER, "--take-over")
    pair.await_lead(1)
    assert pair.outcome("out") == pair.outcome("out2") == "done"


def test_a_standby_takes_over_by_itself(make: Make) -> None:
    pair = make("kafka")
    pair.up("node1")
    first = pair.await_lead()
    standby = pair.begin(OTHER, "--standby", "--standby-after", "5s")
    wait_until(lambda: "leads in epoch" in pair.said(OTHER), 30, "the standby to see the leader")
    victim = pair.submit("long", 60_000)
    pair.end("coordinator", signal.SIGKILL)
    began = time.monotonic()
    pair.await_lead(first["epoch"])
    took_s = time.monotonic() - began
    print(f"\na standby (--standby-after 5s) leads and replicates {took_s:.1f} s after the leader's death")
    assert took_s < 25
    assert not runs(victim)
    assert pair.run("stop", "long", "--wait").code == 0 and runs(victim)
    assert pair.performed("long") == 1
    assert standby.poll() is None
    pair.begin("third", "--standby", "--standby-after", "5s")
    wait_until(lambda: "leads in epoch" in pair.said("third"), 30, "the third to see the leader")
    assert pair.end("third") == 0
