"""What clients may ask: Trogdor's filters, errors as replies, and no traceback for anything that a frame can hold."""

from __future__ import annotations

import json
from random import Random
from typing import Any, NoReturn

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.coordinator.driver import BEAT_MS, NODES, Cluster, raw
from trogdor_bus import __version__
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.process import Suspend
from trogdor_bus.coordinator import pages
from trogdor_bus.coordinator.api import RECENT_MS
from trogdor_bus.errors import SpecError
from trogdor_bus.faults.network import PortBlockFaultSpec
from trogdor_bus.messages import (
    AskProof,
    AskStatus,
    AskView,
    CoordinatorStatus,
    CreateTask,
    Destroyed,
    DestroyTask,
    ListNodes,
    ListTasks,
    NodeRow,
    Plan,
    Reply,
    Request,
    ShowTask,
    Shutdown,
    StopTask,
    TaskInfo,
    ValidateSpec,
    ViewPage,
    encode,
)
from trogdor_bus.registry import MAX_SPEC_BYTES
from trogdor_bus.spec import MAX_DURATION_MS
from trogdor_bus.states import Outcome, TaskState, WorkerState

BLOCK = {"class": "port-block", "durationMs": 10_000, "nodes": ["a", "b"], "ports": [9092]}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def ask(cluster: Cluster, request: Request) -> Reply:
    return cluster.answer(encode(request))


def result(cluster: Cluster, request: Request, kind: Any) -> Any:
    reply = ask(cluster, request)
    assert not reply.error, reply
    return msgspec.json.decode(reply.result, type=kind)


def refused(cluster: Cluster, request: Request) -> tuple[str, str]:
    reply = ask(cluster, request)
    assert bytes(reply.result) == b"null"
    return reply.error, reply.message


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_create_show_stop_destroy(cluster: Cluster) -> None:
    info: TaskInfo = result(cluster, CreateTask(id="t", spec=raw(BLOCK)), TaskInfo)
    assert (info.task.state, [row.node for row in info.workers]) == (TaskState.RUNNING, ["a", "b"])
    assert result(cluster, CreateTask(id="t", spec=raw(BLOCK)), TaskInfo) == info
    assert result(cluster, ShowTask(id="t"), TaskInfo) == info
    assert result(cluster, StopTask(id="t"), None) is None
    assert result(cluster, ShowTask(id="t"), TaskInfo).task.state is TaskState.STOPPING
    assert result(cluster, DestroyTask(id="t"), Destroyed) == Destroyed(known=True, waiting=("a", "b"))
    assert refused(cluster, ShowTask(id="t")) == ("NotFoundError", 'No task with ID "t" exists.')


def test_unknown_ids_are_no_error_for_stop_and_destroy(cluster: Cluster) -> None:
    assert not ask(cluster, StopTask(id="nothing")).error
    assert not ask(cluster, DestroyTask(id="nothing")).error


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (CreateTask(id="", spec=raw(BLOCK)), "Invalid empty ID in createTask request."),
        (StopTask(id=""), "Invalid empty ID in stopTask request."),
        (DestroyTask(id=""), "Invalid empty ID in destroyTask request."),
    ],
)
def test_an_empty_id(cluster: Cluster, request_: Request, message: str) -> None:
    reply = ask(cluster, request_)
    assert (reply.error, reply.message, reply.path) == ("SpecError", message, "$.id")


def test_another_spec_is_a_conflict_and_the_same_in_other_words_is_not(cluster: Cluster) -> None:
    ask(cluster, CreateTask(id="t", spec=raw(BLOCK)))
    full = {**BLOCK, "class": "trogdor_bus.faults.network.PortBlockFaultSpec", "startMs": 0, "protocol": "tcp"}
    assert not ask(cluster, CreateTask(id="t", spec=raw(dict(reversed(full.items()))))).error
    error, message = refused(cluster, CreateTask(id="t", spec=raw({**BLOCK, "ports": [1]})))
    assert (error, message[:39]) == ("ConflictError", "task t exists with another spec: {" + '"clas')


def test_what_only_the_controller_finds_is_done_with_trogdors_text(cluster: Cluster) -> None:
    spec = raw({"class": "partition", "durationMs": 5, "partitions": [["a"], ["a"]]})
    info: TaskInfo = result(cluster, CreateTask(id="t", spec=spec), TaskInfo)
    assert info.task.error == "Failed to create TaskController: Node a appears in more than one partition."
    assert (info.task.state, info.task.started_ms, info.workers) == (TaskState.DONE, -1, ())
    reply = ask(cluster, ValidateSpec(spec=spec))
    assert (reply.error, reply.path) == ("SpecError", "$.partitions")
    assert reply.message == "Node a appears in more than one partition."


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled() -> tuple[Cluster, int]:
    """Return a cluster with a task in each state, and the time of the first start."""
    cluster = Cluster()
    first = cluster.now
    cluster.create("done", nodes=["a"])
    cluster.say("a", WorkerState.DONE, "done", outcome=Outcome.DONE)
    cluster.pass_(100, *NODES)
    cluster.create("running")
    cluster.pass_(100, *NODES)
    cluster.create("stopping")
    cluster.stop("stopping")
    cluster.create("pending", startMs=cluster.now + 60_000)
    cluster.create("never", nodes=["nowhere"])
    return cluster, first


