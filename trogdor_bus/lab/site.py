"""What every lab is made of, wherever its members live: a directory, a state file, and processes on its members."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from trogdor_bus.errors import ConflictError, HostError, NotFoundError
from trogdor_bus.host import boot_id
from trogdor_bus.lab.namespaces import COORDINATOR
from trogdor_bus.lab.processes import TOKEN, LabProcess, end_all, ourselves, start

ROOT = Path("/run/trogdor-bus")
READY_S = 30.0
DAEMONS = ("agent", "coordinator")
"""The roles of our own processes, which are no part of a node's state."""
TROGDOR = (sys.executable, "-m", "trogdor_bus")
PACKAGES = Path(__file__).resolve().parents[2]


class KafkaPart(msgspec.Struct):
    """What a lab of Kafka is beside its processes; addresses and ports once they are known."""

    brokers: int
    mode: str
    version: str
    transport: str
    addresses: dict[str, str] = {}
    ports: dict[str, int] = {}


class LabState(msgspec.Struct):
    """What the lab wrote down before and after each thing it made. `namespaces`: identities, "" while intended."""

    name: str
    nodes: int
    token: str
    boot: str
    created_ms: int
    maker: LabProcess
    namespaces: dict[str, str] = {}
    kafka: KafkaPart | None = None
    processes: list[LabProcess] = []

    def processes_of(self, member: str) -> list[LabProcess]:
        """Return the processes on a member, by role."""
        return sorted((one for one in self.processes if one.member == member), key=lambda one: one.role)


