"""What the Linux platform does, as typed data: the `do` and `undo` of its steps.

Everything that the journal hands back is converted to these types first, strictly, so that nothing else can reach the
kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from trogdor_bus.actions import MOST_GRACE_MS, ProcessMatch
from trogdor_bus.cluster import Move
from trogdor_bus.errors import HostError
from trogdor_bus.names import shown
from trogdor_bus.platform import Operation, ProcessIdentity, Step

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
ChainName = Annotated[str, msgspec.Meta(pattern=r"\ATB-[0-9a-f]{16}\Z")]
Tool = Annotated[str, msgspec.Meta(pattern=r"\A(/[A-Za-z0-9._+-]+)+/ip6?tables(-nft|-legacy)?\Z")]
Systemctl = Annotated[str, msgspec.Meta(pattern=r"\A(/[A-Za-z0-9._+-]+)+/systemctl\Z")]
UnitName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_:.\\@-]*\.service\Z")]
Engine = Annotated[str, msgspec.Meta(pattern=r"\A(/[A-Za-z0-9._+-]+)+/(docker|podman)\Z")]
ContainerId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]+\Z")]
Mark = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Hook = Literal["INPUT", "OUTPUT"]
GraceMs = Annotated[int, msgspec.Meta(ge=0, le=MOST_GRACE_MS)]
Signal = Literal["SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT", "SIGABRT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGSEGV"]


class NamespaceIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A network namespace that cannot be confused with a later one: boot and cookie; `path` is where it was found."""

    boot_id: str
    cookie: str
    path: str
    container: str = ""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One rule of a chain of ours; empty fields match everything, `not_loopback` spares the interface lo.

    `original_port`: the connection was opened to that port, whatever it is called since (0: any), and the packet goes
    the way in which it was opened. `answering`: the packet comes back on a connection, and that address sent it,
    whatever it is called since. The kernel must track connections to know.
    """

    target: Literal["DROP", "RETURN"] = "DROP"
    source: str = ""
    destination: str = ""
    not_loopback: Literal["", "in", "out"] = ""
    protocol: Literal["", "tcp", "udp"] = ""
    source_ports: tuple[Port, ...] = ()
    destination_ports: tuple[Port, ...] = ()
    icmpv6_type: Literal[0, 135, 136] = 0
    original_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    answering: str = ""


class Chain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A chain of ours, jumped to from position 1 of `hook`."""

    name: ChainName
    hook: Hook
    rules: tuple[Rule, ...]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Our chains in the filter table of one family; `tool` is the absolute path of the iptables that made them."""

    tool: Tool
    chains: tuple[Chain, ...]


class OwnedChains(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The names of our chains in the filter table of one family."""

    tool: Tool
    chains: tuple[ChainName, ...]


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="block"):
    """Install chains."""

    namespace: NamespaceIdentity
    tables: tuple[Table, ...]


class Unblock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="unblock"):
    """Remove chains."""

    namespace: NamespaceIdentity
    tables: tuple[OwnedChains, ...]


