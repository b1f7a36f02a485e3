"""Whether faults would silence a bus that runs on Kafka alone, for how long, and why. Pure.

What is known of Kafka (KRaft) here: brokers that reach the leader of the controllers, who has a majority, keep their
partitions, reachable or not; a broker that is down or does not reach that leader loses them to the others. A partition
takes writes while enough of its replicas can copy from its leader. A member of the bus needs every broker that keeps
partitions. Who leads is not known, so everyone who could must do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec

from trogdor_bus.actions import Action, ProcessMatch
from trogdor_bus.topology import canonical

FOR_EVER_MS = 2**62
"""The end of what is not undone."""
OTHER_DAEMONS = (
    "ConnectDistributed",
    "ConnectStandalone",
    "ConsoleConsumer",
    "ConsoleProducer",
    "MirrorMaker",
    "QuorumPeerMain",
    "SchemaRegistryMain",
)
"""Main classes that stand in no broker's command line: who names one does not mean a broker."""


class Spot(msgspec.Struct, frozen=True):
    """Where somebody stands: the nodes that it may be on (none: outside of all), and the addresses it speaks from."""

    nodes: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()


class Station(msgspec.Struct, frozen=True):
    """One broker of the bus: where it stands, the port where clients reach it, and whether it is up now."""

    spot: Spot
    port: int = 0
    up: bool = True


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """The bus: its brokers by id, its members (coordinator and agents) by what people call them, and its needs.

    `replicas`, `min_in_sync` and `quorum` as in `BusBrokers`.
    """

    stations: Mapping[int, Station]
    members: Mapping[str, Spot]
    replicas: tuple[tuple[int, ...], ...] = ()
    min_in_sync: int = 1
    quorum: tuple[int, ...] = ()


class Strike(msgspec.Struct, frozen=True, kw_only=True):
    """One action of a task on a node, from start to end; what is not undone ends at FOR_EVER_MS."""

    task: str
    node: str
    action: Action
    start_ms: int
    end_ms: int


class Silence(msgspec.Struct, frozen=True):
    """Somebody is without the bus for `ms` from `since_ms`; `why` is a clause for people.

    `company` are the running tasks without which the new one would be harmless.
    """

    ms: int
    why: str
    since_ms: int
    company: tuple[str, ...] = ()


def strikes(task: str, node: str, actions: Iterable[Action], start_ms: int, end_ms: int) -> tuple[Strike, ...]:
    """Return the actions of a node with their times."""
    return tuple(
        Strike(
            task=task,
            node=node,
            action=action,
            start_ms=start_ms,
            end_ms=FOR_EVER_MS if action.impact().lasts else end_ms,
        )
        for action in actions
    )


def silenced(scene: Scene, new: Sequence[Strike], running: Sequence[Strike], lease_ms: int) -> Silence | None:
    """Return the longest silence above the lease that the new strikes cause or lengthen; None if there is none.

    What the running ones do by themselves, or is so without any, is not held against the new.
    """
    if not new or not scene.stations:
        return None
    old, fresh = ([blow_of(scene, strike) for strike in some] for some in (running, new))
    scene = _explained(scene, old)
    before, after = _longest(scene, old), _longest(scene, [*old, *fresh])
    allowed_ms = {member: max(lease_ms, found.ms) for member, found in before.items()}
    allowed_ms |= dict.fromkeys(_quiet(Moment(scene, ())), FOR_EVER_MS)
    worse = {member: found for member, found in after.items() if found.ms > allowed_ms.get(member, lease_ms)}
    if not worse:
        return None
    worst = max(worse.values(), key=lambda found: found.ms)
    company: set[str] = set()
    if not any(found.ms > lease_ms for found in _longest(scene, fresh).values()):
        end_ms = worst.since_ms + worst.ms
        company = {one.task for one in running if one.start_ms < end_ms and one.end_ms > worst.since_ms}
    alike = [member for member, found in worse.items() if found == worst] if worst.why.startswith(" ") else ()
    return msgspec.structs.replace(worst, why=f"{listed(alike, 3)}{worst.why}", company=tuple(sorted(company)))


def told(found: Silence, lease_ms: int) -> str:
    """Return a silence that a fault makes as a sentence for people, without the remedy."""
    lasting = "for good" if found.ms == FOR_EVER_MS else f"for {found.ms / 1000:g} s"
    tasks = f"task{'s' * (len(found.company) > 1)} {listed(found.company, 3)}"
    company = f", together with {tasks}," if found.company else ""
    return (
        f"the bus runs on Kafka alone, and this fault{company} would silence it {lasting} "
        f"(the lease, after which agents undo everything, is {lease_ms / 1000:g} s): {found.why}"
    )


