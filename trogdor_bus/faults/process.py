"""Faults of processes: freeze them, or kill them and start them again."""

from __future__ import annotations

from typing import Literal

from trogdor_bus.actions import AnyAction, Kill, ProcessMatch, Suspend
from trogdor_bus.errors import SpecError
from trogdor_bus.spec import FaultSpec, Port, Texts, require_nodes
from trogdor_bus.topology import Topology

Signal = Literal["SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT", "SIGABRT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGSEGV"]


class TrogdorProcessStopFaultSpec(
    FaultSpec, frozen=True, kw_only=True, tag="org.apache.kafka.trogdor.fault.ProcessStopFaultSpec"
):
    """Freeze the JVMs whose jcmd line (pid, main class, arguments) contains a text (Trogdor's ProcessStopFaultSpec).

    As in Trogdor, no match is a success; here it comes with a warning. Unlike Trogdor, an empty name is refused: it
    would match every JVM.
    """

    node_names: tuple[str, ...] = ()
    java_process_name: str = ""

    aliases = ("java-process-stop",)
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

    def actions(self, node: str, topology: Topology) -> tuple[AnyAction, ...]:
        """Return one suspension."""
        return (Suspend(match=ProcessMatch(java=self.java_process_name), required=False),)

    def texts(self, task_id: str) -> Texts:
        """Return Trogdor's texts."""
        name = self.java_process_name
        return Texts(f"stopping {name}", f"stopped {name}", f"resuming {name}", f"resumed {name}")


class _ProcessFaultSpec(FaultSpec, frozen=True, kw_only=True):
    nodes: tuple[str, ...] = ()
    match: str = ""
    pid_file: str = ""
    port: Port | None = None

    def check(self) -> None:
        """Raise SpecError unless there are nodes and exactly one way to find the process."""
        require_nodes(self.nodes, "$.nodes")
        given = [
            name for name, value in (("match", self.match), ("pidFile", self.pid_file), ("port", self.port)) if value
        ]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise SpecError(
                f"exactly one of match, pidFile and port says which process; found {found}", remedy="keep one"
            )
        if self.match and not self.match.strip():
            raise SpecError("is blank and would match nearly everything", path="$.match", remedy="be more precise")
        if self.pid_file and not self.pid_file.startswith("/"):
            raise SpecError("is not an absolute path", path="$.pidFile", remedy="start it with '/'")

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return the nodes."""
        return frozenset(self.nodes)

    def process(self) -> ProcessMatch:
        """Return which process is meant."""
        return ProcessMatch(command=self.match, pid_file=self.pid_file, port=self.port or 0)


class ProcessStopFaultSpec(
    _ProcessFaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.process.ProcessStopFaultSpec"
):
    """Freeze processes found by command line (`match`), `pidFile` or `port`; finding none is a failure."""

    aliases = ("process-stop",)
    summary = "Freeze processes found by command line, pid file or port."
    example = {"class": "process-stop", "durationMs": 10000, "nodes": ["node1"], "port": 9092}

    def actions(self, node: str, topology: Topology) -> tuple[AnyAction, ...]:
        """Return one suspension."""
        return (Suspend(match=self.process()),)

    def texts(self, task_id: str) -> Texts:
        """Return texts in Trogdor's manner."""
        name = self.process().describe()
        return Texts(f"stopping {name}", f"stopped {name}", f"resuming {name}", f"resumed {name}")


class ProcessKillFaultSpec(
    _ProcessFaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.process.ProcessKillFaultSpec"
):
    """Send a signal to processes found by command line, pid file or port; `restart` (argv) is the undo.

    The agent runs `restart` only if its own configuration lists that command.
    """

    signal: Signal = "SIGKILL"
    restart: tuple[str, ...] = ()

    aliases = ("process-kill",)
    summary = "Kill processes, and start them again at the end."
    example = {
        "class": "process-kill",
        "durationMs": 10000,
        "nodes": ["node1"],
        "pidFile": "/run/kafka.pid",
        "signal": "SIGKILL",
        "restart": ["systemctl", "start", "kafka"],
    }

    def actions(self, node: str, topology: Topology) -> tuple[AnyAction, ...]:
        """Return one kill."""
        return (Kill(match=self.process(), signal=self.signal, restart=self.restart),)

    def texts(self, task_id: str) -> Texts:
        """Return texts in Trogdor's manner."""
        name = self.process().describe()
        return Texts(f"killing {name}", f"killed {name}", f"restarting {name}", f"ended the fault on {name}")
