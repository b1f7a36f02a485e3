"""However much there is, nothing of it is lost in silence: lists come in pages, and what fits no frame says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import chain
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
import pytest

from tests.coordinator.driver import Cluster
from trogdor_bus.actions.program import RunCommand
from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.client import Client
from trogdor_bus.coordinator import orders
from trogdor_bus.coordinator.events import DestroyRequested, Event, Ticked
from trogdor_bus.coordinator.orders import MOST_ORDER_BYTES
from trogdor_bus.coordinator.pages import MOST_RESULT_BYTES, check_fits
from trogdor_bus.coordinator.plan import WorkerPlan
from trogdor_bus.errors import BusError, RefusedError
from trogdor_bus.messages import (
    Abort,
    AskView,
    DestroyTask,
    GetExperiment,
    ListNodes,
    ListTasks,
    NodeRow,
    PagedRequest,
    ShowTask,
    TaskInfo,
    ValidateSpec,
    ViewPage,
    encode,
)
from trogdor_bus.mirror import Mirror
from trogdor_bus.registry import registry
from trogdor_bus.states import TaskState, WorkerState
from trogdor_bus.topology import Node
from trogdor_bus.transports import transport

T = TypeVar("T")
LARGE = {"nodes": ["a"], "command": ["run", "x" * 960_000]}
"""Makes a spec of 960 kB."""


def asked(cluster: Cluster, use: Callable[[Client], Awaitable[T]]) -> T:
    """Return what a client gets of the cluster's coordinator over a bus."""

    async def run() -> T:
        url = f"memory://{uuid4().hex}"
        coordinator = transport(url).open_coordinator(url, None)
        coordinator.receive(lambda _: None, lambda frame, answer: answer(encode(cluster.answer(frame))))
        try:
            async with Client(transport(url).open_client(url, None), "here", timeout_s=2.0) as client:
                return await use(client)
        finally:
            coordinator.close()

    return asyncio.run(run())


def everything(cluster: Cluster) -> tuple[TaskInfo, ...]:
    """Return all tasks, by id."""
    view = cluster.machine.view
    return tuple(view.info(task_id) for task_id in sorted(view.tasks))


class Silent(Cluster):
    """A coordinator that leads, with nodes that are configured and have no agents; nothing is checked on the way."""

    def __init__(self, count: int) -> None:
        names = [f"node{number:04d}.rack1.example.org" for number in range(count)]
        super().__init__(*names, configured={name: Node(name=name) for name in names}, lead=False)
        self.now += 3_000
        self.give(Ticked())
        assert not self.machine.listening

    def give(self, event: Event) -> list[str]:
        self.machine.handle(event, self.now)
        return []


@pytest.fixture(scope="module")
def ended() -> Cluster:
    """Return a coordinator with 900 ended tasks on 50 nodes that have no agents."""
    cluster = Silent(50)
    for number in range(900):
        cluster.create(f"t{number:03d}", "noop", durationMs=1)
        if number % 50 == 49:
            cluster.now += 60_000
            cluster.give(Ticked())
    assert {task.state for task in cluster.machine.view.tasks.values()} == {TaskState.DONE}
    return cluster


def test_900_tasks_of_50_nodes_are_listed(ended: Cluster) -> None:
    found = asked(ended, lambda client: client.tasks())
    assert [info.task.id for info in found] == [f"t{number:03d}" for number in range(900)]
    assert found == everything(ended)
    assert len(encode(found)) > MAX_FRAME_BYTES


def test_ten_specs_of_960_kb_are_listed() -> None:
    cluster = Cluster("a")
    for number in range(10):
        cluster.create(f"t{number}", "command", startMs=cluster.now + 60_000, **LARGE)
    found = asked(cluster, lambda client: client.tasks())
    assert found == everything(cluster) and len(found) == 10
    assert len(encode(found)) > MAX_FRAME_BYTES


def test_a_node_hears_of_ten_specs_of_960_kb_and_performs_each_once() -> None:
    cluster = Cluster("a")
    started: list[str] = []
    for number in range(10):
        cluster.create(f"t{number}", "command", **LARGE)
        assert len(encode(cluster.published["a"])) < MAX_FRAME_BYTES
    for _ in range(12):
        for order in cluster.published["a"].orders:
            if order.actions is not None:
                started.append(order.task)
                cluster.say("a", WorkerState.RUNNING, order.task)
        cluster.pass_(1_000, "a")
        assert len(encode(cluster.published["a"])) < MAX_FRAME_BYTES
    assert sorted(started) == [f"t{number}" for number in range(10)]
    assert {task.state for task in cluster.machine.view.tasks.values()} == {TaskState.RUNNING}


def test_an_abort_of_ten_such_tasks_is_answered_and_told() -> None:
    cluster = Cluster("a")
    for number in range(10):
        cluster.create(f"t{number}", "command", **LARGE)
    reply = cluster.answer(encode(Abort(latch="L")))
    assert not reply.error and len(encode(reply)) < 1000
    assert cluster.published["a"].abort == "L" and cluster.published["a"].orders == ()


def test_all_that_a_monitor_needs_of_25_tasks_on_1000_nodes_comes() -> None:
    cluster, mirror = Silent(1_000), Mirror()
    for number in range(25):
        cluster.create(f"t{number:02d}", "noop")
        assert len(encode(cluster.api.pulse())) < 1_000
    pages = asked(cluster, lambda client: client.view())
    assert len(encode(pages)) > MAX_FRAME_BYTES
    mirror.take(pages)
    assert mirror.beat(cluster.api.pulse())
    world = mirror.world()
    assert world is not None and world.tasks == everything(cluster) and world.nodes == tuple(cluster.api.nodes())


