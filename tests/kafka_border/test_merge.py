"""One view of what several brokers see: the newest counts, whoever is asked first, and nothing is invented."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trogdor_bus.cluster import NOBODY, ClusterView, Quorum, SeenBroker, SeenController, SeenPartition
from trogdor_bus.errors import HostError
from trogdor_bus.kafka.merge import best_informed, merge, newest, with_min_in_sync

NUMBERS = st.integers(1, 5)
PARTITIONS = st.builds(
    SeenPartition,
    topic=st.sampled_from(["a", "b"]),
    number=st.integers(0, 2),
    leader=st.integers(-1, 5),
    epoch=st.integers(-1, 9),
    replicas=st.lists(NUMBERS, unique=True).map(tuple),
    in_sync=st.lists(NUMBERS, unique=True).map(tuple),
)
BROKERS = st.sets(NUMBERS).map(
    lambda found: {number: SeenBroker(id=number, host=f"b{number}", port=9092) for number in found}
)
VIEWS = st.lists(
    st.builds(
        ClusterView,
        cluster_id=st.sampled_from(["", "c1"]),
        brokers=BROKERS,
        partitions=st.lists(PARTITIONS, unique_by=lambda one: (one.topic, one.number)).map(tuple),
        controller=st.integers(-1, 3),
    ),
    min_size=1,
    max_size=5,
)
QUORUMS = st.lists(
    st.builds(
        Quorum,
        leader=st.integers(-1, 3),
        epoch=st.integers(0, 5),
        voters=st.lists(NUMBERS, unique=True).map(lambda ids: tuple(SeenController(id=number) for number in ids)),
    )
)


@given(views=VIEWS, data=st.data())
def test_the_newest_counts_in_whatever_order_brokers_answer(views: list[ClusterView], data: st.DataObject) -> None:
    merged = merge(views)
    assert merge(data.draw(st.permutations(views))) == merged
    assert merge([merged]) == merged
    told = [one for view in views for one in view.partitions]
    assert {(one.topic, one.number) for one in merged.partitions} == {(one.topic, one.number) for one in told}
    for one in merged.partitions:
        assert one in told
        rivals = [other for other in told if (other.topic, other.number) == (one.topic, one.number)]
        assert one.epoch == max(other.epoch for other in rivals)
    for number in range(1, 6):
        votes = sum(number in view.brokers for view in views)
        assert (number in merged.brokers) == (votes > len(views) / 2)
    assert merged.controller in {view.controller for view in views} | {NOBODY}
    assert sorted(best_informed(views)) == list(range(len(views)))


@given(quorums=QUORUMS, data=st.data())
def test_the_quorum_of_the_highest_epoch_counts(quorums: list[Quorum], data: st.DataObject) -> None:
    found = newest(quorums)
    assert newest(data.draw(st.permutations(quorums))) == found
    if found is None:
        assert not quorums
        return
    assert found in quorums
    assert found.epoch == max(one.epoch for one in quorums)
    assert found.leader != NOBODY or all(one.leader == NOBODY for one in quorums if one.epoch == found.epoch)


def test_a_frozen_broker_is_outvoted() -> None:
    brokers = {number: SeenBroker(id=number) for number in (1, 2, 3)}
    stale = ClusterView(brokers=brokers, partitions=(seen(1, 5, 1, 2, 3),))
    fresh = ClusterView(brokers={2: brokers[2], 3: brokers[3]}, partitions=(seen(2, 6, 2, 3),))
    merged = merge([stale, fresh, fresh])
    assert merged.partitions == (seen(2, 6, 2, 3),)
    assert set(merged.brokers) == {2, 3}
    assert best_informed([stale, fresh]) == [1, 0]


def test_in_one_epoch_a_leader_is_believed_and_the_fewest_in_sync() -> None:
    more, fewer, leaderless = seen(1, 5, 1, 2, 3), seen(1, 5, 1, 2), seen(NOBODY, 5, 1)
    assert merge([ClusterView(partitions=(one,)) for one in (leaderless, more, fewer)]).partitions == (fewer,)


def test_brokers_of_two_clusters_are_refused() -> None:
    with pytest.raises(HostError, match="different clusters, c1 and c2"):
        merge([ClusterView(cluster_id="c1"), ClusterView(cluster_id="c2")])


def test_min_in_sync_is_of_the_topic() -> None:
    view = ClusterView(partitions=(seen(1, 5, 1), SeenPartition(topic="other", number=0, leader=1)))
    assert [one.min_in_sync for one in with_min_in_sync(view, {"t": 2}).partitions] == [2, 1]


def seen(leader: int, epoch: int, *in_sync: int) -> SeenPartition:
    return SeenPartition(topic="t", number=0, leader=leader, epoch=epoch, replicas=(1, 2, 3), in_sync=in_sync)
