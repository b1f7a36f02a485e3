"""`monitor` against a coordinator on the memory bus: it has the whole view, and follows it by events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast
from uuid import uuid4

import pytest

from tests.coordinator.driver import Cluster, raw
from tests.support import at_once
from trogdor_bus.bus import ClientBus, MonitorBus, OnTopic
from trogdor_bus.cli import live
from trogdor_bus.cli.reach import Reach
from trogdor_bus.client import Client
from trogdor_bus.coordinator import commands
from trogdor_bus.coordinator.commands import Commands
from trogdor_bus.coordinator.core import CoordinatorCore
from trogdor_bus.messages import EVENT_TOPIC, VERSION, VIEW_TOPIC, CoordinatorStatus, ListTasks, Pulse, encode
from trogdor_bus.transports import transport


class Place:
    """A coordinator on a memory bus of its own, and how to reach it; `lossy` are numbers of events that get lost."""

    def __init__(self) -> None:
        self.url = f"memory://{uuid4().hex}"
        self.bus = transport(self.url).open_coordinator(self.url, None)
        self.cluster = Cluster("a", "b")
        self.lossy: set[int] = set()
        self.asked: list[bytes] = []
        self.refuses = self.listens = False
        self._announced = 0
        self.core = CoordinatorCore(
            self.cluster.machine,
            self.cluster.store,
            self,
            lambda: self.cluster.now,
            soon=lambda flush: None,
            follow=lambda changes: None,
            look=lambda order: None,
            ended=lambda reason, fenced: None,
            shutdown=lambda: None,
            behind_ms=None,
            fed=lambda: None,
            broken=self._broken,
        )
        self.commands = Commands(self.core.api, look=self.cluster._look, told=self.cluster._told)
        self.bus.receive(lambda frame: None, self._answer)

    def create(self, task_id: str) -> None:
        self.core.api.create_task(task_id, raw({"class": "port-block", "nodes": ["a", "b"], "ports": [1]}))

    def publish(self, node: str, frame: bytes) -> None: ...

    def announce(self, topic: str, frame: bytes) -> None:
        self._announced += topic == EVENT_TOPIC
        if topic != EVENT_TOPIC or self._announced not in self.lossy:
            self.bus.announce(topic, frame)

    def monitor(self) -> MonitorBus:
        bus = transport(self.url).open_monitor(self.url, None)
        begin = bus.receive

        def receive(on_topic: OnTopic) -> None:
            begin(on_topic)
            self.listens = True

        bus.receive = receive  # type: ignore[method-assign]
        return bus

    def client(self) -> Client:
        bus: ClientBus = transport(self.url).open_client(self.url, None)
        return Client(bus, "here", timeout_s=0.5)

    def where(self) -> str:
        return "here"

    def advice(self) -> str:
        return ""

    def _answer(self, frame: bytes, answer: Callable[[bytes], None]) -> None:
        self.asked.append(frame)
        if not self.refuses:
            answer(at_once(commands.answer(self.commands, frame)))

    def _broken(self, error: Exception) -> None:
        raise error


@pytest.fixture
def place() -> Place:
    return Place()


Story = Callable[[], Coroutine[Any, Any, None]]


def watched(
    place: Place, story: Story, capsys: pytest.CaptureFixture[str], first: Callable[[], None] | None = None
) -> tuple[list[Any], str]:
    """Return the JSON lines of a monitor that watches while a story is told, and what it said to people.

    It hears first what `first` says, by default a pulse.
    """

    async def run() -> int:
        watching = asyncio.create_task(live._watch(cast(Reach, place), True, 1.5))
        await until(lambda: place.listens)
        (first or place.core.beat)()
        for _ in range(20):  # turns of the loop in which the answer arrives
            await asyncio.sleep(0)
        await story()
        return await watching

    try:
        assert asyncio.run(run()) == 0
    finally:
        place.bus.close()
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


async def until(seen: Callable[[], bool]) -> None:
    """Wait until something is seen, for at most ten seconds."""
    end = time.monotonic() + 10
    while not seen():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def views(lines: list[Any]) -> list[Any]:
    return [line["view"] for line in lines if "view" in line]


def test_a_monitor_asks_once_and_follows_by_events(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        place.create("t")
        place.core.beat()

    lines, err = watched(place, story, capsys)
    assert err == "" and len(place.asked) == 1
    first, last = views(lines)
    assert [node["name"] for node in first["nodes"]] == ["a", "b"] and first["tasks"] == []
    whole = at_once(place.commands.execute(ListTasks())).result
    assert last["tasks"] == json.loads(encode(whole))
    assert last["seq"] == place.cluster.machine.view.seq
    assert [line["event"] for line in lines if "event" in line] == ["task", "task", "worker", "worker"]


def test_large_specs_that_are_not_told_again_are_shown_all_the_same(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        spec = {"class": "command", "nodes": ["a"], "command": ["run", "x" * 2_000]}
        place.core.api.create_task("t", raw(spec))
        for _ in range(20):
            await asyncio.sleep(0)
        place.core.api.stop_task("t")
        place.core.beat()

    lines, _ = watched(place, story, capsys)
    tasks = [line for line in lines if line.get("event") == "task"]
    assert [line["task"].get("state", "PENDING") for line in tasks] == ["PENDING", "RUNNING", "STOPPING"]
    assert len({json.dumps(line["task"]["original"]) for line in tasks}) == 1 and "x" * 2_000 in json.dumps(tasks[-1])
    assert all("sameSpecs" not in line for line in tasks)
    (shown,) = views(lines)[-1]["tasks"]
    assert shown["task"] == tasks[-1]["task"]


def test_what_was_lost_is_asked_for(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.lossy = {3}

    async def story() -> None:
        place.create("t")
        place.core.beat()
        place.core.beat()
        await until(lambda: len(place.asked) == 2)
        place.core.beat()

    lines, _ = watched(place, story, capsys)
    for view in views(lines)[1:]:
        assert [row["node"] for row in view["tasks"][0]["workers"]] == ["a", "b"]
    assert len(views(lines)) >= 2


def test_without_a_whole_view_events_are_shown_and_it_says_so_once(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.refuses = True

    async def story() -> None:
        place.create("t")
        place.core.beat()

    lines, err = watched(place, story, capsys)
    assert [line["event"] for line in lines] == ["task", "task", "worker", "worker"]
    assert err.count("Only events are shown, since the whole view does not come: no coordinator answered") == 1


def test_of_an_event_of_a_newer_version_the_text_is_told_and_it_costs_no_other(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        view = place.cluster.machine.view
        view.seq += 1
        comet = {"v": VERSION, "event": "comet", "seq": view.seq, "atMs": place.cluster.now, "text": "it is seen"}
        place.bus.announce(EVENT_TOPIC, encode(comet))
        place.create("t")
        place.core.beat()

    lines, err = watched(place, story, capsys)
    assert views(lines)[-1]["seq"] == place.cluster.machine.view.seq and len(place.asked) == 1
    assert err == "" and [line["text"] for line in lines if line.get("event") == "note"] == ["it is seen"]


def test_who_hears_nothing_asks_nobody(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> int:
        return await live._watch(cast(Reach, place), True, 0.3)

    assert asyncio.run(run()) == 4
    place.bus.close()
    assert place.asked == [] and capsys.readouterr().out == ""


def test_a_coordinator_with_a_new_state_directory_is_shown_and_it_says_so_once(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = CoordinatorStatus(server_start_ms=0, now_ms=0, epoch=9, coordinator="dead")

    def first() -> None:
        place.refuses = True
        place.bus.announce(VIEW_TOPIC, encode(Pulse(seq=5, at_ms=1, status=dead)))

    async def story() -> None:
        place.refuses = False
        for _ in range(6):
            place.cluster.now += 1_000
            place.core.beat()
            for _ in range(20):
                await asyncio.sleep(0)
        place.create("t")
        place.core.beat()

    lines, err = watched(place, story, capsys, first)
    assert err.count(live.STRANGER_TEXT) == 1
    assert [task["task"]["id"] for task in views(lines)[-1]["tasks"]] == ["t"]
