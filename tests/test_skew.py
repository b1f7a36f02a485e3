"""What a client, a monitor or a standby reads of a coordinator of another version."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from trogdor_bus.actions import ProcessMatch, decode_action
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.actions.process import Kill, Restart
from trogdor_bus.errors import BusError, VersionError
from trogdor_bus.messages import (
    VERSION,
    AnyEvent,
    AnyRequest,
    Beat,
    CoordinatorStatus,
    NodeRow,
    Noted,
    Pulse,
    Reply,
    Snapshot,
    TaskInfo,
    ViewPage,
    decode,
    encode,
    read_rows,
    stranger,
)
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerRow, WorkerState

ROWS = (WorkerRow(id=1, node="a", state=WorkerState.RUNNING), WorkerRow(id=2, node="b", state=WorkerState.RUNNING))
INFO = TaskInfo(task=TaskRow(id="t", state=TaskState.RUNNING), workers=ROWS)
OTHER = TaskInfo(task=TaskRow(id="other", state=TaskState.DONE, outcome=Outcome.DONE, done_ms=5))
UPGRADE = "upgrade this trogdor-bus"


def plain(message: Any) -> Any:
    return msgspec.json.decode(encode(message))


def frame(body: Any) -> bytes:
    return msgspec.json.encode(body)


@pytest.mark.parametrize(("fields", "told"), [({"state": "PAUSED"}, "'PAUSED'"), ({"outcome": "weird"}, "'weird'")])
@pytest.mark.parametrize("place", ["task", "worker"])
def test_a_list_with_a_row_that_is_not_known_has_all_others_as_they_are(
    place: str, fields: dict[str, str], told: str
) -> None:
    body = plain([INFO, OTHER])
    (body[0]["task"] if place == "task" else body[0]["workers"][0]).update(fields)
    found, other = read_rows(frame(body), tuple[TaskInfo, ...])
    assert other == OTHER
    assert found.workers[1] == INFO.workers[1]
    changed = found.task if place == "task" else found.workers[0]
    assert told in changed.error and changed.error.endswith(UPGRADE)
    assert changed.state == "RUNNING", "it may be in force"
    assert read_rows(frame(body[0]), TaskInfo) == found


def test_who_waits_for_a_task_learns_that_its_outcome_is_not_known() -> None:
    body = plain(OTHER)
    body["task"]["outcome"] = "weird"
    task = read_rows(frame(body), TaskInfo).task
    assert (task.state, task.outcome) == (TaskState.DONE, Outcome.UNKNOWN)
    assert "'weird'" in task.error


def test_a_node_of_which_a_part_is_not_known_says_so() -> None:
    body = plain([NodeRow(name="a", alive=True, note="n"), NodeRow(name="b")])
    body[0]["addresses"] = 7
    found = read_rows(frame(body), tuple[NodeRow, ...])
    assert found[1] == NodeRow(name="b")
    assert (found[0].alive, found[0].note.startswith("n; cannot be read: the field addresses")) == (True, True)


@pytest.mark.parametrize("kind", [TaskInfo, tuple[TaskInfo, ...], tuple[NodeRow, ...], CoordinatorStatus])
@pytest.mark.parametrize("body", [7, {}, [7], {"task": {"id": 5}}, [{"task": {}}], [{"name": 5}]])
def test_what_is_no_row_at_all_is_an_error(kind: Any, body: Any) -> None:
    with pytest.raises(BusError):
        read_rows(frame(body), kind)


def test_a_view_with_rows_that_are_not_known_shows_all_others() -> None:
    status = CoordinatorStatus(server_start_ms=1, now_ms=2)
    body = plain(ViewPage(seq=1, at_ms=2, status=status, nodes=(NodeRow(name="a"),), tasks=(INFO, OTHER)))
    body["tasks"][0]["task"]["state"] = "PAUSED"
    body["tasks"][0]["workers"][0]["outcome"] = "weird"
    body["nodes"][0]["tags"] = 7
    page = read_rows(frame(body), ViewPage)
    assert page.tasks[1] == OTHER
    assert "'PAUSED'" in page.tasks[0].task.error
    assert "'weird'" in page.tasks[0].workers[0].error
    assert "tags" in page.nodes[0].note
    with pytest.raises(BusError):
        read_rows(frame({**body, "status": 7}), ViewPage)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "task", "task": {"id": "t", "state": "PAUSED"}},
        {"event": "worker", "taskId": "t", "worker": {"id": 1, "node": "a", "outcome": "weird"}},
        {"event": "cable", "cable": "green"},
    ],
)
def test_of_an_event_that_is_not_known_the_text_is_told(event: dict[str, Any]) -> None:
    told = decode(frame({"v": VERSION, "seq": 7, "atMs": 8, "text": "it is cut", **event}), AnyEvent)
    assert told == Noted(seq=7, at_ms=8, text="it is cut")


SPEAKERS = {
    Snapshot: "the coordinator",
    Beat: "the agent",
    AnyRequest: "the client",
    Reply: "the coordinator",
    AnyEvent: "the coordinator",
    Pulse: "the coordinator",
}


@pytest.mark.parametrize("kind", SPEAKERS)
@pytest.mark.parametrize("body", [{}, {"request": "tasks"}, {"node": "n", "stamp": 7, "reports": "x"}])
def test_another_version_is_refused_in_words_whatever_it_says(kind: Any, body: dict[str, Any]) -> None:
    with pytest.raises(VersionError, match=f"{SPEAKERS[kind]} speaks version 1 .*: upgrade {SPEAKERS[kind]}$"):
        decode(frame({"v": 1, **body}), kind)
    with pytest.raises(VersionError, match=f"{SPEAKERS[kind]} speaks version 3 .*: upgrade this "):
        decode(frame({"v": 3, **body}), kind)


@pytest.mark.parametrize("garbage", [b"", b"{", b"\xff", b"7", b"[]", b'{"v":"x"}', b'{"node":7}'])
def test_of_garbage_nobody_is_the_sender(garbage: bytes) -> None:
    assert stranger(garbage) == stranger(b"{}")


PORTS = BlockPorts(ports=(9092,))
KILL = Kill(match=ProcessMatch(command="k"), restart=Restart(unit="k.service"))


@pytest.mark.parametrize("action", [PORTS, KILL])
def test_an_action_is_read_as_it_was_written(action: Any) -> None:
    assert decode_action(encode(action)) == action


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b'{"action":"cut-cable","ports":[1]}', "the action 'cut-cable'"),
        (b'{"action":"block-ports","ports":[1],"address":"x"}', "the action block-ports (.*address"),
        (b'{"action":"block-ports","ports":[1],"direction":"up"}', "the action block-ports (.*direction"),
        (b'{"action":"suspend","match":{"cgroup":"x"}}', "the action suspend (.*cgroup"),
        (
            b'{"action":"block-from","peers":[{"node":"a","addresses":[],"ports":[1]}]}',
            "the action block-from (.*ports",
        ),
        (b"7", "not an action"),
        (b"{", "not an action"),
    ],
)
def test_an_action_that_would_be_another_one_is_not_known(raw: bytes, told: str) -> None:
    with pytest.raises(BusError, match=told.replace("(", r"\(")):
        decode_action(raw)
