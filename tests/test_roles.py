"""Roles: how they are written, and who holds them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trogdor_bus.cluster import NOBODY, ClusterView, Quorum, SeenBroker, SeenController, SeenPartition
from trogdor_bus.errors import NotNowError, RefusedError, SpecError
from trogdor_bus.roles import MAX_DEPTH, NAMES, Chosen, Places, Wanted, is_role, parse, resolve, wanted

PARTITIONS = (
    SeenPartition(topic="orders", number=0, leader=2, epoch=5, replicas=(1, 2, 3), in_sync=(2, 3)),
    SeenPartition(topic="orders", number=1, leader=NOBODY, epoch=7, replicas=(3, 4), in_sync=()),
    SeenPartition(topic="lonely", number=0, leader=4, epoch=0, replicas=(4,), in_sync=(4,)),
)
VIEW = ClusterView(
    brokers={one: SeenBroker(id=one, rack="r1" if one < 3 else "r2") for one in (1, 2, 3, 4)},
    partitions=PARTITIONS,
    quorum=Quorum(leader=101, epoch=9, voters=tuple(SeenController(id=one) for one in (103, 101, 102))),
    controller=101,
    coordinators={"group:billing, all": 3, "transaction:tx": NOBODY},
)
ZOOKEEPER = msgspec.structs.replace(VIEW, quorum=None, controller=3)
PLACES = Places({one: f"b{one}" for one in (1, 2, 3, 4, 5)}, {100 + one: f"c{one}" for one in (1, 2, 3)})


def holders(text: str, view: ClusterView = VIEW, seed: int = 0) -> list[str]:
    return [one.node for one in resolve(parse(text, "$.nodes[0]"), view, PLACES, seed)]


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("leader(orders, 0)", ["b2"]),
        (" leader( orders ,00 ) ", ["b2"]),
        ("follower(orders, 0)", ["b1", "b3"]),
        ("isr-follower(orders, 0)", ["b3"]),
        ("controller", ["c1"]),
        ("controller-follower", ["c2", "c3"]),
        ("broker(4)", ["b4"]),
        ("broker(5)", ["b5"]),
        ("rack(r1)", ["b1", "b2"]),
        ("group-coordinator(billing, all)", ["b3"]),
        ("all", ["b1", "b2", "b3", "b4"]),
        ("not(leader(orders, 0))", ["b1", "b3", "b4"]),
        ("not(not(rack(r2)))", ["b3", "b4"]),
        ("not(controller)", ["b1", "b2", "b3", "b4"]),
        ("one-of(leader(lonely, 0))", ["b4"]),
        ("majority(leader(lonely, 0))", ["b4"]),
    ],
)
def test_who_holds_a_role(text: str, nodes: list[str]) -> None:
    assert holders(text) == nodes


def test_zookeeper_has_its_controller_among_the_brokers() -> None:
    assert holders("controller", ZOOKEEPER) == ["b3"]
    assert holders("not(controller)", ZOOKEEPER) == ["b1", "b2", "b4"]
    with pytest.raises(SpecError, match="ZooKeeper keeps this cluster") as caught:
        holders("controller-follower", ZOOKEEPER)
    assert caught.value.path == "$.nodes[0]"


def test_a_choice_says_why() -> None:
    (leader,) = resolve(parse("leader(orders,0)"), VIEW, PLACES)
    assert leader.why == "leader(orders, 0) is broker 2 on node b2 (leader epoch 5)"
    (active,) = resolve(parse("controller"), VIEW, PLACES)
    assert active.why == "controller is controller 101 on node c1"
    (one,) = resolve(parse("one-of(isr-follower(orders, 0))"), VIEW, PLACES)
    assert one.why == "one-of(isr-follower(orders, 0)) is broker 3 on node b3 (leader epoch 5)"


@pytest.mark.parametrize(("text", "size"), [("one-of", 1), ("minority", 1), ("majority", 3), ("one-of(rack(r2))", 1)])
def test_the_seed_chooses(text: str, size: int) -> None:
    found = {tuple(holders(text, seed=seed)) for seed in range(60)}
    assert {len(nodes) for nodes in found} == {size}
    assert len(found) == {1: 4, 3: 4}[size] - 2 * (text == "one-of(rack(r2))")
    assert holders(text, seed=7) == holders(text, seed=7)


@given(st.integers())
def test_the_same_words_mean_the_same_nodes(seed: int) -> None:
    (one,) = holders("one-of", seed=seed)
    assert holders("not(one-of)", seed=seed) == [node for node in holders("all") if node != one]
    assert not {*holders("majority", seed=seed)} & {*holders("not(majority)", seed=seed)}


@pytest.mark.parametrize(
    ("text", "view", "why"),
    [
        ("leader(orders, 1)", VIEW, "partition orders-1 has no leader now"),
        ("follower(orders, 1)", VIEW, "partition orders-1 has no leader now"),
        ("isr-follower(lonely, 0)", VIEW, r"isr-follower\(lonely, 0\) is nobody now"),
        ("not(all)", VIEW, r"not\(all\) is nobody now"),
        ("transaction-coordinator(tx)", VIEW, r"transaction-coordinator\(tx\) is nobody now"),
        ("group-coordinator(never-asked)", VIEW, r"group-coordinator\(never-asked\) is nobody now"),
        ("controller", msgspec.structs.replace(VIEW, controller=NOBODY), "no active controller now"),
        (
            "controller-follower",
            msgspec.structs.replace(VIEW, quorum=Quorum(leader=NOBODY, epoch=9)),
            "no active controller now",
        ),
    ],
)
def test_nobody_holds_it_now(text: str, view: ClusterView, why: str) -> None:
    with pytest.raises(NotNowError, match=why):
        holders(text, view)


@pytest.mark.parametrize(
    ("text", "why", "remedy"),
    [
        ("leader(order, 0)", "there is no topic order", "did you mean orders?"),
        ("leader(xyz, 0)", "there is no topic xyz", "make it first"),
        ("leader(orders, 2)", "topic orders has no partition 2", "it has partitions 0 to 1"),
        ("leader(lonely, 2)", "topic lonely has no partition 2", "it has partition 0 only"),
        ("leader($stream, 0)", "$stream is the topic of an experiment", "name a topic"),
        ("broker(9)", "there is no broker 9", "the brokers are 1, 2, 3, 4"),
        ("rack(r9)", "no broker is in rack r9", "the racks are r1, r2"),
    ],
)
def test_nobody_will_ever_hold_it(text: str, why: str, remedy: str) -> None:
    with pytest.raises(SpecError) as caught:
        holders(text)
    assert (caught.value.path, caught.value.message, caught.value.remedy) == ("$.nodes[0]", why, remedy)


def test_less_than_half_of_two_is_nobody() -> None:
    with pytest.raises(RefusedError, match=r"nodes\[0\]: minority\(rack\(r1\)\) is nobody: there are 2 to choose from"):
        holders("minority(rack(r1))")


def test_a_broker_on_no_node_is_refused_with_the_remedy() -> None:
    for text in ("leader(orders, 0)", "all", "one-of"):
        with pytest.raises(RefusedError, match=r"broker 2 .* is on no node: .*`broker: 2` in the configuration"):
            resolve(parse(text), VIEW, Places({1: "b1"} if text != "all" else {1: "b1", 3: "b3"}))
    with pytest.raises(RefusedError, match=r"controller 101 \(controller\) is on no node: .*`controller: 101`"):
        resolve(parse("controller"), VIEW, Places())


@pytest.mark.parametrize(
    ("text", "why", "remedy"),
    [
        ("leadr(orders, 0)", "there is no role 'leadr'", "did you mean leader?"),
        ("q(orders, 0)", "there is no role 'q'", f"the roles are {', '.join(NAMES)}"),
        ("leader", "the role leader says not of what", "write leader(orders, 0)"),
        ("not", "the role not says not of what", "write not(leader(orders, 0))"),
        ("leader()", "'leader()' is no role", "write leader(orders, 0)"),
        ("controller(1)", "'controller(1)' is no role", "write controller"),
        ("leader(orders)", "'orders' is no topic and partition", "write leader(orders, 0)"),
        ("leader(orders, -1)", "'orders, -1' is no topic and partition", "write leader(orders, 0)"),
        ("leader(or ders, 1)", "'or ders, 1' is no topic and partition", "write leader(orders, 0)"),
        ("follower(orders, one)", "'orders, one' is no topic and partition", "write follower(orders, 0)"),
        ("broker(a)", "'a' is no id of a broker", "write broker(1)"),
        ("one-of(node1)", "there is no role 'node1'", f"the roles are {', '.join(NAMES)}"),
        ("not(" * (MAX_DEPTH + 1) + "all" + ")" * (MAX_DEPTH + 1), "the role is nested too deeply", "make it flatter"),
    ],
)
def test_a_bad_role_is_refused_with_field_and_remedy(text: str, why: str, remedy: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text, "$.nodes[0]")
    assert (caught.value.path, caught.value.message, caught.value.remedy) == ("$.nodes[0]", why, remedy)


@pytest.mark.parametrize("text", ["controller", " all ", "leader(orders, 0)", "leadr(x)", "one-of"])
def test_what_looks_like_a_role_is_one_unless_a_node_has_the_very_name(text: str) -> None:
    assert is_role(text, ())
    assert not is_role(text, (text,))


@pytest.mark.parametrize("text", ["node1", "leader", "broker", "(x)", "", "my node (2)"])
def test_other_texts_are_names(text: str) -> None:
    assert not is_role(text, ())


def test_what_a_view_must_hold() -> None:
    texts = [
        "one-of(not(leader(b, 1)))",
        "isr-follower(a, 0)",
        "group-coordinator(g)",
        "transaction-coordinator(t)",
        "all",
    ]
    assert wanted(map(parse, texts)) == Wanted(("a", "b"), ("group:g", "transaction:t"))


@given(st.text() | st.builds(lambda name, inside: f"{name}({inside})", st.sampled_from(NAMES), st.text()))
def test_any_text_is_a_role_or_refused(text: str) -> None:
    try:
        role: Any = parse(text)
    except SpecError as error:
        assert error.remedy
    else:
        assert parse(str(role)) == role


@pytest.mark.parametrize(
    ("role", "led"),
    [("leader(a.b-c, 12)", ("a.b-c", 12)), ("controller", None), ("one-of(leader(a, 1))", None), ("", None)],
)
def test_the_partition_that_somebody_was_chosen_for(role: str, led: tuple[str, int] | None) -> None:
    assert Chosen(role=role, id=1, node="a").led == led
