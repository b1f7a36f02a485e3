"""A rolling restart: an experiment without a stream, whose fault goes round."""

from __future__ import annotations

from typing import Annotated

import msgspec

from trogdor_bus.faults.experiment import ExperimentSpec
from trogdor_bus.faults.kafka import BROKER
from trogdor_bus.faults.process import GraceMs, ProcessKillFaultSpec, RestartSpec, Signal
from trogdor_bus.faults.stream import StreamSpec
from trogdor_bus.roles import is_role, parse
from trogdor_bus.spec import TaskSpec, require_nodes
from trogdor_bus.topology import Topology

DAY_MS = 24 * 3_600_000
Ms = Annotated[int, msgspec.Meta(ge=1, le=DAY_MS)]


class KafkaRollingRestartSpec(
    TaskSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.rolling.KafkaRollingRestartSpec"
):
    """Stop brokers and start them again, one after another, the active controller's last.

    `nodes` are nodes or roles, all brokers by default. Each gets `signal`, after `graceMs` SIGKILL, and its container
    or unit is started `downMs` after the signal, or once it has ended. The next one follows when every replica is in
    sync and the quorum is whole again; if that takes longer than `recoveryMs`, it ends there, and has failed. All may
    take `durationMs`, 0: a day. It is performed as an experiment: `‹show-experiment›` tells of it.
    """  # noqa: RUF002 (a remedy)

    nodes: tuple[str, ...] = ("all",)
    match: str = BROKER
    signal: Signal = "SIGTERM"
    grace_ms: GraceMs = 30_000
    down_ms: Ms = 5_000
    recovery_ms: Ms = 120_000

    is_experiment = True
    aliases = ("kafka-rolling-restart",)
    summary = "Restart brokers one after another, each when the cluster is whole again."
    example = {"class": "kafka-rolling-restart", "nodes": ["all"], "downMs": 5000}

    def check(self) -> None:
        """Raise SpecError for what `process-kill` refuses, and for a role that is none."""
        require_nodes(self.nodes, "$.nodes")
        for index, name in enumerate(self.nodes):
            if is_role(name, ()):
                parse(name, f"$.nodes[{index}]")
        ProcessKillFaultSpec(
            nodes=self.nodes,
            match=self.match,
            signal=self.signal,
            grace_ms=self.grace_ms,
            restart=RestartSpec(found=True),
        ).check()

    def performed(self) -> ExperimentSpec:
        """Return the experiment."""
        return ExperimentSpec(
            start_ms=self.start_ms,
            fault={
                "class": "process-kill",
                "durationMs": self.down_ms,
                "match": self.match,
                "signal": self.signal,
                "graceMs": self.grace_ms,
                "restart": {"found": True},
            },
            each_of=self.nodes,
            chaos_ms=min(self.duration_ms, DAY_MS) or DAY_MS,
            baseline_ms=0,
            quiet_ms=0,
            recovery_ms=self.recovery_ms,
            stream=StreamSpec(off=True),
        )

    def longest_ms(self) -> int:
        """Return after how many ms it is ended if it has not ended by itself."""
        return self.performed().longest_ms()

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return no node: the experiment submits the faults."""
        return frozenset()
