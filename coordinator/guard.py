"""What faults would take from the data and the quorum of the cluster under test, and which rules that breaks. Pure.

A broker is gone if its process is hit, or if it is cut from the active controller, or from whoever may take over: the
others keep its partitions. A replica stays in sync while its broker can copy from the leader. Where ZooKeeper keeps the
cluster, any node without a broker may be ZooKeeper.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import get_args

import msgspec

from trogdor_bus.cluster import ClusterView, SeenPartition
from trogdor_bus.coordinator.silence import Moment, Scene, Spot, Station, Strike, blow_of, listed
from trogdor_bus.errors import RefusedError, SpecError
from trogdor_bus.faults.experiment import Rule
from trogdor_bus.remedies import Remedy
from trogdor_bus.roles import Chosen, Places

RULES: tuple[str, ...] = get_args(Rule)
"""The rules that may be allowed to be broken."""
MAX_NAMED = 5
DEAD_BEHIND_MS = 10_000
"""A controller that had not caught up for so long counts as gone: living ones do so several times a second."""


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """What faults would take: `lines` for a dry run, and the rules that are broken, each with a sentence."""

    lines: tuple[str, ...] = ()
    broken: Mapping[str, str] = {}


def check_allowed(names: Iterable[str]) -> None:
    """Raise SpecError for a name that is no rule."""
    for name in names:
        if name not in RULES:
            raise SpecError(f"there is no rule {name!r}", path="$.allow", remedy=f"the rules are {', '.join(RULES)}")


def permit(loss: Loss, allow: Collection[str]) -> tuple[str, ...]:
    """Return the sentences of the broken rules, if all of them are allowed; RefusedError says what else would."""
    refused = [name for name in loss.broken if name not in allow]
    if refused:
        said = "; ".join(loss.broken[name] for name in refused)
        remedy = " ".join(str(Remedy("allow", {"rule": name})) for name in refused)
        raise RefusedError(f"the cluster would lose too much: {said}; `{remedy}` allows it")
    return tuple(loss.broken.values())


def weigh(
    view: ClusterView,
    places: Places,
    new: Sequence[Strike],
    running: Sequence[Strike],
    *,
    named: Collection[Chosen] = (),
    own_topics: Collection[str] = (),
) -> Loss:
    """Return what the new strikes take beside what the running ones take already.

    `named` are those whom the spec chose, `own_topics` those whose loss breaks no rule.
    """
    before, after = (_State(view, places, strikes) for strikes in (running, [*running, *new]))
    thinned = [(one, before.left(one), after.left(one)) for one in view.partitions]
    thinned = [(one, had, left) for one, had, left in thinned if len(left) < len(had)]
    return Loss(
        lines=(*_gone(before, after, named), *_thinned(thinned)),
        broken={
            rule: f"{rule}: {said}"
            for rule, said in (
                ("below-min-isr", _below(before, after, [one for one in thinned if one[0].topic not in own_topics])),
                ("no-quorum", _no_quorum(before, after)),
                ("under-replicated", _not_whole(one for one in view.broken() if one.topic not in own_topics)),
            )
            if said
        },
    )


class _State:
    """Who is gone and who copies from whom while some strikes are in force."""

    def __init__(self, view: ClusterView, places: Places, strikes: Sequence[Strike]) -> None:
        self.view, self.places = view, places
        self.voters = {one.id: one for one in view.quorum.voters} if view.quorum else {}
        stations = {one.id: self._station(places.controllers, one.id, one.port) for one in self.voters.values()}
        stations |= {  # of a broker that is a controller as well, one process with two ports, this one counts
            one.id: self._station(places.brokers, one.id, one.inside_port or one.port) for one in view.brokers.values()
        }
        scene = Scene(stations=stations, members={})
        self._moment = Moment(scene, [blow_of(scene, strike) for strike in strikes])
        self._zookeeper = [] if view.quorum else self._others(strikes)
        dead = {one.id for one in self.voters.values() if one.behind_ms > DEAD_BEHIND_MS}
        self._leaders = self._who_may_lead(dead)
        self.has_quorum = not self.voters or bool(self._leaders)
        self.controllers = self.voters.keys() - dead - self._moment.lost
        if self._leaders:
            self.controllers = {one for one in self.controllers if any(self._hear(one, it) for it in self._leaders)}
        self._keeping = [self._kept_by(leader) for leader in self._leaders] or [self._kept_by(None)]
        self.brokers = frozenset.intersection(*self._keeping)

    def left(self, partition: SeenPartition) -> frozenset[int]:
        """Return the replicas that stay in sync, in the worst case."""
        found = []
        for keeping in self._keeping:
            alive = keeping.intersection(partition.in_sync)
            leaders = {partition.leader} & alive or alive
            found += [
                frozenset(one for one in alive if one == leader or self._copies(one, leader)) for leader in leaders
            ]
        return min(found, key=lambda one: (len(one), sorted(one)), default=frozenset())

    def _copies(self, one: int, leader: int) -> bool:
        return self._moment.reaches(self._spot(one), leader)

    def _who_may_lead(self, dead: Collection[int]) -> list[int]:
        """Return the active controller if it stays, else those who may follow it; none without a majority."""
        living = [one for one in self.voters if one not in dead and one not in self._moment.lost]
        found = [one for one in living if 2 * sum(self._hear(one, other) for other in living) > len(self.voters)]
        active = self.view.quorum.leader if self.view.quorum else None
        return [active] if active is not None and active in found else found

    def _kept_by(self, leader: int | None) -> frozenset[int]:
        alive = [one for one in self.view.brokers if one not in self._moment.lost]
        if leader is not None:
            return frozenset(one for one in alive if self._hear(one, leader))
        return frozenset(
            one for one in alive if not any(self._moment.cut(self._spot(one), spot) for spot in self._zookeeper)
        )

    def _hear(self, one: int, other: int) -> bool:
        return one == other or not self._moment.cut(self._spot(one), self._spot(other))

    def _spot(self, number: int) -> Spot:
        return self._moment.scene.stations[number].spot

    def _station(self, places: Mapping[int, str], number: int, port: int) -> Station:
        return Station(Spot(frozenset({places[number]} if number in places else ())), port)

    def _others(self, strikes: Iterable[Strike]) -> list[Spot]:
        """Return the nodes in the strikes that have no broker."""
        nodes: set[str] = set()
        for strike in strikes:
            if peers := strike.action.impact().deaf_to:
                nodes |= {strike.node, *(peer.node for peer in peers)}
        return [Spot(frozenset({node})) for node in sorted(nodes.difference(self.places.brokers.values()))]


_Thinned = tuple[SeenPartition, frozenset[int], frozenset[int]]
"""A partition, its replicas in sync now, and those that would be left."""


def _gone(before: _State, after: _State, named: Collection[Chosen]) -> Iterable[str]:
    """Yield who would be gone, and what else the same process is."""
    brokers, controllers = before.brokers - after.brokers, set(before.controllers) - set(after.controllers)
    chosen = {(one.kind, one.id) for one in named}
    for number in sorted(brokers | controllers):
        kinds = ["broker"] * (number in brokers) + ["controller"] * (number in controllers)
        if ("controller", number) in chosen and ("broker", number) not in chosen:
            kinds.reverse()
        nodes = before.places.brokers if kinds[0] == "broker" else before.places.controllers
        first, *also = (_called(kind, number, after.view) for kind in kinds)
        takes = f", which also takes {also[0]}" if also else ""
        yield f"{first} on node {nodes.get(number, '?')} would be gone{takes}"


def _called(kind: str, number: int, view: ClusterView) -> str:
    active = kind == "controller" and view.controller == number
    return f"{kind} {number}{' (the active one)' if active else ''}"


def _thinned(thinned: Sequence[_Thinned]) -> Iterable[str]:
    """Yield which partitions would lose which replicas."""
    by_loss: dict[tuple[int, ...], list[SeenPartition]] = {}
    for partition, had, left in thinned:
        by_loss.setdefault(tuple(sorted(had - left)), []).append(partition)
    for brokers, partitions in sorted(by_loss.items()):
        led = sum(one.leader in brokers for one in partitions)
        leaders = f", and {led} of them their leader" if led else ""
        yield (
            f"{_counted(len(partitions))} would lose the replica on {_all('broker', brokers)}{leaders}: "
            f"{_some(one.name for one in partitions)}"
        )


def _below(before: _State, after: _State, thinned: Sequence[_Thinned]) -> str:
    below = [(one, left) for one, _, left in thinned if len(left) < one.min_in_sync]
    if not below:
        return ""
    gone = sorted(before.brokers - after.brokers)
    because = f"{_all('broker', gone)} would be gone, and " if gone else ""
    names = _some(f"{one.name} ({len(left)} of {one.min_in_sync})" for one, left in below)
    return f"{because}{_counted(len(below))} would keep fewer replicas in sync than min.insync.replicas: {names}"


def _no_quorum(before: _State, after: _State) -> str:
    if after.has_quorum or not before.has_quorum:
        return ""
    gone = sorted(set(before.controllers) - set(after.controllers))
    because = f"{_all('controller', gone)} would be gone" if gone else "the controllers would not hear each other"
    return f"{because}, and no majority of {len(after.voters)} would be left"


def _not_whole(partitions: Iterable[SeenPartition]) -> str:
    broken = list(partitions)
    if not broken:
        return ""
    names = _some(f"{one.name} ({len(one.in_sync)} of {len(one.replicas)})" for one in broken)
    return f"{_counted(len(broken))} {'is' if len(broken) == 1 else 'are'} not in sync already: {names}"


def _counted(number: int) -> str:
    return f"{number} partition{'s' * (number != 1)}"


def _all(kind: str, numbers: Sequence[int]) -> str:
    return f"{kind}{'s' * (len(numbers) > 1)} {listed(list(map(str, numbers)))}"


def _some(names: Iterable[str]) -> str:
    return listed(sorted(names), MAX_NAMED)
