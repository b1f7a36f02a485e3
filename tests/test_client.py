"""The client, against a coordinator's end of the memory bus that gives canned replies."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from itertools import cycle
from typing import TypeVar, cast
from uuid import uuid4

import msgspec
import pytest

from trogdor_bus import errors
from trogdor_bus.bus import Answer, ClientBus
from trogdor_bus.client import PAGE_BYTES, Client, new_id
from trogdor_bus.errors import BusError, NoCoordinatorError, SpecError, TrogdorBusError
from trogdor_bus.messages import (
    AnyRequest,
    CoordinatorStatus,
    CreateTask,
    ListNodes,
    ListTasks,
    NodeRow,
    Reply,
    ShowTask,
    TaskInfo,
    decode,
    encode,
)
from trogdor_bus.names import check_name
from trogdor_bus.states import Outcome, TaskRow, TaskState
from trogdor_bus.transports import transport

T = TypeVar("T")
Respond = Callable[[AnyRequest], Reply | None]


def with_client(respond: Respond, use: Callable[[Client], Awaitable[T]], timeout_s: float = 5.0) -> T:
    async def run() -> T:
        url = f"memory://{uuid4().hex}"
        coordinator = transport(url).open_coordinator(url, None)

        def on_request(frame: bytes, answer: Answer) -> None:
            reply = respond(decode(frame, AnyRequest))
            if reply is not None:
                answer(encode(reply))

        coordinator.receive(lambda frame: None, on_request)
        try:
            async with Client(transport(url).open_client(url, None), "here", timeout_s) as client:
                return await use(client)
        finally:
            coordinator.close()

    return asyncio.run(run())


def result(value: object) -> Reply:
    return Reply(result=msgspec.Raw(msgspec.json.encode(value)))


def task(state: TaskState, outcome: Outcome = Outcome.NONE) -> TaskInfo:
    return TaskInfo(task=TaskRow(id="t", state=state, outcome=outcome))


def test_answers_come_back_as_structs() -> None:
    rows = (NodeRow(name="node1", alive=True, heard_ms=5),)
    assert with_client(lambda request: result(rows), lambda client: client.nodes()) == rows


def test_who_waits_for_an_end_bears_silence_from_the_first_question_on() -> None:
    left = [3]

    def respond(request: AnyRequest) -> Reply | None:
        left[0] -= 1
        return result(CoordinatorStatus(server_start_ms=1, now_ms=2)) if left[0] < 0 else None

    assert with_client(respond, lambda client: client.status(silence_s=30), timeout_s=0.02).now_ms == 2
    left[0] = 3
    with pytest.raises(NoCoordinatorError):
        with_client(respond, lambda client: client.status(), timeout_s=0.02)


def test_queries_go_out_as_they_are() -> None:
    asked: list[AnyRequest] = []

    def respond(request: AnyRequest) -> Reply:
        asked.append(request)
        return result([])

    query = ListTasks(ids=("a", "b"), state="DONE")
    assert with_client(respond, lambda client: client.tasks(query)) == ()
    assert asked == [msgspec.structs.replace(query, most_bytes=PAGE_BYTES)]


def test_a_list_is_asked_for_page_by_page() -> None:
    nodes = tuple(NodeRow(name=f"node{number}") for number in range(3))
    asked: list[str] = []

    def respond(request: AnyRequest) -> Reply:
        assert isinstance(request, ListNodes)
        asked.append(request.after)
        return msgspec.structs.replace(
            result(nodes[len(asked) - 1 : len(asked)]), more=("one", "two", "")[len(asked) - 1]
        )

    assert with_client(respond, lambda client: client.nodes()) == nodes
    assert asked == ["", "one", "two"]


@pytest.mark.parametrize("marks", [["one"], ["one", "two"]])
def test_a_list_that_begins_again_has_no_end(marks: list[str]) -> None:
    told = cycle(marks)
    with pytest.raises(BusError, match="the answer of here does not end: its pages begin again"):
        with_client(lambda request: msgspec.structs.replace(result([]), more=next(told)), lambda client: client.nodes())


@pytest.mark.parametrize(
    "cls",
    [
        errors.ConflictError,
        errors.NotFoundError,
        errors.RefusedError,
        errors.BusError,
        errors.HostError,
        errors.CannotHealError,
        errors.FencedError,
    ],
)
def test_errors_come_back_as_what_they_are(cls: type[TrogdorBusError]) -> None:
    with pytest.raises(TrogdorBusError) as raised:
        with_client(lambda request: Reply(error=cls.__name__, message="why"), lambda client: client.stop("t"))
    assert type(raised.value) is cls
    assert str(raised.value) == "why"


def test_a_spec_error_keeps_path_and_remedy() -> None:
    reply = Reply(error="SpecError", message="wrong", path="$.nodes[0]", remedy="mend it")
    with pytest.raises(SpecError) as raised:
        with_client(lambda request: reply, lambda client: client.validate(b"{}"))
    assert (raised.value.message, raised.value.path, raised.value.remedy) == ("wrong", "$.nodes[0]", "mend it")


def test_an_error_of_the_future_is_still_an_error_of_ours() -> None:
    with pytest.raises(TrogdorBusError, match="new in 2030") as raised:
        with_client(lambda request: Reply(error="NovelError", message="new in 2030"), lambda client: client.stop("t"))
    assert type(raised.value) is TrogdorBusError


@pytest.mark.parametrize("raw", [b'["no","node"]', b'[{"name":"\xff"}]', b'{"\xff":1}', b"[" * 100_000])
def test_an_answer_that_cannot_be_read(raw: bytes) -> None:
    reply = Reply(result=msgspec.Raw(raw))
    for use in (Client.nodes, Client.status):
        with pytest.raises(BusError):
            with_client(lambda request: reply, use)
    with pytest.raises(BusError, match=r"cannot read the answer of here: .*; upgrade this trogdor-bus$"):
        Client(cast(ClientBus, None), "here")._read(reply, tuple[NodeRow, ...])


def test_create_asks_again_with_the_same_id() -> None:
    asked: list[CreateTask] = []

    def respond(request: AnyRequest) -> Reply | None:
        assert isinstance(request, CreateTask)
        asked.append(request)
        return result(task(TaskState.PENDING)) if len(asked) == 3 else None

    info = with_client(respond, lambda client: client.create("t", b'{"class":"noop"}'), timeout_s=0.05)
    assert info.task.state is TaskState.PENDING
    assert [(request.id, bytes(request.spec)) for request in asked] == [("t", b'{"class":"noop"}')] * 3


def test_nobody_answers() -> None:
    with pytest.raises(NoCoordinatorError):
        with_client(lambda request: None, lambda client: client.create("t", b"{}", silence_s=0.05), timeout_s=0.02)
    with pytest.raises(NoCoordinatorError):
        with_client(lambda request: None, lambda client: client.wait("t", silence_s=0.05), timeout_s=0.02)


def test_wait_bears_silence_and_tells_each_change_once() -> None:
    answers = [
        result(task(TaskState.PENDING)),
        None,
        result(task(TaskState.RUNNING)),
        result(task(TaskState.RUNNING)),
        None,
        result(task(TaskState.DONE, Outcome.FAILED)),
    ]

    def respond(request: AnyRequest) -> Reply | None:
        assert request == ShowTask(id="t", most_bytes=PAGE_BYTES)
        return answers.pop(0)

    seen: list[TaskInfo] = []
    info = with_client(respond, lambda client: client.wait("t", seen.append), timeout_s=0.05)
    assert info == task(TaskState.DONE, Outcome.FAILED)
    assert [change.task.state for change in seen] == [TaskState.PENDING, TaskState.RUNNING, TaskState.DONE]


def test_ids_are_short_readable_and_allowed() -> None:
    ids = {new_id("partition") for _ in range(100)}
    assert len(ids) > 90
    assert all(re.fullmatch("partition-[0-9a-f]{6}", check_name(found, "task id")) for found in ids)
