"""Real daemons beside a real Kafka: a coordinator in a seat of its own, agents, and somebody who asks them."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from confluent_kafka.admin import AdminClient

from tests.support import wait_until
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.journal import Journal
from trogdor_bus.client import Client
from trogdor_bus.lab.kafka import KafkaCluster
from trogdor_bus.lab.processes import TOKEN, LabProcess, end_all, start
from trogdor_bus.transports import transport

COORDINATOR = "coordinator"
PORT = 5560
START_S = 60.0
STARTS = 3
"""A new coordinator ends if brokers that have just started cannot tell it in time what its log has."""
_TROGDOR = (sys.executable, "-m", "trogdor_bus")
_PERFORMED = re.compile(r"\btask (\S+): (?!undoing)")


class Daemons:
    """What is started on one bus, whose topics nobody else uses; as a context manager all of it is gone after."""

    def __init__(self, cluster: KafkaCluster, directory: Path, transport: str) -> None:
        self.cluster, self.directory, self.transport = cluster, directory, transport
        self.prefix = f"t{secrets.token_hex(4)}"
        self.agents: dict[str, LabProcess] = {}
        self._token = secrets.token_hex(16)
        self._children: list[subprocess.Popen[bytes]] = []
        self._workers: dict[tuple[str, str], set[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self.agents.values():
            agent.send(signal.SIGTERM)
        wait_until(lambda: all(one.state() == "gone" for one in self.agents.values()), 30, "the agents to end")
        end_all(self._token)
        for child in self._children:
            child.wait()
        self._remove_topics()

    # --- who is there -------------------------------------------------------------------------------------------------

    def start_coordinator(self, *options: str) -> None:
        """Start a coordinator in its seat until it stays, as a service would be; return when its bus is open."""
        bind = () if self.transport == "kafka" else ("--bind", self.cluster.addresses[COORDINATOR])
        argv = ("coordinator", *bind, "--topic-prefix", self.prefix, "--state-dir", str(self._home(COORDINATOR)))
        for _ in range(STARTS):
            if self._stays(self.start(COORDINATOR, "coordinator", *_TROGDOR, *argv, *options)):
                return
        pytest.fail(f"the coordinator does not stay: {self.log('coordinator')}")

    def start_agent(self, node: str, *options: str) -> None:
        """Start the agent of a node; it lives in the seat of that name unless it is told to attach to one."""
        argv = ("agent", "--node", node, "--topic-prefix", self.prefix, "--state-dir", str(self._home(node)))
        seat = "" if "--attach" in options else node
        self.agents[node] = self.start(seat, f"agent-{node}", *_TROGDOR, *argv, *options)

    def wait_joined(self) -> None:
        """Return when the coordinator hears every agent and leads."""

        def joined() -> bool:
            done = self.trogdor("nodes", "--json")
            rows = json.loads(done.stdout)["nodes"] if done.returncode == 0 else []
            return {row["name"] for row in rows if row["alive"]} == set(self.agents)

        wait_until(joined, START_S, "all agents to be heard")
        wait_until(lambda: not self.ask("status")["listening"], START_S, "the coordinator to lead")

    def start(self, seat: str, name: str, *argv: str) -> LabProcess:
        """Start a command in a seat, "" for here; it ends with us at the latest."""
        log = self.directory / f"{name}.log"
        process, child = start(name, seat, self.inside(seat, argv), self._environment() | {TOKEN: self._token}, log)
        self._children.append(child)
        return process

    def inside(self, seat: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` in the network namespace of a seat, under the same pid."""
        return ["nsenter", f"--net=/proc/{self.cluster.pid(seat)}/ns/net", "--", *argv] if seat else list(argv)

    # --- asking and looking -------------------------------------------------------------------------------------------

    def client(self) -> Client:
        """Return a client on this bus; call it inside the event loop."""
        kafka = f"kafka://{self.cluster.bootstrap_inside}/{self.prefix}"
        url = kafka if self.transport == "kafka" else f"{kafka} zmq://{self.cluster.addresses[COORDINATOR]}:{PORT}"
        return Client(transport(url).open_client(url, self._keys), url)

    def trogdor(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a client verb, as a user would."""
        return subprocess.run(
            [*_TROGDOR, *argv, "--topic-prefix", self.prefix],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def ask(self, *argv: str) -> Any:
        """Return the JSON that a client verb prints."""
        done = self.trogdor(*argv, "--json")
        assert done.returncode == 0, done.stderr + self.log("coordinator")
        return json.loads(done.stdout)

    def links(self) -> dict[str, dict[str, bool]]:
        """Return what `nodes` says of the links of each node."""
        return {row["name"]: row["links"] for row in self.ask("nodes")["nodes"]}

    def log(self, name: str) -> str:
        """Return what that process wrote so far."""
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def rules(self, seat: str) -> str:
        """Return the chains of ours in a seat, "" for none."""
        argv = self.inside(seat, ["iptables-save"])
        saved = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        return "\n".join(line for line in saved.splitlines() if "TB-" in line)

    def note_journals(self) -> None:
        """Note which workers are in the agents' journals: an agent forgets those whose end is over."""
        for node in self.agents:
            for entry in Journal.read_only(FileDisk(self._home(node))).entries.values():
                self._workers.setdefault((node, entry.task), set()).add(entry.worker)

    def performed(self, node: str) -> Counter[str]:
        """Return how often an agent began to perform each task, by its log."""
        return Counter(_PERFORMED.findall(self.log(f"agent-{node}")))

    def workers(self, node: str, task: str) -> set[int]:
        """Return the ids of a task's workers that were noted in a node's journal."""
        return self._workers.get((node, task), set())

    def _stays(self, coordinator: LabProcess) -> bool:
        def greets() -> bool:
            return "Starting coordinator process." in self.log("coordinator")

        wait_until(lambda: greets() or coordinator.state() == "gone", START_S, "the coordinator")
        return coordinator.state() != "gone"

    def _remove_topics(self) -> None:
        admin = AdminClient({"bootstrap.servers": self.cluster.bootstrap})
        ours = [name for name in admin.list_topics(timeout=30).topics if name.startswith(f"{self.prefix}.")]
        for removed in admin.delete_topics(ours).values() if ours else ():
            removed.result(30)

    @property
    def _keys(self) -> Path:
        return self.directory / "keys"

    def _home(self, name: str) -> Path:
        return self.directory / f"state-{name}"

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TROGDOR_BUS_")}
        ours = {
            "TROGDOR_BUS_TRANSPORT": self.transport,
            "TROGDOR_BUS_BOOTSTRAP_SERVER": self.cluster.bootstrap_inside,
            "TROGDOR_BUS_KEYS": str(self._keys),
        }
        if self.transport != "kafka":
            ours["TROGDOR_BUS_COORDINATOR"] = self.cluster.addresses[COORDINATOR]
        return kept | ours