ALL = ["done", "never", "pending", "running", "stopping"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ALL),
        ({"ids": ("running", "done", "nothing")}, ["done", "running"]),
        ({"state": "PENDING"}, ["pending"]),
        ({"state": "RUNNING"}, ["running"]),
        ({"state": "STOPPING"}, ["stopping"]),
        ({"state": "DONE"}, ["done", "never"]),
        ({"first_start_ms": 0}, ["done", "running", "stopping"]),
        ({"first_start_ms": 1}, ["running", "stopping"]),
        ({"last_start_ms": 100}, ["done", "running"]),
        ({"last_start_ms": 99}, ["done"]),
        ({"first_start_ms": 100, "last_start_ms": 100}, ["running"]),
        ({"first_end_ms": 0}, ["done", "never"]),
        ({"first_end_ms": 1}, ["never"]),
        ({"last_end_ms": 0}, ["done"]),
        ({"last_end_ms": 200}, ["done", "never"]),
        ({"last_start_ms": 0, "state": "DONE"}, ["done"]),
        ({"ids": ("running",), "state": "DONE"}, []),
    ],
)
def test_filters(filled: tuple[Cluster, int], query: dict[str, Any], expected: list[str]) -> None:
    cluster, first = filled
    absolute = {name: value + first if name.endswith("_ms") else value for name, value in query.items()}
    found = result(cluster, ListTasks(**absolute), list[TaskInfo])
    assert [info.task.id for info in found] == expected


@pytest.mark.parametrize("field", ["first_start_ms", "last_start_ms", "first_end_ms", "last_end_ms"])
@pytest.mark.parametrize("off", [0, -1, -(2**62)])
def test_zero_or_less_is_off(filled: tuple[Cluster, int], field: str, off: int) -> None:
    query: dict[str, Any] = {field: off}
    found = result(filled[0], ListTasks(**query), list[TaskInfo])
    assert [info.task.id for info in found] == ALL


@pytest.mark.parametrize("state", ["running", "Done", "STUCK"])
def test_a_state_that_does_not_exist(cluster: Cluster, state: str) -> None:
    assert refused(cluster, ListTasks(state=state)) == (
        "SpecError",
        f"State {state} is invalid. Must be one of [PENDING, RUNNING, STOPPING, DONE]",
    )


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_validate_plans_and_changes_nothing(cluster: Cluster) -> None:
    seq = cluster.machine.view.seq
    cluster.pass_(4 * BEAT_MS, "a")
    plan: Plan = result(cluster, ValidateSpec(spec=raw(BLOCK)), Plan)
    assert [(node.node, node.alive) for node in plan.nodes] == [("a", True), ("b", False)]
    assert plan.nodes[0].steps == (("drop tcp packets coming in to port 9092", "remove exactly these rules"),)
    assert json.loads(bytes(plan.spec))["class"] == "trogdor_bus.faults.network.PortBlockFaultSpec"
    assert plan.warnings == ("node b has no live agent: it would start when one appears",)
    assert cluster.machine.view.tasks == {}
    assert cluster.machine.view.seq > seq, "only that nodes fell silent"
    assert refused(cluster, ValidateSpec(spec=raw({**BLOCK, "nodes": ["z"]}))) == (
        "SpecError",
        "Unknown node names: z",
    )


def test_nodes_and_status(cluster: Cluster) -> None:
    nodes = result(cluster, ListNodes(), list[NodeRow])
    assert [(node.name, node.alive, node.addresses) for node in nodes] == [
        ("a", True, ("10.0.0.1",)),
        ("b", True, ("10.0.0.2",)),
        ("c", True, ("10.0.0.3",)),
    ]
    cluster.pass_(70)
    status: CoordinatorStatus = result(cluster, AskStatus(), CoordinatorStatus)
    assert (status.now_ms, status.server_start_ms) == (cluster.now, cluster.machine.started_ms)
    assert (status.epoch, status.coordinator, status.listening, status.version) == (1, "c1", False, __version__)
    assert "replicated" not in json.loads(bytes(ask(cluster, AskStatus()).result)), "there is no log"


