"""Real network namespaces joined by a wire, and processes in them that are nobody's children."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from tests.support import wait_until
from trogdor_bus.actions import Action, Peer, ProcessMatch
from trogdor_bus.actions.network import BlockFrom
from trogdor_bus.agents.platforms.linux import processes
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.agents.platforms.linux.processes import identify
from trogdor_bus.errors import NotYetError
from trogdor_bus.platform import Operation, Prepared, ProcessIdentity, Step, Surroundings
from trogdor_bus.supervisor import tree
from trogdor_bus.testing import unnoted

_numbers = itertools.count(1)
SLEEP = "import time; time.sleep(600)"


class Node:
    """A namespace of its own, with a platform attached to it."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.v4, self.v6 = f"10.77.0.{number}", f"fd77::{number}"
        self.platform = LinuxPlatform(f"netns:{name}")
        self._started: list[ProcessIdentity] = []

    @property
    def peer(self) -> Peer:
        return Peer(self.name, (self.v4, self.v6))

    def run(self, *argv: str, stdin: str = "") -> str:
        argv = ("ip", "netns", "exec", self.name, *argv)
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=True, timeout=20).stdout

    def reaches(self, address: str) -> bool:
        argv = ["ip", "netns", "exec", self.name, "ping", "-n", "-c1", "-W1", address]
        return subprocess.run(argv, capture_output=True, check=False, timeout=20).returncode == 0

    def rules(self, tool: str = "iptables") -> str:
        """What is there, without comments and counters; an empty table is no table."""
        lines = [re.sub(r"\[\d+:\d+\]", "", line) for line in self.run(f"{tool}-save").splitlines() if line[:1] != "#"]
        return "\n".join(lines) if any(line.startswith("-A") or " - " in line for line in lines) else ""

    def empty(self) -> None:
        """Remove every rule, ours or not, from this namespace of the test."""
        for tool in ("iptables", "ip6tables"):
            self.run(f"{tool}-restore", stdin="*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n")

    def listen(self, address: str, port: int) -> socket.socket:
        def opened() -> socket.socket:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            server = socket.socket(family, socket.SOCK_STREAM)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            server.listen()
            return server

        with Namespace(f"/run/netns/{self.name}") as namespace:
            return namespace.call(opened)

    def connect(self, address: str, port: int, source_port: int = 0) -> socket.socket | None:
        def opened() -> socket.socket | None:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            client = socket.socket(family, socket.SOCK_STREAM)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.settimeout(0.5)
            try:
                client.bind(("", source_port))
                client.connect((address, port))
            except TimeoutError:
                client.close()
                return None
            return client

        with Namespace(f"/run/netns/{self.name}") as namespace:
            return namespace.call(opened)

    def connects(self, address: str, port: int) -> bool:
        client = self.connect(address, port)
        if client is not None:
            client.close()
        return client is not None

    def spawn(self, *argv: str, cwd: str = "/") -> int:
        """Start a process whose parent is gone, and return its pid."""
        pid = int(self.run("env", "-C", cwd, "sh", "-c", '"$@" >/dev/null 2>&1 </dev/null & echo $!', "sh", *argv))
        self.own(pid)
        first = os.fsencode(argv[0]) + b"\0"
        wait_until(lambda: _command_line(pid).startswith(first), what=f"exec of {argv}")
        return pid

    def sleeper(self, token: str, code: str = SLEEP) -> int:
        return self.spawn(sys.executable, "-c", code, token)

    def own(self, pid: int) -> None:
        """Have this process, started for a test, ended with the node."""
        self._started.append(known(pid))

    def close(self) -> None:
        for identity in self._started:
            end(identity)


def known(pid: int) -> ProcessIdentity:
    identity = identify(pid)
    assert identity is not None
    return identity


def end(identity: ProcessIdentity) -> None:
    """Kill one process that a test started, if it is still that one."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(identity.pid)
        try:
            if identify(identity.pid) == identity:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(5000)
        finally:
            os.close(pidfd)


def inside(node: Node, token: str, code: str = SLEEP) -> int:
    """Start a process that is the init of a pid namespace of its own, and return its pid out here."""
    node.spawn("unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", code, token)

    def inits() -> list[processes.Process]:
        with Namespace(f"/run/netns/{node.name}") as namespace:
            found = processes.find(ProcessMatch(command=token), namespace, Surroundings()).processes
        return [
            process for process in found if process.name != "unshare" and processes.is_init_of_namespace(process.pid)
        ]

    wait_until(inits, what="the init")
    return inits()[0].pid


@contextlib.contextmanager
def one_node() -> Iterator[Node]:
    """A namespace with nobody to talk to."""
    name = f"tbt-{os.getpid()}-{next(_numbers)}"
    node = Node(name, 1)
    try:
        subprocess.run(["ip", "netns", "add", name], check=True)
        node.run(*["ip", "link", "add", "w0", "type", "veth", "peer", "name", "w1"])
        node.run(*f"ip addr add {node.v4}/24 dev w0".split())
        node.run(*f"ip addr add {node.v6}/64 dev w0 nodad".split())
        yield node
    finally:
        node.close()
        subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two namespaces joined by a wire; they and every process started in them are gone afterwards."""
    names = [f"tbt-{os.getpid()}-{next(_numbers)}" for _ in range(2)]
    nodes = [Node(name, number) for number, name in enumerate(names, 1)]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        wire = f"ip link add w0 netns {names[0]} type veth peer name w0 netns {names[1]}"
        subprocess.run(wire.split(), check=True)
        for node in nodes:
            for command in (
                "sysctl -qw net.ipv6.conf.w0.accept_dad=0",
                "ip link set lo up",
                f"ip addr add {node.v4}/24 dev w0",
                f"ip addr add {node.v6}/64 dev w0 nodad",
                "ip link set w0 up",
            ):
                node.run(*command.split())
        wait_until(lambda: nodes[0].reaches(nodes[1].v6), what="IPv6 on the new wire")
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            node.close()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def from_journal(prepared: Prepared) -> list[Step]:
    """The steps as they come back from the journal in another life."""
    return msgspec.json.decode(msgspec.json.encode(prepared.steps), type=list[Step])


def prepare(node: Node, action: Action, held: list[Step] | None = None, worker: int = 1, **around: Any) -> list[Step]:
    return from_journal(node.platform.prepare(worker, action, Surroundings(**around), held or []))


def undone(
    platform: LinuxPlatform,
    step: Step,
    note: Callable[[Operation], None] = unnoted,
    held: Sequence[Step] = (),
    within_s: float = 90,
) -> str:
    """Undo a step as an agent does: it is asked again, with what was noted, as long as it says "not yet"."""
    deadline, noted = time.monotonic() + within_s, [step.undo]

    def noting(operation: Operation) -> None:
        noted.append(operation)
        note(operation)

    while True:
        began = time.monotonic()
        try:
            return platform.undo(Step(step.do, noted[-1]), held, noting)
        except NotYetError:
            assert time.monotonic() < deadline, "the undo does not come to its end"
            time.sleep(0.02)
        finally:
            assert time.monotonic() - began < 5, "an undo kept the thread"


def cut(node: Node, *peers: Node, worker: int = 1, **around: Any) -> Step:
    """Prepare and do: the node hears nothing from the peers."""
    (step,) = prepare(node, BlockFrom(peers=tuple(peer.peer for peer in peers)), worker=worker, **around)
    node.platform.do(step)
    return step


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError), open(f"{tree.folder(pid)}/cmdline", "rb") as file:  # noqa: PTH123
        return file.read()
    return b""