class Watch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who takes the place of a process of a fault: what matches and was started after `since_ticks` (since boot)."""

    match: ProcessMatch
    since_ticks: int


class Freeze(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="freeze"):
    """Stop a process; `leave`: it was already stopped by somebody else, and stays so afterwards."""

    process: ProcessIdentity
    name: str
    leave: bool
    watch: Watch | None = None


class Thaw(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="thaw"):
    """Let a process run again, unless `leave`."""

    process: ProcessIdentity
    name: str
    leave: bool


class Deliver(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="signal"):
    """Send a signal to a process, and SIGKILL if it lives `grace_ms` later (0: it may live).

    Of several that one fault kills, one carries the `watch` for all.
    """

    process: ProcessIdentity
    name: str
    signal: Signal
    watch: Watch | None = None
    grace_ms: GraceMs = 0


class Finish(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="finish"):
    """Wait for the end of who was told to end; who still lives at `kill_ms` (CLOCK_BOOTTIME) is killed."""

    dying: tuple[ProcessIdentity, ...]
    kill_ms: int


class Unit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="systemd"):
    """Have systemd start a service; `systemctl` is the absolute path of the tool."""

    systemctl: Systemctl
    name: UnitName


class Container(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="container"):
    """Have the engine (an absolute path) start a container; `name` is for people."""

    engine: Engine
    id: ContainerId
    name: str


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a process was started with. The texts stand for bytes, one character for each (ISO 8859-1)."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    cwd: str
    environment: tuple[str, ...]


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="command"):
    """Run a program (an absolute path) in a namespace, as the process of `origin` ran; None: as the agent itself."""

    program: str
    argv: tuple[str, ...]
    namespace: NamespaceIdentity
    origin: Origin | None = None


class Restart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="restart"):
    """Start again what was killed, in the same boot, unless there is a process that `unless` matches.

    `dying`: who was told to end, and may still be at it: they are not what `unless` means. `told_ms` (CLOCK_BOOTTIME):
    when that was; 0: they may not have been. `kill_ms`: when they are killed (see `Finish`), which is known as soon as
    they were told; 0: never. `started`: who was started already, on disk before it ran.
    """

    boot_id: str
    how: Unit | Container | Command
    unless: ProcessMatch
    alive_ms: int
    dying: tuple[ProcessIdentity, ...] = ()
    kill_ms: int = 0
    started: ProcessIdentity | None = None
    told_ms: int = 0


class Lead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="lead"):
    """Make a replica lead; the brokers of `bootstrap` are asked, with the properties in the file `config`, if any."""

    bootstrap: str
    config: str
    move: Move


class LeadBack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="lead-back"):
    """Restore the order of the replicas that was found, and have the first one lead."""

    bootstrap: str
    config: str
    move: Move


class Hold(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="hold"):
    """Start a child that waits to become a command; `mark` is carried by all that belongs to it. `input` it can read.

    It belongs to a task, and to a worker.
    """

    command: Command
    mark: Mark
    task: str
    worker: int
    input: str


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="release"):
    """Let the child with that mark become its command."""

    mark: Mark


class End(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="end"):
    """Have a child end: SIGTERM, and `grace_ms` later SIGKILL to all of it; `process` is who it is, once it waits."""

    boot_id: str
    mark: Mark
    name: str
    grace_ms: GraceMs
    process: ProcessIdentity | None = None


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="nothing"):
    """There is nothing to take back."""


AnyOperation = (
    Block | Unblock | Freeze | Thaw | Deliver | Finish | Restart | Lead | LeadBack | Hold | Release | End | Nothing
)


def step(do: AnyOperation, undo: AnyOperation) -> Step:
    """Return the step exactly as the journal gives it back."""
    return Step(do=plain(do), undo=plain(undo))


def read(operation: Operation) -> AnyOperation:
    """Return the typed operation; HostError if it is none of ours."""
    try:
        return msgspec.convert(operation, AnyOperation)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise HostError(f"not an operation of the Linux platform: {shown(str(error))}") from None


def plain(operation: AnyOperation) -> Operation:
    """Return the operation as JSON has it."""
    return msgspec.json.decode(msgspec.json.encode(operation), type=Operation)


class Stops:
    """The stops among steps, by process: each step is read once, however many processes are asked about.

    A step that cannot be read stops nothing.
    """

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self._steps = steps
        self._found: dict[ProcessIdentity, list[Freeze]] = {}
        for one in steps:
            with contextlib.suppress(HostError):
                operation = read(one.do)
                if isinstance(operation, Freeze):
                    self._found.setdefault(operation.process, []).append(operation)

    def of(self, process: ProcessIdentity) -> Sequence[Freeze]:
        """Return the operations that stop this very process."""
        return self._found.get(process, ())

    def wanted(self, process: ProcessIdentity) -> bool:
        """Return whether a fault that found the process running wants it stopped."""
        return any(not freeze.leave for freeze in self.of(process))

    def among(self, steps: Sequence[Step]) -> Stops:
        """Return the stops among those steps: these if they are the same, which cannot have changed."""
        return self if steps is self._steps and isinstance(steps, tuple) else Stops(steps)
