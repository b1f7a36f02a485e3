"""The one stream: what cannot be kept is heard by nobody, and everybody hears every event once, in order."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
import pytest

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.coordinator.changes import AppendEvent, Change, DropTask
from trogdor_bus.coordinator.herald import Herald
from trogdor_bus.coordinator.hub import EventHub
from trogdor_bus.errors import HostError
from trogdor_bus.messages import UNTOLD, AnyEvent, Noted, TaskChanged, TaskGone, WorkerChanged, decode
from trogdor_bus.states import TaskRow, TaskState, WorkerRow


def notes(*numbers: int) -> list[Change]:
    return [AppendEvent(Noted(seq=number, at_ms=0)) for number in numbers]


def test_everybody_keeps_before_anybody_hears() -> None:
    hub, told = EventHub(), list[object]()

    def keep(name: str, changes: Sequence[Change]) -> None:
        told.append((name, len(changes)))

    hub.subscribe(lambda event: told.append(("bus", event.seq)))
    hub.keep(lambda changes: keep("store", changes))
    hub.keep(lambda changes: keep("log", changes))
    hub.subscribe(lambda event: told.append(("metrics", event.seq)))
    hub.publish([*notes(1), DropTask("t"), *notes(2)])
    heard = [("bus", 1), ("metrics", 1), ("bus", 2), ("metrics", 2)]
    assert told == [("store", 3), ("log", 3), *heard]


def test_what_is_not_kept_is_not_heard_and_nothing_is_kept_for_nothing() -> None:
    hub, heard, kept = EventHub(), list[AnyEvent](), list[Sequence[Change]]()

    def refuse(changes: Sequence[Change]) -> None:
        raise HostError("the disk is full")

    hub.keep(kept.append)
    hub.publish([])
    assert kept == []
    hub.keep(refuse)
    hub.subscribe(heard.append)
    with pytest.raises(HostError):
        hub.publish(notes(1))
    assert heard == []


def test_who_leaves_hears_no_more_also_in_the_middle() -> None:
    hub, heard = EventHub(), list[int]()

    def once(event: AnyEvent) -> None:
        heard.append(event.seq)
        leave()

    leave = hub.subscribe(once)
    later = list[int]()
    hub.subscribe(lambda event: later.append(event.seq))
    hub.publish(notes(1, 2))
    leave()
    assert (heard, later) == ([1], [1, 2])


class Ear:
    def __init__(self) -> None:
        self.frames: list[tuple[str, bytes]] = []

    def announce(self, topic: str, frame: bytes) -> None:
        self.frames.append((topic, frame))


def test_large_specs_are_told_once_and_again_when_they_change() -> None:
    ear = Ear()
    herald = Herald(ear)

    def told(state: TaskState, spec: bytes, original: bytes = b'{"a":1}') -> bool:
        """Return whether an event has the specs of its task."""
        task = TaskRow(id="t", state=state, original=msgspec.Raw(original), spec=msgspec.Raw(spec))
        herald.hear(TaskChanged(seq=1, at_ms=0, task=task))
        event = decode(ear.frames[-1][1], AnyEvent)
        assert (event.same_specs is True) == (event.task.original == UNTOLD) == (event.task.spec == UNTOLD)
        assert event.task.state is state
        return event.same_specs is not True

    large, other = b'"' + b"x" * 2_000 + b'"', b'"' + b"y" * 2_000 + b'"'
    assert [told(TaskState.PENDING, large), told(TaskState.RUNNING, large)] == [True, False]
    assert [told(TaskState.RUNNING, other), told(TaskState.STOPPING, other)] == [True, False]
    assert [told(TaskState.DONE, other), told(TaskState.DONE, other)] == [False, True]
    assert [told(TaskState.PENDING, b"{}"), told(TaskState.RUNNING, b"{}")] == [True, True]
    assert told(TaskState.PENDING, large)
    herald.hear(TaskGone(seq=2, at_ms=0, id="t"))
    assert told(TaskState.PENDING, large), "another task of that id"


def test_an_event_that_no_frame_carries_is_told_without_its_row(caplog: pytest.LogCaptureFixture) -> None:
    ear = Ear()
    row = WorkerRow(id=1, node="a", status="x" * MAX_FRAME_BYTES)
    with caplog.at_level(logging.ERROR):
        Herald(ear).hear(WorkerChanged(seq=7, at_ms=5, task_id="t", worker=row, text="task t on a: " + "x" * 9000))
    ((topic, frame),) = ear.frames
    event = decode(frame, AnyEvent)
    assert (topic, event.seq, event.at_ms) == ("event/", 7, 5) and len(frame) < 3_000
    assert isinstance(event, Noted) and "bytes, and the bus carries at most 8388608" in event.text
    assert "the bus carries at most" in caplog.text
