"""Which node is which broker: configuration over announcement over address, and no guess where two could be meant."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trogdor_bus.bus import BusBroker
from trogdor_bus.coordinator.brokers import Seat, broker_map, candidates
from trogdor_bus.errors import SpecError


def broker(number: int, *addresses: str, host: str = "", port: int = 9092) -> BusBroker:
    return BusBroker(id=number, host=host or f"kafka{number}", port=port, addresses=addresses)


def test_configuration_then_announcement_then_address() -> None:
    nodes = {
        "a": Seat(configured=1, addresses=("10.0.0.9",)),
        "b": Seat(announced=2),
        "c": Seat(addresses=("10.0.0.3", "fd00:0::3")),
        "d": Seat(hostname="Kafka4"),
        "e": Seat(addresses=("10.0.0.5",)),
    }
    brokers = (
        broker(1, "10.0.0.1"),
        broker(2, "10.0.0.9"),
        broker(3, "fd00::3"),
        broker(4),
        broker(6, "10.0.0.6"),
    )
    assert broker_map(nodes, brokers) == {1: "a", 2: "b", 3: "c", 4: "d"}


def test_a_claim_stands_while_the_broker_is_down() -> None:
    assert broker_map({"a": Seat(configured=7)}, ()) == {7: "a"}


@pytest.mark.parametrize(
    ("nodes", "brokers", "text"),
    [
        (
            {"a": Seat(configured=1), "b": Seat(announced=1)},
            (),
            "nodes: nodes a and b both claim to be broker 1 (give each of these nodes its own `broker: ID` in the "
            "configuration)",
        ),
        (
            {"a": Seat(configured=1, announced=2)},
            (),
            "nodes.a.broker: node a is broker 1 by configuration, and its agent announces broker 2 (correct the "
            "configuration, or what the agent is attached to)",
        ),
        (
            {"a": Seat(addresses=("10.0.0.1",)), "b": Seat(addresses=("10.0.0.1", "10.0.0.2"))},
            (broker(1, "10.0.0.1"),),
            "nodes: nodes a and b both have the address of broker 1 (kafka1:9092) (give each of these nodes its own "
            "`broker: ID` in the configuration)",
        ),
        (
            {"a": Seat(addresses=("10.0.0.1",))},
            (broker(2, "10.0.0.1", host="h", port=9093), broker(1, "10.0.0.1", host="h")),
            "nodes: node a has the address of both broker 1 (h:9092) and broker 2 (h:9093) (give the one that is meant "
            "as `broker: ID` of a in the configuration)",
        ),
    ],
)
def test_what_is_ambiguous_names_both_and_the_remedy(
    nodes: Mapping[str, Seat], brokers: tuple[BusBroker, ...], text: str
) -> None:
    with pytest.raises(SpecError) as caught:
        broker_map(nodes, brokers)
    assert str(caught.value) == text


def test_the_remedy_helps() -> None:
    both = (broker(1, "10.0.0.1"), broker(2, "10.0.0.1", port=9093))
    assert broker_map({"a": Seat(configured=2, addresses=("10.0.0.1",))}, both) == {2: "a"}
    shared = {"a": Seat(configured=1, addresses=("10.0.0.1",)), "b": Seat(configured=2, addresses=("10.0.0.1",))}
    assert broker_map(shared, both) == {1: "a", 2: "b"}


ids = st.integers(1, 4)
addresses = st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]), max_size=2).map(tuple)
seats = st.builds(
    Seat,
    configured=st.none() | ids,
    announced=st.none() | ids,
    hostname=st.sampled_from(["", "h1"]),
    addresses=addresses,
)
fleets = st.dictionaries(st.sampled_from("abcd"), seats, max_size=4)
clusters = st.lists(
    st.builds(BusBroker, id=ids, host=st.sampled_from(["h1", "h2"]), port=st.just(9092), addresses=addresses),
    max_size=4,
    unique_by=lambda one: one.id,
)


@given(nodes=fleets, brokers=clusters, seed=st.randoms())
def test_a_map_is_one_to_one_needs_no_order_and_has_what_it_can(
    nodes: dict[str, Seat], brokers: list[BusBroker], seed: object
) -> None:
    try:
        found = broker_map(nodes, brokers)
    except SpecError as error:
        named = [name for name in nodes if name in error.message]
        assert named and (error.remedy or error.path)
        return
    assert len(set(found.values())) == len(found)
    assert list(found) == sorted(found)
    assert broker_map(dict(reversed(nodes.items())), brokers[::-1]) == found
    for name, seat in nodes.items():
        assert seat.claim is None or found[seat.claim] == name
    for one in brokers:
        assert candidates(nodes, one) == ((found[one.id],) if one.id in found else ())
