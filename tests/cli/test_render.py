"""What people see."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Iterator

import msgspec
import pytest
from rich.console import Console

from trogdor_bus.cli import live, render, waiting
from trogdor_bus.experiment import junit, page
from trogdor_bus.experiment.result import Result
from trogdor_bus.experiment.result import encode as encode_result
from trogdor_bus.messages import (
    CoordinatorStatus,
    NodeChanged,
    NodeRow,
    Plan,
    TaskInfo,
    ViewPage,
    WorkerChanged,
)
from trogdor_bus.mirror import Mirror
from trogdor_bus.roles import Chosen
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
        f"CLOSED {ended} (unknown)": row(TaskState.DONE, outcome=Outcome.UNKNOWN, error="e", **done),
        f"DISTURBED {ended}": row(TaskState.DONE, outcome=Outcome.DISTURBED, error="e", **done),
        f"CANCELLED at {date} before its start": row(TaskState.DONE, cancelled=True, done_ms=START_MS),
    }
    for text, task in texts.items():
        assert render.info_text(task) == text


def test_unknown_is_never_called_failed_in_any_word(capsys: pytest.CaptureFixture[str]) -> None:
    error = "outcome unknown: node n1 was not heard again"
    task = row(TaskState.DONE, outcome=Outcome.UNKNOWN, error=error, started_ms=START_MS, done_ms=START_MS)
    worker = WorkerRow(id=1, node="n1", state=WorkerState.DONE, outcome=Outcome.UNKNOWN, error=error, status="it runs")
    info = TaskInfo(task=task, workers=(worker,))
    waiting._tell_end(info)
    render.print_why(render.console(), task)
    render.console().print(render.tasks_table([info]))
    told = capsys.readouterr().out
    assert told.count("Outcome unknown: node n1 was not heard again") == 2
    assert not re.search("fail|error", told, re.I), told


def test_a_disturbed_end_is_told_in_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    error = "it did not hold to its end: chain gone (1.2 s in)"
    task = row(TaskState.DONE, outcome=Outcome.DISTURBED, error=error, started_ms=START_MS, done_ms=START_MS)
    waiting._tell_end(TaskInfo(task=task, workers=()))
    told = capsys.readouterr().out
    assert ": disturbed. DISTURBED at" in told
    assert f"Disturbed: {error}" in told and "Error" not in told


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


def test_what_a_worker_says_of_itself_is_shown_as_its_status() -> None:
    worker = WorkerRow(id=1, node="a", status="running", progress=msgspec.Raw(b'{"sent":"\\u001b[31m"}'))
    text = shown(render.workers_table(TaskInfo(task=row(TaskState.RUNNING), workers=(worker,))), 80)
    assert '{"sent":"' in text and "running" not in text and "\x1b[31m" not in text
    words = msgspec.structs.replace(worker, progress=msgspec.Raw(b'"half done"'))
    assert " half done" in shown(render.workers_table(TaskInfo(task=row(TaskState.RUNNING), workers=(words,))), 80)


RED = "\x1b[1;31m"
COMMAND = "nsenter --net=/run/netns/a-long-name iptables -D INPUT -j TB-0856b5e4822354ad -w; iptables -F x -w"
STUCK = WorkerRow(
    id=1,
    node="node3",
    state=WorkerState.STUCK,
    outcome=Outcome.FAILED,
    status="undoing",
    error="it stays",
    residue=("chain TB-0856b5e4822354ad in iptables",),
    by_hand=(COMMAND, "kill -CONT 7"),
)


STUCK_NO_MORE = msgspec.structs.replace(STUCK, state=WorkerState.DONE, by_hand=(), residue=())


def terminal(width: int = 60) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    colours = Console(file=out, width=width, force_terminal=True, color_system="standard", markup=False, emoji=False)
    return colours, out


def test_what_is_stuck_is_red_with_commands_that_can_be_copied() -> None:
    to, out = terminal()
    task = row(TaskState.DONE, outcome=Outcome.FAILED, error="e", started_ms=START_MS, done_ms=START_MS)
    render.print_workers(to, TaskInfo(task=task, workers=(STUCK,)))
    assert f"{RED}STUCK" in out.getvalue()
    lines = out.getvalue().splitlines()
    assert all("\x1b[1;31m" in line for line in lines if "left" in line or "error:" in line)
    assert [line for line in lines if "by hand" in line] == [
        f"{RED}node3, by hand: {command}\x1b[0m" for command in STUCK.by_hand
    ]


def test_a_dirty_node_is_red_with_what_to_type() -> None:
    to, out = terminal()
    dirty = f"the undo of task t is stuck; by hand: {COMMAND}"
    nodes = [
        NodeRow(name="clean", alive=True, heard_ms=0, broker=0),
        NodeRow(name="latched", alive=True, heard_ms=0, latch="L1"),
        NodeRow(name="both", alive=True, heard_ms=0, latch="L1", dirty=(dirty,)),
        NodeRow(name="gone", heard_ms=0, latch="L1", dirty=("the undo of task u is stuck",)),
    ]
    render.print_nodes(to, nodes, 1000)
    written = out.getvalue()
    for coloured in ("\x1b[32malive", "\x1b[1;33maborted", f"{RED}dirty", f"{RED}silent"):
        assert coloured in written
    assert "broker 0" in written
    assert written.splitlines()[-2:] == [
        f"{RED}both: {dirty}\x1b[0m",
        f"{RED}gone: the undo of task u is stuck\x1b[0m",
    ]


def test_links_are_a_column_only_where_a_node_has_several() -> None:
    plain = NodeRow(name="plain", alive=True, heard_ms=0, addresses=("10.0.0.1",))
    assert shown(render.nodes_table([plain], 1000), 60).split("\n")[0].split() == [
        "NODE",
        "STATE",
        "HEARD",
        "ADDRESSES",
        "NOTE",
    ]
    waiting = NodeRow(name="far", hostname="no.such")
    assert "no.such (not resolved)" in shown(render.nodes_table([waiting], 1000), 100)
    several = {"kafka": False, "zmq 10.0.0.1:5560": True}
    nodes = [
        plain,
        NodeRow(name="both", alive=True, heard_ms=0, addresses=("10.0.0.2",), links=several),
        NodeRow(name="gone", heard_ms=0, addresses=("10.0.0.3",), links=several),
    ]
    for width in (60, 100):
        table = shown(render.nodes_table(nodes, 1000), width)
        assert max(map(len, table.splitlines())) <= width
        assert table.split("\n")[0].split() == ["NODE", "STATE", "HEARD", "LINKS", "ADDRESSES", "NOTE"]
        squeezed = _columns_joined(table)
        assert "kafkasilentzmq10.0.0.1:5560" in squeezed.replace(" ", "") and squeezed.count("kafka") == 1
    to, out = terminal()
    render.print_nodes(to, nodes, 1000)
    assert f"{RED}kafka silent" in out.getvalue()


def test_the_live_screen_shows_what_is_stuck_in_red() -> None:
    to, out = terminal(80)
    screen = live._LiveScreen(to, "here")
    dirty = NodeRow(name="node3", alive=True, heard_ms=0, dirty=("the undo of task t is stuck; by hand: kill -CONT 7",))
    status = CoordinatorStatus(server_start_ms=0, now_ms=0)
    with screen.live:
        mirror = Mirror()
        mirror.take([ViewPage(seq=1, at_ms=0, status=status, nodes=(dirty,))])
        screen.view(mirror)
        screen.event(WorkerChanged(seq=2, at_ms=0, task_id="t", worker=STUCK, text="task t on node3: it stays"))
        screen.event(WorkerChanged(seq=3, at_ms=0, task_id="u", worker=STUCK_NO_MORE, text="task u on node3: done"))
        screen.event(NodeChanged(seq=4, at_ms=0, node=dirty))
        screen.tick()
    written = out.getvalue()
    assert f"{RED}1970-01-01T00:00:00Z task t on node3: it stays" in written
    assert f"{RED}dirty" in written
    assert f"{RED}node3: the undo of task t is stuck; by hand: kill -CONT 7" in written
    assert written.count("1970-01-01T00:00:00Z") == 2  # an event without a text is no line
    assert "task u on node3: done" in written and f"{RED}1970-01-01T00:00:00Z task u" not in written


def test_nothing_is_markup_and_nothing_is_raw() -> None:
    assert shown(render.text("[red]a[/red] \x1b[31m \x07 \u202e :smile:"), 200) == (
        "[red]a[/red] \\x1b[31m \\x07 \\u202e :smile:\n"
    )


def test_json_says_the_same_and_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"id": "a\u202eb\x9b2J\U000e0001é", "two": ["lines\n"]}
    render.print_json(said)
    printed = capsys.readouterr().out
    assert json.loads(printed) == said
    assert all(line.isprintable() for line in printed.split("\n")) and "é" in printed


def test_a_page_and_a_junit_file_steer_nothing() -> None:
    found = Result(id="a\u202eb", name="a\u202eb\x9b", warnings=("\u2066<b>",))
    for document in (page.document(found), junit.document(found), encode_result(found)):
        text = document.decode()
        assert all(line.isprintable() for line in text.split("\n")), text
        assert "\\u202e" in text


def test_task_json_is_trogdors_with_ours_behind() -> None:
    worker = WorkerRow(id=7, node="a", state=WorkerState.RUNNING, status="active", running_ms=5)
    told = render.task_json(TaskInfo(task=row(TaskState.RUNNING, started_ms=START_MS), workers=(worker,)))
    assert list(told) == ["state", "spec", "startedMs", "status", "id", "type", "active", "outcome", "workers"]
    told = json.loads(msgspec.json.encode(told))
    assert told["status"] == "active"
    assert told["workers"][0]["runningMs"] == 5


def test_what_somebody_gave_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"class": "x", "match": "run ‹force› x", "text": "‹force›"}
    raw = msgspec.Raw(msgspec.json.encode(given))
    says = WorkerRow(id=7, node="a", status="‹force›", progress=raw, by_hand=("run ‹force›",))
    silent = WorkerRow(id=8, node="b", status="until `‹resume›`")
    task = row(TaskState.DONE, done_ms=5, spec=raw, original=raw, error="until `‹resume›`")
    for workers, status in (
        ((says,), given),
        ((silent,), "until `trogdor-bus resume`"),
        ((says, silent), {"a": given, "b": "until `trogdor-bus resume`"}),
        ((msgspec.structs.replace(says, progress=msgspec.Raw('"‹force›"'.encode())),), "‹force›"),
    ):
        render.print_json({"tasks": {"t": render.task_json(TaskInfo(task=task, workers=workers))}})
        told = json.loads(capsys.readouterr().out)["tasks"]["t"]
        assert (told["spec"], told["status"], told["error"]) == (given, status, "until `trogdor-bus resume`")
        assert [one["byHand"] for one in told["workers"]] == [list(one.by_hand) for one in workers]


HOLDER = Chosen(role="leader(orders, 0)", id=2, node="b", epoch=5)
LINE = "leader(orders, 0) is broker 2 on node b (leader epoch 5)"


def test_who_was_chosen_is_data_that_is_worded_here() -> None:
    task = row(TaskState.RUNNING, started_ms=START_MS, holders=(HOLDER,), seed=7)
    told = json.loads(msgspec.json.encode(render.task_json(TaskInfo(task=task))))
    assert told["chosen"] == [LINE]
    assert told["holders"] == [{"role": "leader(orders, 0)", "kind": "broker", "id": 2, "node": "b", "epoch": 5}]
    assert told["seed"] == 7
    assert render.with_why(task).chosen == (LINE,)


def test_lines_of_an_older_version_are_told_as_they_are() -> None:
    told = render.task_json(TaskInfo(task=row(TaskState.RUNNING, started_ms=START_MS, chosen=(LINE,))))
    assert told["chosen"] == [LINE]
    assert not {"holders", "seed"} & told.keys()


def test_a_dry_run_says_who_holds_the_roles(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(spec=SPEC, holders=(HOLDER,), seed=7)
    render.print_plan(plan)
    assert capsys.readouterr().out == f"now {LINE}\n"
    render.print_json(render.with_why(plan))
    told = json.loads(capsys.readouterr().out)
    assert (told["chosen"], told["seed"], told["holders"][0]["node"]) == ([LINE], 7, "b")


def test_remedies_are_told_in_our_words(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_line(render.console(), "nothing may start on a until `‹resume›`")
    render.print_json({"error": "`‹force›` allows it"})
    assert capsys.readouterr().out == (
        'nothing may start on a until `trogdor-bus resume`\n{\n  "error": "`--force` allows it"\n}\n'
    )
