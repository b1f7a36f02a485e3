"""One concrete case of every fault: its example, fitted to the lab, and what must be seen while it is in force."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from trogdor_bus.faults.command import CommandTaskSpec, ExternalCommandSpec
from trogdor_bus.faults.network import DirectedPartitionFaultSpec, NetworkPartitionFaultSpec, PortBlockFaultSpec
from trogdor_bus.faults.noop import NoOpTaskSpec
from trogdor_bus.faults.process import ProcessKillFaultSpec, ProcessStopFaultSpec, TrogdorProcessStopFaultSpec
from trogdor_bus.lab.demo import Expected, cut_between, silent, whole
from trogdor_bus.lab.probe import PING, WAYS
from trogdor_bus.registry import registry
from trogdor_bus.spec import TaskSpec

DYING, STEADY = "node1", "node2"
"""The node whose agent crashes, and the other one."""
DURATION_MS = 90_000
JAVA = "kafka.Kafka"
CONTAINER = "broker"
ECHO = "trogdor_bus.lab.echo"
WAYS_IN = ("ping4", "ping6", "tcp4", "tcp6")
"""The ways into a container."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One fault in the lab. `pieces` are the changes that the system is asked for, one after the other.

    While it is in force the members reach each other as `seen` says, and the processes of the dying node, by role, are
    in the states of `processes`. `kind` says what it touches. In a container `inside` is given instead of `given`;
    there, `answers` are the ways by which it can be reached, and the processes in `frozen` stand still.
    """

    kind: str
    given: dict[str, Any] = {}
    seen: Expected = whole
    processes: dict[str, str] = {}
    pieces: int
    inside: dict[str, Any] = {}
    frozen: tuple[str, ...] = ()
    answers: tuple[str, ...] = WAYS_IN


def port_closed(source: str, target: str) -> Iterable[str]:
    """Expect the dying node's TCP service to be silent."""
    return [way for way in WAYS if target != DYING or not way.startswith("tcp")]


CASES: dict[type[TaskSpec], Case] = {
    NoOpTaskSpec: Case(kind="nothing", pieces=0),
    NetworkPartitionFaultSpec: Case(
        kind="firewall",
        given={"partitions": [[DYING], [STEADY]]},
        seen=cut_between([[DYING], [STEADY]]),
        pieces=2,
        inside={"partitions": [[CONTAINER], [STEADY]]},
        answers=(),
    ),
    DirectedPartitionFaultSpec: Case(
        kind="firewall",
        given={"from": [STEADY], "to": [DYING]},
        seen=cut_between([[DYING], [STEADY]]),
        pieces=2,
        inside={"from": [STEADY], "to": [CONTAINER]},
        answers=(),
    ),
    PortBlockFaultSpec: Case(
        kind="firewall",
        given={"nodes": [DYING], "ports": [9092]},
        seen=port_closed,
        pieces=2,
        inside={"nodes": [CONTAINER], "ports": [9092]},
        answers=PING,
    ),
    TrogdorProcessStopFaultSpec: Case(
        kind="process",
        given={"nodeNames": [DYING], "javaProcessName": JAVA},
        processes={"java1": "stopped", "java2": "stopped"},
        pieces=2,
        inside={"nodeNames": [CONTAINER], "javaProcessName": JAVA},
        frozen=("java",),
    ),
    ProcessStopFaultSpec: Case(
        kind="process",
        given={"nodes": [DYING], "port": None, "match": ECHO},
        seen=silent(DYING),
        processes={"echo": "stopped", "echo2": "stopped"},
        pieces=2,
        inside={"nodes": [CONTAINER], "port": 9092},
        frozen=("service",),
        answers=PING,
    ),
    ProcessKillFaultSpec: Case(
        kind="restart",
        given={"nodes": [DYING]},  # and its pid file and restart command, which are in the lab's directory
        seen=silent(DYING),
        processes={"echo": "gone"},
        pieces=1,
        inside={"nodes": [CONTAINER], "pidFile": "/run/service.pid", "restart": ["docker", "start", CONTAINER]},
    ),
    CommandTaskSpec: Case(
        kind="program",
        given={"nodes": [DYING], "graceMs": 300},  # and its command, which is in the lab's directory
        pieces=2,
        inside={"nodes": [CONTAINER], "graceMs": 300},
    ),
    ExternalCommandSpec: Case(
        kind="program",
        given={"commandNode": DYING, "shutdownGracePeriodMs": 300},
        pieces=2,
        inside={"commandNode": CONTAINER, "shutdownGracePeriodMs": 300},
    ),
}


def performed() -> dict[str, type[TaskSpec]]:
    """Return the specs of the registry that agents perform as they are, by tag.

    None is an experiment, nor what becomes another spec once the cluster was looked at.
    """
    decode = registry().decode
    found = {tag: cls for tag, cls in registry().by_tag.items() if not cls.is_experiment}
    return {tag: cls for tag, cls in found.items() if not decode(cls.example).needs_cluster(())}


def without_case() -> list[str]:
    """Return the faults of the registry for which there is no case: each makes the matrix fail."""
    return [tag for tag, cls in performed().items() if cls not in CASES]


def alias(fault: type[TaskSpec]) -> str:
    """Return the short name of a fault."""
    return fault.aliases[0]


def restart_command(directory: Path) -> list[str]:
    """Return what starts the service of the dying node again, and writes each start down."""
    service = "echo >>$1.starts; exec $0 -m trogdor_bus.lab.echo :: 9092 $1"
    return ["sh", "-c", service, sys.executable, str(directory / DYING / "echo.pid")]


def program_command(directory: Path) -> list[str]:
    """Return a program that ignores SIGTERM, and has another one that hides: in another session, without its mark."""
    program = "trap '' TERM; setsid env -i tail -f $0 & exec tail -f $0"
    return ["sh", "-c", program, str(program_file(directory))]


def program_file(directory: Path) -> Path:
    """Return the file that both read for ever, by which they can be told."""
    return directory / DYING / "program"


def spec_of(fault: type[TaskSpec], directory: Path, *, inside: bool = False) -> dict[str, Any]:
    """Return the spec: the fault's own example with the nodes, ports and processes of the lab."""
    given = CASES[fault].inside if inside else CASES[fault].given
    spec = {**fault.example, "startMs": 0, "durationMs": DURATION_MS, **given}
    if CASES[fault].kind == "restart" and not inside:
        spec |= {"pidFile": str(directory / DYING / "echo.pid"), "restart": restart_command(directory)}
    if CASES[fault].kind == "program":
        spec |= {"command": program_command(directory)}
    return {name: value for name, value in spec.items() if value is not None}