def test_a_coordinator_that_listens_answers() -> None:
    cluster = Cluster(lead=False)
    assert result(cluster, AskStatus(), CoordinatorStatus).listening
    info: TaskInfo = result(cluster, CreateTask(id="t", spec=raw(BLOCK)), TaskInfo)
    assert info.task.state is TaskState.PENDING


def test_shutdown_is_passed_on(cluster: Cluster) -> None:
    cluster.create("t")
    assert not ask(cluster, Shutdown()).error
    assert cluster.shut_down
    assert cluster.task().state is TaskState.RUNNING


def test_a_monitors_view_leaves_out_what_ended_long_ago(filled: tuple[Cluster, int]) -> None:
    cluster, _ = filled
    page: ViewPage = result(cluster, AskView(), ViewPage)
    assert [info.task.id for info in page.tasks] == ALL
    assert (page.seq, page.at_ms, page.status.epoch) == (cluster.machine.view.seq, cluster.now, 1)
    assert page.nodes == tuple(cluster.api.nodes())
    cluster.now += RECENT_MS
    page = result(cluster, AskView(), ViewPage)
    assert [info.task.id for info in page.tasks] == ["pending", "running", "stopping"]


NO_PLACES = (
    "x",
    "[]",
    "[1]",
    "{}",
    '["\\ud800"]',
    "[" * 500,
    '["a","",-1,true,' + "[" * 10_000,
    '["a","",-1,true,' + "[" * 10_000 + "]" * 10_001,
    '["a","",' + "9" * 5_000 + ",true]",
    json.dumps(["a" * 70_000, "", -1, True]),
)


@pytest.mark.parametrize("after", NO_PLACES, ids=lambda after: after[:30])
def test_a_place_in_a_list_that_nobody_told(cluster: Cluster, after: str) -> None:
    for request in (
        ListTasks(after=after),
        ListNodes(after=after),
        AskView(after=after),
        AskProof(latch="L", after=after),
        ShowTask(id="t", after=after),
    ):
        cluster.api.create_task("t", raw({"class": "noop"}))
        reply = ask(cluster, request)
        assert (reply.error, reply.message, reply.path) == ("SpecError", "is no place in a list", "$.after")


def test_a_place_that_no_frame_can_hold_is_refused_too() -> None:
    with pytest.raises(SpecError, match="is no place in a list"):
        pages.mark(ListTasks(after="\ud800"))


# --- bad input --------------------------------------------------------------------------------------------------------


DEEP = b"[" * 200 + b"]" * 200
"""Nothing for an interpreter, and too much for a spec."""


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (b"", "BusError"),
        (b"\xff\xfe", "BusError"),
        (b"[" * 100_000, "BusError"),
        (b"{}", "BusError"),
        (b'{"request":"format"}', "BusError"),
        (b'{"request":"show"}', "BusError"),
        (b'{"request":"show","id":7}', "BusError"),
        (b'{"request":"status","v":99}', "VersionError"),
        (b'{"request":"status","v":1}', "VersionError"),
        (b'{"request":"create","id":"t","spec":[]}', "SpecError"),
        (b'{"request":"create","id":"t","spec":null}', "SpecError"),
        (b'{"request":"create","id":"t","spec":{"class":"nonsense"}}', "SpecError"),
        (b'{"request":"create","id":"t","spec":{"class":"noop","x":1}}', "SpecError"),
        (b'{"request":"create","id":"t","spec":{"class":"noop","durationMs":"soon"}}', "SpecError"),
        (b'{"request":"create","id":"t\\n","spec":{"class":"noop"}}', "SpecError"),
        (b'{"request":"create","id":"a/b","spec":{"class":"noop"}}', "SpecError"),
        (b'{"request":"create","id":"\\ud800","spec":{"class":"noop"}}', "BusError"),
        (b'{"request":"validate","spec":{"class":"port-block","nodes":["a"],"ports":[0]}}', "SpecError"),
        (b'{"request":"create","id":"t","spec":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "BusError"),
        (b'{"request":"create","id":"t","spec":{"class":"noop","x":' + b"[" * 100 + b"]" * 100 + b"}}", "SpecError"),
        (b'{"request":"validate","spec":{"class":"experiment","fault":{"class":"noop","x":%s}}}' % DEEP, "SpecError"),
        (b'{"request":"create","id":"t","spec":{"class":"' + b"x" * MAX_SPEC_BYTES + b'"}}', "SpecError"),
    ],
)
def test_garbage_is_answered_with_an_error(cluster: Cluster, frame: bytes, error: str) -> None:
    reply = cluster.answer(frame)
    assert reply.error == error, reply.message
    assert reply.message
    assert "Traceback" not in reply.message
    assert cluster.machine.view.tasks == {}


