"""Whether a cluster is whole, and what its settings say about how long things take. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from trogdor_bus.cluster import NOBODY, ClusterView, Quorum

BEHIND_MS = 5_000
"""A controller that was up to date so long ago is not there."""
SESSION = "broker.session.timeout.ms"
TIMEOUTS = (
    SESSION,
    "broker.heartbeat.interval.ms",
    "replica.lag.time.max.ms",
    "controller.quorum.election.timeout.ms",
    "controller.quorum.fetch.timeout.ms",
    "zookeeper.session.timeout.ms",
)
"""The settings that say how long the cluster takes to notice something."""
_TOLD = 5


def lacking(view: ClusterView, brokers: Mapping[int, str], *, only: Collection[str] | None = None) -> list[str]:
    """Return what is not whole, a text each, [] if all is: brokers that should be there, replicas, the quorum.

    `brokers` are the nodes of those that should be there, by id. `only`: no other topics count, nor do brokers.
    """
    found: list[str] = []
    if only is None:
        found += [
            f"broker {one} (node {node}) is not there" for one, node in brokers.items() if one not in view.brokers
        ]
        found += _quorum(view.quorum)
        if view.quorum is None and view.controller == NOBODY:
            found.append("no broker is the controller")
    broken = [one for one in view.broken() if only is None or one.topic in only]
    for one in broken[:_TOLD]:
        leader = "no leader" if one.leader == NOBODY else f"leader {one.leader}"
        in_sync, replicas = sorted(one.in_sync), sorted(one.replicas)
        found.append(f"{one.name} has {leader}, and in sync are {in_sync} of {replicas}")
    if len(broken) > _TOLD:
        found.append(f"{len(broken) - _TOLD} more partitions are not whole")
    return found


def timeouts(settings: Mapping[str, str]) -> dict[str, int]:
    """Return those settings of a broker that say how long things take, in ms."""
    return {name: int(settings[name]) for name in TIMEOUTS if settings.get(name, "").isdecimal()}


def _quorum(quorum: Quorum | None) -> Iterator[str]:
    if quorum is None:
        return
    if quorum.leader == NOBODY:
        yield "no controller is active"
        return
    others = [one for one in quorum.voters if one.id != quorum.leader]
    if all(one.behind_ms < 0 for one in others):
        return  # the cluster does not tell
    for one in others:
        if not 0 <= one.behind_ms <= BEHIND_MS:
            since = "was never up to date" if one.behind_ms < 0 else f"is {one.behind_ms} ms behind"
            yield f"controller {one.id} {since}"
