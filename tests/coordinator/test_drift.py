"""Addresses that nodes announce while a block runs: told to the agents, or kept as left out."""

from __future__ import annotations

from tests.coordinator.driver import BEAT_MS, Cluster
from trogdor_bus.actions import Peer
from trogdor_bus.coordinator.drift import SETTLED_MS
from trogdor_bus.coordinator.events import HostsResolved
from trogdor_bus.messages import Snapshot, decode, encode
from trogdor_bus.states import WorkerState
from trogdor_bus.topology import Node

W = WorkerState
SHARED = "172.17.0.1"


def partitioned(*nodes: str, **more: object) -> Cluster:
    cluster = Cluster(*nodes, **more)  # type: ignore[arg-type]
    cluster.pass_(SETTLED_MS, *cluster.nodes)
    first, *others = cluster.nodes
    cluster.create(alias="partition", partitions=[[first], others], durationMs=600_000)
    cluster.all_say(W.RUNNING)
    return cluster


def drift(cluster: Cluster, node: str) -> tuple[Peer, ...]:
    cluster.pass_(BEAT_MS)
    cluster.beat(node)
    (order,) = cluster.published[node].orders
    return decode(encode(cluster.published[node]), Snapshot).orders[0].drift or order.drift


def test_a_new_address_of_a_peer_is_told_to_those_that_block_it_until_the_end() -> None:
    cluster = partitioned()
    assert drift(cluster, "a") == drift(cluster, "b") == ()
    cluster.beat("a", addresses=("10.0.0.1", "10.90.0.1"))
    cluster.pass_(BEAT_MS)
    news = (Peer("a", ("10.90.0.1",)),)
    assert drift(cluster, "b") == drift(cluster, "c") == news
    assert drift(cluster, "a") == ()
    cluster.beat("a")
    assert drift(cluster, "b") == news, "an address that is gone is no news"
    cluster.beat("a", addresses=("10.0.0.1", "fd00::1"))
    assert drift(cluster, "b") == (Peer("a", ("10.90.0.1", "fd00::1")),)
    cluster.say("b", W.DONE)
    assert cluster.machine._ledger.drift.of(cluster.row("b").id) == ()


def test_who_is_told_is_told_at_once() -> None:
    cluster = partitioned()
    before = cluster.published["b"].stamp.revision
    cluster.beat("a", addresses=("10.0.0.1", "10.90.0.1"))
    cluster.pass_(BEAT_MS)
    assert cluster.published["b"].stamp.revision > before
    assert cluster.published["b"].orders[0].drift == (Peer("a", ("10.90.0.1",)),)


def test_what_no_rule_may_name_is_kept_as_left_out_and_stays_so() -> None:
    cluster = partitioned()
    cluster.beat("a", addresses=("10.0.0.1", SHARED))
    cluster.beat("c", addresses=("10.0.0.3", SHARED))
    assert drift(cluster, "b") == ()
    assert cluster.row("b").left_out == (f"{SHARED} of a: c announces it too",)
    assert cluster.row("c").left_out == (f"{SHARED} of a: also an address of c, which would block itself",)
    cluster.beat("c", leaving=True, addresses=("10.0.0.3", SHARED))
    assert drift(cluster, "b") == (), "that an agent ends makes nobody disturbed"
    cluster.restart()
    cluster.pass_(SETTLED_MS, *cluster.nodes)
    cluster.beat("a", addresses=("10.0.0.1", SHARED))
    assert drift(cluster, "b") == ()


def test_what_was_left_out_when_it_was_planned_is_no_news_later() -> None:
    cluster = Cluster()
    cluster.pass_(SETTLED_MS, *cluster.nodes)
    cluster.beat("a", addresses=("10.0.0.1", SHARED))
    cluster.beat("c", addresses=("10.0.0.3", SHARED))
    cluster.create(alias="partition", partitions=[["a"], ["b"]], durationMs=600_000)
    assert "what comes from these addresses is not cut: 172.17.0.1 of a: c announces it too" in "".join(cluster.texts)
    cluster.all_say(W.RUNNING)
    cluster.beat("c")
    cluster.beat("a", addresses=("10.0.0.1", SHARED, "10.90.0.1"))
    assert drift(cluster, "b") == (Peer("a", ("10.90.0.1",)),)


def test_the_next_coordinator_finds_it_again_once_it_knows_who_is_there() -> None:
    cluster = partitioned()
    cluster.beat("a", addresses=("10.0.0.1", "10.90.0.1"))
    assert drift(cluster, "b")
    cluster.restart()
    cluster.beat("a", addresses=("10.0.0.1", "10.90.0.1", SHARED))
    assert drift(cluster, "b") == (), "another node may have it, too, and was not heard yet"
    cluster.beat("c", addresses=("10.0.0.3", SHARED))
    cluster.pass_(SETTLED_MS)
    assert drift(cluster, "b") == (Peer("a", ("10.90.0.1",)),)
    assert cluster.row("b").left_out == (f"{SHARED} of a: c announces it too",)


def test_a_worker_of_a_former_version_that_named_the_configured_address_only_learns_of_the_others() -> None:
    cluster = partitioned(
        configured={"a": Node(name="a", hostname="a.example"), "b": Node(name="b"), "c": Node(name="c")}
    )
    cluster.give(HostsResolved({"a": ("192.0.2.7",)}))
    assert drift(cluster, "b") == (Peer("a", ("192.0.2.7",)),)


def test_other_faults_and_ended_ones_are_left_alone() -> None:
    cluster = Cluster()
    cluster.pass_(SETTLED_MS, *cluster.nodes)
    cluster.create("ports", durationMs=600_000)
    cluster.create("cut", alias="partition", partitions=[["a"], ["b"]], durationMs=600_000)
    cluster.all_say(W.RUNNING, "ports")
    cluster.all_say(W.RUNNING, "cut")
    cluster.stop("cut")
    cluster.beat("a", addresses=("10.0.0.1", "10.90.0.1"))
    cluster.pass_(BEAT_MS)
    cluster.beat("b")
    assert [order.drift for order in cluster.published["b"].orders] == [()]
