"""What was seen of a cluster over time, and what it proves of a fault."""

from __future__ import annotations

from typing import Any

import pytest

from trogdor_bus.cluster import NOBODY, ClusterView, Quorum, SeenBroker, SeenController, SeenPartition
from trogdor_bus.experiment import health
from trogdor_bus.experiment.evidence import Hit, look, new_leader_ms, targets
from trogdor_bus.experiment.history import History
from trogdor_bus.experiment.result import UNKNOWN, LeaderChange
from trogdor_bus.roles import Chosen
from trogdor_bus.states import Disturbance, WorkerRow

TOPIC = "t"
LEADER = Chosen(kind="broker", id=1, node="a", role="leader(t, 0)")


def partition(
    leader: int = 1, epoch: int = 4, in_sync: tuple[int, ...] = (1, 2, 3), number: int = 0, topic: str = TOPIC
) -> SeenPartition:
    return SeenPartition(
        topic=topic, number=number, leader=leader, epoch=epoch, replicas=(1, 2, 3), in_sync=in_sync, min_in_sync=2
    )


def view(at_ms: int, *partitions: SeenPartition, brokers: tuple[int, ...] = (1, 2, 3), **fields: Any) -> ClusterView:
    found = {number: SeenBroker(id=number) for number in brokers}
    return ClusterView(at_ms=at_ms, brokers=found, partitions=partitions or (partition(),), **fields)


def led(at_ms: int, leader: int, epoch: int) -> ClusterView:
    return ClusterView(at_ms=at_ms, controller=leader, quorum=Quorum(leader=leader, epoch=epoch))


def history(*views: ClusterView) -> History:
    seen = History(TOPIC)
    for one in views:
        seen.see(one)
    return seen


def hit(**fields: Any) -> Hit:
    worker = WorkerRow(id=1, node="a", running_ms=110, done_ms=20_100)
    given = {"start_ms": 100, "end_ms": 20_100, "targets": (LEADER,), "workers": (worker,), "session_ms": 9_000}
    return Hit(**{**given, **fields})


def held(kind: str, hit: Hit, seen: History) -> bool:
    return next(one.held for one in look([kind], hit, seen) if one.kind == kind)


# --- history ----------------------------------------------------------------------------------------------------------


def test_a_change_of_leaders_is_told_once_and_from_whom() -> None:
    seen = history(
        view(0),
        view(200),
        view(400, partition(NOBODY, 5, (2, 3)), brokers=(2, 3)),
        view(600, partition(2, 6, (2, 3)), brokers=(2, 3)),
        view(800, partition(2, 6)),
    )
    assert seen.changes == [LeaderChange(at_ms=600, partition=0, before=1, after=2, epoch=6)]
    at = [seen.at(TOPIC, 0, at_ms) for at_ms in (-1, 0, 399, 400, 700)]
    assert [one and one.leader for one in at] == [None, 1, 1, NOBODY, 2]
    assert [seen.was_missing(number, 0) for number in (1, 2)] == [400, UNKNOWN]
    assert [one.number for one in seen.led_by(2, 700)] == [0]


def test_a_broker_that_is_behind_turns_nothing_back() -> None:
    seen = history(view(0, partition(2, 6)), view(200, partition(1, 5)))
    assert seen.changes == [] and seen.at(TOPIC, 0, 300) == partition(2, 6)


def test_only_its_own_topic_is_told() -> None:
    seen = history(view(0, partition(topic="other")), view(200, partition(2, 5, topic="other")))
    assert seen.changes == [] and len(list(seen.later("other", 0, 100))) == 1


def test_the_quorum_is_partition_minus_one() -> None:
    seen = History(TOPIC)
    for one in (led(0, 1, 7), led(200, 1, 7), led(400, NOBODY, 7), led(600, 3, 8)):
        seen.see_quorum(one)
    assert seen.changes == [LeaderChange(at_ms=600, partition=-1, before=1, after=3, epoch=8)]
    found = seen.quorum_at(500)
    assert found is not None and found.leader == NOBODY


# --- whom a fault hits ------------------------------------------------------------------------------------------------


NOT_LEADING = Chosen(role="not(leader(t, 0))", id=2, node="b")
FOLLOWING = Chosen(role="one-of(follower(t, 0))", id=2, node="b", epoch=4)
CONTROLLING = Chosen(role="controller", kind="controller", id=101, node="c", epoch=9)


@pytest.mark.parametrize(
    ("holders", "expected"),
    [
        ([LEADER], [("broker", 1, "a")]),
        ([LEADER, NOT_LEADING], [("broker", 1, "a")]),
        ([FOLLOWING], [("broker", 2, "b")]),
        ([CONTROLLING], [("controller", 101, "c")]),
        ([], [("broker", 1, "a"), ("broker", 2, "b"), ("controller", 102, "b")]),
    ],
)
def test_targets(holders: list[Chosen], expected: list[tuple[str, int, str]]) -> None:
    found = targets(holders, ["a", "b", "z"], {"a": 1, "b": 2}, {"b": 102})
    assert [(one.kind, one.id, one.node) for one in found] == expected


# --- evidence ---------------------------------------------------------------------------------------------------------


