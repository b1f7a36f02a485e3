"""Faults of the network: who may hear whom, and on which ports."""

from __future__ import annotations

from typing import Literal

import msgspec

from trogdor_bus.actions import Action
from trogdor_bus.actions.network import BlockFrom, BlockPorts, Direction
from trogdor_bus.errors import SpecError
from trogdor_bus.spec import FaultSpec, NodeFaultSpec, Port, Texts, require_nodes
from trogdor_bus.topology import Topology


class NetworkPartitionFaultSpec(
    FaultSpec, frozen=True, kw_only=True, tag="org.apache.kafka.trogdor.fault.NetworkPartitionFaultSpec"
):
    """Split nodes into groups that hear nothing from each other (Trogdor's spec, made complete).

    Every protocol, IPv4 and IPv6, established connections too, from every address that a node of another group has by
    configuration or announces. Nodes in no group are untouched.
    """

    partitions: tuple[tuple[str, ...], ...] = ()

    aliases = ("partition", "network-partition")
    proven_by = ("cut-off",)
    node_fields = ("partitions",)
    summary = "Split nodes into groups that hear nothing from each other."
    example = {
        "class": "org.apache.kafka.trogdor.fault.NetworkPartitionFaultSpec",
        "startMs": 1000,
        "durationMs": 30000,
        "partitions": [["node1", "node2"], ["node3"]],
    }

    def check(self) -> None:
        """Raise SpecError if a node stands twice."""
        seen: set[str] = set()
        for name in (name for group in self.partitions for name in group):
            if name in seen:
                raise SpecError(
                    f"Node {name} appears in more than one partition.", path="$.partitions", remedy="list it once"
                )
            seen.add(name)

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return every node of every group."""
        return frozenset(name for group in self.partitions for name in group)

    def peers_of(self, node: str) -> tuple[str, ...]:
        """Return the nodes of the other groups, sorted."""
        return tuple(sorted(name for group in self.partitions if node not in group for name in group))

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Return one block of everything that comes in from the other groups."""
        peers = tuple(topology.peer(node, name) for name in self.peers_of(node))
        return (BlockFrom(peers=peers),) if peers else ()

    def texts(self, task_id: str) -> Texts:
        """Return Trogdor's texts."""
        what = f"network partition {task_id}"
        return Texts(f"creating {what}", f"created {what}", f"removing {what}", f"removed {what}")


class DirectedPartitionFaultSpec(
    FaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.network.DirectedPartitionFaultSpec"
):
    """Drop what the nodes in `from` send to the nodes in `to`; the other direction stays open."""

    from_: tuple[str, ...] = msgspec.field(name="from", default=())
    to: tuple[str, ...] = ()

    aliases = ("directed-partition",)
    proven_by = ("cut-off",)
    node_fields = ("from_", "to")
    summary = "Drop what some nodes send to others; the other direction stays open."
    example = {"class": "directed-partition", "durationMs": 30000, "from": ["node1"], "to": ["node2", "node3"]}

    def check(self) -> None:
        """Raise SpecError if a side is empty or a node stands on both."""
        require_nodes(self.from_, "$.from")
        require_nodes(self.to, "$.to")
        both = sorted(set(self.from_) & set(self.to))
        if both:
            raise SpecError(
                f"node {both[0]} is in 'from' as well", path="$.to", remedy="a node cannot be cut from itself"
            )

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return both sides: the receivers act, the senders must exist."""
        return frozenset(self.from_) | frozenset(self.to)

    def peers_of(self, node: str) -> tuple[str, ...]:
        """Return the senders, on a receiver."""
        return tuple(sorted(self.from_)) if node in self.to else ()

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Return one block of everything that comes in from the senders, on a receiver."""
        peers = tuple(topology.peer(node, name) for name in self.peers_of(node))
        return (BlockFrom(peers=peers),) if peers else ()

    def texts(self, task_id: str) -> Texts:
        """Return texts in Trogdor's manner."""
        what = f"directed partition {task_id}"
        return Texts(f"creating {what}", f"created {what}", f"removing {what}", f"removed {what}")


class PortBlockFaultSpec(NodeFaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.network.PortBlockFaultSpec"):
    """Drop packets to some ports: coming `in` to the nodes, going `out` of them, or both; loopback is left alone.

    Where the kernel tracks connections, also those to ports that it rewrites (REDIRECT, DNAT): a port is meant as the
    client names it, and as it is in the end.
    """

    ports: tuple[Port, ...] = ()
    protocol: Literal["tcp", "udp"] = "tcp"
    direction: Direction = "in"

    aliases = ("port-block",)
    proven_by = ("cut-off",)
    summary = "Drop packets to some ports of some nodes."
    example = {"class": "port-block", "durationMs": 30000, "nodes": ["node1"], "ports": [9092], "direction": "in"}

    def check(self) -> None:
        """Raise SpecError if there is no node or no port."""
        super().check()
        if not self.ports:
            raise SpecError("names no port", path="$.ports", remedy="list at least one, 1 to 65535")

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Return one block of the ports."""
        ports = tuple(sorted(set(self.ports)))
        return (BlockPorts(ports=ports, protocol=self.protocol, direction=self.direction),)

    def texts(self, task_id: str) -> Texts:
        """Return texts in Trogdor's manner."""
        what = f"port block {task_id}"
        return Texts(f"creating {what}", f"created {what}", f"removing {what}", f"removed {what}")
