"""Frames of strangers: a message of ours or a BusError, and what was read can be sent on."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agents.driver import Agent, order
from tests.coordinator.driver import Cluster
from tests.effort import examples
from tests.fuzz.judge import decoded, keeps_nothing
from tests.fuzz.mutants import DEEP, SPLINTERS, TOPOLOGY, mangled, mutated, written
from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.errors import BusError
from trogdor_bus.messages import (
    AnyEvent,
    AnyRequest,
    AskStatus,
    AskView,
    Beat,
    CoordinatorStatus,
    CreateTask,
    Echo,
    ListTasks,
    NodeChanged,
    NodeRow,
    Order,
    Pulse,
    Reply,
    Report,
    Snapshot,
    Stamp,
    StopTask,
    TaskChanged,
    UnreadOrder,
    UnreadReport,
    WorkerChanged,
    decode,
    encode,
)
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.registry import registry
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerRow, WorkerState

SPEC = msgspec.Raw(b'{"class":"noop","durationMs":1}')
ROW = WorkerRow(id=2**62, node="n1", state=WorkerState.STUCK, warnings=("w",), residue=("r",), outcome=Outcome.FAILED)
TASK = TaskRow(id="t", state=TaskState.RUNNING, original=SPEC, spec=SPEC, start_ms=1, duration_ms=5)
NODE = NodeRow(name="n1", configured=True, alive=True, addresses=("10.0.0.1", "::1"), tags=("a",), broker=1)
STATUS = CoordinatorStatus(server_start_ms=1, now_ms=2, epoch=3, coordinator="c")
ORDER = Order(
    worker=2**62,
    task="t",
    journal="j",
    remaining_ms=5_000,
    spec=SPEC,
    actions=tuple(
        action
        for spec in (registry().decode(cls.example) for cls in registry().by_tag.values())
        if not spec.needs_cluster(TOPOLOGY.nodes)
        for node in ("node1", "node3")
        for action in spec.actions(node, TOPOLOGY)
    ),
)
KINDS: dict[str, Any] = {
    "Snapshot": Snapshot,
    "Beat": Beat,
    "AnyRequest": AnyRequest,
    "Reply": Reply,
    "AnyEvent": AnyEvent,
    "Pulse": Pulse,
}
REAL: list[tuple[str, Any]] = [
    (
        "Snapshot",
        Snapshot(
            node="n1",
            stamp=Stamp(7, "c", 9),
            echo=Echo("j", 3 << 32),
            orders=(ORDER,),
            coordinator=ProcessIdentity("boot", 42, 99),
        ),
    ),
    (
        "Beat",
        Beat(
            node="n1",
            journal="j",
            counter=(3 << 32) + 1,
            stamp=Stamp(7, "c", 9),
            reports=(Report(worker=1, task="t", state=WorkerState.DONE, outcome=Outcome.DONE, spec=SPEC),),
            addresses=("10.0.0.1",),
        ),
    ),
    ("AnyRequest", CreateTask(id="t", spec=SPEC)),
    ("AnyRequest", ListTasks(ids=("a",), state="RUNNING", first_start_ms=1)),
    ("AnyRequest", StopTask(id="t")),
    ("AnyRequest", AskStatus()),
    ("AnyRequest", AskView(after='["n1"]', most_bytes=1_000_000)),
    ("Reply", Reply(result=msgspec.Raw(b'{"a":[1]}'))),
    ("Reply", Reply(result=msgspec.Raw(b"[]"), more='["t","n1",7,true]')),
    ("Reply", Reply(error="SpecError", message="m", path="$.x", remedy="r")),
    ("AnyEvent", TaskChanged(seq=1, at_ms=2, text="x", task=TASK)),
    ("AnyEvent", WorkerChanged(seq=1, at_ms=2, task_id="t", worker=ROW)),
    ("AnyEvent", NodeChanged(seq=1, at_ms=2, node=NODE)),
    ("Pulse", Pulse(seq=1, at_ms=2, status=STATUS, digest="0123456789abcdef")),
]
FRAMES = [(kind, encode(message)) for kind, message in REAL]


MOST_WORDS = 3_000
"""So long is what is told of one part at most: about a field of it, each."""


def judge(frame: bytes, kind: str) -> None:
    message = decoded(lambda: decode(frame, KINDS[kind]))
    if isinstance(message, Exception):
        assert isinstance(message, BusError)
    else:
        again = encode(message)
        read = decode(again, KINDS[kind])
        unread = [part for part in _parts(message) if isinstance(part, UnreadOrder | UnreadReport)]
        assert all(part.why.isprintable() and 0 < len(part.why) < MOST_WORDS for part in unread)
        assert unread or encode(read) == again, "what is read whole can be sent on"


def _parts(message: Any) -> tuple[Any, ...]:
    return tuple(getattr(message, "orders", ())) + tuple(getattr(message, "reports", ()))


@pytest.mark.parametrize("number", range(len(FRAMES)))
def test_the_frames_that_are_mutated_are_real(number: int) -> None:
    kind, frame = FRAMES[number]
    assert decode(frame, KINDS[kind]) == REAL[number][1]


@examples(250)
@given(st.data())
def test_broken_bytes(data: st.DataObject) -> None:
    kind, frame = data.draw(st.sampled_from(FRAMES))
    judge(data.draw(mangled(frame)), kind)


@examples(250)
@given(st.data())
def test_broken_values(data: st.DataObject) -> None:
    kind, frame = data.draw(st.sampled_from(FRAMES))
    judge(written(data.draw(mutated(json.loads(frame)))), kind)


@examples(150)
@given(st.lists(st.sampled_from(SPLINTERS), max_size=5).map(b"".join) | st.binary(max_size=80))
def test_any_bytes(frame: bytes) -> None:
    for kind in KINDS:
        judge(frame, kind)


@examples(100)
@given(st.data())
def test_a_frame_of_another_kind(data: st.DataObject) -> None:
    _, frame = data.draw(st.sampled_from(FRAMES))
    judge(frame, data.draw(st.sampled_from(sorted(KINDS))))


HUGE: dict[str, bytes] = {
    "deep": b'{"v":1,"node":' + b"[" * MAX_FRAME_BYTES,
    "unknown deep field": b'{"zzz":' + b"[" * MAX_FRAME_BYTES,
    "deep spec": b'{"request":"create","id":"t","spec":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "zeros": b"\0" * MAX_FRAME_BYTES,
    "digits": b'{"v":' + b"9" * (MAX_FRAME_BYTES - 5),
    "one string": b'"' + b"x" * (MAX_FRAME_BYTES - 2) + b'"',
    "unknown fields": b"{" + b",".join(b'"%x":[]' % n for n in range(MAX_FRAME_BYTES // 14)) + b"}",
    "a long tag": b'{"request":"' + b"x" * (MAX_FRAME_BYTES - 20) + b'"}',
    "a long state": b'{"node":"n","journal":"j","counter":1,"reports":[{"worker":1,"task":"t","state":"%s"}]}'
    % (b"x" * 100_000),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("huge", HUGE)
def test_the_largest_frames_are_read_in_time(huge: str, kind: str) -> None:
    judge(HUGE[huge], kind)


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (HUGE["a long tag"], "AnyRequest"),
        (b'{"request":"\\u001b[2J"}', "AnyRequest"),
    ],
    ids=["tag", "escape"],
)
def test_the_error_of_a_frame_can_be_logged(frame: bytes, kind: str) -> None:
    assert isinstance(decoded(lambda: decode(frame, KINDS[kind])), BusError)


MOST = 10**4300 - 1
"""The largest number that Python reads and writes as text; one more is a ValueError."""


def test_no_epoch_that_somebody_tells_keeps_the_next_coordinator_from_speaking() -> None:
    cluster = Cluster("a", lead=False)
    with contextlib.suppress(BusError):  # such a frame may be refused
        cluster.beat("a", stamp=Stamp(MOST, "c", 1))
    cluster.pass_(3_000, "a")
    cluster.create()
    assert cluster.published["a"].stamp.epoch == cluster.machine.epoch


def test_no_end_that_somebody_tells_keeps_an_agent_from_beating() -> None:
    agent = Agent()
    agent.hear(order(1, remaining_ms=MOST))
    assert agent.report(1).outcome is Outcome.FAILED
    agent.hear(order(1), describe=True)
    agent.after(2_000)
    assert encode(agent.beats[-1])


BAD = [b"", b"{", b"\xff", b"null", b'{"v":99}', b"[" * DEEP, *(frame[:-9] for _, frame in FRAMES)]


def test_bad_frames_keep_no_memory() -> None:
    def all_of_them() -> None:
        for frame in BAD:
            for kind in KINDS.values():
                decoded(lambda: decode(frame, kind))  # noqa: B023

    keeps_nothing(all_of_them)
