"""The planner: who does what, what is refused, and what a dry run says."""

from __future__ import annotations

from typing import Any

import pytest

from trogdor_bus.actions import Peer, ProcessMatch
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.actions.process import Suspend
from trogdor_bus.coordinator.plan import WorkerPlan, assign, describe, left_out_warning
from trogdor_bus.errors import RefusedError, SpecError
from trogdor_bus.registry import Registry, registry
from trogdor_bus.spec import TaskSpec, wire
from trogdor_bus.topology import Node, Topology

A = Node(name="a", addresses=("10.0.0.1", "fd00::1"))
B = Node(name="b", addresses=("10.0.0.2",))
C = Node(name="c", addresses=("10.0.0.3", "127.0.0.1"))
QUIET = Node(name="quiet", agent=False, addresses=("10.0.0.9",))


def topology(*nodes: Node, **more: Any) -> Topology:
    return Topology(nodes={node.name: node for node in nodes}, **more)


def spec(alias: str, **fields: Any) -> TaskSpec:
    return registry().decode({"class": alias, "durationMs": 1000, **fields})


def test_a_partition_asks_each_node_to_drop_the_other_groups() -> None:
    plans = assign(spec("partition", partitions=[["c"], ["b", "a"]]), topology(A, B, C))
    block_c = BlockFrom(peers=(Peer("c", ("10.0.0.3",)),))
    assert plans == (
        WorkerPlan(node="a", actions=(block_c,), left_out=("127.0.0.1 of c: loopback",)),
        WorkerPlan(node="b", actions=(block_c,), left_out=("127.0.0.1 of c: loopback",)),
        WorkerPlan(
            node="c",
            actions=(BlockFrom(peers=(Peer("a", ("10.0.0.1", "fd00::1")), Peer("b", ("10.0.0.2",)))),),
            left_out=(),
        ),
    )


def test_only_the_receivers_of_a_directed_partition_act() -> None:
    plans = assign(spec("directed-partition", **{"from": ["a"], "to": ["b"]}), topology(A, B))
    assert [(plan.node, bool(plan.actions)) for plan in plans] == [("a", False), ("b", True)]


def test_noop_runs_on_every_node_that_has_an_agent() -> None:
    assert [plan.node for plan in assign(spec("noop"), topology(C, QUIET, A))] == ["a", "c"]


def test_process_faults_need_no_address() -> None:
    (plan,) = assign(spec("process-stop", nodes="x", match="kafka"), topology(Node(name="x")))
    assert plan.actions == (Suspend(match=ProcessMatch(command="kafka")),)


@pytest.mark.parametrize("planner", [assign, lambda *args: describe(*args, alive=())])
def test_trogdors_error_texts(planner: Any) -> None:
    with pytest.raises(SpecError) as unknown:
        planner(spec("partition", partitions=[["z", "a"], ["quiet"], ["b"]]), topology(A, QUIET))
    assert unknown.value.message == "Unknown node names: b, quiet, z"
    with pytest.raises(SpecError) as nobody:
        planner(spec("noop"), topology(QUIET))
    assert nobody.value.message == "No node names specified."


def test_a_peer_without_a_usable_address_is_an_error() -> None:
    with pytest.raises(SpecError, match="node b has no address by which a could tell its packets"):
        assign(spec("partition", partitions=[["a"], ["b"]]), topology(A, Node(name="b")))


HERE = {"coordinator_addresses": ("FD00:0::1",), "coordinator_ports": (8889, 8890)}


@pytest.mark.parametrize("direction", ["in", "both"])
def test_cutting_the_coordinators_own_port_is_refused(direction: str) -> None:
    block = spec("port-block", nodes=["a", "b"], ports=[8890, 22], direction=direction)
    with pytest.raises(RefusedError, match=r"node a .* TCP port 8890 .*`‹force›` allows it"):
        assign(block, topology(A, B, **HERE))
    with pytest.raises(RefusedError):
        describe(block, topology(A, B, **HERE), alive=())
    forced = assign(block, topology(A, B, **HERE), force=True)
    assert forced[0].actions == (BlockPorts(ports=(22, 8890), direction=direction),)  # type: ignore[arg-type]
    assert describe(block, topology(A, B, **HERE), alive=(), force=True).nodes


