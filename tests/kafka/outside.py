"""A coordinator and an agent for each broker, as a user starts them beside a cluster in containers."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.cli.command import Ran, clean_environment, run
from tests.contract.buses import free_ports
from tests.support import wait_until
from trogdor_bus.lab.kafka import KafkaCluster

UNANSWERED = (3, 4)
"""The exit codes of a client that heard no answer, which is no wonder on a busy machine."""


class Outside:
    """As a context manager: up inside, with every agent heard; ended after, with their logs printed."""

    def __init__(self, cluster: KafkaCluster, transport: str, directory: Path, bootstrap: str = "") -> None:
        self.cluster, self.directory = cluster, directory
        self._keys = ["--keys", str(directory / "keys")]
        self._bus = ["--transport", transport]
        if "kafka" in transport:
            prefix = f"t{uuid.uuid4().hex[:8]}"
            self._bus += ["--bootstrap-server", bootstrap or cluster.bootstrap, "--topic-prefix", prefix]
        self._port = str(free_ports())
        if "zmq" in transport:
            self._dial = ["--coordinator", f"127.0.0.1:{self._port}"]
            self._bind = ["--port", self._port]
        else:
            self._dial = self._bind = []
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            wait_until(self._led, 90, "the coordinator to answer")
            for node in self.cluster.brokers.values():
                attach = f"container:{self.cluster.container(node)}"
                self._start(node, "agent", "--node", node, "--attach", attach, *self._dial)
            wait_until(self._all_heard, 60, "every agent to be heard")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def ask(self, verb: str, *arguments: str, spec: Mapping[str, Any] | None = None) -> Ran:
        """Return what a client verb left behind."""
        given = json.dumps(spec) if spec else ""
        return run(verb, *arguments, *self._bus, *self._dial, *self._keys, stdin=given)

    def json(self, verb: str, *arguments: str, timeout_s: float = 30) -> Any:
        """Return what a client verb prints as JSON; a bus on Kafka alone may take a while where a leader is lost."""
        told: list[Ran] = []

        def answered() -> bool:
            told.append(self.ask(verb, *arguments, "--json"))
            return told[-1].code == 0

        wait_until(answered, timeout_s, f"an answer to {verb}")
        return json.loads(told[-1].out)

    def submit(self, task: str, spec: Mapping[str, Any], *options: str) -> None:
        """Submit a spec and return when it is in force on all of its nodes."""

        def accepted() -> bool:
            done = self.ask("submit", "-", "--id", task, *options, spec=spec)
            assert done.code in (0, *UNANSWERED), done.out + done.err  # with the same id, asking again is harmless
            return done.code == 0

        wait_until(accepted, 60, f"task {task} to be accepted")
        wait_until(lambda: self.json("show", task)["active"], 40, f"task {task} to be active")

    def _led(self) -> bool:
        """Start the coordinator, again if it gave up on brokers that are slow, and return whether it answers."""
        running = self._running.get("coordinator")
        if running is None or running.poll() is not None:
            assert running is None or "no answer from" in self._log("coordinator"), self._log("coordinator")
            self._start("coordinator", "coordinator", *self._bind)
        return self.ask("status").code == 0

    def _all_heard(self) -> bool:
        for name, process in self._running.items():
            if process.poll() is not None:
                pytest.fail(f"{name} ended: {self._log(name)}")
        done = self.ask("nodes", "--json")
        nodes = json.loads(done.out)["nodes"] if done.code == 0 else ()
        return {node["name"] for node in nodes if node["alive"]} == set(self.cluster.brokers.values())

    def _start(self, name: str, *arguments: str) -> None:
        state = ["--state-dir", str(self.directory / name)]
        with (self.directory / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "trogdor_bus", *arguments, *self._bus, *self._keys, *state],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean_environment(),
            )

    def _end(self) -> None:
        for process in reversed(self._running.values()):  # the agents undo, the coordinator goes last
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            if process.poll() is None:
                process.kill()
                process.wait()
        for name in self._running:
            print(f"--- {name}\n{self._log(name)}")

    def _log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()
