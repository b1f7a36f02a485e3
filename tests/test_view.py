"""The fold of events: what is lost is repaired by the next whole view, what is doubled or late does no harm."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from trogdor_bus.messages import (
    AnyEvent,
    CoordinatorStatus,
    NodeChanged,
    NodeRow,
    Noted,
    TaskChanged,
    TaskGone,
    TaskInfo,
    WorkerChanged,
    WorldView,
    decode,
    encode,
)
from trogdor_bus.states import TaskRow, WorkerRow
from trogdor_bus.view import View

TASKS = ("t1", "t2")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("task"), st.sampled_from(TASKS), st.integers(0, 99)),
        st.tuples(st.just("gone"), st.sampled_from(TASKS), st.just(0)),
        st.tuples(st.just("worker"), st.sampled_from(TASKS), st.integers(0, 3)),
        st.tuples(st.just("node"), st.sampled_from(("a", "b")), st.integers(0, 99)),
        st.tuples(st.just("note"), st.just(""), st.just(0)),
    ),
    max_size=40,
)


def events_of(script: list[tuple[str, str, int]]) -> list[AnyEvent]:
    """Make a numbered history that a coordinator could have written: workers only of tasks that exist."""
    events: list[AnyEvent] = []
    alive: set[str] = set()
    for seq, (kind, name, number) in enumerate(script, start=1):
        if kind == "task":
            alive.add(name)
            events.append(TaskChanged(seq=seq, at_ms=seq, task=TaskRow(id=name, start_ms=number)))
        elif kind == "gone":
            alive.discard(name)
            events.append(TaskGone(seq=seq, at_ms=seq, id=name))
        elif kind == "worker" and name in alive:
            row = WorkerRow(id=number, node=f"node{-number}", status=f"at {seq}")
            events.append(WorkerChanged(seq=seq, at_ms=seq, task_id=name, worker=row))
        elif kind == "node":
            events.append(NodeChanged(seq=seq, at_ms=seq, node=NodeRow(name=name, heard_ms=number)))
        else:
            events.append(Noted(seq=seq, at_ms=seq, text="note"))
    return events


def fold(events: list[AnyEvent]) -> View:
    view = View()
    for event in events:
        view.apply(event)
    return view


def state(view: View) -> object:
    return view.seq, view.tasks, view.workers, view.nodes


def world(view: View) -> WorldView:
    frame = encode(
        WorldView(
            seq=view.seq,
            at_ms=0,
            status=CoordinatorStatus(server_start_ms=0, now_ms=0),
            nodes=tuple(view.nodes.values()),
            tasks=tuple(view.info(task_id) for task_id in view.tasks),
        )
    )
    found = decode(frame, WorldView)
    assert isinstance(found, WorldView)
    return found


@given(steps)
def test_doubled_and_late_events_change_nothing(script: list[tuple[str, str, int]]) -> None:
    events = events_of(script)
    stuttered = [again for index in range(len(events)) for again in (*events[: index + 1], events[index])]
    assert state(fold(stuttered)) == state(fold(events))


@given(steps, st.integers())
def test_a_whole_view_repairs_what_was_lost_doubled_and_reordered(
    script: list[tuple[str, str, int]], seed: int
) -> None:
    events = events_of(script)
    truth, random = fold(events), Random(seed)
    heard = [event for event in events if random.random() < 0.7]
    heard += random.sample(heard, len(heard) // 3)
    random.shuffle(heard)
    monitor = fold(heard)
    monitor.replace(world(truth))
    assert state(monitor) == state(truth)

    later = [TaskChanged(seq=len(events) + 1, at_ms=0, task=TaskRow(id="new"))]
    for event in (*heard, *later):
        monitor.apply(event)
        truth.apply(event)
    assert state(monitor) == state(truth), "old events that arrive after the view are ignored, new ones count"


@given(steps)
def test_a_late_joiner_sees_what_everybody_sees(script: list[tuple[str, str, int]]) -> None:
    events = events_of(script)
    half = len(events) // 2
    joiner = View()
    joiner.replace(world(fold(events[:half])))
    for event in events:
        joiner.apply(event)
    assert state(joiner) == state(fold(events))


def test_a_worker_of_an_unheard_task_waits_for_the_repair() -> None:
    view = View()
    view.apply(WorkerChanged(seq=2, at_ms=0, task_id="t", worker=WorkerRow(id=1, node="a")))
    assert (view.seq, view.tasks, view.workers) == (2, {}, {})


def test_info_lists_workers_by_node() -> None:
    view = View()
    view.apply(TaskChanged(seq=1, at_ms=0, task=TaskRow(id="t")))
    for seq, node in enumerate("cab", start=2):
        view.apply(WorkerChanged(seq=seq, at_ms=0, task_id="t", worker=WorkerRow(id=seq, node=node)))
    info = view.info("t")
    assert [worker.node for worker in info.workers] == ["a", "b", "c"]
    assert msgspec.json.decode(msgspec.json.encode(info), type=TaskInfo) == info