@pytest.mark.parametrize(
    "fields",
    [
        {"nodes": ["b"], "ports": [8889]},
        {"nodes": ["a"], "ports": [9092]},
        {"nodes": ["a"], "ports": [8889], "direction": "out"},
        {"nodes": ["a"], "ports": [8889], "protocol": "udp"},
    ],
)
def test_what_leaves_the_coordinator_alone_is_allowed(fields: dict[str, Any]) -> None:
    assert assign(spec("port-block", **fields), topology(A, B, **HERE))


def test_describe_shows_steps_addresses_and_the_wire_form() -> None:
    what = spec("partition", partitions=[["a"], ["c"]])
    plan = describe(what, topology(A, C), alive={"a", "c"})
    assert bytes(plan.spec) == wire(what)
    assert plan.warnings == ()
    a, c = plan.nodes
    assert a.steps == (("drop everything that comes in from c (10.0.0.3)", "remove exactly these rules"),)
    assert a.left_out == ("127.0.0.1 of c: loopback",)
    assert (a.alive, c.alive, c.left_out) == (True, True, ())


def test_describe_warns() -> None:
    dead = "node a has no live agent: it would start when one appears"
    assert describe(spec("noop"), topology(A, B), alive={"b"}).warnings == (dead,)
    for groups in ([["a", "b"]], [["a"], []]):
        plan = describe(spec("partition", partitions=groups), topology(A, B), alive={"a", "b"})
        assert plan.warnings == ("a partition with fewer than two groups cuts nothing",)
    directed = describe(spec("directed-partition", **{"from": "a", "to": "b"}), topology(A, B), alive={"a", "b"})
    assert directed.warnings == ("the spec asks nothing of node a itself",)


def test_describe_refuses_a_fault_that_ends_before_it_starts() -> None:
    short = registry().decode({"class": "noop", "durationMs": -5})
    with pytest.raises(SpecError) as caught:
        describe(short, topology(A), alive={"a"})
    assert (caught.value.message, caught.value.path) == (
        "is 0: the fault would end before it starts",
        "$.durationMs",
    )
    assert caught.value.remedy == "give a duration in milliseconds"
    assert [plan.node for plan in assign(short, topology(A))] == ["a"], "a direct create behaves as in Trogdor"


def test_what_no_rule_names_is_a_warning_unless_nobody_else_can_send_from_it() -> None:
    shared = [Node(name=name, addresses=(own, "172.17.0.1")) for name, own in (("a", "10.0.0.1"), ("b", "10.0.0.2"))]
    plans = assign(spec("partition", partitions=[["a"], ["b"], ["c"]]), topology(*shared, C))
    assert {left for plan in plans for left in plan.left_out} >= {"127.0.0.1 of c: loopback"}
    warning = left_out_warning(plans)
    assert warning.startswith("what comes from these addresses is not cut: 172.17.0.1 of b: also an address of a")
    assert warning.endswith("; and 1 more") and "loopback" not in warning
    assert left_out_warning(assign(spec("partition", partitions=[["a"], ["c"]]), topology(A, C))) == ""


class BrokenSpec(TaskSpec, frozen=True, kw_only=True, tag="example.Broken"):
    def targets(self, topology: Topology) -> frozenset[str]:
        return frozenset({topology.nodes["nowhere"].name})


class StraySpec(TaskSpec, frozen=True, kw_only=True, tag="example.Stray"):
    def targets(self, topology: Topology) -> frozenset[str]:
        return frozenset({"a"})

    def peers_of(self, node: str) -> tuple[str, ...]:
        return ("nowhere",)


def test_spec_classes_of_others_cannot_bring_the_planner_down() -> None:
    with pytest.raises(SpecError, match=r"the class example.Broken fails: KeyError\('nowhere'\)"):
        assign(Registry([BrokenSpec]).decode({"class": "example.Broken"}), topology(A))
    with pytest.raises(SpecError, match="node nowhere is not in the cluster"):
        assign(StraySpec(), topology(A))
