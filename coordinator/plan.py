"""Turns a spec and the topology into who does what; pure, so that a dry run and the real run cannot differ."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

import msgspec

from trogdor_bus.actions import Action, Impact
from trogdor_bus.errors import RefusedError, SpecError
from trogdor_bus.faults.network import NetworkPartitionFaultSpec
from trogdor_bus.messages import NodePlan, Plan
from trogdor_bus.spec import FaultSpec, TaskSpec, guarded, wire
from trogdor_bus.topology import LOOPBACK, Topology, canonical

WARNED = 3
"""So many addresses that are left out stand in a warning."""


class WorkerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one node is asked to do, and which addresses no rule there will name, with the reasons."""

    node: str
    actions: tuple[Action, ...]
    left_out: tuple[str, ...]


def assign(spec: TaskSpec, topology: Topology, *, force: bool = False) -> tuple[WorkerPlan, ...]:
    """Return one plan per target node, by node name.

    SpecError if a node is unknown, none is named or one has no usable address; RefusedError if a step would cut the
    coordinator itself, unless `force`. A spec class of another package that breaks is a SpecError too.
    """
    with guarded(type(spec)):
        return _assign(spec, topology, force)


def left_out_warning(plans: Iterable[WorkerPlan]) -> str:
    """Return "" or that packets may get through from addresses which no rule names, with the first of them."""
    found = dict.fromkeys(left for plan in plans for left in plan.left_out if not left.endswith(f": {LOOPBACK}"))
    if not found:
        return ""
    shown, more = list(found)[:WARNED], len(found) - WARNED
    rest = f"; and {more} more" if more > 0 else ""
    return f"what comes from these addresses is not cut: {'; '.join(shown)}{rest}"


def describe(spec: TaskSpec, topology: Topology, *, alive: Container[str], force: bool = False) -> Plan:
    """Return what the spec would do, as text; `alive` holds the nodes whose agents beat. Errors as `assign`.

    SpecError also for a duration of 0, which the real run answers with a worker that has expired, as Trogdor does.
    """
    if spec.duration_ms < 1:
        raise SpecError(
            f"is {spec.duration_ms}: the fault would end before it starts",
            path="$.durationMs",
            remedy="give a duration in milliseconds",
        )
    plans = assign(spec, topology, force=force)
    nodes = tuple(
        NodePlan(
            node=plan.node,
            alive=plan.node in alive,
            steps=tuple(action.describe() for action in plan.actions),
            left_out=plan.left_out,
        )
        for plan in plans
    )
    return Plan(spec=msgspec.Raw(wire(spec)), nodes=nodes, warnings=tuple(_warnings(spec, nodes)))


def _assign(spec: TaskSpec, topology: Topology, force: bool) -> tuple[WorkerPlan, ...]:
    targets = sorted(spec.targets(topology))
    unknown = sorted(set(targets).difference(topology.names()))
    if unknown:
        names = ", ".join(name or '""' for name in unknown)
        raise SpecError(f"Unknown node names: {names}", remedy="`‹nodes›` lists the nodes")
    if not targets:
        raise SpecError("No node names specified.", remedy="name at least one node")
    plans = tuple(_worker(spec, node, topology) for node in targets)
    if not force:
        for plan in plans:
            _spare_coordinator(plan, topology)
    return plans


def _worker(spec: TaskSpec, node: str, topology: Topology) -> WorkerPlan:
    left_out = (left for peer in spec.peers_of(node) for left in topology.left_out(node, peer))
    actions = tuple(spec.actions(node, topology))
    for action in actions:
        if not isinstance(action, Action):
            raise TypeError(f"{action!r} is no action")
        msgspec.json.decode(msgspec.json.encode(action), type=type(action))
        msgspec.json.decode(
            msgspec.json.encode((action.impact(), action.describe())), type=tuple[Impact, tuple[str, str]]
        )
    return WorkerPlan(node=node, actions=actions, left_out=tuple(map(str, left_out)))


def _spare_coordinator(plan: WorkerPlan, topology: Topology) -> None:
    here = {canonical(address) for address in topology.nodes[plan.node].addresses}
    if here.isdisjoint(map(canonical, topology.coordinator_addresses)):
        return
    for action in plan.actions:
        cut = sorted(set(action.impact().shut_in).intersection(topology.coordinator_ports))
        if cut:
            raise RefusedError(
                f"node {plan.node} is where the coordinator listens: blocking TCP port "
                f"{', '.join(map(str, cut))} there would cut it off; `‹force›` allows it"
            )


def _warnings(spec: TaskSpec, nodes: tuple[NodePlan, ...]) -> Iterator[str]:
    if isinstance(spec, NetworkPartitionFaultSpec) and len([group for group in spec.partitions if group]) < 2:
        yield "a partition with fewer than two groups cuts nothing"
    elif isinstance(spec, FaultSpec):
        for node in nodes:
            if not node.steps:
                yield f"the spec asks nothing of node {node.node} itself"
    for node in nodes:
        if not node.alive:
            yield f"node {node.node} has no live agent: it would start when one appears"
