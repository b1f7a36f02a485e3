"""The lab: a small cluster on one machine, with real daemons, that leaves nothing behind."""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from trogdor_bus.errors import ConflictError, HostError, NotFoundError, RefusedError
from trogdor_bus.host import boot_id
from trogdor_bus.lab import namespaces, probe
from trogdor_bus.lab.foreign import SLEEPER, add_foreign
from trogdor_bus.lab.namespaces import COORDINATOR, Member
from trogdor_bus.lab.processes import TOKEN, LabProcess, end_all, ourselves, start
from trogdor_bus.lab.snapshot import NodeState, take

T = TypeVar("T")

ROOT = Path("/run/trogdor-bus")
TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "iptables-restore": "iptables",
    "ip6tables-restore": "iptables",
}
READY_S = 30.0
DAEMONS = ("agent", "coordinator")
"""The roles of our own processes, which are no part of a node's state."""


class LabState(msgspec.Struct):
    """What the lab wrote down before and after each thing it made. `namespaces`: identities, "" while intended."""

    name: str
    nodes: int
    token: str
    boot: str
    created_ms: int
    maker: LabProcess
    namespaces: dict[str, str] = {}
    processes: list[LabProcess] = []

    def processes_of(self, member: str) -> list[LabProcess]:
        """Return the processes on a member, by role."""
        return sorted((one for one in self.processes if one.member == member), key=lambda one: one.role)


