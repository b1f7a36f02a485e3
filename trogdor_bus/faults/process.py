"""Faults of processes: freeze them, or kill them and start them again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from trogdor_bus.actions import Action, ProcessMatch
from trogdor_bus.actions.process import DEFAULT_ALIVE_MS, MOST_GRACE_MS, Kill, Restart, Suspend
from trogdor_bus.errors import SpecError
from trogdor_bus.spec import FaultSpec, NodeFaultSpec, Port, Texts, require_nodes
from trogdor_bus.topology import Topology

Signal = Literal["SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT", "SIGABRT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGSEGV"]
AliveMs = Annotated[int, msgspec.Meta(ge=100, le=60_000)]
GraceMs = Annotated[int, msgspec.Meta(ge=0, le=MOST_GRACE_MS)]
ASKING = ("SIGTERM", "SIGINT")
"""The signals after which a process may be given time to end."""
UNIT = r"(?=.{1,255}\Z)[A-Za-z0-9_][A-Za-z0-9_:.\\@-]*"
CONTAINER = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
OTHER_UNITS = ("socket", "target", "timer", "mount", "automount", "swap", "path", "slice", "scope", "device")
"""The kinds of units that are no services (systemd.unit(5))."""


class TrogdorProcessStopFaultSpec(
    FaultSpec, frozen=True, kw_only=True, tag="org.apache.kafka.trogdor.fault.ProcessStopFaultSpec"
):
    """Freeze the JVMs whose jcmd line (pid, main class, arguments) contains a text (Trogdor's ProcessStopFaultSpec).

    No match is no failure, as in Trogdor, but no success either: the outcome is `disturbed`, it met nothing. Unlike
    Trogdor, an empty name is refused: it would match every JVM.
    """

    node_names: tuple[str, ...] = ()
    java_process_name: str = ""

    aliases = ("java-process-stop",)
    proven_by = ("process-stopped",)
    node_fields = ("node_names",)
    summary = "Freeze the JVMs whose jcmd line contains a text."
    example = {
        "class": "org.apache.kafka.trogdor.fault.ProcessStopFaultSpec",
        "durationMs": 10000,
        "nodeNames": ["node1"],
        "javaProcessName": "kafka.Kafka",
    }

    def check(self) -> None:
        """Raise SpecError if there is no node or no name."""
        require_nodes(self.node_names, "$.nodeNames")
        if not self.java_process_name.strip():
            raise SpecError(
                "is empty and would match every JVM",
                path="$.javaProcessName",
                remedy='give a part of the line that jcmd prints, such as "kafka.Kafka"',
            )

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return the nodes."""
        return frozenset(self.node_names)

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Return one suspension."""
        return (Suspend(match=ProcessMatch(java=self.java_process_name), required=False),)

    def texts(self, task_id: str) -> Texts:
        """Return Trogdor's texts."""
        name = self.java_process_name
        return Texts(f"stopping {name}", f"stopped {name}", f"resuming {name}", f"resumed {name}")


class _ProcessFaultSpec(NodeFaultSpec, frozen=True, kw_only=True):
    match: str = ""
    pid_file: str = ""
    port: Port | None = None

    proven_by = ("process-stopped",)

    def check(self) -> None:
        """Raise SpecError unless there are nodes and exactly one way to find the process."""
        super().check()
        _check_process(self, "$")

    def process(self) -> ProcessMatch:
        """Return which process is meant."""
        return _process(self)


class ProcessStopFaultSpec(
    _ProcessFaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.process.ProcessStopFaultSpec"
):
    """Freeze processes found by command line (`match`), `pidFile` or `port`; finding none is a failure."""

    aliases = ("process-stop",)
    summary = "Freeze processes found by command line, pid file or port."
    example = {"class": "process-stop", "durationMs": 10000, "nodes": ["node1"], "port": 9092}

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Return one suspension."""
        return (Suspend(match=self.process()),)

    def texts(self, task_id: str) -> Texts:
        """Return texts in Trogdor's manner."""
        name = self.process().describe()
        return Texts(f"stopping {name}", f"stopped {name}", f"resuming {name}", f"resumed {name}")


class UnlessSpec(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Which process makes a restart needless; exactly one of the fields."""

    match: str = ""
    pid_file: str = ""
    port: Port | None = None


class RestartSpec(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """How a killed process is started again: exactly one of `unit`, `container`, `command` and `found`.

    `found`: the container, or else the systemd service, that the process is found in when it is killed. `unless`: which
    process must be there afterwards, and makes it needless if it is there before; the fault's own match if left out.
    `alive_ms`: how long that may take.
    """

    unit: str = ""
    container: str = ""
    command: tuple[str, ...] = ()
    found: bool = False
    unless: UnlessSpec | None = None
    alive_ms: AliveMs = DEFAULT_ALIVE_MS

    def check(self) -> None:
        """Raise SpecError unless there is exactly one way to start, and what it names can exist."""
        ways = {"unit": self.unit, "container": self.container, "command": self.command, "found": self.found}
        _only_one(ways, "how to start", "$.restart")
        if self.unit and not re.fullmatch(UNIT, self.unit):
            raise SpecError("is not the name of a unit", path="$.restart.unit", remedy="such as kafka or kafka.service")
        if self.unit.rpartition(".")[2] in OTHER_UNITS:
            raise SpecError("is not a service", path="$.restart.unit", remedy="name a service, such as kafka.service")
        if self.container and not re.fullmatch(CONTAINER, self.container):
            raise SpecError("is not the name of a container", path="$.restart.container", remedy="such as broker1")
        _check_command(self.command, "$.restart.command")
        if self.unless is not None:
            _check_process(self.unless, "$.restart.unless")

    def action(self) -> Restart:
        """Return the same in neutral words; a unit's name is full."""
        unit = f"{self.unit.removesuffix('.service')}.service" if self.unit else ""
        unless = _process(self.unless) if self.unless else None
        return Restart(
            unit=unit,
            container=self.container,
            command=self.command,
            found=self.found,
            unless=unless,
            alive_ms=self.alive_ms,
        )


class ProcessKillFaultSpec(
    _ProcessFaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.process.ProcessKillFaultSpec"
):
    """Send a signal to processes found by command line, pid file or port; `restart` is the undo.

    `restart` is a command (a list of words), or an object with one of `unit` (a systemd service), `container` (its
    name), `command` and `found` (true: the container, or else the service, that the process is found in when it is
    killed); with `unless` (an object with one of `match`, `pidFile` and `port`), which says what must run afterwards
    and makes the restart needless if it runs already; and with `aliveMs`, how long that may take. The agent runs a
    command only if its own configuration lists it, and starts only the unit or the container that it killed in.

    With SIGTERM or SIGINT, what still lives `graceMs` after the signal gets SIGKILL (0: it does not). If the fault ends
    before that, the agent waits for that end, and only then starts the process again. Without `graceMs`, what was told
    to end and lives when the fault ends makes it `disturbed`; the agent waits for its end a minute long, counted from
    the signal, before it starts it again; then the undo is stuck until it is gone. SIGHUP, SIGUSR1 and SIGUSR2, if the
    process handles them, and SIGQUIT to a JVM, which prints its threads, are not meant to end it.
    """

    signal: Signal = "SIGKILL"
    grace_ms: GraceMs = 0
    restart: tuple[str, ...] | RestartSpec = ()

    aliases = ("process-kill",)
    summary = "Kill processes, and start them again at the end."
    example = {
        "class": "process-kill",
        "durationMs": 10000,
        "nodes": ["node1"],
        "pidFile": "/run/kafka.pid",
        "signal": "SIGKILL",
        "restart": {"unit": "kafka", "aliveMs": 20000},
    }

    def check(self) -> None:
        """Raise SpecError unless the process and the restart are each told in exactly one way."""
        super().check()
        if self.grace_ms and self.signal not in ASKING:
            raise SpecError(
                f"is for a signal that asks a process to end, not for {self.signal}",
                path="$.graceMs",
                remedy="leave it out, or use SIGTERM or SIGINT",
            )
        if isinstance(self.restart, RestartSpec):
            self.restart.check()
        else:
            _check_command(self.restart, "$.restart")

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Return one kill."""
        if isinstance(self.restart, RestartSpec):
            restart: Restart | None = self.restart.action()
        else:
            restart = Restart(command=self.restart) if self.restart else None
        return (Kill(match=self.process(), signal=self.signal, grace_ms=self.grace_ms, restart=restart),)

    def texts(self, task_id: str) -> Texts:
        """Return texts in Trogdor's manner."""
        name, how = self.process().describe(), f"sent {self.signal} to"
        ending = f"restarting {name}" if self.restart else f"ending the fault on {name}"
        return Texts(f"killing {name}", f"{how} {name}", ending, f"ended the fault on {name}")


def _check_process(given: _ProcessFaultSpec | UnlessSpec, path: str) -> None:
    _only_one({"match": given.match, "pidFile": given.pid_file, "port": given.port}, "which process", path)
    if given.match and not given.match.strip():
        raise SpecError("is blank and would match nearly everything", path=f"{path}.match", remedy="be more precise")
    if given.pid_file and not given.pid_file.startswith("/"):
        raise SpecError("is not an absolute path", path=f"{path}.pidFile", remedy="start it with '/'")


def _process(given: _ProcessFaultSpec | UnlessSpec) -> ProcessMatch:
    return ProcessMatch(command=given.match, pid_file=given.pid_file, port=given.port or 0)


def _check_command(command: tuple[str, ...], path: str) -> None:
    if command and not command[0].strip():
        raise SpecError("names no program", path=f"{path}[0]", remedy="put the program first")


def _only_one(fields: Mapping[str, object], what: str, path: str) -> None:
    given = [name for name, value in fields.items() if value]
    if len(given) != 1:
        *names, last = fields
        raise SpecError(
            f"exactly one of {', '.join(names)} and {last} says {what}; found {' and '.join(given) or 'none of them'}",
            path=path,
            remedy="keep one",
        )
