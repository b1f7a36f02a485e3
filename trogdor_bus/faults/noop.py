"""A task that does nothing: the template for a new one, and the way to try a cluster."""

from __future__ import annotations

from trogdor_bus.spec import TaskSpec
from trogdor_bus.topology import Topology


class NoOpTaskSpec(TaskSpec, frozen=True, kw_only=True, tag="org.apache.kafka.trogdor.task.NoOpTaskSpec"):
    """Run on every node and do nothing (Trogdor's NoOpTaskSpec)."""

    aliases = ("noop",)
    summary = "Run on every node and do nothing."
    example = {"class": "org.apache.kafka.trogdor.task.NoOpTaskSpec", "durationMs": 10000}

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return every node that has an agent."""
        return frozenset(topology.names())
