"""Roles in specs: wherever names of nodes stand, and what holds of the nodes that they turn out to be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trogdor_bus.cluster import ClusterView, SeenBroker, SeenPartition
from trogdor_bus.errors import SpecError
from trogdor_bus.registry import registry
from trogdor_bus.roles import Chosen, Places, Scene, Wanted
from trogdor_bus.spec import TaskSpec, wire
from trogdor_bus.topology import Node, Topology

NODES = ("a", "b", "c", "all")
SCENE = Scene(
    view=ClusterView(
        brokers={one: SeenBroker(id=one) for one in (1, 2, 3)},
        partitions=(SeenPartition(topic="t", number=0, leader=2, epoch=5, replicas=(1, 2), in_sync=(1, 2)),),
    ),
    places=Places({1: "a", 2: "b", 3: "c"}),
    topology=Topology(nodes={name: Node(name=name) for name in NODES}),
)
LEADER, FOLLOWER = "leader(t, 0)", "follower(t, 0)"


def decode(alias: str, **fields: Any) -> TaskSpec:
    return registry().decode({"class": alias, "durationMs": 1, **fields})


@pytest.mark.parametrize(
    ("alias", "fields", "nodes"),
    [
        ("partition", {"partitions": [[LEADER], ["c", FOLLOWER]]}, {"partitions": [["b"], ["c", "a"]]}),
        ("directed-partition", {"from": [LEADER], "to": ["a", "rack()x"]}, {"from": ["b"], "to": ["a", "rack()x"]}),
        ("port-block", {"ports": [1], "nodes": ["not(leader(t, 0))"]}, {"nodes": ["a", "c"]}),
        ("process-stop", {"match": "x", "nodes": ["b", LEADER, FOLLOWER]}, {"nodes": ["b", "a"]}),
        ("process-kill", {"match": "x", "nodes": ["broker(3)"]}, {"nodes": ["c"]}),
        ("java-process-stop", {"javaProcessName": "x", "nodeNames": [LEADER]}, {"nodeNames": ["b"]}),
    ],
)
def test_a_role_stands_wherever_a_name_stands(alias: str, fields: dict[str, Any], nodes: dict[str, Any]) -> None:
    spec = decode(alias, **fields)
    assert spec.needs_cluster(NODES)
    assert spec.cluster_wanted(NODES).topics in (("t",), ())
    found, chosen = spec.resolved(SCENE)
    assert not found.needs_cluster(NODES)
    told = json.loads(wire(found))
    assert {name: told[name] for name in nodes} == nodes
    assert type(found) is type(spec)
    assert all(one.node in str(nodes) and one.role for one in chosen)


def test_a_node_of_the_very_name_wins() -> None:
    spec = decode("port-block", ports=[1], nodes=["all"])
    assert not spec.needs_cluster(NODES)
    assert spec.needs_cluster(("a",))
    assert spec.resolved(SCENE) == (spec, ())


def test_who_was_chosen_is_told_once() -> None:
    spec = decode("partition", partitions=[[LEADER], ["not(leader(t, 0))"]])
    _, chosen = spec.resolved(SCENE)
    assert [one.why for one in chosen] == [
        "leader(t, 0) is broker 2 on node b (leader epoch 5)",
        "not(leader(t, 0)) is broker 1 on node a",
        "not(leader(t, 0)) is broker 3 on node c",
    ]
    spec = decode("process-stop", match="x", nodes=[LEADER, "leader(t,0)"])
    assert spec.resolved(SCENE)[1] == (Chosen(role=LEADER, id=2, node="b", epoch=5),)


@pytest.mark.parametrize(
    ("alias", "fields", "path", "why"),
    [
        ("partition", {"partitions": [["b"], [LEADER]]}, "$.partitions", "Node b appears in more than one partition."),
        ("directed-partition", {"from": ["b"], "to": [LEADER]}, "$.to", "node b is in 'from' as well"),
        ("partition", {"partitions": [["b"], ["leader(t, 1)"]]}, "$.partitions[1][0]", "topic t has no partition 1"),
        ("directed-partition", {"from": ["b"], "to": ["broker(7)"]}, "$.to[0]", "there is no broker 7"),
    ],
)
def test_what_holds_of_nodes_holds_of_those_that_roles_are(alias: str, fields: Any, path: str, why: str) -> None:
    with pytest.raises(SpecError) as caught:
        decode(alias, **fields).resolved(SCENE)
    assert (caught.value.path, caught.value.message) == (path, why)


def test_what_must_be_seen() -> None:
    spec = decode("partition", partitions=[[LEADER], ["group-coordinator(g)", "a"]])
    assert spec.cluster_wanted(NODES) == Wanted(("t",), ("group:g",))
    assert decode("noop").cluster_wanted(NODES) == Wanted()
    with pytest.raises(SpecError) as caught:
        decode("partition", partitions=[["a"], ["leadr(t, 0)"]]).cluster_wanted(NODES)
    assert caught.value.path == "$.partitions[1][0]"
