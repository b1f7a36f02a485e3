"""Programs that run on nodes while a task lasts."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec

from trogdor_bus.actions import Action
from trogdor_bus.actions.process import MOST_GRACE_MS
from trogdor_bus.actions.program import DEFAULT_GRACE_MS, RunCommand
from trogdor_bus.errors import SpecError
from trogdor_bus.spec import TaskSpec, Texts, require_nodes
from trogdor_bus.topology import Topology

GraceMs = Annotated[int, msgspec.Meta(ge=0, le=MOST_GRACE_MS)]
JavaInt = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class CommandTaskSpec(TaskSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.command.CommandTaskSpec"):
    """Run a program on nodes while the task lasts, or until it ends by itself; exit code 0 is success.

    The agent runs only what its own configuration lists under `allowCommands`, word for word, and as it runs itself:
    with its user, directory and environment, in the network namespace that it is attached to. The program reads one
    line on standard input, `{"id": TASK, "workload": WORKLOAD}`; its standard output are lines of JSON: of an object
    `status` (any JSON, at most 16 KiB, nested 100 deep at most) becomes the status of the worker, `log` is logged by
    the agent, and `error` ends it: as failed, but as done if it is `""`, and null is none. Other lines, and standard
    error, are logged, too. At the end it gets SIGTERM, and what is left of it `graceMs` later SIGKILL, also what it
    started.
    """

    nodes: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    workload: Any = None
    grace_ms: GraceMs = DEFAULT_GRACE_MS

    aliases = ("command",)
    node_fields = ("nodes",)
    as_given = ("workload",)
    summary = "Run a program on nodes while the task lasts."
    example = {
        "class": "command",
        "durationMs": 60000,
        "nodes": ["node1"],
        "command": ["/opt/workload/run", "--verbose"],
        "workload": {"messagesPerSec": 100},
    }

    def check(self) -> None:
        """Raise SpecError unless there are nodes and a program."""
        require_nodes(self.nodes, "$.nodes")
        if not self.command or not self.command[0].strip():
            raise SpecError("names no program", path="$.command", remedy="put the program first, then its arguments")

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return the nodes."""
        return frozenset(self.nodes)

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Return one program to run."""
        return (_run(self.command, self.workload, self.grace_ms),)

    def texts(self, task_id: str) -> Texts:
        """Return the status until the program says another."""
        return _texts(self.command)


class ExternalCommandSpec(
    TaskSpec, frozen=True, kw_only=True, tag="org.apache.kafka.trogdor.workload.ExternalCommandSpec"
):
    """Run a program on a node while the task lasts, or until it ends by itself (Trogdor's ExternalCommandSpec).

    It is `command` in Trogdor's words. Unlike Trogdor, the agent runs only what its own configuration lists under
    `allowCommands`, kills all that the program started, and gives it a grace of a minute at most.
    """

    command_node: str = ""
    command: tuple[str, ...] = ()
    workload: Any = None
    shutdown_grace_period_ms: JavaInt | None = None

    aliases = ("external-command",)
    as_given = ("workload",)
    summary = "Run a program on a node while the task lasts, in Trogdor's words."
    example = {
        "class": "org.apache.kafka.trogdor.workload.ExternalCommandSpec",
        "durationMs": 60000,
        "commandNode": "node1",
        "command": ["/opt/workload/run"],
        "workload": {"messagesPerSec": 100},
    }

    def __post_init__(self) -> None:
        """Take an empty workload for none: between Trogdor's daemons it gets lost."""
        if self.workload in ({}, []):
            msgspec.structs.force_setattr(self, "workload", None)

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return the node."""
        return frozenset({self.command_node})

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Return one program to run."""
        given_ms = self.shutdown_grace_period_ms
        grace_ms = DEFAULT_GRACE_MS if given_ms is None else min(max(0, given_ms), MOST_GRACE_MS)
        return (_run(self.command, self.workload, grace_ms),)

    def texts(self, task_id: str) -> Texts:
        """Return the status until the program says another; Trogdor's is null."""
        return _texts(self.command)


def _run(command: tuple[str, ...], workload: Any, grace_ms: int) -> RunCommand:
    return RunCommand(command=command, workload=msgspec.Raw(msgspec.json.encode(workload)), grace_ms=grace_ms)


def _texts(command: tuple[str, ...]) -> Texts:
    name = PurePosixPath(command[0]).name if command else "nothing"
    return Texts(f"starting {name}", f"running {name}", f"ending {name}", f"ran {name}")
