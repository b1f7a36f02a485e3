"""What was seen of a cluster over time: who led, who was in sync, who was there. Pure; times are epoch ms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from trogdor_bus.cluster import NOBODY, ClusterView, SeenPartition
from trogdor_bus.experiment.result import UNKNOWN, LeaderChange

QUORUM = -1
"""Stands for a partition in the changes of who leads the controllers."""


class Moment(NamedTuple):
    """A partition as it was seen from that time on."""

    at_ms: int
    seen: SeenPartition


class Led(NamedTuple):
    """Who led the controllers from that time on, NOBODY for none, and in which epoch."""

    at_ms: int
    leader: int
    epoch: int


class Present(NamedTuple):
    """The brokers that were there from that time on."""

    at_ms: int
    ids: frozenset[int]


class History:
    """The changes, as views tell them in any number. `topic` is the one whose leaders are told as changes."""

    def __init__(self, topic: str = "") -> None:
        self.topic = topic
        self.changes: list[LeaderChange] = []
        self.partitions: dict[tuple[str, int], list[Moment]] = {}
        self.brokers: list[Present] = []
        self.quorum: list[Led] = []

    def see(self, view: ClusterView) -> None:
        """Take in a view of brokers and partitions; what is older than what is known is passed over."""
        ids = frozenset(view.brokers)
        if not self.brokers or self.brokers[-1].ids != ids:
            self.brokers.append(Present(view.at_ms, ids))
        for one in view.partitions:
            self._see_partition(view.at_ms, one)

    def see_quorum(self, view: ClusterView) -> None:
        """Take in who leads the controllers; without a quorum (ZooKeeper) who is the controller."""
        leader, epoch = view.controller, UNKNOWN
        if view.quorum is not None:
            leader, epoch = view.quorum.leader, view.quorum.epoch
        last = self.quorum[-1] if self.quorum else None
        if last is not None and (leader, epoch) == last[1:]:
            return
        known = next((led for led in reversed(self.quorum) if led.leader != NOBODY), None)
        self.quorum.append(Led(view.at_ms, leader, epoch))
        if known is not None and leader != NOBODY and (leader, epoch) != known[1:]:
            change = LeaderChange(at_ms=view.at_ms, partition=QUORUM, before=known.leader, after=leader, epoch=epoch)
            self.changes.append(change)

    def at(self, topic: str, number: int, at_ms: int) -> SeenPartition | None:
        """Return a partition as it was last seen up to that time, None if it was not yet."""
        moments = self.partitions.get((topic, number), [])
        return next((moment.seen for moment in reversed(moments) if moment.at_ms <= at_ms), None)

    def quorum_at(self, at_ms: int) -> Led | None:
        """Return who was last seen up to that time to lead the controllers."""
        return next((led for led in reversed(self.quorum) if led.at_ms <= at_ms), None)

    def later(self, topic: str, number: int, after_ms: int) -> Iterator[Moment]:
        """Yield how a partition was seen after that time."""
        return (moment for moment in self.partitions.get((topic, number), []) if moment.at_ms > after_ms)

    def led_by(self, broker: int, at_ms: int) -> list[SeenPartition]:
        """Return the partitions that a broker led at that time."""
        found = (self.at(topic, number, at_ms) for topic, number in sorted(self.partitions))
        return [one for one in found if one is not None and one.leader == broker]

    def was_missing(self, broker: int, since_ms: int) -> int:
        """Return when a broker was first seen to be missing after that time, UNKNOWN if never."""
        return next((one.at_ms for one in self.brokers if one.at_ms > since_ms and broker not in one.ids), UNKNOWN)

    def _see_partition(self, at_ms: int, one: SeenPartition) -> None:
        moments = self.partitions.setdefault((one.topic, one.number), [])
        last = moments[-1].seen if moments else None
        if last is not None and (one == last or UNKNOWN < one.epoch < last.epoch):
            return
        known = next((moment.seen for moment in reversed(moments) if moment.seen.leader != NOBODY), None)
        moments.append(Moment(at_ms, one))
        if known is None or one.topic != self.topic or one.leader == NOBODY:
            return
        if (one.leader, one.epoch) != (known.leader, known.epoch):
            change = LeaderChange(
                at_ms=at_ms, partition=one.number, before=known.leader, after=one.leader, epoch=one.epoch
            )
            self.changes.append(change)
