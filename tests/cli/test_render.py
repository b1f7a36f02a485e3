"""What people see."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Iterator

import msgspec
import pytest
from rich.console import Console

from trogdor_bus.cli import render
from trogdor_bus.messages import NodeRow, TaskInfo
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerRow, WorkerState

SPEC = msgspec.Raw(b'{"class":"org.apache.kafka.trogdor.task.NoOpTaskSpec","startMs":0,"durationMs":3661000}')
START_MS = 1_546_981_169_850


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def row(state: TaskState, **fields: object) -> TaskRow:
    base = TaskRow(id="t", state=state, spec=SPEC, start_ms=START_MS, duration_ms=3_661_000)
    return msgspec.structs.replace(base, **fields)


def test_dates_and_durations_as_trogdor_writes_them() -> None:
    assert render.date(START_MS) == "2019-01-08T20:59:29.85Z"
    assert render.date(START_MS // 1000 * 1000) == "2019-01-08T20:59:29Z"
    assert render.date(10**18) == "1000000000000000000 ms after 1970"
    os.environ["TZ"] = "XYZ-5:30"
    time.tzset()
    assert render.date(START_MS) == "2019-01-09T02:29:29.85+05:30"
    assert [render.duration(ms) for ms in (0, 999, 61_000, 3_600_000, 90_061_001)] == [
        "0s",
        "0s",
        "1m1s",
        "1h",
        "25h1m1s",
    ]


def test_info_texts() -> None:
    date = "2019-01-08T20:59:29.85Z"
    done = {"started_ms": START_MS, "done_ms": START_MS + 1000}
    ended = "at 2019-01-08T20:59:30.85Z after 1s"
    texts = {
        f"Will start at {date}": row(TaskState.PENDING),
        f"Started {date}; will stop after 1h1m1s": row(TaskState.RUNNING, started_ms=START_MS),
        f"Started {date}": row(TaskState.STOPPING, started_ms=START_MS),
        f"FINISHED {ended}": row(TaskState.DONE, outcome=Outcome.DONE, **done),
        f"CANCELLED {ended}": row(TaskState.DONE, outcome=Outcome.CANCELLED, cancelled=True, **done),
        f"FAILED {ended}": row(TaskState.DONE, outcome=Outcome.FAILED, cancelled=True, error="e", **done),
        f"FAILED {ended} (unknown)": row(TaskState.DONE, outcome=Outcome.UNKNOWN, error="e", **done),
        f"CANCELLED at {date} before its start": row(TaskState.DONE, cancelled=True, done_ms=START_MS),
    }
    for text, task in texts.items():
        assert render.info_text(task) == text


def shown(value: object, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False, emoji=False).print(value)
    return out.getvalue()


def test_tables_lose_nothing_on_60_columns() -> None:
    long_id = "partition-" + "x" * 70
    task = msgspec.structs.replace(row(TaskState.RUNNING, started_ms=START_MS), id=long_id)
    worker = WorkerRow(
        id=1, node="node-with-a-long-name-in-it", state=WorkerState.RUNNING, status="active", warnings=("beware of it",)
    )
    info = TaskInfo(task=task, workers=(worker,))
    node = NodeRow(name="n" * 40, alive=True, heard_ms=0, addresses=("fd00:1111:2222:3333:4444:5555:6666:7777",))
    for table, words in (
        (render.tasks_table([info]), [long_id, "noop", "RUNNING", "will", "1h1m1s"]),
        (render.workers_table(info), [worker.node, "active", "beware"]),
        (render.nodes_table([node], 1000), [node.name, "alive", "1s", node.addresses[0]]),
    ):
        text = shown(table, 60)
        assert max(map(len, text.splitlines())) <= 60
        squeezed = _columns_joined(text)
        for word in words:
            assert word in squeezed, text


def _columns_joined(text: str) -> str:
    """Return the cells of a table, each column's lines put together again."""
    lines = text.splitlines()
    starts = [match.start() for match in re.finditer(r"\S+", lines[0])]
    bounds = list(zip(starts, [*starts[1:], None], strict=True))
    return "\n".join("".join(line[a:b].rstrip() for line in lines[1:]) for a, b in bounds)


def test_nothing_is_markup_and_nothing_is_raw() -> None:
    assert shown(render.text("[red]a[/red] \x1b[31m \x07 \u202e :smile:"), 200) == (
        "[red]a[/red] \\x1b[31m \\x07 \\u202e :smile:\n"
    )


def test_task_json_is_trogdors_with_ours_behind() -> None:
    worker = WorkerRow(id=7, node="a", state=WorkerState.RUNNING, status="active", running_ms=5)
    told = render.task_json(TaskInfo(task=row(TaskState.RUNNING, started_ms=START_MS), workers=(worker,)))
    assert list(told) == ["state", "spec", "startedMs", "status", "id", "type", "active", "outcome", "workers"]
    assert told["status"] == "active"
    assert told["workers"][0]["runningMs"] == 5