class Site(ABC):
    """A lab; as a context manager it is up inside and gone after."""

    def __init__(self, nodes: int, name: str, on_step: Callable[[str], None]) -> None:
        self.name, self.step = name, on_step
        self.directory = ROOT / f"lab-{name}"
        now_ms = time.time_ns() // 1_000_000
        self.state = LabState(name, nodes, secrets.token_hex(16), boot_id(), now_ms, ourselves())
        self._children: dict[int, subprocess.Popen[Any]] = {}

    @property
    @abstractmethod
    def nodes(self) -> tuple[str, ...]:
        """Return the names of the nodes that have agents."""

    @abstractmethod
    def up(self) -> None:
        """Make all of it, or nothing."""

    @abstractmethod
    def command(self, member: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` on a member; NotFoundError if there is none of that name."""

    @abstractmethod
    def bus(self) -> dict[str, str]:
        """Return the environment variables by which clients find the coordinator."""

    def take_away(self) -> None:  # noqa: B027 - some have nothing else
        """Take away what the lab made beside its processes and its directory; harmless if it is gone already."""

    def down(self) -> None:
        """Take away exactly what the lab made; harmless if it is gone already."""
        if self.state.boot == boot_id():
            end_all(self.state.token)
        for child in self._children.values():
            child.wait()
            for pipe in filter(None, (child.stdout, child.stderr)):
                pipe.close()
        self._children.clear()
        self.take_away()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.state.processes = []
        if ROOT.exists() and not any(ROOT.iterdir()):
            ROOT.rmdir()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.down()

    def claim(self) -> None:
        """Make the directory with the state file; ConflictError if the name is taken."""
        ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self.directory.mkdir(mode=0o700)
        except FileExistsError:
            raise ConflictError(
                f"lab {self.name} exists already; `trogdor-bus lab down --name {self.name}` or choose another --name"
            ) from None
        self.save()

    def told(self, state: LabState) -> Self:
        """Take over what somebody else's lab of this name is, as it was written down."""
        self.state = state
        return self

    def save(self) -> None:
        """Write down what the lab is."""
        temporary = self.directory / "lab.json.new"
        temporary.write_bytes(msgspec.json.encode(self.state))
        temporary.replace(self.directory / "lab.json")

    # --- processes ----------------------------------------------------------------------------------------------------

    def process(self, role: str, member: str) -> LabProcess:
        """Return the latest process of that role ("echo", "sleeper", "agent", "coordinator") on that member."""
        for process in reversed(self.state.processes):
            if (process.role, process.member) == (role, member):
                return process
        raise NotFoundError(f"the lab started no {role} on {member}")

    def kill(self, process: LabProcess, number: signal.Signals) -> None:
        """Send a signal to exactly that process; HostError if it is gone."""
        if not process.send(number):
            raise HostError(f"the {process.role} of {process.member} (pid {process.pid}) is gone")

    def end(self, process: LabProcess, number: signal.Signals = signal.SIGTERM, timeout_s: float = 10.0) -> int:
        """Signal a process that this Lab object started, wait for its end and return its exit code (-N: by signal)."""
        self.kill(process, number)
        try:
            return self._children[process.pid].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise HostError(
                f"the {process.role} of {process.member} did not end within {timeout_s} s of {number.name}"
            ) from None

    def processes_told(self, member: str) -> dict[str, Any]:
        """Return pid and state of the processes of a member, by role, for showing."""
        return {one.role: {"pid": one.pid, "state": one.state()} for one in self.state.processes_of(member)}

    def log(self, role: str, member: str) -> str:
        """Return what the process wrote so far."""
        return Path(self.process(role, member).log).read_text(errors="replace")

    def environment(self) -> dict[str, str]:
        """Return the environment of every process of the lab: where the bus is, its keys, our token."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TROGDOR_BUS_")}
        return inherited | {
            TOKEN: self.state.token,
            **self.bus(),
            "TROGDOR_BUS_KEYS": str(self.directory / "keys"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH", "")])),
        }

    def start_process(self, role: str, member: str, argv: Sequence[str], *, outside: bool = False) -> LabProcess:
        """Start a command on a member as its process of that role; it ends with the lab at the latest.

        `outside`: it belongs to the member, but runs in our own namespaces.
        """
        log = self.directory / member / f"{role}.log"
        entered = argv if outside else self.command(member, argv)
        process, child = start(role, member, entered, self.environment(), log)
        self._children[process.pid] = child
        self.state.processes = [
            one for one in self.state.processes if (one.role, one.member) != (role, member) or one.state() != "gone"
        ] + [process]
        self.save()
        return process

    # --- asking and looking -------------------------------------------------------------------------------------------

    def run(self, member: str, *argv: str, given: str = "", timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command on a member to its end; its output is text."""
        return subprocess.run(
            self.command(member, argv),
            env=self.environment(),
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            start_new_session=True,
        )

    def trogdor(self, *argv: str, given: str = "", timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run `trogdor-bus` on the coordinator's member, connected to its coordinator."""
        return self.run(COORDINATOR, *TROGDOR, *argv, given=given, timeout_s=timeout_s)

    def begin_trogdor(self, *argv: str) -> subprocess.Popen[str]:
        """Start `trogdor-bus` on the coordinator's member and return the running process, its output in pipes."""
        return self.begin(COORDINATOR, *TROGDOR, *argv)

    def begin(self, member: str, *argv: str) -> subprocess.Popen[str]:
        """Start a command on a member and return the running process, its output in pipes."""
        child = subprocess.Popen(
            self.command(member, argv),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._children[child.pid] = child
        return child

    def ask(self, *argv: str) -> Any:
        """Return the JSON that a client verb prints with --json; HostError if it fails."""
        done = self.trogdor(*argv, "--json")
        if done.returncode != 0:
            raise HostError(f"trogdor-bus {' '.join(argv)} ended {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def alive(self) -> set[str]:
        """Return the nodes that the coordinator hears; empty while no coordinator answers."""
        done = self.trogdor("nodes", "--json")
        if done.returncode != 0:
            return set()
        return {row["name"] for row in json.loads(done.stdout)["nodes"] if row.get("alive")}

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Return when the coordinator hears every agent; HostError with the end of the logs if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while (silent := set(self.nodes) - self.alive()) and time.monotonic() < deadline:
            daemons = [one for one in self.state.processes if one.role in DAEMONS]
            if ended := [one for one in daemons if one.state() == "gone"]:
                raise HostError(f"the {ended[0].role} of {ended[0].member} ended at once:\n{tail(ended[0])}")
        if silent:
            agent = self.process("agent", min(silent))
            coordinator = self.process("coordinator", COORDINATOR)
            raise HostError(
                f"the coordinator does not hear {', '.join(sorted(silent))} after {timeout_s:g} s\n"
                f"{tail(coordinator)}\n{tail(agent)}"
            )
        self.step(f"the coordinator hears {', '.join(self.nodes)}")

    def wait_keys(self) -> None:
        """Return when the coordinator has made the keys, without which an agent does not start."""
        coordinator, deadline = self.process("coordinator", COORDINATOR), time.monotonic() + READY_S
        while not (self.directory / "keys" / "member.json").exists():
            if coordinator.state() == "gone" or time.monotonic() > deadline:
                raise HostError(f"the coordinator made no keys:\n{tail(coordinator)}")
            time.sleep(0.02)


def tail(process: LabProcess, lines: int = 8) -> str:
    """Return the last lines that a process wrote, with a heading."""
    written = Path(process.log).read_text(errors="replace").splitlines()[-lines:]
    return "\n".join([f"the {process.role} of {process.member} said last:", *(f"  {line}" for line in written)])