def test_the_role_was_held_or_not_when_it_was_hit() -> None:
    moved = history(view(0), view(90, partition(2, 5)))
    assert [one.held for one in look([], hit(), history(view(0)))] == [True]
    [one] = look([], hit(), moved)
    assert not one.held and one.text == "broker 2 led t-0 when broker 1 was hit"
    controller = Chosen(kind="controller", id=1, node="a", role="controller")
    seen = History(TOPIC)
    seen.see_quorum(led(0, 1, 7))
    seen.see_quorum(led(5_000, 2, 8))
    found = look(["controller-moved"], hit(targets=(controller,)), seen)
    assert [one.held for one in found] == [True, True]
    assert new_leader_ms(hit(targets=(controller,)), seen) == 4_900


def test_a_leader_moved_if_the_epoch_rose_and_somebody_leads() -> None:
    headless = history(view(0), view(9_100, partition(NOBODY, 5, (2, 3)), brokers=(2, 3)))
    assert not held("leader-moved", hit(), headless)
    headless.see(view(9_400, partition(2, 6, (2, 3)), brokers=(2, 3)))
    assert held("leader-moved", hit(), headless)
    assert new_leader_ms(hit(), headless) == 9_300
    came_back = history(view(0), view(300, partition(NOBODY, 5, (1,))), view(9_000, partition(1, 6)))
    assert held("leader-moved", hit(), came_back)
    assert new_leader_ms(hit(), history(view(0))) == UNKNOWN


def test_who_does_not_lead_moves_no_leader() -> None:
    follower = Chosen(kind="broker", id=2, node="b", role="one-of(follower(t, 0))")
    [one] = look(["leader-moved"], hit(targets=(follower,)), history(view(0), view(900, partition(3, 5))))
    assert not one.held and one.text == "no partition that is watched was led by broker 2"


@pytest.mark.parametrize(
    ("fields", "brokers", "expected"),
    [
        ({}, (2, 3), True),
        ({}, (1, 2, 3), False),  # down for 20 s, and never missed
        ({"end_ms": 2_100}, (1, 2, 3), True),  # nobody could miss it so soon
        ({"end_ms": UNKNOWN}, (1, 2, 3), True),
        ({"session_ms": UNKNOWN}, (1, 2, 3), True),
        ({"workers": ()}, (2, 3), False),
        ({"workers": (WorkerRow(id=1, node="a", error="no such process"),)}, (2, 3), False),
    ],
)
def test_a_process_was_stopped(fields: dict[str, Any], brokers: tuple[int, ...], expected: bool) -> None:
    seen = history(view(0), view(9_300, brokers=brokers))
    assert held("process-stopped", hit(**fields), seen) == expected


def test_in_sync_replicas_shrank() -> None:
    assert not held("isr-shrank", hit(), history(view(0), view(900, partition(in_sync=(1, 3)))))
    assert held("isr-shrank", hit(), history(view(0), view(900, partition(2, 5, (2, 3)))))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dropped": 3}, True),
        ({"dropped": 0}, False),
        ({"dropped": 3, "running_ms": -1}, False),
        ({"dropped": 3, "disturbed": (Disturbance(5, "the jump is gone"),)}, False),
        ({"dropped": 3, "disturbed": (Disturbance(5, "the jump is gone", mended=True),)}, True),
    ],
)
def test_it_was_cut_off(fields: dict[str, Any], expected: bool) -> None:
    worker = WorkerRow(**{"id": 1, "node": "a", "running_ms": 110, **fields})
    assert held("cut-off", hit(workers=(worker,)), history(view(0))) == expected


# --- health -----------------------------------------------------------------------------------------------------------


def quorum(*behind_ms: int, leader: int = 1) -> Quorum:
    voters = tuple(SeenController(id=number, behind_ms=ms) for number, ms in enumerate(behind_ms, 1))
    return Quorum(leader=leader, epoch=1, voters=voters)


@pytest.mark.parametrize(
    ("seen", "lacking"),
    [
        (view(0, quorum=quorum(0, 10, 20)), []),
        (view(0, quorum=quorum(0, -1, -1)), []),
        (view(0, controller=2), []),
        (view(0), ["no broker is the controller"]),
        (view(0, quorum=quorum(0, 0, 0, leader=NOBODY)), ["no controller is active"]),
        (view(0, quorum=quorum(0, 9_000, 20)), ["controller 2 is 9000 ms behind"]),
        (view(0, quorum=quorum(0, -1, 20)), ["controller 2 was never up to date"]),
        (view(0, quorum=quorum(0, 0), brokers=(1, 2)), ["broker 3 (node c) is not there"]),
        (
            view(0, partition(NOBODY, 5, (2, 3)), quorum=quorum(0, 0)),
            ["t-0 has no leader, and in sync are [2, 3] of [1, 2, 3]"],
        ),
    ],
)
def test_what_is_not_whole(seen: ClusterView, lacking: list[str]) -> None:
    assert health.lacking(seen, {1: "a", 2: "b", 3: "c"}) == lacking


def test_many_partitions_are_counted_and_other_topics_may_be_left_out() -> None:
    broken = [partition(in_sync=(1,), number=number, topic="other") for number in range(8)]
    found = health.lacking(view(0, *broken, quorum=quorum(0)), {})
    assert (len(found), found[-1]) == (6, "3 more partitions are not whole")
    assert health.lacking(view(0, *broken), {9: "z"}, only={TOPIC}) == []


def test_timeouts_are_numbers() -> None:
    settings = {"broker.session.timeout.ms": "9000", "replica.lag.time.max.ms": "?", "log.dirs": "1"}
    assert health.timeouts(settings) == {"broker.session.timeout.ms": 9_000}
