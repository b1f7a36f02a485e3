"""What several brokers see, made one view: some of them may be frozen or cut off, and know only how it was. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from trogdor_bus.cluster import NOBODY, ClusterView, Quorum, SeenPartition
from trogdor_bus.errors import HostError


def merge(views: Sequence[ClusterView]) -> ClusterView:
    """Return one view of at least one, the same in whatever order; HostError if they are of different clusters.

    A partition is there if anybody sees it; the highest leader epoch counts, and in the same epoch who sees the fewest
    in sync. A broker is there if more than half of those asked say so.
    """
    ids = {view.cluster_id for view in views if view.cluster_id}
    if len(ids) > 1:
        raise HostError(f"the brokers are of different clusters, {' and '.join(sorted(ids))}: name those of one")
    best: dict[tuple[str, int], SeenPartition] = {}
    for partition in (one for view in views for one in view.partitions):
        key = partition.topic, partition.number
        best[key] = max(best.get(key, partition), partition, key=_news)
    votes = Counter(number for view in views for number in view.brokers)
    brokers = {
        number: max((view.brokers[number] for view in views if number in view.brokers), key=str)
        for number in sorted(votes)
        if votes[number] * 2 > len(views)
    }
    return ClusterView(
        cluster_id=ids.pop() if ids else "",
        brokers=brokers,
        partitions=tuple(best[key] for key in sorted(best)),
        controller=_commonest(view.controller for view in views if view.controller != NOBODY),
    )


def newest(quorums: Iterable[Quorum]) -> Quorum | None:
    """Return the quorum of the highest epoch, in the same one that which tells more; None if there are none."""
    return max(quorums, key=_tells, default=None)


def with_min_in_sync(view: ClusterView, by_topic: dict[str, int]) -> ClusterView:
    """Return the view with the effective min.insync.replicas of its topics; one that is not named keeps 1."""
    partitions = (replace(one, min_in_sync=by_topic.get(one.topic, one.min_in_sync)) for one in view.partitions)
    return replace(view, partitions=tuple(partitions))


def with_ports(view: ClusterView, by_broker: Mapping[int, tuple[int, tuple[int, ...]]]) -> ClusterView:
    """Return the view with the ports, for brokers and for clients only, of the brokers that are named."""
    told = {number: by_broker[number] for number in by_broker if number in view.brokers}
    ports = {
        number: replace(view.brokers[number], inside_port=inside, client_ports=clients)
        for number, (inside, clients) in told.items()
    }
    return replace(view, brokers={**view.brokers, **ports})


def best_informed(views: Sequence[ClusterView]) -> list[int]:
    """Return the positions of the views, first of who knows the highest leader epochs."""
    return sorted(range(len(views)), key=lambda at: -sum(one.epoch for one in views[at].partitions))


def _news(partition: SeenPartition) -> tuple[int, int, int, tuple[int, ...], tuple[int, ...]]:
    return partition.epoch, partition.leader, -len(partition.in_sync), partition.in_sync, partition.replicas


def _tells(quorum: Quorum) -> tuple[int, bool, int, int, str]:
    endpoints = sum(1 for voter in quorum.voters if voter.host)
    return quorum.epoch, quorum.leader != NOBODY, endpoints, len(quorum.voters), str(quorum)


def _commonest(controllers: Iterable[int]) -> int:
    counted = Counter(controllers)
    return max(counted, key=lambda number: (counted[number], -number), default=NOBODY)
