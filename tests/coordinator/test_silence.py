"""What silences a bus on Kafka: every small cluster, against a plain reading of the rule, and the words for people."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trogdor_bus.actions import Action, Peer, ProcessMatch
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.actions.process import Kill, Restart, Suspend
from trogdor_bus.coordinator.silence import FOR_EVER_MS, Scene, Silence, Spot, Station, Strike, silenced, strikes, told

LEASE_MS = 30_000
BROKER = ProcessMatch(java="kafka.Kafka")
OUTSIDE = Spot()


def address(node: str) -> str:
    return f"10.0.0.{ord(node[0]) - ord('a') + 1}"


def spot(node: str) -> Spot:
    return Spot(frozenset({node}), frozenset({address(node)}))


def scene(
    brokers: int = 3, *, replication: int = 3, min_in_sync: int = 2, down: Iterable[int] = (), **more: Any
) -> Scene:
    """Return brokers 1, 2, ... on nodes a, b, ...; coordinator and agents stand outside unless told otherwise."""
    names = "abcdefgh"[:brokers]
    ids = range(1, brokers + 1)
    given: dict[str, Any] = {
        "stations": {i: Station(spot(name), 9092, up=i not in down) for i, name in zip(ids, names, strict=True)},
        "members": {"the coordinator": OUTSIDE, **{f"the agent of node {name}": OUTSIDE for name in names}},
        "replicas": tuple(itertools.combinations(ids, min(replication, brokers))),
        "min_in_sync": min_in_sync,
    }
    return Scene(**(given | more))


def on(node: str, action: Action, ms: int = 60_000, *, task: str = "t", start_ms: int = 0) -> tuple[Strike, ...]:
    return strikes(task, node, (action,), start_ms, start_ms + ms)


def freeze(nodes: str, ms: int = 60_000, **more: Any) -> list[Strike]:
    return [strike for node in nodes for strike in on(node, Suspend(match=BROKER), ms, **more)]


def partition(*groups: str, ms: int = 60_000) -> list[Strike]:
    """Return what a partition asks of each node, as the spec does."""
    found: list[Strike] = []
    for group in groups:
        peers = tuple(Peer(name, (address(name),)) for other in groups if other is not group for name in other)
        found += [strike for node in group for strike in on(node, BlockFrom(peers=peers), ms)]
    return found


def quiet(where: Scene, new: Sequence[Strike], running: Sequence[Strike] = ()) -> Silence | None:
    return silenced(where, new, running, LEASE_MS)


# --- every small cluster ----------------------------------------------------------------------------------------------


def subsets(names: str) -> Iterator[str]:
    for size in range(len(names) + 1):
        yield from map("".join, itertools.combinations(names, size))


@pytest.mark.parametrize("brokers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("action", [Suspend(match=BROKER), Kill(match=BROKER)])
def test_lost_brokers(brokers: int, action: Action) -> None:
    replication = min(3, brokers)
    needed = 2 if replication == 3 else 1
    where = scene(brokers, min_in_sync=needed)
    unknown = scene(brokers, min_in_sync=needed, replicas=())
    for lost in subsets("abcde"[:brokers]):
        new = [strike for node in lost for strike in on(node, action)]
        bad = len(lost) > replication - needed or 2 * (brokers - len(lost)) <= brokers
        bad = bad and bool(lost)
        assert bool(quiet(where, new)) == bad == bool(quiet(unknown, new)), lost


def test_one_broker_of_three_never_silences_anything() -> None:
    for node in "abc":
        for action in (Suspend(match=BROKER), Kill(match=BROKER), Kill(match=ProcessMatch(port=9092))):
            assert quiet(scene(), on(node, action, FOR_EVER_MS)) is None


def groupings(names: str) -> Iterator[tuple[str, ...]]:
    """Yield every way to sort the names into groups."""
    if not names:
        yield ()
        return
    for rest in groupings(names[1:]):
        yield (names[0], *rest)
        for index, group in enumerate(rest):
            yield (*rest[:index], names[0] + group, *rest[index + 1 :])


@pytest.mark.parametrize("brokers", [3, 4, 5])
def test_partitions_seen_from_outside_and_from_a_node(brokers: int) -> None:
    """RF 3, min ISR 2 and all replica sets: a group carries the bus if it has a majority and all sets but one each."""
    names = "abcde"[:brokers]
    for groups in groupings(names + "x"):  # x is a node of no broker, where the coordinator may stand
        new = partition(*groups)
        able = [group for group in groups if len(set(group) - {"x"}) >= max(brokers // 2 + 1, brokers - 1)]
        assert bool(quiet(scene(brokers), new)) == (not able), groups
        inside = quiet(scene(brokers, members={"the coordinator": spot("x")}), new)
        assert bool(inside) == (not any("x" in group for group in able)), groups


@given(
    pairs=st.sets(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=8),
    lost=st.sets(st.sampled_from("abc"), max_size=3),
)
def test_what_one_way_does_both_ways_do(pairs: set[tuple[str, str]], lost: set[str]) -> None:
    """TCP needs both directions, so a drop one way cuts as one both ways; and no order matters."""
    pairs = {(one, other) for one, other in pairs if one != other}

    def blocks(links: Iterable[tuple[str, str]]) -> list[Strike]:
        return [s for to, by in links for s in on(to, BlockFrom(peers=(Peer(by, (address(by),)),)))]

    where = scene(members={"the coordinator": spot("d"), "the agent of node a": spot("a")})
    more = freeze("".join(sorted(lost)))
    once = quiet(where, blocks(sorted(pairs)) + more)
    both = quiet(where, more + blocks(sorted(pairs | {(other, one) for one, other in pairs})))
    assert bool(once) == bool(both)


# --- one case each ----------------------------------------------------------------------------------------------------


def test_an_agent_on_the_cut_node_itself_loses_the_bus_and_one_outside_does_not() -> None:
    inside = scene(members={"the coordinator": OUTSIDE, "the agent of node a": spot("a")})
    found = quiet(inside, partition("a", "bc"))
    assert found == Silence(60_000, "the agent of node a could not reach brokers 2 and 3 (nodes b and c)", 0)
    assert quiet(scene(), partition("a", "bc")) is None


def test_a_shut_port_keeps_the_leader_and_nobody_reaches_it() -> None:
    """A broker talks to the controllers by connections of its own: it is not missed, and keeps its partitions."""
    found = quiet(scene(), on("a", BlockPorts(ports=(9092,))))
    assert found and "broker 1" in found.why
    assert quiet(scene(), on("a", BlockPorts(ports=(22, 9094)))) is None
    assert quiet(scene(), on("a", BlockPorts(ports=(9092,), protocol="udp"))) is None
    assert quiet(scene(), on("a", BlockPorts(ports=(9092,), direction="out"))) is None, "others copy from it, and serve"
    own = scene(members={"the agent of node a": spot("a")})
    assert quiet(own, on("a", BlockPorts(ports=(9092,), direction="out")))


def test_brokers_that_keep_partitions_need_followers() -> None:
    """With controllers elsewhere a broker that is cut from the others is not missed: its partitions take no writes."""
    apart = scene(quorum=(11, 12, 13))
    found = quiet(apart, partition("a", "bc"))
    assert found and found.why == (
        "brokers 2 and 3 (nodes b and c) could not copy from broker 1 (node a) (the bus needs 2 replicas in sync)"
    )
    assert quiet(apart, freeze("a")) is None


@pytest.mark.parametrize(
    ("match", "hits"),
    [
        (ProcessMatch(java="kafka.Kafka"), True),
        (ProcessMatch(command="server.properties"), True),
        (ProcessMatch(pid_file="/run/x.pid"), True),
        (ProcessMatch(port=9092), True),
        (ProcessMatch(port=5432), True),
        (ProcessMatch(java="org.apache.zookeeper.server.quorum.QuorumPeerMain"), False),
        (ProcessMatch(command="ConnectDistributed"), False),
    ],
)
def test_what_a_match_can_hit(match: ProcessMatch, hits: bool) -> None:
    new = [strike for node in "abc" for strike in on(node, Suspend(match=match))]
    assert bool(quiet(scene(), new)) == hits


def test_a_port_tells_two_brokers_of_one_node_apart() -> None:
    where = scene(stations={i: Station(spot("a"), 9090 + i) for i in (1, 2, 3)})
    assert quiet(where, on("a", Suspend(match=ProcessMatch(port=9091)))) is None
    assert quiet(where, on("a", Suspend(match=BROKER)))


def test_only_what_lasts_longer_than_the_lease() -> None:
    assert quiet(scene(), freeze("ab", LEASE_MS)) is None
    assert quiet(scene(), freeze("ab", LEASE_MS + 1))
    kill = Kill(match=BROKER)
    killed = [strike for node in "ab" for strike in on(node, kill, 1)]
    assert killed[0].end_ms == FOR_EVER_MS
    found = quiet(scene(), killed)
    assert found and found.ms == FOR_EVER_MS
    again = Kill(match=BROKER, restart=Restart(unit="kafka.service"))
    assert quiet(scene(), [strike for node in "ab" for strike in on(node, again, 1_000)]) is None
    dumps = Kill(match=BROKER, signal="SIGQUIT")
    assert quiet(scene(), [strike for node in "ab" for strike in on(node, dumps)]) is None


def test_running_tasks_count_as_long_as_they_last() -> None:
    first = freeze("a", 40_000, task="first")
    assert quiet(scene(), freeze("b", 60_000, task="second", start_ms=20_000), first) is None, "20 s together"
    found = quiet(scene(), freeze("b", 60_000, task="second", start_ms=5_000), first)
    assert found == Silence(
        35_000,
        "brokers 1 and 2 (nodes a and b) would be gone, and broker 3 (node c) is too few (the bus needs 2 replicas "
        "in sync)",
        5_000,
        ("first",),
    )


def test_silences_in_a_row_are_one() -> None:
    found = quiet(scene(), freeze("bc", 20_000, task="new", start_ms=20_000), freeze("ab", 20_000, task="old"))
    assert found and (found.ms, found.since_ms, found.company) == (40_000, 0, ("old",))


def test_what_runs_already_is_not_held_against_the_new() -> None:
    forced = freeze("ab", 90_000, task="forced")
    assert quiet(scene(), freeze("c", 60_000, start_ms=1_000), forced) is None
    assert quiet(scene(), freeze("ac", 120_000, start_ms=1_000), forced) is not None


def test_a_broker_that_is_down_already_counts_unless_a_running_task_took_it() -> None:
    assert quiet(scene(down={3}), freeze("a"))
    running = freeze("c", 31_000, task="old")
    assert quiet(scene(down={3}), freeze("a", start_ms=30_000), running) is None
    assert quiet(scene(down={3}), [], running) is None


def test_a_broker_of_no_node_is_out_of_reach_of_every_fault() -> None:
    stations = {1: Station(spot("a"), 9092), 2: Station(Spot(), 9092), 3: Station(Spot(), 9092)}
    assert quiet(scene(stations=stations), freeze("abc")) is None
    none = quiet(scene(1, min_in_sync=1), freeze("a"))
    assert (
        none and none.why == "broker 1 (node a) would be gone, and none would be left (the bus needs 1 replica in sync)"
    )


def test_a_bus_that_is_silent_anyway_refuses_nothing() -> None:
    assert quiet(scene(replication=1), freeze("a")) is None
    assert quiet(scene(down={1, 2}), freeze("c")) is None


def test_the_words() -> None:
    def words(found: Silence | None) -> str:
        assert found
        return told(found, LEASE_MS)

    assert words(quiet(scene(), freeze("ab"))) == (
        "the bus runs on Kafka alone, and this fault would silence it for 60 s (the lease, after which agents undo "
        "everything, is 30 s): brokers 1 and 2 (nodes a and b) would be gone, and broker 3 (node c) is too few (the "
        "bus needs 2 replicas in sync)"
    )
    where = scene(members={f"the agent of node {node}": spot(node) for node in "abcdefg"})
    assert words(quiet(where, partition("abc", "defg", ms=FOR_EVER_MS), freeze("a", 1, task="x"))) == (
        "the bus runs on Kafka alone, and this fault would silence it for good (the lease, after which agents undo "
        "everything, is 30 s): the agent of node d, the agent of node e, the agent of node f and 1 more could not "
        "reach brokers 1, 2 and 3 (nodes a, b and c)"
    )
    company = [*freeze("a", task="x"), *freeze("a", task="y")]
    assert "fault, together with tasks x and y, would silence it" in words(quiet(scene(), freeze("b"), company))


def test_no_broker_is_known_yet() -> None:
    assert quiet(scene(stations={}), freeze("abc")) is None
