"""Faults that know Kafka: equal, once resolved, to the generic faults that a person would have written."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from trogdor_bus.actions.kafka import MoveLeader
from trogdor_bus.cluster import ClusterView, Quorum, SeenBroker, SeenController, SeenPartition
from trogdor_bus.errors import NotNowError, RefusedError, SpecError
from trogdor_bus.registry import registry
from trogdor_bus.roles import Places, Scene, Wanted
from trogdor_bus.spec import TaskSpec, wire
from trogdor_bus.topology import Node, Topology

VIEW = ClusterView(
    brokers={one: SeenBroker(id=one, port=9090 + one % 2) for one in (1, 2, 3)},
    partitions=(SeenPartition(topic="orders", number=0, leader=2, epoch=5, replicas=(1, 2), in_sync=(1, 2)),),
    quorum=Quorum(leader=102, epoch=1, voters=(SeenController(id=101), SeenController(id=102))),
    controller=102,
)
APART = Places({1: "a", 2: "b", 3: "c"}, {101: "x", 102: "y"})
TOGETHER = Places({1: "a", 2: "b", 3: "c"}, {101: "a", 102: "b"})
NODES = {name: Node(name=name, agent=name != "client") for name in ("a", "b", "c", "x", "y", "client")}


def scene(places: Places = APART, view: ClusterView = VIEW) -> Scene:
    return Scene(view=view, places=places, topology=Topology(nodes=NODES))


def decode(alias: str, **fields: Any) -> TaskSpec:
    return registry().decode({"class": alias, "startMs": 5, "durationMs": 1000, "onDisturbed": "reapply", **fields})


def resolved(alias: str, *, at: Scene | None = None, **fields: Any) -> tuple[TaskSpec, list[str]]:
    spec, chosen = decode(alias, **fields).resolved(at or scene())
    spec.check()
    assert not spec.needs_cluster(NODES)
    return spec, [one.why for one in chosen]


LEADER = "leader(orders, 0) is broker 2 on node b (leader epoch 5)"


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({}, {"restart": {"found": True}}),
        ({"restart": False}, {}),
        ({"restart": {"unit": "kafka"}, "match": "my"}, {"restart": {"unit": "kafka"}, "match": "my"}),
        (
            {"signal": "SIGTERM", "graceMs": 30_000},
            {"signal": "SIGTERM", "graceMs": 30_000, "restart": {"found": True}},
        ),
    ],
)
def test_kill_the_leader(fields: dict[str, Any], more: dict[str, Any]) -> None:
    spec, why = resolved("kafka-kill-leader", topic="orders", **fields)
    assert spec == decode("process-kill", nodes=["b"], **{"match": "kafka.Kafka", **more})
    assert why == [LEADER]


def test_stop_the_controller() -> None:
    spec, why = resolved("kafka-stop-controller")
    assert spec == decode("process-stop", nodes=["y"], match="kafka.Kafka")
    assert why == ["controller is controller 102 on node y"]


@pytest.mark.parametrize("broker", [2, "2", "broker(2)", "leader(orders,0)"])
def test_isolate_a_broker(broker: int | str) -> None:
    spec, why = resolved("kafka-isolate-broker", broker=broker)
    assert spec == decode("partition", partitions=[["b"], ["a", "c", "x", "y"]])
    assert len(why) == 1 and "is broker 2 on node b" in why[0]


def test_one_broker_is_isolated() -> None:
    with pytest.raises(SpecError) as caught:
        resolved("kafka-isolate-broker", broker="all")
    assert str(caught.value) == "broker: is broker 1 and broker 2 and broker 3 (choose one: one-of(all))"


def test_cut_brokers_from_controllers_of_their_own() -> None:
    spec, why = resolved("kafka-cut-controllers")
    assert spec == decode("partition", partitions=[["a", "b", "c"], ["x", "y"]])
    assert len(why) == 3
    spec, why = resolved("kafka-cut-controllers", brokers=["b", "broker(1)"])
    assert spec == decode("partition", partitions=[["b", "a"], ["x", "y"]])
    assert why == ["broker(1) is broker 1 on node a"]


def test_a_broker_that_is_a_controller_is_cut_alone() -> None:
    spec, _ = resolved("kafka-cut-controllers", at=scene(TOGETHER), brokers=["broker(1)"])
    assert spec == decode("partition", partitions=[["a"], ["b"]])
    spec, _ = resolved("kafka-cut-controllers", at=scene(TOGETHER), brokers=["broker(3)"])
    assert spec == decode("partition", partitions=[["c"], ["a", "b"]])
    with pytest.raises(SpecError) as caught:
        resolved("kafka-cut-controllers", at=scene(TOGETHER))
    assert str(caught.value) == ("brokers: node a is a broker and a controller (name one broker alone, such as one-of)")
    with pytest.raises(SpecError, match=r"controller 102 is on no node .*`controller: 102`"):
        resolved("kafka-cut-controllers", at=scene(Places({1: "a", 2: "b", 3: "c"}, {101: "x"})))


def test_cut_brokers_from_zookeeper() -> None:
    old = scene(view=msgspec.structs.replace(VIEW, quorum=None, controller=1))
    spec, _ = resolved("kafka-cut-controllers", at=old, brokers=["a"], zookeeper=["x", "y"])
    assert spec == decode("partition", partitions=[["a"], ["x", "y"]])
    with pytest.raises(SpecError) as caught:
        resolved("kafka-cut-controllers", at=old)
    assert caught.value.path == "$.zookeeper"
    with pytest.raises(SpecError) as caught:
        resolved("kafka-cut-controllers", zookeeper=["x"])
    assert caught.value.path == "$.zookeeper"


def test_block_clients() -> None:
    spec, why = resolved("kafka-block-clients", brokers=["leader(orders, 0)"])
    assert spec == decode("port-block", nodes=["b"], ports=[9090])
    assert why == [LEADER]
    assert resolved("kafka-block-clients")[0] == decode("port-block", nodes=["a", "b", "c"], ports=[9090, 9091])
    assert resolved("kafka-block-clients", brokers=["c"], ports=[9094])[0] == decode(
        "port-block", nodes=["c"], ports=[9094]
    )
    apart = SeenBroker(id=1, port=19092, inside_port=9091, client_ports=(9092, 9094))
    shared = SeenBroker(id=2, port=19092, inside_port=9095)
    told = scene(view=msgspec.structs.replace(VIEW, brokers={**VIEW.brokers, 1: apart, 2: shared}))
    for nodes, ports in (["a"], [9092, 9094]), (["b"], [9095]):
        found, _ = resolved("kafka-block-clients", at=told, brokers=nodes)
        assert found == decode("port-block", nodes=nodes, ports=ports)
    with pytest.raises(SpecError) as caught:
        resolved("kafka-block-clients", brokers=["x"])
    assert caught.value.path == "$.ports"


WIDE = msgspec.structs.replace(
    VIEW,
    brokers={one: SeenBroker(id=one, host=f"kafka{one}", port=9092) for one in (1, 2, 3)},
    partitions=(SeenPartition(topic="orders", number=0, leader=2, epoch=5, replicas=(1, 2, 3), in_sync=(3, 2, 1)),),
)


@pytest.mark.parametrize(
    ("to", "places", "chosen", "node"),
    [
        (-1, APART.brokers, 3, "a"),
        (1, APART.brokers, 1, "c"),
        (-1, {2: "b", 3: "c"}, 3, "c"),
        (-1, {2: "b", 4: "d"}, 3, "b"),
    ],
)
def test_a_move_is_done_by_who_neither_leads_nor_will_if_there_is_one(
    to: int, places: dict[int, str], chosen: int, node: str
) -> None:
    spec, why = resolved("kafka-move-leader", topic="orders", to=to, at=scene(Places(places), WIDE))
    assert spec == decode("kafka-move-leader", topic="orders", to=chosen, node=node)
    assert why == [LEADER]
    topology = Topology(nodes=NODES, cluster=WIDE.bootstrap)
    assert spec.targets(topology) == {node}
    bootstrap = "kafka1:9092,kafka2:9092,kafka3:9092"
    asked = MoveLeader(topic="orders", partition=0, to=chosen, bootstrap=bootstrap)
    assert spec.actions(node, topology) == (asked,)


def test_nobody_chooses_which_brokers_are_asked_but_the_look() -> None:
    spec = decode("kafka-move-leader", topic="orders", node="a")
    with pytest.raises(SpecError) as caught:
        spec.actions("a", Topology(nodes=NODES))
    assert str(caught.value) == "node: is chosen when the fault fires (leave it out)"


def test_who_cannot_lead_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        resolved("kafka-move-leader", topic="orders", to=2)
    assert str(caught.value) == "to: broker 2 leads it already on orders-0 (choose one of 1)"
    with pytest.raises(SpecError, match="to: broker 3 is no replica in sync on orders-0 "):
        resolved("kafka-move-leader", topic="orders", to=3)
    alone = msgspec.structs.replace(VIEW.partitions[0], in_sync=(2,))
    with pytest.raises(RefusedError, match="only its leader 2 is in sync on orders-0"):
        resolved("kafka-move-leader", topic="orders", at=scene(view=msgspec.structs.replace(VIEW, partitions=(alone,))))


@pytest.mark.parametrize(
    ("alias", "fields", "path"),
    [
        ("kafka-kill-leader", {}, "$.topic"),
        ("kafka-kill-leader", {"topic": "or ders"}, "$.topic"),
        ("kafka-kill-leader", {"topic": "a", "partition": -1}, "$.partition"),
        ("kafka-kill-leader", {"topic": "a", "match": " "}, "$.match"),
        ("kafka-kill-leader", {"topic": "a", "graceMs": 5}, "$.graceMs"),
        ("kafka-kill-leader", {"topic": "a", "restart": {}}, "$.restart"),
        ("kafka-stop-controller", {"match": " "}, "$.match"),
        ("kafka-isolate-broker", {}, "$.broker"),
        ("kafka-isolate-broker", {"broker": "node1"}, "$.broker"),
        ("kafka-cut-controllers", {"brokers": []}, "$.brokers"),
        ("kafka-block-clients", {"brokers": ["a", "a"]}, "$.brokers"),
        ("kafka-move-leader", {}, "$.topic"),
        ("kafka-move-leader", {"topic": "a", "to": -2}, "$.to"),
        ("kafka-move-leader", {"topic": "a", "config": "client.properties"}, "$.config"),
    ],
)
def test_what_is_wrong_is_said_before_anybody_looks(alias: str, fields: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as caught:
        decode(alias, **fields)
    assert caught.value.path == path


def test_each_needs_the_cluster_and_says_what_of_it() -> None:
    kafka = [cls for cls in registry().by_tag.values() if cls.aliases[0].startswith("kafka-") and not cls.is_experiment]
    assert len(kafka) >= 5
    for cls in kafka:
        spec = registry().decode(cls.example)
        assert spec.needs_cluster(NODES)
        assert wire(registry().decode(msgspec.json.decode(wire(spec)))) == wire(spec)
        spec.cluster_wanted(NODES)
        with pytest.raises(SpecError, match="known only when it fires"):
            spec.actions("a", Topology(nodes=NODES))
        assert spec.targets(Topology(nodes=NODES)) == frozenset()
    assert decode("kafka-kill-leader", topic="t").cluster_wanted(NODES) == Wanted(("t",))
    assert decode("kafka-isolate-broker", broker="group-coordinator(g)").cluster_wanted(NODES) == Wanted(
        (), ("group:g",)
    )
    assert decode("kafka-block-clients", brokers=["leader(t, 1)"]).cluster_wanted(NODES) == Wanted(("t",))


def test_nobody_leads_now() -> None:
    with pytest.raises(NotNowError):
        resolved("kafka-stop-controller", at=scene(view=msgspec.structs.replace(VIEW, controller=-1)))