class Lab:
    """N nodes and a coordinator's node in namespaces; as a context manager it is up inside and gone after."""

    def __init__(
        self,
        nodes: int = 3,
        name: str = "lab",
        on_step: Callable[[str], None] = lambda step: None,
        *,
        daemons: bool = True,
        backend: str = "",
    ) -> None:
        """Choose the size and the name; without `daemons` there are no coordinator and no agents.

        `backend` of iptables holds the foreign rules: "-nft", "-legacy", or "" for what the host uses.
        """
        self.members = namespaces.members(name, nodes)
        self.name = name
        self.directory = ROOT / f"lab-{name}"
        now_ms = time.time_ns() // 1_000_000
        self.state = LabState(name, nodes, secrets.token_hex(16), boot_id(), now_ms, ourselves())
        self._step, self._daemons, self._backend = on_step, daemons, backend
        self._children: dict[int, subprocess.Popen[Any]] = {}

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the names of the nodes, without the coordinator's."""
        return tuple(member.name for member in self.members if member.name != COORDINATOR)

    def member(self, name: str) -> Member:
        """Return one node, or the coordinator's; NotFoundError if there is none of that name."""
        for member in self.members:
            if member.name == name:
                return member
        known = ", ".join(member.name for member in self.members)
        raise NotFoundError(f"lab {self.name} has no node {name!r}; it has {known}")

    # --- up and down --------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Make the namespaces, what is foreign, the echo services and the daemons; all of it, or nothing."""
        require()
        self._claim()
        try:
            self._make_network()
            for name in self.nodes:
                add_foreign(self.member(name), self._backend)
            for member in self.members:
                self.start_echo(member.name)
            for name in self.nodes:
                self.start_sleeper(name)
            if self._daemons:
                self.start_coordinator()
                self._wait_keys()
                for name in self.nodes:
                    self.start_agent(name)
                self._step(f"coordinator and {len(self.nodes)} agents started")
                self.wait_ready()
            self.wait_usable()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Take away exactly what the lab made; harmless if it is gone already."""
        same_boot = self.state.boot == boot_id()
        if same_boot:
            end_all(self.state.token)
        for child in self._children.values():
            child.wait()
            for pipe in filter(None, (child.stdout, child.stderr)):
                pipe.close()
        self._children.clear()
        for name, made in self.state.namespaces.items():
            found = namespaces.identity(name)
            if found and (made in ("", found) or not same_boot):
                namespaces.delete(name)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.state.namespaces, self.state.processes = {}, []
        if ROOT.exists() and not any(ROOT.iterdir()):
            ROOT.rmdir()

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.down()

    def _claim(self) -> None:
        names = [namespaces.bridge(self.name), *(member.namespace for member in self.members)]
        if taken := [name for name in names if namespaces.exists(name)]:
            raise ConflictError(
                f"the network namespace {taken[0]} exists already; "
                f"`trogdor-bus lab down --name {self.name}` if it is a lab of ours, or choose another --name"
            )
        ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self.directory.mkdir(mode=0o700)
        except FileExistsError:
            raise ConflictError(
                f"lab {self.name} exists already; `trogdor-bus lab down --name {self.name}` or choose another --name"
            ) from None
        self._save()

    def _make_network(self) -> None:
        bridge = namespaces.bridge(self.name)
        self._make(bridge, functools.partial(namespaces.add_bridge, bridge))
        for member in self.members:
            self._make(member.namespace, functools.partial(namespaces.add_member, member, bridge))
            (self.directory / member.name).mkdir(mode=0o700)
        self._step(f"{len(self.members) + 1} network namespaces made, {namespaces.SUBNET4} and {namespaces.SUBNET6}")

    def remake(self, node: str) -> None:
        """Kill all that runs on a node and make its namespace anew with what is foreign in it, as a reboot would."""
        member, bridge = self.member(node), namespaces.bridge(self.name)
        for process in self.state.processes_of(node):
            if process.send(signal.SIGKILL) and process.pid in self._children:
                self._children[process.pid].wait()
        namespaces.remove_member(member, bridge)
        self._make(member.namespace, functools.partial(namespaces.add_member, member, bridge))
        add_foreign(member, self._backend)
        for other in self.members:
            namespaces.forget_neighbours(other)

    def _make(self, namespace: str, make: Callable[[], None]) -> None:
        self.state.namespaces[namespace] = ""
        self._save()
        make()
        self.state.namespaces[namespace] = namespaces.identity(namespace)
        self._save()

    def _save(self) -> None:
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

    def start_echo(self, member: str) -> LabProcess:
        """Start the echo service of a member; its pid is in `echo.pid` in the member's directory."""
        pid_file = self.directory / member / "echo.pid"
        argv = [sys.executable, "-m", "trogdor_bus.lab.echo", "::", "9092", str(pid_file)]
        return self.start_process("echo", member, argv)

    def start_sleeper(self, member: str) -> LabProcess:
        """Start the process of a member that stops itself, as if somebody had stopped it before any fault."""
        return self.start_process("sleeper", member, SLEEPER)

    def start_coordinator(self, *options: str) -> LabProcess:
        """Start the coordinator on its own member; what it stored there before is picked up."""
        state = self.directory / COORDINATOR
        argv = ["coordinator", "--bind", self.member(COORDINATOR).ipv4, "--state-dir", str(state), *options]
        return self.start_process("coordinator", COORDINATOR, [*_TROGDOR, *argv])

    def start_agent(self, node: str, *options: str) -> LabProcess:
        """Start the agent of a node; what an earlier one left in its state directory is picked up."""
        state = self.directory / node
        argv = ["agent", "--node", node, "--coordinator", self.member(COORDINATOR).ipv4, "--state-dir", str(state)]
        return self.start_process("agent", node, [*_TROGDOR, *argv, *options])

    def log(self, role: str, member: str) -> str:
        """Return what the process wrote so far."""
        return Path(self.process(role, member).log).read_text(errors="replace")

    def environment(self) -> dict[str, str]:
        """Return the environment of every process of the lab: the coordinator's address, its keys, our token."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TROGDOR_BUS_")}
        return inherited | {
            TOKEN: self.state.token,
            "TROGDOR_BUS_COORDINATOR": self.member(COORDINATOR).ipv4,
            "TROGDOR_BUS_KEYS": str(self.directory / "keys"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_PACKAGES), os.environ.get("PYTHONPATH", "")])),
        }

    def start_process(self, role: str, member: str, argv: Sequence[str]) -> LabProcess:
        """Start a command on a member as its process of that role; it ends with the lab at the latest."""
        log = self.directory / member / f"{role}.log"
        entered = namespaces.inside(self.member(member).namespace, argv)
        process, child = start(role, member, entered, self.environment(), log)
        self._children[process.pid] = child
        self.state.processes = [
            one for one in self.state.processes if (one.role, one.member) != (role, member) or one.state() != "gone"
        ] + [process]
        self._save()
        return process

    # --- asking and looking -------------------------------------------------------------------------------------------

    def command(self, member: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` on a member."""
        return namespaces.inside(self.member(member).namespace, argv)

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
        return self.run(COORDINATOR, *_TROGDOR, *argv, given=given, timeout_s=timeout_s)

    def begin_trogdor(self, *argv: str) -> subprocess.Popen[str]:
        """Start `trogdor-bus` on the coordinator's member and return the running process, its output in pipes."""
        return self.begin(COORDINATOR, *_TROGDOR, *argv)

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
                raise HostError(f"the {ended[0].role} of {ended[0].member} ended at once:\n{_tail(ended[0])}")
        if silent:
            agent = self.process("agent", min(silent))
            coordinator = self.process("coordinator", COORDINATOR)
            raise HostError(
                f"the coordinator does not hear {', '.join(sorted(silent))} after {timeout_s:g} s\n"
                f"{_tail(coordinator)}\n{_tail(agent)}"
            )
        self._step(f"the coordinator hears {', '.join(self.nodes)}")

    def _wait_keys(self) -> None:
        """Return when the coordinator has made the keys, without which an agent does not start."""
        coordinator, deadline = self.process("coordinator", COORDINATOR), time.monotonic() + READY_S
        while not (self.directory / "keys" / "member.json").exists():
            if coordinator.state() == "gone" or time.monotonic() > deadline:
                raise HostError(f"the coordinator made no keys:\n{_tail(coordinator)}")
            time.sleep(0.02)

    def wait_usable(self, timeout_s: float = 10.0) -> None:
        """Return when all members reach each other and the sleepers are stopped; HostError if not in time."""
        deadline = time.monotonic() + timeout_s
        sleepers = [one for one in self.state.processes if one.role == "sleeper"]
        while not (matrix := self.matrix()).agrees(lambda source, target: probe.WAYS) or any(
            sleeper.state() != "stopped" for sleeper in sleepers
        ):
            if time.monotonic() > deadline:
                raise HostError(f"not everybody reaches everybody in an untouched lab: {matrix.ways}")
        self._step("everybody reaches everybody")

    def matrix(self, ways: Sequence[str] = probe.WAYS) -> probe.Matrix:
        """Return who reaches whom now; takes at most 0.3 s for up to 9 members."""
        return probe.measure(self.members, ways)

    def snapshot(self, member: str) -> NodeState:
        """Return the normalised state of a member: rules, queueing disciplines, process states, mounts."""
        ours = [one for one in self.state.processes if one.member == member and one.role not in DAEMONS]
        return take(self.member(member), ours, self.directory)

    def snapshots(self) -> dict[str, NodeState]:
        """Return the state of every node."""
        return {name: self.snapshot(name) for name in self.nodes}

    def call_on(self, member: str, function: Callable[[], T]) -> T:
        """Return what `function` returns in a thread inside the member's namespace; sockets it makes stay there."""
        return namespaces.call_inside(self.member(member).namespace, function)


