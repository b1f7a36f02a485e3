"""The guard on data: what faults take from a cluster, which rules that breaks, and what allows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest

from trogdor_bus.actions import Action, Peer, ProcessMatch
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.actions.process import Kill, Suspend
from trogdor_bus.cluster import NOBODY, ClusterView, Quorum, SeenBroker, SeenController, SeenPartition
from trogdor_bus.coordinator.guard import Loss, check_allowed, permit, weigh
from trogdor_bus.coordinator.silence import Strike, strikes
from trogdor_bus.errors import RefusedError, SpecError
from trogdor_bus.roles import Chosen, Places

KAFKA = ProcessMatch(command="kafka.Kafka")


def partition(topic: str, number: int, replicas: Sequence[int], need: int = 2, **more: Any) -> SeenPartition:
    given = {"leader": replicas[0], "in_sync": tuple(replicas), **more}
    return SeenPartition(topic=topic, number=number, replicas=tuple(replicas), min_in_sync=need, **given)


def cluster(*partitions: SeenPartition, combined: bool = True, brokers: int = 3, active: int = 1) -> ClusterView:
    offset = 0 if combined else 100
    voters = tuple(SeenController(id=offset + one, port=9093, behind_ms=0) for one in (1, 2, 3))
    spread = [partition("t", i, [1 + (i + j) % brokers for j in range(3)]) for i in range(brokers)]
    return ClusterView(
        brokers={one: SeenBroker(id=one, port=9092) for one in range(1, brokers + 1)},
        partitions=partitions or tuple(spread),
        quorum=Quorum(leader=offset + active, epoch=1, voters=voters),
        controller=offset + active,
    )


def places(view: ClusterView) -> Places:
    brokers = {one: f"b{one}" for one in view.brokers}
    voters = view.quorum.voters if view.quorum else ()
    return Places(brokers, {one.id: f"c{one.id % 100}" if one.id > 100 else f"b{one.id}" for one in voters})


def on(nodes: str, action: Action) -> list[Strike]:
    return [strike for node in nodes.split() for strike in strikes("t", node, (action,), 0, 1000)]


def freeze(nodes: str, match: ProcessMatch = KAFKA) -> list[Strike]:
    return on(nodes, Suspend(match=match))


def cut(one: str, other: str) -> list[Strike]:
    """Return what a node is asked that hears nothing from others."""
    return on(one, BlockFrom(peers=tuple(Peer(name, ("10.0.0.1",)) for name in other.split())))


def loss(view: ClusterView, new: Iterable[Strike], running: Iterable[Strike] = (), **more: Any) -> Loss:
    return weigh(view, places(view), list(new), list(running), **more)


def broken(view: ClusterView, new: Iterable[Strike], running: Iterable[Strike] = (), **more: Any) -> set[str]:
    return set(loss(view, new, running, **more).broken)


def gone(view: ClusterView, new: Iterable[Strike]) -> list[str]:
    return [line.split(" on node")[0] for line in loss(view, new).lines if "would be gone" in line]


@pytest.mark.parametrize(
    ("combined", "new", "expected"),
    [
        (True, freeze("b1"), set()),
        (True, freeze("b1 b2"), {"below-min-isr", "no-quorum"}),
        (True, freeze("b1", ProcessMatch(port=9092)), set()),
        (True, freeze("b1 b2", ProcessMatch(port=9093)), {"below-min-isr", "no-quorum"}),
        (True, freeze("b1 b2", ProcessMatch(command="QuorumPeerMain")), set()),
        (True, on("b1 b2", Kill(match=KAFKA)), {"below-min-isr", "no-quorum"}),
        (True, on("b1 b2", Kill(match=KAFKA, signal="SIGQUIT")), set()),
        (True, cut("b1", "b2 b3"), set()),
        (True, cut("b2", "b1"), set()),
        (True, [*cut("b1", "b2 b3"), *cut("b2", "b3")], {"below-min-isr", "no-quorum"}),
        (True, cut("b2", "b3"), set()),
        (False, freeze("b1 b2"), {"below-min-isr"}),
        (False, freeze("c1"), set()),
        (False, freeze("c1 c2"), {"no-quorum"}),
        (False, cut("b1 b2", "c1"), {"below-min-isr"}),
        (False, cut("b1 b2", "c2"), set()),
        (False, cut("c1", "b1 b2"), {"below-min-isr"}),
        (False, cut("c1", "c2 c3"), set()),
        (False, cut("c2", "c3"), set()),
        (False, [*freeze("c1"), *cut("b1 b2", "c2")], {"below-min-isr"}),
        (False, [*freeze("c3"), *cut("c1", "c2")], {"no-quorum"}),
        (True, on("b1", BlockPorts(ports=(9092,))), {"below-min-isr"}),
        (True, on("b1", BlockPorts(ports=(9999,))), set()),
    ],
)
def test_which_rules_a_fault_breaks(combined: bool, new: list[Strike], expected: set[str]) -> None:
    assert broken(cluster(combined=combined), new) == expected


def test_a_block_of_ports_counts_where_brokers_listen_for_each_other() -> None:
    view = cluster()
    told = {
        one.id: msgspec.structs.replace(one, inside_port=9090, client_ports=(9092,)) for one in view.brokers.values()
    }
    apart = msgspec.structs.replace(view, brokers=told)
    assert broken(apart, on("b1", BlockPorts(ports=(9092,)))) == set()
    assert broken(apart, on("b1", BlockPorts(ports=(9090,)))) == {"below-min-isr"}


def test_a_second_loss_at_the_same_time_is_seen_before_the_cluster_notices() -> None:
    view = cluster()
    found = loss(view, freeze("b2"), freeze("b1"))
    assert found.broken["below-min-isr"] == (
        "below-min-isr: broker 2 would be gone, and 3 partitions would keep fewer replicas in sync than "
        "min.insync.replicas: t-0 (1 of 2), t-1 (1 of 2) and t-2 (1 of 2)"
    )
    assert found.broken["no-quorum"] == "no-quorum: controller 2 would be gone, and no majority of 3 would be left"
    assert broken(view, freeze("b1"), freeze("b1")) == set(), "the same again takes nothing more"


def test_partitions_are_named_at_most_five() -> None:
    view = cluster(*(partition("t", i, (1, 2, 3)) for i in range(20)))
    text = loss(view, freeze("b1 b2")).broken["below-min-isr"]
    assert text.startswith("below-min-isr: brokers 1 and 2 would be gone, and 20 partitions would keep fewer")
    assert text.endswith(": t-0 (1 of 2), t-1 (1 of 2), t-10 (1 of 2), t-11 (1 of 2), t-12 (1 of 2) and 15 more")


@pytest.mark.parametrize(
    ("replicas", "need", "expected"),
    [((1,), 1, {"below-min-isr"}), ((2,), 1, set()), ((1, 2), 1, set()), ((1, 2), 2, {"below-min-isr"})],
)
def test_the_need_is_that_of_each_topic(replicas: tuple[int, ...], need: int, expected: set[str]) -> None:
    view = cluster(partition("x", 0, replicas, need))
    assert broken(view, freeze("b1")) == expected
    assert broken(view, freeze("b1"), own_topics=("x",)) == set()


def test_a_cluster_that_is_not_whole_is_not_hit() -> None:
    view = cluster(partition("t", 0, (1, 2, 3), in_sync=(1, 2)), partition("u", 0, (3, 2), leader=NOBODY, in_sync=()))
    found = loss(view, freeze("b3"))
    assert found.broken == {
        "under-replicated": "under-replicated: 2 partitions are not in sync already: t-0 (2 of 3) and u-0 (0 of 2)"
    }
    assert broken(view, freeze("b3"), own_topics=("u", "t")) == set()
    assert broken(view, freeze("b2")) == {"under-replicated", "below-min-isr"}


def test_a_dead_controller_does_not_vote() -> None:
    view = cluster(combined=False)
    assert view.quorum is not None
    dead = tuple(msgspec.structs.replace(one, behind_ms=60_000 * (one.id == 103)) for one in view.quorum.voters)
    view = msgspec.structs.replace(view, quorum=msgspec.structs.replace(view.quorum, voters=dead))
    assert broken(view, freeze("c3")) == set()
    assert broken(view, freeze("c2")) == {"no-quorum"}


def test_zookeeper_may_be_any_node_without_a_broker() -> None:
    view = msgspec.structs.replace(cluster(), quorum=None, controller=2)
    assert broken(view, cut("b1 b2", "zk")) == {"below-min-isr"}
    assert broken(view, cut("zk", "b1 b2")) == {"below-min-isr"}
    assert broken(view, cut("b1", "zk")) == set()
    assert broken(view, freeze("zk")) == set()
    assert broken(view, freeze("b1 b2")) == {"below-min-isr"}


def test_what_also_goes_with_a_process_is_told() -> None:
    view = cluster(active=2)
    assert loss(view, freeze("b2")).lines == (
        "broker 2 on node b2 would be gone, which also takes controller 2 (the active one)",
        "3 partitions would lose the replica on broker 2, and 1 of them their leader: t-0, t-1 and t-2",
    )
    chosen = (Chosen(role="controller", kind="controller", id=2, node="b2"),)
    assert loss(view, freeze("b2"), named=chosen).lines[0] == (
        "controller 2 (the active one) on node b2 would be gone, which also takes broker 2"
    )
    assert gone(cluster(combined=False), freeze("c1 c2 b3")) == [
        "broker 3",
        "controller 101 (the active one)",
        "controller 102",
    ]


def test_rules_are_allowed_by_name() -> None:
    found = loss(cluster(), freeze("b1 b2"))
    with pytest.raises(RefusedError) as caught:
        permit(found, ("no-quorum",))
    assert str(caught.value).startswith("the cluster would lose too much: below-min-isr: brokers 1 and 2 would be gone")
    assert str(caught.value).endswith("; `‹allow rule=below-min-isr›` allows it")
    assert "no-quorum" not in str(caught.value)
    assert permit(found, ("no-quorum", "below-min-isr")) == tuple(found.broken.values())
    assert permit(Loss(), ()) == ()
    with pytest.raises(SpecError) as bad:
        check_allowed(("no-quorum", "all"))
    assert bad.value.remedy == "the rules are below-min-isr, no-quorum, under-replicated"