@pytest.mark.parametrize(
    "fault",
    [None, 5, {}, {"class": "nope"}, {"class": "experiment"}, {"class": "port-block"}, {**BLOCK, "durationMs": -5}],
)
def test_an_experiment_of_no_fault_is_refused_and_ends_no_coordinator(cluster: Cluster, fault: Any) -> None:
    error, message = refused(cluster, CreateTask(id="t", spec=raw({"class": "experiment", "fault": fault})))
    assert (error, cluster.machine.view.tasks) == ("SpecError", {}), message


ASKED = [
    "check",
    "performed",
    "longest_ms",
    "texts",
    "needs_cluster",
    "cluster_wanted",
    "targets",
    "actions",
    "peers_of",
]
"""What a coordinator asks of a spec class."""


@pytest.mark.parametrize("kind", [KeyError, SystemExit])
@pytest.mark.parametrize("method", ASKED)
def test_a_class_that_fails_is_named_and_ends_no_coordinator(
    method: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(under_test="x:1")

    def mistake(*_: object) -> NoReturn:
        raise kind("a package's mistake")

    monkeypatch.setattr(PortBlockFaultSpec, method, mistake)
    if method == "cluster_wanted":
        monkeypatch.setattr(PortBlockFaultSpec, "needs_cluster", lambda *_: True)
    named = f'PortBlockFaultSpec fails: {kind.__name__}("a package\'s mistake")'
    if method not in ("performed", "longest_ms", "texts"):  # these are asked once a task is taken
        error, message = refused(cluster, ValidateSpec(spec=raw(BLOCK)))
        assert error == "SpecError" and message.partition(" (mend")[0].endswith(named)
    reply = ask(cluster, CreateTask(id="t", spec=raw(BLOCK)))
    told = reply.message or cluster.machine.view.tasks["t"].error
    assert told.partition(" (mend")[0].endswith(named)
    cluster.pass_(5_000)


@pytest.mark.parametrize("value", [1.5, None, "long", [1]])
def test_a_class_whose_longest_time_no_row_can_hold_is_refused(
    cluster: Cluster, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PortBlockFaultSpec, "longest_ms", lambda _: value)
    assert refused(cluster, CreateTask(id="t", spec=raw(BLOCK)))[0] == "SpecError"
    assert cluster.machine.view.tasks == {}


@pytest.mark.parametrize(
    ("value", "kept"), [(2**70, MAX_DURATION_MS), (float("inf"), MAX_DURATION_MS), (-5, 0), (float("nan"), 0)]
)
def test_a_longest_time_beyond_all_bounds_is_cut(
    cluster: Cluster, value: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PortBlockFaultSpec, "longest_ms", lambda _: value)
    assert not ask(cluster, CreateTask(id="t", spec=raw(BLOCK))).error
    assert cluster.machine.view.tasks["t"].duration_ms == kept


@pytest.mark.parametrize("value", [None, ("rubbish",), 7, (None,), (Suspend(match=ProcessMatch(), required=object()),)])  # type: ignore[arg-type]
def test_actions_that_are_none_fail_the_task(cluster: Cluster, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PortBlockFaultSpec, "actions", lambda *_: value)
    ask(cluster, CreateTask(id="t", spec=raw(BLOCK)))
    assert "PortBlockFaultSpec fails: TypeError" in cluster.machine.view.tasks["t"].error


def test_an_unknown_field_names_its_place_and_the_remedy(cluster: Cluster) -> None:
    reply = ask(cluster, CreateTask(id="t", spec=raw({**BLOCK, "durationMS": 5})))
    assert (reply.error, reply.message, reply.path) == ("SpecError", "unknown field", "$.durationMS")
    assert reply.remedy == "did you mean 'durationMs'?"


FRAMES = [
    encode(request)
    for request in (
        CreateTask(id="t", spec=raw(BLOCK), force=True),
        ValidateSpec(spec=raw({"class": "partition", "partitions": [["a"], ["b"]]})),
        ListTasks(ids=("t",), state="DONE", first_start_ms=3),
        StopTask(id="t"),
        ShowTask(id="t"),
    )
]
SPLINTERS = (b"null", b"-1", b'"', b"{", b"]", b"1e999", b"\\u0000", b"9" * 25)


@given(seed=st.integers(0, 2**32))
def test_no_mangled_frame_breaks_it(seed: int) -> None:
    random = Random(seed)
    frame = bytearray(random.choice(FRAMES))
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(frame))
        match random.randrange(3):
            case 0:
                frame[at] = random.randrange(256)
            case 1:
                del frame[at:]
                frame += b"}"
            case _:
                frame[at:at] = random.choice(
                    (b"null", b"-1", b'"', b"{", b"]", b"1e999", b"\\u0000", b"99999999999999999999")
                )
    cluster = Cluster()
    reply = cluster.answer(bytes(frame))
    assert reply.error != "InvalidTransitionError"
    cluster.pass_(2 * BEAT_MS, *NODES)