def read(cluster: Cluster, request: PagedRequest, kind: Any) -> list[Any]:
    """Return all pages of an answer, read one by one."""
    found = []
    while True:
        reply = cluster.answer(encode(request))
        assert not reply.error, reply
        found.append(msgspec.json.decode(reply.result, type=kind))
        if not reply.more:
            return found
        request = msgspec.structs.replace(request, after=reply.more)


@pytest.fixture(scope="module")
def mixed() -> Cluster:
    """Return a coordinator with tasks of 50 workers, one of none, and 50 nodes."""
    cluster = Silent(50)
    for number in range(3):
        cluster.create(f"t{number}", "noop")
    cluster.create("failed", nodes=["nowhere"])
    cluster.stop("t1")
    return cluster


@pytest.mark.parametrize("most", [1, 500, 3_000, 10_000])
def test_pages_are_about_as_large_as_they_are_wanted_and_hold_every_row_once(mixed: Cluster, most: int) -> None:
    tasks = read(mixed, ListTasks(most_bytes=most), list[TaskInfo])
    view = read(mixed, AskView(most_bytes=most), ViewPage)
    task = read(mixed, ShowTask(id="t1", most_bytes=most), TaskInfo)
    nodes = read(mixed, ListNodes(most_bytes=most), list[NodeRow])
    for pages in (tasks, view, task, nodes):
        assert len(pages) > 1 and all(len(encode(page)) < most + 2_000 for page in pages)
    whole = everything(mixed)
    assert _joined(chain(*tasks)) == _joined(chain(*(page.tasks for page in view))) == whole
    assert _joined(task) == (mixed.machine.view.info("t1"),)
    assert list(chain(*nodes)) == list(chain(*(page.nodes for page in view))) == mixed.api.nodes()
    rows = [(info.task.id, row.id) for info in chain(*tasks) for row in info.workers]
    assert len(rows) == len(set(rows)) == 150


def _joined(parts: Iterable[TaskInfo]) -> tuple[TaskInfo, ...]:
    found: dict[str, TaskInfo] = {}
    for part in parts:
        before = found.get(part.task.id, TaskInfo(task=part.task))
        found[part.task.id] = TaskInfo(task=part.task, workers=(*before.workers, *part.workers))
    return tuple(found.values())


def test_a_list_goes_on_after_the_row_at_which_it_stopped_is_gone() -> None:
    cluster = Cluster("a")
    for name in ("t1", "t2", "t3"):
        cluster.create(name, "noop")
    reply = cluster.answer(encode(ListTasks(most_bytes=1)))
    cluster.give(DestroyRequested("t1"))
    cluster.give(DestroyRequested("t2"))
    rest = read(cluster, ListTasks(most_bytes=1, after=reply.more), list[TaskInfo])
    assert [info.task.id for info in chain(*rest)] == ["t3"]


def test_a_client_without_pages_is_told_that_the_answer_does_not_fit(ended: Cluster) -> None:
    for request in (ListTasks(), AskView()):
        reply = ended.answer(encode(request))
        if reply.error:
            assert reply.error == "BusError" and "the bus carries at most 8323072: a client of this" in reply.message
    assert ended.answer(encode(ListTasks())).error == "BusError"


def test_a_result_that_no_frame_carries_says_where_it_is() -> None:
    for request, remedy in (
        (GetExperiment(id="e", with_result=True), "in experiments/e.json of the state directory"),
        (ValidateSpec(spec=msgspec.Raw(b"{}")), "ask for less"),
        (DestroyTask(id="t"), "it is done, but the answer has"),
    ):
        with pytest.raises(BusError, match=remedy):
            check_fits(b"x" * (MOST_RESULT_BYTES + 1), request)
        check_fits(b"x" * MOST_RESULT_BYTES, request)


def test_what_one_agent_says_is_never_too_large_for_the_lists() -> None:
    cluster = Cluster("a", "b")
    cluster.create()
    lines = tuple("r" * 9_000 for _ in range(200))
    cluster.say("a", WorkerState.STUCK, residue=lines, by_hand=lines, error="e" * 2_000_000, warnings=lines)
    assert len(encode(cluster.row("a"))) < 1_500_000
    assert cluster.row("a").by_hand[-1] == "and 170 more"
    assert cluster.row("a").error == "e" * (256 << 10) + "... (cut)"
    cluster.beat("b", strays=lines)
    assert all(len(encode(row)) < 1_500_000 for row in cluster.api.nodes())
    assert asked(cluster, lambda client: client.tasks()) == everything(cluster)


def test_what_no_snapshot_can_tell_is_refused() -> None:
    spec = registry().decode({"class": "command", "nodes": ["a"], "command": ["x" * 200_000], "durationMs": 5})
    order = RunCommand(command=("x" * MOST_ORDER_BYTES,), workload=msgspec.Raw(b"null"), grace_ms=0)
    with pytest.raises(RefusedError, match=r"what node a is to do has \d{7} bytes, and at most 4194304 can be told"):
        orders.check_fits(spec, [WorkerPlan(node="a", actions=(order,), left_out=())])
    cluster = Cluster("a")
    cluster.create(command=["x" * 200_000], alias="command", nodes=["a"])
    assert cluster.task().state is TaskState.RUNNING
