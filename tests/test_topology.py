"""Addresses that a rule may name, and the pickers of nodes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trogdor_bus.actions import Peer
from trogdor_bus.errors import SpecError
from trogdor_bus.topology import LeftOut, Node, Topology, canonical, halves, minority, ring


def topology(**addresses: tuple[str, ...]) -> Topology:
    return Topology(nodes={name: Node(name=name, addresses=own) for name, own in addresses.items()})


def test_names_are_sorted_and_have_an_agent() -> None:
    nodes = {name: Node(name=name, agent=name != "b") for name in "cba"}
    assert Topology(nodes=nodes).names() == ("a", "c")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1", "loopback"),
        ("127.1.2.3", "loopback"),
        ("::1", "loopback"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fd00::1%eth0", "link-local"),
        ("0.0.0.0", "not the address of one host"),
        ("::", "not the address of one host"),
        ("224.0.0.1", "not the address of one host"),
        ("ff02::1", "not the address of one host"),
        ("kafka1.example", "not an IP address"),
        ("10.0.0.0/8", "not an IP address"),
        ("10.0.0.1 -j ACCEPT", "not an IP address"),
        ("", "not an IP address"),
        ("10.0.0.1", "also an address of a, which would block itself"),
        ("10.0.0.3", "c announces it too"),
        ("FD00:0::3", "c announces it too"),
    ],
)
def test_what_is_left_out_and_why(address: str, why: str) -> None:
    nodes = topology(a=("10.0.0.1",), b=("10.0.0.2", address), c=("10.0.0.3", "fd00::3"))
    assert nodes.left_out("a", "b") == (LeftOut("b", address, why),)
    assert nodes.peer("a", "b") == Peer("b", ("10.0.0.2",))
    alone = topology(a=("10.0.0.1",), b=(address,), c=("10.0.0.3", "fd00::3"))
    with pytest.raises(SpecError) as caught:
        alone.peer("a", "b")
    assert caught.value.message == (f"node b has no address by which a could tell its packets: {address} of b: {why}")
    assert "hostname" in caught.value.remedy


def test_the_usual_peer_is_named_by_all_its_addresses_each_once() -> None:
    nodes = topology(a=("10.0.0.1",), b=("10.0.0.2", "FD00::0:2", "fd00::2", "10.0.0.2"))
    assert nodes.peer("a", "b") == Peer("b", ("10.0.0.2", "fd00::2"))
    assert nodes.left_out("a", "b") == ()


SHARED = "172.17.0.1"


def test_an_address_that_several_announce_or_the_node_itself_has_is_never_cut_by_accident() -> None:
    nodes = topology(a=("10.0.0.1", SHARED), b=("10.0.0.2", SHARED), c=("10.0.0.3",), d=("10.0.0.4", SHARED))
    assert nodes.peer("a", "b").addresses == nodes.peer("c", "b").addresses == ("10.0.0.2",)
    assert [str(left) for left in nodes.left_out("c", "b")] == [f"{SHARED} of b: a announces it too"]


def test_what_the_configuration_gives_one_node_is_its_own_whoever_announces_it_but_the_acting_one() -> None:
    vip = "10.0.0.100"
    given = Node(name="b", addresses=(vip, "10.0.0.2"), given=(vip,))
    others = [Node(name="a", addresses=("10.0.0.1",)), Node(name="c", addresses=("10.0.0.3", vip))]
    nodes = Topology(nodes={node.name: node for node in (given, *others)})
    assert nodes.peer("a", "b").addresses == (vip, "10.0.0.2")
    assert [str(left) for left in nodes.left_out("a", "c")] == [f"{vip} of c: the configuration gives it to b"]
    assert nodes.peer("c", "b").addresses == ("10.0.0.2",)
    both = [Node(name=name, addresses=(vip, own), given=(vip,)) for name, own in (("b", "10.0.0.2"), ("c", "10.0.0.3"))]
    twice = Topology(nodes={node.name: node for node in (*both, others[0])})
    assert [str(left) for left in twice.left_out("a", "b")] == [f"{vip} of b: the configuration gives it to c"]


@pytest.mark.parametrize(
    ("machine", "usable"),
    [
        ((), ("10.0.0.2", SHARED)),
        (("10.0.0.9", SHARED, "127.0.0.1"), ("10.0.0.2",)),
        (("127.0.0.1", "10.0.0.2", SHARED, "fe80::1"), ("10.0.0.2", SHARED)),
        (("10.0.0.2",), ("10.0.0.2", SHARED)),
        (("10.0.0.2", SHARED, "10.0.0.10"), ("10.0.0.2", SHARED)),
    ],
    ids=["unknown", "another machine", "this machine", "it got one since", "it lost one since"],
)
def test_an_address_of_the_coordinators_machine_is_cut_only_if_the_peer_is_that_machine(
    machine: tuple[str, ...], usable: tuple[str, ...]
) -> None:
    nodes = {
        name: Node(name=name, addresses=own) for name, own in {"a": ("10.0.0.1",), "b": ("10.0.0.2", SHARED)}.items()
    }
    cluster = Topology(nodes=nodes, coordinator_machine=machine)
    assert cluster.peer("a", "b").addresses == usable
    left = [f"{SHARED} of b: also an address of the coordinator's machine"] if SHARED not in usable else []
    assert [str(one) for one in cluster.left_out("a", "b")] == left


def test_a_node_is_no_peer_of_itself() -> None:
    with pytest.raises(SpecError, match="also an address of b, which would block itself"):
        topology(b=("10.0.0.2",)).peer("b", "b")


def test_a_peer_without_addresses_or_outside_the_cluster() -> None:
    with pytest.raises(SpecError, match="it announced none and the configuration gives no hostname"):
        topology(a=("10.0.0.1",), b=()).peer("a", "b")
    unresolved = Topology(nodes={"a": Node(name="a", addresses=("10.0.0.1",)), "b": Node(name="b", hostname="no.such")})
    with pytest.raises(SpecError, match=r"its hostname no\.such does not resolve on the coordinator") as caught:
        unresolved.peer("a", "b")
    assert "mend the hostname of b in the configuration" in caught.value.remedy
    for ask in (topology().peer, topology().left_out):
        with pytest.raises(SpecError, match="node b is not in the cluster"):
            ask("a", "b")


ADDRESSES = ["10.0.0.1", "10.0.0.2", "fd00::1", "FD00::1", "fd00:0::1", "::1", "fe80::1", "nonsense", "10.0.0.3"]
announced = st.dictionaries(
    st.sampled_from("abcd"), st.lists(st.sampled_from(ADDRESSES), max_size=4).map(tuple), min_size=2
)


@given(announced)
def test_a_rule_names_only_packets_of_that_one_peer(own: dict[str, tuple[str, ...]]) -> None:
    nodes = topology(**own)
    for acting in own:
        for name in own.keys() - {acting}:
            left = nodes.left_out(acting, name)
            try:
                usable = nodes.peer(acting, name).addresses
            except SpecError:
                usable = ()
            assert set(usable) | {canonical(item.address) for item in left} == set(map(canonical, own[name]))
            assert set(usable).isdisjoint(canonical(item.address) for item in left)
            for other in own.keys() - {name}:
                assert set(usable).isdisjoint(map(canonical, own[other]))


# --- pickers ----------------------------------------------------------------------------------------------------------

clusters = st.integers(0, 40).map(lambda size: [f"n{index}" for index in range(size)])
randoms = st.integers().map(Random)


@given(clusters, randoms)
def test_halves_differ_by_one_at_most(names: list[str], random: Random) -> None:
    small, large = halves(names, random)
    assert sorted(small + large) == sorted(names)
    assert 0 <= len(large) - len(small) <= 1


@given(clusters, randoms)
def test_minority_is_the_largest_group_under_half(names: list[str], random: Random) -> None:
    picked = minority(names, random)
    assert set(picked) <= set(names)
    assert len(set(picked)) == len(picked)
    if names:
        assert 2 * len(picked) < len(names) <= 2 * (len(picked) + 1)
    else:
        assert picked == ()


@given(clusters, randoms)
def test_in_a_ring_everybody_hears_a_majority_and_nobody_hears_all(names: list[str], random: Random) -> None:
    blocked = ring(names, random)
    assert set(blocked) == set(names)
    heard = {name: set(names) - set(blocked[name]) for name in names}
    for name in names:
        assert name in heard[name]
        assert 2 * len(heard[name]) > len(names)
        assert all(name in heard[other] for other in heard[name]), "who hears is heard"
        assert not set(blocked[name]) - set(names)
    if len(names) >= 4:
        assert all(blocked.values()), "a ring of four or more cuts something everywhere"
        assert len({frozenset(group) for group in heard.values()}) == len(names), "no two majorities are the same"
        assert max(map(len, heard.values())) <= len(names) // 2 + 2, "no more links than a majority needs"


def test_a_seed_decides_and_the_order_of_the_names_does_not() -> None:
    names = [f"n{index}" for index in range(9)]
    for pick in (halves, minority, ring):
        first = pick(names, Random(7))
        assert first == pick(list(reversed(names)), Random(7))
        assert any(pick(names, Random(seed)) != first for seed in range(20))