REMEDY = "run coordinator, agents and clients with `‹transport kind=kafka+zmq›`, or keep it shorter than the lease"
"""What to do about a fault that would silence the bus."""


def can_hit(match: ProcessMatch, port: int, neighbours: Container[int] = ()) -> bool:
    """Return whether a match may find the broker that listens on `port`; `neighbours` are all brokers' ports there."""
    if match.port:
        return match.port == port or match.port not in neighbours
    text = match.java or match.command
    return not any(name in text for name in OTHER_DAEMONS)


class Blow(msgspec.Struct, frozen=True, kw_only=True):
    """A strike as far as it matters here: whom its node no longer hears, which ports are shut, what it may hit."""

    task: str
    node: str
    start_ms: int
    end_ms: int
    deaf_to: frozenset[str] = frozenset()
    shut_in: frozenset[int] = frozenset()
    shut_out: frozenset[int] = frozenset()
    match: ProcessMatch | None = None


class Moment:
    """What is possible between brokers and members while some blows are in force; `lost` are brokers hit or down."""

    def __init__(self, scene: Scene, blows: Sequence[Blow]) -> None:
        self.scene = scene
        self._blows: dict[str, list[Blow]] = defaultdict(list)
        for blow in blows:
            self._blows[blow.node].append(blow)
        self.lost = {broker for broker in scene.stations if self._lost(broker)}

    def _lost(self, broker: int) -> bool:
        station = self.scene.stations[broker]
        neighbours = {one.port for one in self.scene.stations.values() if one.spot.nodes == station.spot.nodes}
        return not station.up or any(
            blow.match is not None and can_hit(blow.match, station.port, neighbours) for blow in self._at(station.spot)
        )

    def cut(self, one: Spot, other: Spot) -> bool:
        """Return whether no packet, or only packets one way, pass between two places."""
        return one != other and (self._is_deaf(one, other) or self._is_deaf(other, one))

    def reaches(self, who: Spot, broker: int) -> bool:
        """Return whether somebody can talk to a broker as its client."""
        station = self.scene.stations[broker]
        if broker in self.lost or self.cut(who, station.spot):
            return False
        if who.nodes and who.nodes == station.spot.nodes:
            return True  # over loopback, which no block of ports touches
        if any(station.port in blow.shut_in for blow in self._at(station.spot)):
            return False
        return not any(station.port in blow.shut_out for blow in self._at(who))

    def _is_deaf(self, one: Spot, other: Spot) -> bool:
        return any(
            not (blow.deaf_to.isdisjoint(other.addresses) and blow.deaf_to.isdisjoint(other.nodes))
            for blow in self._at(one)
        )

    def _at(self, spot: Spot) -> Iterator[Blow]:
        return (blow for node in spot.nodes for blow in self._blows.get(node, ()))


def blow_of(scene: Scene, strike: Strike) -> Blow:
    """Return a strike as far as it matters to the brokers of the scene."""
    impact = strike.action.impact()
    named = {canonical(address) for peer in impact.deaf_to for address in peer.addresses}
    named.update(peer.node for peer in impact.deaf_to)
    spots = [station.spot for station in scene.stations.values()]
    if not any(strike.node in spot.nodes for spot in spots):  # then only who is a broker counts
        named &= {one for spot in spots for one in (*spot.nodes, *spot.addresses)}
    return Blow(
        task=strike.task,
        node=strike.node,
        start_ms=strike.start_ms,
        end_ms=strike.end_ms,
        deaf_to=frozenset(named),
        shut_in=frozenset(impact.shut_in),
        shut_out=frozenset(impact.shut_out),
        match=impact.hits,
    )


def _longest(scene: Scene, blows: Sequence[Blow]) -> dict[str, Silence]:
    """Return the longest silence of each member that has one."""
    times = sorted({time for blow in blows for time in (blow.start_ms, blow.end_ms)})
    longest: dict[str, Silence] = {}
    since: dict[str, int] = {}
    for start_ms, end_ms in pairwise(times):
        active = [blow for blow in blows if blow.start_ms <= start_ms < blow.end_ms]
        quiet = _quiet(Moment(scene, active))
        for member in scene.members:
            if member not in quiet:
                since.pop(member, None)
                continue
            first_ms = since.setdefault(member, start_ms)
            ms = FOR_EVER_MS if end_ms == FOR_EVER_MS else end_ms - first_ms
            if member not in longest or ms > longest[member].ms:
                longest[member] = Silence(ms, quiet[member], first_ms)
    return longest