def missing() -> list[str]:
    """Return what this machine lacks to make a lab, each with the remedy; [] if nothing."""
    if not sys.platform.startswith("linux"):
        return ["it needs Linux"]
    lacking = [] if os.geteuid() == 0 else ["it needs root: run it with sudo"]
    packages = {package for tool, package in TOOLS.items() if not _installed(tool)}
    lacking += [f"it needs {package}: apt-get install {package}" for package in sorted(packages)]
    if not Path("/proc/sys/net/ipv6").exists():
        lacking.append("it needs IPv6 in the kernel: boot without ipv6.disable=1")
    return lacking


def require() -> None:
    """Raise RefusedError that says what this machine lacks to make or handle a lab."""
    if lacking := missing():
        raise RefusedError(f"no lab here: {'; '.join(lacking)}")


def existing(name: str) -> Lab:
    """Return the lab of that name as it was written down; NotFoundError if there is none."""
    directory = ROOT / f"lab-{name}"
    try:
        state = msgspec.json.decode((directory / "lab.json").read_bytes(), type=LabState)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no lab {name}; `trogdor-bus lab up --name {name}` makes it") from None
    lab = Lab(state.nodes, name)
    lab.state = state
    return lab


def remove(name: str) -> bool:
    """Take a lab down, whole or half made; False if there is none of that name."""
    try:
        existing(name).down()
    except NotFoundError:
        half_made = ROOT / f"lab-{name}"  # it ended between making its directory and writing anything down
        if not half_made.is_dir():
            return False
        shutil.rmtree(half_made)
    return True


_TROGDOR = [sys.executable, "-m", "trogdor_bus"]
_PACKAGES = Path(__file__).resolve().parents[2]


def _installed(tool: str) -> bool:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def _tail(process: LabProcess, lines: int = 8) -> str:
    written = Path(process.log).read_text(errors="replace").splitlines()[-lines:]
    return "\n".join([f"the {process.role} of {process.member} said last:", *(f"  {line}" for line in written)])
