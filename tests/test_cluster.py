"""What a view of a cluster says of itself."""

from __future__ import annotations

import pytest

from trogdor_bus.cluster import NOBODY, ClusterView, Move, SeenBroker, SeenPartition


@pytest.mark.parametrize(
    ("leader", "in_sync", "successors"),
    [(1, (3, 2, 1), (2, 3)), (2, (1, 2, 3), (3, 1)), (3, (2, 3), (2,)), (2, (2,), ()), (9, (1, 2, 9), (2,))],
)
def test_the_next_replica_in_sync_follows(leader: int, in_sync: tuple[int, ...], successors: tuple[int, ...]) -> None:
    seen = SeenPartition(topic="t", number=0, leader=leader, replicas=(1, 2, 3), in_sync=in_sync)
    assert seen.successors == successors


def test_who_is_to_lead_is_put_first() -> None:
    assert Move(topic="t", partition=0, found=(1, 2, 3), leader=NOBODY, to=3).order == (3, 1, 2)


def test_the_brokers_that_say_where_they_listen_are_the_bootstrap() -> None:
    brokers = (SeenBroker(id=3, host="c", port=9), SeenBroker(id=2), SeenBroker(id=1, host="fd00::1", port=9092))
    assert ClusterView(brokers={one.id: one for one in brokers}).bootstrap == "[fd00::1]:9092,c:9"
    assert ClusterView().bootstrap == ""
