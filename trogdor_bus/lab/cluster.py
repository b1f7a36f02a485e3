"""The lab: a small cluster on one machine, with real daemons, that leaves nothing behind."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from trogdor_bus.errors import ConflictError, HostError, NotFoundError, RefusedError
from trogdor_bus.host import boot_id
from trogdor_bus.lab import namespaces, probe
from trogdor_bus.lab.foreign import SLEEPER, add_foreign
from trogdor_bus.lab.namespaces import COORDINATOR, Member
from trogdor_bus.lab.processes import LabProcess
from trogdor_bus.lab.site import DAEMONS, TROGDOR, Site
from trogdor_bus.lab.snapshot import NodeState, take

T = TypeVar("T")

TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "iptables-restore": "iptables",
    "ip6tables-restore": "iptables",
}


class Lab(Site):
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
        super().__init__(nodes, name, on_step)
        self._daemons, self._backend = daemons, backend

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
        self.claim()
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
                self.wait_keys()
                for name in self.nodes:
                    self.start_agent(name)
                self.step(f"coordinator and {len(self.nodes)} agents started")
                self.wait_ready()
            self.wait_usable()
        except BaseException:
            self.down()
            raise

    def take_away(self) -> None:
        """Delete exactly the namespaces that the lab made."""
        same_boot = self.state.boot == boot_id()
        for name, made in self.state.namespaces.items():
            found = namespaces.identity(name)
            if found and (made in ("", found) or not same_boot):
                namespaces.delete(name)
        self.state.namespaces = {}

    def command(self, member: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` on a member."""
        return namespaces.inside(self.member(member).namespace, argv)

    def bus(self) -> dict[str, str]:
        """Return the coordinator's address, as a variable."""
        return {"TROGDOR_BUS_COORDINATOR": self.member(COORDINATOR).ipv4}

    def claim(self) -> None:
        """Make the directory with the state file; ConflictError if a name is taken."""
        names = [namespaces.bridge(self.name), *(member.namespace for member in self.members)]
        if taken := [name for name in names if namespaces.exists(name)]:
            raise ConflictError(
                f"the network namespace {taken[0]} exists already; "
                f"`trogdor-bus lab down --name {self.name}` if it is a lab of ours, or choose another --name"
            )
        super().claim()

    def _make_network(self) -> None:
        bridge = namespaces.bridge(self.name)
        self._make(bridge, functools.partial(namespaces.add_bridge, bridge))
        for member in self.members:
            self._make(member.namespace, functools.partial(namespaces.add_member, member, bridge))
            (self.directory / member.name).mkdir(mode=0o700)
        self.step(f"{len(self.members) + 1} network namespaces made, {namespaces.SUBNET4} and {namespaces.SUBNET6}")

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
        self.save()
        make()
        self.state.namespaces[namespace] = namespaces.identity(namespace)
        self.save()

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
        return self.start_process("coordinator", COORDINATOR, [*TROGDOR, *argv])

    def start_agent(self, node: str, *options: str) -> LabProcess:
        """Start the agent of a node; what an earlier one left in its state directory is picked up."""
        state = self.directory / node
        argv = ["agent", "--node", node, "--coordinator", self.member(COORDINATOR).ipv4, "--state-dir", str(state)]
        return self.start_process("agent", node, [*TROGDOR, *argv, *options])

    def wait_usable(self, timeout_s: float = 10.0) -> None:
        """Return when all members reach each other and the sleepers are stopped; HostError if not in time."""
        deadline = time.monotonic() + timeout_s
        sleepers = [one for one in self.state.processes if one.role == "sleeper"]
        while not (matrix := self.matrix()).agrees(lambda source, target: probe.WAYS) or any(
            sleeper.state() != "stopped" for sleeper in sleepers
        ):
            if time.monotonic() > deadline:
                raise HostError(f"not everybody reaches everybody in an untouched lab: {matrix.ways}")
        self.step("everybody reaches everybody")

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


def _installed(tool: str) -> bool:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None
