"""The one door: what an answer needs is waited for, and nothing else; each request is carried out, and decoded once."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest

from tests.coordinator.driver import LEASE_MS, Cluster, raw
from tests.coordinator.test_looks import BLIND, SEEN
from tests.support import at_once
from trogdor_bus.coordinator import commands
from trogdor_bus.coordinator.commands import Commands, Response
from trogdor_bus.coordinator.events import Sighting
from trogdor_bus.errors import ConflictError, NotFoundError, NotNowError, TrogdorBusError
from trogdor_bus.messages import (
    CHANGES,
    Abort,
    AnyRequest,
    AskProof,
    AskStatus,
    AskView,
    CreateTask,
    DestroyTask,
    ExperimentInfo,
    ForgetNode,
    GetExperiment,
    ListNodes,
    ListTasks,
    Plan,
    Reply,
    Resume,
    ShowTask,
    Shutdown,
    StopTask,
    TaskInfo,
    ValidateSpec,
    decode,
    encode,
)
from trogdor_bus.registry import Registry
from trogdor_bus.roles import Wanted
from trogdor_bus.states import TaskRow, TaskState

BLOCK = {"class": "port-block", "durationMs": 10_000, "nodes": ["b"], "ports": [9092]}
BY_ROLE = {"class": "process-stop", "durationMs": 1_000, "nodes": ["leader(orders, 0)"], "match": "kafka.Kafka"}
REQUESTS: tuple[AnyRequest, ...] = (
    CreateTask(id="new", spec=raw(BLOCK)),
    ValidateSpec(spec=raw(BLOCK)),
    StopTask(id="new"),
    DestroyTask(id="new"),
    ShowTask(id="t"),
    ListTasks(),
    ListNodes(),
    AskView(),
    AskStatus(),
    Abort(latch="l"),
    Resume(),
    AskProof(latch="l"),
    ForgetNode(node="c", force=True),
    GetExperiment(id="x"),
    Shutdown(),
)


class World(Cluster):
    """A coordinator with a log, and everything that answers wait for: it goes on when the test says so."""

    def __init__(self) -> None:
        super().__init__(under_test="kafka1:9092")
        self.seen, self.replicated, self.read = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.waits: list[str] = []
        self.log_has_it = True
        self.commands = Commands(self.api, look=self._look, told=self._told, kept=self._kept)

    async def _look(self, wanted: Wanted) -> Sighting:
        self.waits.append("look")
        await self.seen.wait()
        return await super()._look(wanted)

    async def _told(self, task: TaskRow, request: GetExperiment) -> ExperimentInfo:
        self.waits.append("told")
        await self.read.wait()
        return ExperimentInfo(task=task, verdict=f"after {request.after}")

    async def _kept(self) -> bool:
        self.waits.append("kept")
        await self.replicated.wait()
        return self.log_has_it


@pytest.fixture
def world() -> World:
    world = World()
    world.create("t", nodes=["a"], ports=[7], durationMs=900_000)
    world.pass_(2 * LEASE_MS, "a", "b")
    world.create("x", "experiment", name="e", fault=BLOCK, durationMs=0)
    return world


async def begun(world: World, request: AnyRequest) -> asyncio.Task[Response]:
    """Return a request under way that waits for something."""
    task = asyncio.create_task(world.commands.execute(request))
    await asyncio.sleep(0)
    assert not task.done()
    return task


def test_there_is_an_example_of_every_request() -> None:
    assert [type(request) for request in REQUESTS] == list(get_args(AnyRequest))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_only_what_an_answer_needs_is_waited_for(world: World, request_: AnyRequest) -> None:
    for event in (world.seen, world.replicated, world.read):
        event.set()
    response = at_once(world.commands.execute(request_))
    changes = isinstance(request_, CHANGES)
    expected = ["kept"] if changes else ["told"] if isinstance(request_, GetExperiment) else []
    assert (world.waits, response.replicated) == (expected, True if changes else None)


@pytest.mark.parametrize("has_it", [True, False])
def test_a_frame_says_whether_the_log_has_it(world: World, has_it: bool) -> None:
    world.log_has_it = has_it
    world.replicated.set()
    assert world.answer(encode(StopTask(id="t"))).replicated is has_it
    assert world.answer(encode(ShowTask(id="t"))).replicated is None


def test_without_a_log_nothing_is_said_of_one() -> None:
    cluster = Cluster()
    response = at_once(cluster.commands.execute(CreateTask(id="t", spec=raw(BLOCK))))
    assert isinstance(response.result, TaskInfo)
    assert response.replicated is None


def test_a_change_has_happened_while_its_answer_waits_for_the_log(world: World) -> None:
    async def play() -> None:
        stop = await begun(world, StopTask(id="t"))
        assert world.task().state is TaskState.STOPPING
        assert (await world.commands.execute(ShowTask(id="t"))).result.task.state is TaskState.STOPPING
        world.log_has_it = False
        world.replicated.set()
        assert (await stop).replicated is False

    asyncio.run(play())


def test_what_is_refused_waits_for_no_log(world: World) -> None:
    with pytest.raises(ConflictError):
        at_once(world.commands.execute(CreateTask(id="t", spec=raw(BLOCK))))
    assert world.waits == []


def test_others_are_answered_while_the_cluster_under_test_is_looked_at(world: World) -> None:
    async def play() -> None:
        plan = await begun(world, ValidateSpec(spec=raw(BY_ROLE)))
        blind = await begun(world, ValidateSpec(spec=raw(BY_ROLE)))
        assert (await world.commands.execute(AskStatus())).result.epoch == 1
        world.sighting = SEEN
        world.seen.set()
        found: Plan = (await plan).result
        assert [node.node for node in found.nodes] == ["b"]
        await blind
        world.sighting = BLIND
        with pytest.raises(NotNowError, match="no broker answers"):
            await world.commands.execute(ValidateSpec(spec=raw(BY_ROLE)))

    asyncio.run(play())


def test_others_are_answered_while_the_file_of_an_experiment_is_read(world: World) -> None:
    async def play() -> None:
        info = await begun(world, GetExperiment(id="x", after=7))
        assert (await world.commands.execute(AskStatus())).result.epoch == 1
        world.read.set()
        assert (await info).result.verdict == "after 7"

    asyncio.run(play())


def test_what_is_no_experiment_is_not_read(world: World) -> None:
    for task in ("t", "nothing"):
        with pytest.raises(NotFoundError):
            at_once(world.commands.execute(GetExperiment(id=task)))
    assert world.waits == []


@pytest.mark.parametrize("spec", [BLOCK, BY_ROLE])
def test_a_request_is_decoded_once(world: World, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any]) -> None:
    decoded: list[str] = []

    def counted_frame(frame: bytes, kind: Any) -> Any:
        decoded.append("frame")
        return decode(frame, kind)

    def counted_spec(registry: Registry, data: Any, *, checked: bool = True) -> Any:
        decoded.append("spec")
        return decode_spec(registry, data, checked=checked)

    decode_spec = Registry.decode
    monkeypatch.setattr(commands, "decode", counted_frame)
    monkeypatch.setattr(Registry, "decode", counted_spec)
    world.sighting = SEEN
    world.seen.set()
    reply = world.answer(encode(ValidateSpec(spec=raw(spec))))
    assert (reply.error, decoded) == ("", ["frame", "spec"])


def test_a_door_sees_errors_as_they_are_and_a_frame_carries_them(world: World) -> None:
    for request in (ShowTask(id="nothing"), CreateTask(id="u", spec=raw(BLOCK | {"ports": [0]}))):
        with pytest.raises(TrogdorBusError) as caught:
            at_once(world.commands.execute(request))
        reply = world.answer(encode(request))
        assert reply == Reply.refusing(caught.value)
        assert bytes(reply.result) == b"null"