def _quiet(now: Moment) -> dict[str, str]:
    """Return who is without the bus, each with the reason; one that begins with a blank goes on from the member."""
    scene, quiet = now.scene, dict[str, str]()
    groups = _groups(now)
    for keeping in groups:
        if why := _too_few(now, keeping):
            return dict.fromkeys(scene.members, why)
        for member, spot in scene.members.items():
            missed = [broker for broker in sorted(keeping) if _leads(scene, broker) and not now.reaches(spot, broker)]
            if missed:
                quiet.setdefault(member, f" could not reach {_brokers(scene, missed)}")
    return quiet


def _groups(now: Moment) -> list[frozenset[int]]:
    """Return, for each controller that may lead, the brokers that keep their partitions under it.

    Without a leader nobody loses any: then all of them, dead or alive, must do.
    """
    stations = now.scene.stations
    controllers = {one: stations[one].spot if one in stations else Spot() for one in now.scene.quorum or stations}
    living = {one: spot for one, spot in controllers.items() if one not in now.lost}
    groups: dict[frozenset[int], None] = {}
    for leader, spot in living.items():
        votes = sum(one == leader or not now.cut(spot, other) for one, other in living.items())
        if 2 * votes > len(controllers):
            heard = (broker for broker in stations if broker == leader or not now.cut(spot, stations[broker].spot))
            groups[frozenset(heard) - now.lost] = None
    return list(groups) or [frozenset(stations)]


def _too_few(now: Moment, keeping: frozenset[int]) -> str:
    """Return "" or why those brokers cannot carry the bus for anybody."""
    scene = now.scene
    need = scene.min_in_sync
    needs = f"the bus needs {need} replica{'s' * (need > 1)} in sync"
    gone = sorted(set(scene.stations) - keeping | now.lost)
    if _fewest(scene, keeping - now.lost) < need:
        left = _brokers(scene, sorted(keeping - now.lost))
        rest = f"{left} {'is' if len(keeping - now.lost) == 1 else 'are'} too few" if left else "none would be left"
        return f"{_brokers(scene, gone)} would be gone, and {rest} ({needs})"
    if now.lost & keeping:
        return f"{_brokers(scene, gone)} would be gone, and the other brokers would be no majority"
    for leader in sorted(keeping):
        copying = {one for one in keeping if one == leader or now.reaches(scene.stations[one].spot, leader)}
        if _leads(scene, leader) and _fewest(scene, copying, leader) < need:
            cut = _brokers(scene, sorted(keeping - copying))
            return f"{cut} could not copy from {_brokers(scene, [leader])} ({needs})"
    return ""


def _fewest(scene: Scene, brokers: Iterable[int], leader: int | None = None) -> int:
    """Return how many of `brokers` the worst off replica set has, of those sets that hold `leader`, if given."""
    having = set(brokers)
    if scene.replicas:
        sets = [one for one in scene.replicas if leader is None or leader in one]
        return min(len(having.intersection(one)) for one in sets)
    size = min(3, len(scene.stations))
    missing = len(set(scene.stations) - having)
    return max(size - missing, int(leader in having))


def _leads(scene: Scene, broker: int) -> bool:
    return not scene.replicas or any(broker in one for one in scene.replicas)


def _explained(scene: Scene, running: Sequence[Blow]) -> Scene:
    """Return the scene with those brokers up that a running blow took away: they will be back when it ends."""
    now = Moment(msgspec.structs.replace(scene, stations={b: _up(s) for b, s in scene.stations.items()}), running)
    spots = [station.spot for station in scene.stations.values()]
    taken = {
        broker
        for broker, station in scene.stations.items()
        if broker in now.lost or any(now.cut(station.spot, spot) for spot in spots)
    }
    stations = {broker: _up(one) if broker in taken else one for broker, one in scene.stations.items()}
    return msgspec.structs.replace(scene, stations=stations)


def _up(station: Station) -> Station:
    return msgspec.structs.replace(station, up=True)


def _brokers(scene: Scene, brokers: Sequence[int]) -> str:
    """Return "broker 1 (node a)" or "brokers 1 and 2 (nodes a and b)"; "" for none."""
    if not brokers:
        return ""
    nodes = sorted({node for broker in brokers for node in scene.stations[broker].spot.nodes})
    where = f" (node{'s' * (len(nodes) > 1)} {listed(nodes)})" if nodes else ""
    return f"broker{'s' * (len(brokers) > 1)} {listed(list(map(str, brokers)))}{where}"


def listed(words: Sequence[str], limit: int = 10) -> str:
    """Return "a, b and c", at most `limit` of them by name; "" for none."""
    *most, last = (
        [*words[:limit], f"{len(words) - limit} more"] if len(words) > limit else (*words, "")[: len(words) or 1]
    )
    return f"{', '.join(most)} and {last}" if most else last
