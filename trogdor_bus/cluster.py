"""A Kafka cluster as it was seen at one moment: brokers, partitions, quorum of controllers, coordinators. Data only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

NOBODY = -1
"""The id that stands for no broker."""


class SeenBroker(msgspec.Struct, frozen=True, kw_only=True):
    """A broker that is registered and not fenced, as it advertises itself to who asks.

    `inside_port` is where it listens for other brokers, `client_ports` where for clients only: the ports on its own
    node, which may be advertised as others. They are 0 and none if that was not asked, or it does not tell.
    """

    id: int
    host: str = ""
    port: int = 0
    rack: str = ""
    inside_port: int = 0
    client_ports: tuple[int, ...] = ()


class SeenPartition(msgspec.Struct, frozen=True, kw_only=True):
    """One partition. `leader` is NOBODY if it has none; `epoch` is its leader epoch, -1 if unknown.

    `min_in_sync` is the effective min.insync.replicas of its topic.
    """

    topic: str
    number: int
    leader: int
    epoch: int = -1
    replicas: tuple[int, ...] = ()
    in_sync: tuple[int, ...] = ()
    min_in_sync: int = 1

    @property
    def name(self) -> str:
        """Return TOPIC-NUMBER, as Kafka's tools write it."""
        return f"{self.topic}-{self.number}"

    @property
    def successors(self) -> tuple[int, ...]:
        """Return the replicas in sync that could lead in the leader's place, the next one first."""
        at = self.replicas.index(self.leader) if self.leader in self.replicas else 0
        others = (*self.replicas[at + 1 :], *self.replicas[:at])
        return tuple(one for one in others if one in self.in_sync)

    def unfit(self, to: int) -> str:
        """Return why a broker cannot lead in the leader's place, "" if it can."""
        if to in self.successors:
            return ""
        return "leads it already" if to == self.leader else "is no replica in sync"

    @property
    def is_whole(self) -> bool:
        """Return whether it has a leader and every replica is in sync (whatever their order)."""
        return self.leader != NOBODY and set(self.in_sync) == set(self.replicas)


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be moved, as it was found: the order of its replicas, its leader, and who is to lead."""

    topic: str
    partition: int
    found: tuple[int, ...]
    leader: int
    to: int

    @property
    def order(self) -> tuple[int, ...]:
        """Return the replicas with the one first that is to lead."""
        return (self.to, *(one for one in self.found if one != self.to))


class SeenController(msgspec.Struct, frozen=True, kw_only=True):
    """A controller of a KRaft quorum, and where it listens ("" and 0 if the cluster does not tell: before Kafka 3.9).

    `behind_ms` is how long ago it had caught up with the active one, 0 for that one itself, -1 if unknown.
    """

    id: int
    host: str = ""
    port: int = 0
    behind_ms: int = -1


class Quorum(msgspec.Struct, frozen=True, kw_only=True):
    """The controllers of a KRaft cluster; `leader` is the active one (NOBODY if there is none now), of that epoch."""

    leader: int
    epoch: int
    voters: tuple[SeenController, ...] = ()


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was seen. Times are epoch ms on the reader's clock.

    `quorum` is None where ZooKeeper keeps the metadata; `controller` is then the active controller's broker id, else
    `quorum.leader`. `coordinators` are broker ids by "group:NAME" and "transaction:ID", of those asked for.
    """

    at_ms: int = 0
    cluster_id: str = ""
    brokers: Mapping[int, SeenBroker] = {}
    partitions: tuple[SeenPartition, ...] = ()
    quorum: Quorum | None = None
    controller: int = NOBODY
    coordinators: Mapping[str, int] = {}

    @property
    def bootstrap(self) -> str:
        """Return HOST:PORT,... of the brokers, as they advertise themselves; "" if none does."""
        found = (self.brokers[number] for number in sorted(self.brokers))
        return ",".join(
            f"[{one.host}]:{one.port}" if ":" in one.host else f"{one.host}:{one.port}" for one in found if one.host
        )

    def partition(self, topic: str, number: int) -> SeenPartition | None:
        """Return one partition, None if there is none of that name."""
        return next((one for one in self.partitions if one.topic == topic and one.number == number), None)

    def broken(self) -> Iterator[SeenPartition]:
        """Yield the partitions that are not whole."""
        return (one for one in self.partitions if not one.is_whole)
