"""A monitor's copy of the view: whatever the bus does to frames, it is what the coordinator has, or asks for all."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from trogdor_bus.coordinator import pages
from trogdor_bus.messages import (
    AnyEvent,
    CoordinatorStatus,
    NodeChanged,
    NodeGone,
    NodeRow,
    Noted,
    Pulse,
    TaskChanged,
    TaskGone,
    TaskInfo,
    ViewPage,
    WorkerChanged,
)
from trogdor_bus.mirror import RECENT_MS, Mirror
from trogdor_bus.states import TaskRow, TaskState, WorkerRow
from trogdor_bus.view import View, node_key, task_key, worker_key


class Coordinator:
    """A coordinator with numbered events, made at random, that are told to nobody in particular.

    As in a real one, a task that is DONE stays so until it is gone.
    """

    def __init__(self, random: Random, name: str = "c1", epoch: int = 1, seq: int = 0, start_ms: int = -1) -> None:
        self.random, self.view, self.now_ms = random, View(), 1_000 * epoch if start_ms < 0 else start_ms
        self.view.seq = seq
        self.status = CoordinatorStatus(server_start_ms=self.now_ms, now_ms=0, epoch=epoch, coordinator=name)
        self.workers = 0

    def change(self) -> AnyEvent:
        """Return the next event: workers only of tasks that exist, and some tasks end."""
        self.now_ms += self.random.choice((0, 0, 1))
        at = {"seq": self.view.seq + 1, "at_ms": self.now_ms}
        task_id, node = self.random.choice(("t1", "t2", "t3")), self.random.choice("abc")
        event: AnyEvent
        match self.random.choice(("task", "done", "gone", "worker", "worker", "worker", "node", "no node", "note")):
            case "task" if task_id not in self.view.tasks or self.view.tasks[task_id].state is not TaskState.DONE:
                event = TaskChanged(task=TaskRow(id=task_id, start_ms=self.now_ms, state=TaskState.RUNNING), **at)
            case "done":
                event = TaskChanged(task=TaskRow(id=task_id, state=TaskState.DONE, done_ms=self.now_ms), **at)
            case "gone":
                event = TaskGone(id=task_id, **at)
            case "worker" if task_id in self.view.tasks:
                known = list(self.view.workers[task_id])
                if len(known) < 3:
                    self.workers += 1
                    known = [self.workers]
                row = WorkerRow(id=self.random.choice(known), node=node, status=f"at {self.now_ms}")
                event = WorkerChanged(task_id=task_id, worker=row, **at)
            case "node":
                event = NodeChanged(node=NodeRow(name=node, note=f"at {self.now_ms}"), **at)
            case "no node":
                event = NodeGone(name=node, **at)
            case _:
                event = Noted(**at)
        self.view.apply(event)
        return event

    def pulse(self) -> Pulse:
        digest = self.view.versions.digest
        return Pulse(seq=self.view.seq, at_ms=self.now_ms, status=self.status, digest=digest)

    def page(self, after: pages.Mark | None, most: int) -> tuple[ViewPage, pages.Mark | None]:
        """Return the next page of the whole view, and where the one after it begins."""
        view, room, more = self.view, pages.Room(most), ""
        nodes, tasks = list[NodeRow](), list[TaskInfo]()
        if after is None or not after.is_task:
            rows = [row for _, row in sorted(view.nodes.items())]
            nodes, more = pages.named(rows, lambda row: row.name, after, room)
            after = None
        if not more:
            tasks, more = pages.tasks([view.tasks[name] for name in sorted(view.tasks)], view, after, room)
        keys = [node_key(node.name) for node in nodes]
        keys += [key for one in tasks for key in (task_key(one.task.id), *(worker_key(row.id) for row in one.workers))]
        seqs = {key: seq for key in keys if (seq := view.versions.get(key)) is not None}
        told = ViewPage(
            seq=view.seq,
            at_ms=self.now_ms,
            status=self.status,
            nodes=tuple(nodes),
            tasks=tuple(tasks),
            seqs=seqs,
        )
        return told, msgspec.json.decode(more, type=pages.Mark) if more else None


def state(view: View) -> object:
    """Return what a view holds of what has not ended, and its digest."""
    tasks = {name: task for name, task in view.tasks.items() if task.state is not TaskState.DONE}
    return view.seq, tasks, {name: view.workers[name] for name in tasks}, view.nodes, view.versions.digest


def whole(coordinator: Coordinator, mirror: Mirror) -> None:
    """Let a mirror ask for everything."""
    mirror.take([coordinator.page(None, 0)[0]])


def take(mirror: Mirror, frame: AnyEvent | Pulse) -> None:
    """Let a mirror hear a frame."""
    if isinstance(frame, Pulse):
        mirror.beat(frame)
    else:
        mirror.hear(frame)


seeds = st.integers(0, 2**32)


@examples(300)
@given(seeds)
def test_what_is_taken_page_by_page_while_all_changes_is_the_view(seed: int) -> None:
    random = Random(seed)
    coordinator, mirror = Coordinator(random), Mirror()
    for _ in range(random.randint(0, 30)):
        coordinator.change()
    found, after = [], None
    most, late = random.choice((1, 300, 1_000, 10_000)), list[AnyEvent | Pulse]()
    while True:
        page, after = coordinator.page(after, most)
        found.append(page)
        for _ in range(random.randint(0, 4)):
            late.append(coordinator.pulse() if random.random() < 0.3 else coordinator.change())
        if after is None:
            break
    early = late[: random.randint(0, len(late))]
    for frame in early:
        take(mirror, frame)
    mirror.take(found)
    assert not mirror.wants
    for frame in (*late[len(early) :], coordinator.change()):
        take(mirror, frame)
        assert not mirror.wants, "a pulse from between two pages is of neither"
    assert mirror.beat(coordinator.pulse())
    assert state(mirror.view) == state(coordinator.view)


@examples(300)
@given(seeds)
def test_whatever_is_lost_doubled_or_reordered_shows_and_is_mended_by_a_whole_view(seed: int) -> None:
    random = Random(seed)
    coordinator, mirror = Coordinator(random), Mirror()
    whole(coordinator, mirror)
    for _ in range(6):
        events = [coordinator.change() for _ in range(random.randint(0, 12))]
        heard = [event for event in events if random.random() < random.choice((1.0, 0.8))]
        heard += random.sample(heard, len(heard) // 3)
        random.shuffle(heard)
        for event in heard:
            mirror.hear(event)
        agrees = mirror.beat(coordinator.pulse())
        complete = mirror.view.seq == coordinator.view.seq
        assert agrees == complete
        if not complete:
            assert not mirror.beat(coordinator.pulse())
            assert mirror.wants, "two pulses tell of the same event that is missing"
            whole(coordinator, mirror)
            assert mirror.beat(coordinator.pulse())
        assert state(mirror.view) == state(coordinator.view)


def test_a_view_that_differs_though_nothing_is_missing_is_seen_by_its_digest() -> None:
    coordinator, mirror = Coordinator(Random(1)), Mirror()
    for _ in range(30):
        coordinator.change()
    whole(coordinator, mirror)
    mirror.view.apply(NodeChanged(seq=mirror.view.seq + 1, at_ms=5_000, node=NodeRow(name="nobody")))
    coordinator.view.seq += 1
    assert not mirror.beat(coordinator.pulse()) and mirror.wants
    whole(coordinator, mirror)
    assert mirror.beat(coordinator.pulse()) and "nobody" not in mirror.view.nodes


@examples(100)
@given(seeds)
def test_another_coordinator_is_asked_anew_and_late_frames_of_the_old_one_do_no_harm(seed: int) -> None:
    random = Random(seed)
    old, mirror = Coordinator(random), Mirror()
    whole(old, mirror)
    late = [old.change() for _ in range(10)]
    for event in late[:5]:
        mirror.hear(event)
    old_pulse = old.pulse()
    new = Coordinator(random, "c2", epoch=2, seq=old.view.seq - random.choice((0, 3)))
    new.change()
    assert not mirror.beat(new.pulse()) and mirror.wants
    assert not mirror.beat(old_pulse)
    whole(old, mirror)
    assert mirror.wants, "what it was told by the old one counts no more"
    whole(new, mirror)
    for event in (*late, new.change()):
        mirror.hear(event)
    assert mirror.beat(new.pulse())
    assert state(mirror.view) == state(new.view)


def speaks(coordinator: Coordinator, mirror: Mirror, now_ms: int = 0) -> bool:
    """Let a second pass for a coordinator, and tell of it; return whether the mirror has its view."""
    coordinator.now_ms += 1_000
    return mirror.beat(coordinator.pulse(), now_ms)


@pytest.mark.parametrize(
    ("epoch", "start_ms", "waits"),
    [
        pytest.param(1, 90_000, 3, id="with a new state directory"),
        pytest.param(5, 90_000, 1, id="with a new state directory, as old"),
        pytest.param(5, 2_000, 3, id="as old, by a clock that is behind"),
        pytest.param(1, 2_000, 3, id="with a new state directory, by a clock that is behind"),
        pytest.param(6, 2_000, 1, id="by a clock that is behind"),
    ],
)
def test_whoever_speaks_when_the_old_one_is_silent_is_shown(epoch: int, start_ms: int, waits: int) -> None:
    old, mirror = Coordinator(Random(1), "old", epoch=5), Mirror()
    for _ in range(20):
        old.change()
    whole(old, mirror)
    assert speaks(old, mirror, 0)
    new = Coordinator(Random(2), "new", epoch=epoch, start_ms=start_ms)
    new.change()
    for beat in range(1, waits + 1):
        assert mirror.leader == "old"
        if waits > 1:
            whole(new, mirror)
            assert mirror.leader == "old", "who was asked is not who is heard"
        assert not speaks(new, mirror, beat * 1_000)
    assert mirror.leader == "new" and mirror.wants and mirror.world() is None
    assert mirror.strangers == (waits > 1)
    whole(new, mirror)
    assert speaks(new, mirror, 9_000)
    assert state(mirror.view) == state(new.view)


@pytest.mark.parametrize("start_ms", [1_000, 90_000])
def test_of_two_that_speak_the_one_of_the_higher_epoch_is_shown(start_ms: int) -> None:
    mirror = Mirror()
    old = Coordinator(Random(1), "old", epoch=5, start_ms=start_ms)
    new = Coordinator(Random(2), "new", epoch=6)
    whole(old, mirror)
    assert speaks(old, mirror)
    assert not speaks(new, mirror, 500)
    asked = 0
    for beat in range(1, 30):
        if mirror.wants:
            whole(new, mirror)
            asked += 1
        assert not speaks(old, mirror, beat * 1_000)
        assert speaks(new, mirror, beat * 1_000 + 500) == (not mirror.wants)
        assert mirror.leader == "new"
    assert asked <= 2
    for late in range(2):  # the old one has ended, and some of its pulses come late
        mirror.beat(old.pulse(), 31_000 + late)
    assert mirror.leader == "new" and mirror.strangers == 0


def test_late_pulses_of_the_old_one_are_no_reason_to_turn_back() -> None:
    mirror, old, new = Mirror(), Coordinator(Random(1), "old"), Coordinator(Random(2), "new", epoch=2)
    whole(old, mirror)
    late = [old.pulse()]
    for _ in range(9):
        old.now_ms += 10
        late.append(old.pulse())
    speaks(new, mirror, 0)
    whole(new, mirror)
    for pulse in late:
        assert not mirror.beat(pulse, 900)
    assert mirror.leader == "new" and speaks(new, mirror, 1_000)


def test_an_event_of_the_old_one_that_waited_is_none_of_the_new_one() -> None:
    old, mirror = Coordinator(Random(1), "old", seq=97), Mirror()
    old.view.apply(NodeChanged(seq=98, at_ms=1_000, node=NodeRow(name="n")))
    whole(old, mirror)
    mirror.hear(NodeChanged(seq=100, at_ms=1_500, node=NodeRow(name="n", note="old")))
    new = Coordinator(Random(2), "new", epoch=2, seq=98)
    new.view.apply(NodeChanged(seq=99, at_ms=2_500, node=NodeRow(name="n", note="")))
    assert not speaks(new, mirror)
    mirror.hear(NodeChanged(seq=100, at_ms=1_600, node=NodeRow(name="n", note="old, by a slow link")))
    whole(new, mirror)
    event = NodeChanged(seq=100, at_ms=3_500, node=NodeRow(name="n", note="new"))
    new.view.apply(event)
    mirror.hear(event)
    assert speaks(new, mirror)
    assert state(mirror.view) == state(new.view) and mirror.view.nodes["n"].note == "new"


def test_an_event_from_before_its_start_that_was_heard_before_all_else_is_none_of_it() -> None:
    mirror, new = Mirror(), Coordinator(Random(2), "new", epoch=2, seq=99)
    mirror.hear(NodeChanged(seq=100, at_ms=1_600, node=NodeRow(name="n", note="old")))
    whole(new, mirror)
    assert mirror.view.nodes == {} and mirror.view.seq == 99


def test_what_an_old_one_that_still_speaks_may_have_told_is_asked_for_when_it_has_ended() -> None:
    mirror, old = Mirror(), Coordinator(Random(1), "old", seq=99)
    new = Coordinator(Random(2), "new", epoch=2, seq=99)
    whole(old, mirror)
    speaks(new, mirror)
    whole(new, mirror)
    new.now_ms += 10
    old.now_ms = new.now_ms
    mirror.hear(NodeChanged(seq=100, at_ms=old.now_ms, node=NodeRow(name="n", note="old")))
    event = NodeChanged(seq=100, at_ms=new.now_ms, node=NodeRow(name="n", note="new"))
    new.view.apply(event)
    mirror.hear(event)
    for _ in range(3):
        assert mirror.beat(new.pulse()) and not mirror.beat(old.pulse()), "nothing tells these events apart"
    assert mirror.beat(new.pulse()) and not mirror.beat(new.pulse())
    assert mirror.wants
    whole(new, mirror)
    assert state(mirror.view) == state(new.view)


def test_a_pulse_from_a_slower_link_is_no_step_back() -> None:
    coordinator, mirror = Coordinator(Random(4)), Mirror()
    whole(coordinator, mirror)
    late = coordinator.pulse()
    coordinator.now_ms += 5
    assert mirror.beat(coordinator.pulse())
    assert not mirror.beat(late) and mirror.at_ms == coordinator.now_ms


def test_an_event_from_a_slower_link_is_waited_for_one_beat() -> None:
    coordinator, mirror = Coordinator(Random(3)), Mirror()
    whole(coordinator, mirror)
    first, second = coordinator.change(), coordinator.change()
    mirror.hear(second)
    assert not mirror.beat(coordinator.pulse()) and not mirror.wants
    mirror.hear(first)
    assert mirror.beat(coordinator.pulse())
    assert state(mirror.view) == state(coordinator.view)


def test_ended_tasks_are_told_for_a_minute() -> None:
    coordinator, mirror = Coordinator(Random(4)), Mirror()
    done = TaskRow(id="t1", state=TaskState.DONE, done_ms=coordinator.now_ms)
    coordinator.view.apply(TaskChanged(seq=1, at_ms=0, task=done))
    whole(coordinator, mirror)
    world = mirror.world()
    assert world is not None and [info.task for info in world.tasks] == [done]
    coordinator.now_ms += RECENT_MS
    assert mirror.beat(coordinator.pulse()), "what has ended is not in the digest"
    world = mirror.world()
    assert world is not None and world.tasks == ()


def test_no_view_is_no_view() -> None:
    mirror = Mirror()
    assert mirror.world() is None and mirror.wants
    mirror.hear(NodeChanged(seq=6, at_ms=8, node=NodeRow(name="b")))
    assert mirror.view.nodes == {}
