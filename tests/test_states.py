"""Task and worker states: Trogdor's JSON, byte for byte."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from trogdor_bus.states import (
    EXIT_CODES,
    Disturbance,
    Outcome,
    TaskRow,
    TaskState,
    WorkerRow,
    combined_status,
    ended,
    trogdor_json,
)

SPEC = b'{"class":"org.apache.kafka.trogdor.task.NoOpTaskSpec","startMs":2,"durationMs":2}'


def row(state: TaskState, **fields: Any) -> TaskRow:
    return TaskRow(id="t", state=state, original=msgspec.Raw(b"{}"), spec=msgspec.Raw(SPEC), **fields)


def worker(node: str, status: str, number: int = 0) -> WorkerRow:
    return WorkerRow(id=number, node=node, status=status)


@pytest.mark.parametrize(
    ("task", "workers", "rest"),
    [
        (row(TaskState.PENDING), [], b'"status":null'),
        (
            row(TaskState.RUNNING, started_ms=2),
            [worker("node01", "active")],
            b'"startedMs":2,"status":"active"',
        ),
        (
            row(TaskState.RUNNING, started_ms=2),
            [worker("node02", "receiving"), worker("node01", "active")],
            b'"startedMs":2,"status":{"node01":"active","node02":"receiving"}',
        ),
        (
            row(TaskState.STOPPING, started_ms=2, cancelled=True),
            [worker("node01", "removing network partition t")],
            b'"startedMs":2,"status":"removing network partition t"',
        ),
        (
            row(TaskState.DONE, started_ms=2, done_ms=5),
            [worker("node01", "done")],
            b'"startedMs":2,"doneMs":5,"cancelled":false,"status":"done"',
        ),
        (
            row(TaskState.DONE, started_ms=-1, done_ms=5, cancelled=True),
            [],
            b'"startedMs":-1,"doneMs":5,"cancelled":true',
        ),
        (
            row(TaskState.DONE, done_ms=5, error="Unable to find nodes for task: No node names specified."),
            [],
            b'"startedMs":-1,"doneMs":5,"error":"Unable to find nodes for task: No node names specified.",'
            b'"cancelled":false',
        ),
    ],
)
def test_a_task_as_trogdor_writes_it(task: TaskRow, workers: list[WorkerRow], rest: bytes) -> None:
    expected = b'{"state":"%s","spec":%s,%s}' % (task.state.value.encode(), SPEC, rest)
    assert msgspec.json.encode(trogdor_json(task, workers)) == expected


def test_combined_status_of_none_one_and_many() -> None:
    assert combined_status([]) == {}
    assert combined_status([worker("a", "")]) == ""
    assert list(combined_status([worker("b", "2"), worker("a", "1")]).items()) == [("a", "1"), ("b", "2")]


def test_what_a_worker_says_of_itself_is_its_status_verbatim() -> None:
    told = msgspec.structs.replace(worker("a", "running"), progress=msgspec.Raw(b'{"n":[1,null]}'))
    assert combined_status([told]) == {"n": [1, None]}
    assert combined_status([worker("b", "2"), told]) == {"a": {"n": [1, None]}, "b": "2"}
    for empty in (b"{}", b"[]"):
        nothing = msgspec.structs.replace(told, progress=msgspec.Raw(empty))
        assert "status" not in trogdor_json(row(TaskState.RUNNING), [nothing]), "as Jackson's NON_EMPTY"


def test_rows_survive_json_with_their_spec_untouched() -> None:
    task = row(TaskState.DONE, outcome=Outcome.LEASE, started_ms=3)
    again = msgspec.json.decode(msgspec.json.encode(task), type=TaskRow)
    assert again == task
    assert bytes(again.spec) == SPEC
    assert task.end_ms == 0


def test_every_outcome_of_an_ended_task_has_an_exit_code() -> None:
    assert set(EXIT_CODES) == set(Outcome) - {Outcome.NONE}
    assert [outcome for outcome, code in EXIT_CODES.items() if code == 0] == [Outcome.DONE]
    assert [outcome for outcome, code in EXIT_CODES.items() if code == 3] == [Outcome.UNKNOWN]


def test_done_is_what_met_something_and_held_to_its_end_and_no_other_outcome_changes() -> None:
    gone, back = Disturbance(2_100, "chain gone"), Disturbance(900, "chain gone", mended=True)
    told = "it did not hold to its end: chain gone (2.1 s in)"
    assert ended(Outcome.DONE, "", ()) == (Outcome.DONE, "")
    assert ended(Outcome.DONE, "", (back,)) == (Outcome.DONE, "")
    assert ended(Outcome.DONE, "", (back, gone)) == (Outcome.DISTURBED, told)
    assert ended(Outcome.DISTURBED, told, (back,)) == (Outcome.DONE, "")
    assert ended(Outcome.DONE, "", (gone,), "no process matches") == (
        Outcome.DISTURBED,
        "it met nothing: no process matches",
    )
    for outcome in set(Outcome) - {Outcome.DONE, Outcome.DISTURBED}:
        assert ended(outcome, "why", (gone,), "nobody") == (outcome, "why")
