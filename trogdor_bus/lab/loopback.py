"""The demo without root: the process fault alone, on the loopback address, as the user who typed it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trogdor_bus.document import parse, read_file
from trogdor_bus.errors import HostError
from trogdor_bus.lab.demo import SETTLE_S, Demo, conclude, examples
from trogdor_bus.lab.probe import Matrix, RoundTrip, finish
from trogdor_bus.lab.processes import TOKEN, LabProcess, end_all, start
from trogdor_bus.lab.screen import Screen

ADDRESS = "127.0.0.1"
PORTS = 4
WAYS = ("tcp4", "udp4")
NODE = "node1"


class Loopback:
    """A coordinator, one agent and a victim of ours, in a temporary directory that goes with them."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="trogdor-bus-demo-")
        self.directory = Path(self._directory.name)
        self.victim_port = _free_ports(1)
        self._coordinator_port = _free_ports(PORTS)
        self._token = secrets.token_hex(16)
        self._children: list[subprocess.Popen[Any]] = []

    def up(self) -> LabProcess:
        """Start all three and return the victim once the coordinator hears the agent and the victim answers."""
        victim = self._start("victim", "-m", "trogdor_bus.lab.echo", ADDRESS, str(self.victim_port))
        daemon = ("-m", "trogdor_bus")
        state = str(self.directory / "coordinator-state")
        self._start("coordinator", *daemon, "coordinator", "--port", str(self._coordinator_port), "--state-dir", state)
        self._start("agent", *daemon, "agent", "--node", NODE, "--state-dir", str(self.directory / "agent-state"))
        deadline = time.monotonic() + SETTLE_S
        while not self._heard() or not self.matrix().agrees(answers):
            if time.monotonic() > deadline:
                said = "\n".join(path.read_text(errors="replace")[-1000:] for path in self.directory.glob("*.log"))
                raise HostError(f"the coordinator does not hear the agent after {SETTLE_S:g} s\n{said}")
        return victim

    def down(self) -> None:
        """End all of them and remove the directory."""
        end_all(self._token)
        for child in self._children:
            child.wait()
            for pipe in filter(None, (child.stdout, child.stderr)):
                pipe.close()
        with contextlib.suppress(FileNotFoundError):
            self._directory.cleanup()

    def begin_trogdor(self, *argv: str) -> subprocess.Popen[str]:
        """Start `trogdor-bus`, connected to our coordinator, and return the running process, its output in pipes."""
        child = subprocess.Popen(
            [sys.executable, "-m", "trogdor_bus", *argv],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._children.append(child)
        return child

    def matrix(self, ways: Sequence[str] = WAYS) -> Matrix:
        """Return whether the victim answers now."""
        trips = [RoundTrip(way, ADDRESS, self.victim_port) for way in ways]
        finish(trips)
        return Matrix({"you": {"victim": tuple(trip.way for trip in trips if trip.answered)}}, tuple(ways))

    def _heard(self) -> bool:
        asked = self.begin_trogdor("nodes", "--json")
        said, _ = asked.communicate()
        return asked.returncode == 0 and any(row.get("alive") for row in json.loads(said)["nodes"])

    def _start(self, role: str, *argv: str) -> LabProcess:
        log = self.directory / f"{role}.log"
        process, child = start(role, NODE, [sys.executable, *argv], self._environment(), log)
        self._children.append(child)
        return process

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TROGDOR_BUS_")}
        packages = str(Path(__file__).resolve().parents[2])
        return inherited | {
            TOKEN: self._token,
            "TROGDOR_BUS_COORDINATOR": f"{ADDRESS}:{self._coordinator_port}",
            "TROGDOR_BUS_KEYS": str(self.directory / "keys"),
            "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH", "")])),
        }


def run_loopback(screen: Screen, lacking: Iterable[str]) -> int:
    """Say what is missing and freeze a process of ours; return 0 if it froze and ran again, as `run_demo` otherwise."""
    loopback = Loopback()

    def tell(demo: Demo) -> None:
        for reason in lacking:
            screen.say(f"no network namespaces here: {reason}")
        screen.say("so this is the process fault alone, on 127.0.0.1, with a process of our own")
        victim = loopback.up()
        demo.expect(True, "the coordinator hears the agent, the victim answers")
        spec = parse(read_file(examples() / "process-stop.json"), "process-stop.json")
        spec |= {"nodes": [NODE], "port": loopback.victim_port}
        screen.say(f"submit process-stop.json, with port {loopback.victim_port} of {NODE}")
        submit = loopback.begin_trogdor("submit", json.dumps(spec), "--id", "demo-freeze", "--wait")
        demo.freeze(victim, silence, answers, "the victim", spec["durationMs"] / 1000)
        demo.ended(submit, 0, "submit --wait")

    return conclude(screen, loopback, tell)


def answers(source: str, target: str) -> Iterable[str]:
    """Expect the victim to answer."""
    return WAYS


def silence(source: str, target: str) -> Iterable[str]:
    """Expect the victim not to answer."""
    return ()


def _free_ports(count: int) -> int:
    """Return the first of `count` ports in a row that nobody uses just now."""
    for _attempt in range(100):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError, OverflowError):
            first = held.enter_context(socket.create_server((ADDRESS, 0))).getsockname()[1]
            for port in range(first + 1, first + count):
                held.enter_context(socket.create_server((ADDRESS, port)))
            return int(first)
    raise HostError(f"no {count} free ports in a row on {ADDRESS}")
