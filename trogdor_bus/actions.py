"""What a fault asks of a node, in words that no operating system owns.

A spec, asked with a node and the topology, answers with actions. They are data: a plan shows them, a frame carries
them, and the platform of the agent lowers each to steps (see `trogdor_bus.platform`).
"""

from __future__ import annotations

import shlex
from typing import Literal

import msgspec

from trogdor_bus.cluster import NOBODY
from trogdor_bus.errors import BusError
from trogdor_bus.names import shown

DEFAULT_ALIVE_MS = 10_000
"""How long a restarted process may take until it is found."""

MOST_GRACE_MS = 60_000
"""How long a process may be given to end by itself, at most."""

DEFAULT_GRACE_MS = 5_000
"""How long a program that ran for a task may take to end, as Trogdor has it."""

Protocol = Literal["all", "tcp", "udp", "icmp"]
Direction = Literal["in", "out", "both"]


class Action(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="action", omit_defaults=True, forbid_unknown_fields=True
):
    """One thing that a node is asked to do, and to take back later.

    Defaults do not travel, so a field that is not known means another thing, and the action is not known.
    """

    def describe(self) -> tuple[str, str]:
        """Return what is done and how it is undone, one line each, for people."""
        raise NotImplementedError


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another node, with the addresses (IPv4 and IPv6, as text) by which its packets are known."""

    node: str
    addresses: tuple[str, ...]


class BlockFrom(Action, frozen=True, tag="block-from"):
    """Drop every packet that comes in from the peers, established connections included."""

    peers: tuple[Peer, ...]

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        who = ", ".join(f"{peer.node} ({' '.join(peer.addresses)})" for peer in self.peers)
        return f"drop everything that comes in from {who}", "remove exactly these rules"


class BlockPorts(Action, frozen=True, tag="block-ports"):
    """Drop packets to the given ports: coming `in` to this node, going `out` of it, or both; loopback is left alone."""

    ports: tuple[int, ...]
    protocol: Literal["tcp", "udp"] = "tcp"
    direction: Direction = "in"

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        ports = ", ".join(map(str, self.ports))
        how = {"in": "coming in to", "out": "going out to", "both": "coming in or going out to"}[self.direction]
        return f"drop {self.protocol} packets {how} port {ports}", "remove exactly these rules"


class ProcessMatch(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which processes are meant: exactly one of the fields is set.

    `java`: substring of the line that jcmd prints (pid, main class or jar, arguments). `command`: substring of the
    command line. `pid_file`: path of a file that holds the pid. `port`: listens on that TCP port.
    """

    java: str = ""
    command: str = ""
    pid_file: str = ""
    port: int = 0

    def describe(self) -> str:
        """Return the match in words."""
        if self.java:
            return f"JVMs whose jcmd line contains {self.java!r}"
        if self.command:
            return f"processes whose command line contains {self.command!r}"
        if self.pid_file:
            return f"the process named in {self.pid_file}"
        return f"the process that listens on TCP port {self.port}"


class Suspend(Action, frozen=True, tag="suspend"):
    """Freeze the matching processes (SIGSTOP on Linux); the undo lets them run again."""

    match: ProcessMatch
    required: bool = True

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        return f"freeze {self.match.describe()}", "let the same processes run again"


class Restart(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a killed process is started again: exactly one of `unit`, `container`, `command` and `found` is set.

    `unit`: full name of a systemd service. `container`: its name. `command`: program and arguments. `found`: the
    container, or else the service, that the process is found in when it is killed. Nothing is started if `unless` finds
    a process (None: the match of the kill), and what was started must be found so within `alive_ms`.
    """

    unit: str = ""
    container: str = ""
    command: tuple[str, ...] = ()
    found: bool = False
    unless: ProcessMatch | None = None
    alive_ms: int = DEFAULT_ALIVE_MS

    def describe(self) -> str:
        """Return the restart in words."""
        if self.unit:
            what = f"start the unit {self.unit}"
        elif self.container:
            what = f"start the container {self.container}"
        elif self.found:
            what = "start the container or the unit that it is found in"
        else:
            what = f"run {shlex.join(self.command)}"
        return f"{what}, unless there is {self.unless.describe()}" if self.unless else what


class Kill(Action, frozen=True, tag="kill"):
    """Send `signal` (a name such as SIGKILL) to the matching processes; the undo is the `restart`, if given.

    Those that still live `grace_ms` after it get SIGKILL (0: they may live); the undo waits for that.
    """

    match: ProcessMatch
    signal: str = "SIGKILL"
    grace_ms: int = 0
    restart: Restart | None = None
    required: bool = True

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        undo = self.restart.describe() if self.restart else "nothing (no restart given)"
        rest = f", and SIGKILL to those that still live {self.grace_ms} ms later" if self.grace_ms else ""
        return f"send {self.signal} to {self.match.describe()}{rest}", undo


class MoveLeader(Action, frozen=True, tag="move-leader"):
    """Make the broker `to` the preferred leader of a partition, and elect it; -1: the next replica in sync.

    The brokers of `bootstrap` (HOST:PORT,...) are asked, with the librdkafka properties in the file `config`, if given.
    """

    topic: str
    partition: int
    bootstrap: str
    to: int = NOBODY
    config: str = ""

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        who = f"broker {self.to}" if self.to != NOBODY else "the next replica in sync"
        name = f"{self.topic}-{self.partition}"
        return f"make {who} lead {name}, asking {self.bootstrap}", f"restore the order of the replicas of {name}"


class RunCommand(Action, frozen=True, tag="run-command"):
    """Run a program until the undo, or until it ends by itself; what it says on standard output is its status.

    Its standard input begins with the line {"id": the task, "workload": `workload`}. To end it, it is asked to, and
    whatever is left of it `grace_ms` later is killed.
    """

    command: tuple[str, ...]
    workload: msgspec.Raw = msgspec.Raw(b"null")
    grace_ms: int = DEFAULT_GRACE_MS

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        undo = f"send SIGTERM to it, and SIGKILL to what is left of it {self.grace_ms} ms later"
        return f"run {shlex.join(self.command)} while the task lasts", undo


AnyAction = BlockFrom | BlockPorts | Suspend | Kill | MoveLeader | RunCommand

_ACTION = msgspec.json.Decoder(AnyAction)


class _Named(msgspec.Struct):
    action: str = ""


def decode_action(raw: bytes | msgspec.Raw) -> AnyAction:
    """Return the action in a JSON object; BusError says which action, or what of it, is not known here."""
    try:
        return _ACTION.decode(raw)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BusError(_unknown(raw, str(error))) from None


def name_of(raw: bytes | msgspec.Raw) -> str:
    """Return the name of the action in a JSON object, known or not; "" if there is none."""
    try:
        return msgspec.json.decode(raw, type=_Named).action
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _unknown(raw: bytes | msgspec.Raw, error: str) -> str:
    name = name_of(raw)
    if not name:
        return f"not an action: {shown(error)}"
    return f"the action {name} ({shown(error)})" if name in _NAMES else f"the action {shown(repr(name))}"


_NAMES = frozenset(str(kind.__struct_config__.tag) for kind in AnyAction.__args__)
