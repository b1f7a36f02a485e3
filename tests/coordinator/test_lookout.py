"""Looking at the cluster under test from a thread: what is seen, what is not, and how long anybody waits."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support import async_wait_until
from trogdor_bus.cluster import ClusterView, Quorum, SeenBroker, SeenController
from trogdor_bus.coordinator import lookout
from trogdor_bus.coordinator.events import LookAtCluster, OtherCluster
from trogdor_bus.coordinator.lookout import Lookout
from trogdor_bus.errors import HostError
from trogdor_bus.experiment.destinations import Destinations
from trogdor_bus.roles import Wanted

VIEW = ClusterView(
    brokers={1: SeenBroker(id=1, host="127.0.0.1", port=9092), 2: SeenBroker(id=2, host="no.such.host.invalid")},
    quorum=Quorum(leader=101, epoch=1, voters=(SeenController(id=101, host="::1"), SeenController(id=102))),
)


class FakeReader:
    """Answers a reading with what it is given; `calls` are the arguments."""

    def __init__(self, answer: ClusterView | Exception | threading.Event) -> None:
        self.answer, self.calls, self.closed = answer, list[Any](), False

    def read(self, topics: Any, coordinators: Any, *, ports: bool) -> ClusterView:
        self.calls.append((topics, coordinators, ports))
        if isinstance(self.answer, threading.Event):
            self.answer.wait(30)
            raise HostError("too late")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        self.closed = True


def made(answer: ClusterView | Exception | threading.Event) -> tuple[Lookout, FakeReader]:
    found, reader = Lookout("kafka1:9092"), FakeReader(answer)
    found._reader = reader  # type: ignore[assignment]
    return found, reader


def test_all_topics_are_seen_and_the_addresses_of_all_hosts() -> None:
    found, reader = made(VIEW)
    seen = asyncio.run(found.answer(LookAtCluster("t", 7, Wanted(("orders",), ("group:g",)), 1)))
    assert (seen.task, seen.number, seen.sighting.view, seen.sighting.error) == ("t", 7, VIEW, "")
    assert seen.sighting.hosts == {"127.0.0.1": ("127.0.0.1",), "::1": ("::1",), "no.such.host.invalid": ()}
    assert reader.calls == [(None, ("group:g",), True)]
    found.close()
    assert reader.closed


def test_each_look_has_a_seed_of_its_own() -> None:
    found, _ = made(VIEW)
    assert len({asyncio.run(found.look(Wanted())).seed for _ in range(3)}) == 3


def test_what_cannot_be_seen_is_said_in_words() -> None:
    found, _ = made(HostError("no broker answers"))
    seen = asyncio.run(found.look(Wanted()))
    assert (seen.view, seen.error) == (None, "no broker answers")
    found, _ = made(KeyError("surprise"))
    assert asyncio.run(found.look(Wanted())).error == "looking at kafka1:9092 broke: KeyError('surprise')"
    seen = asyncio.run(Lookout("kafka1:99999").look(Wanted()))
    assert seen.view is None and "99999" in seen.error


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "DEADLINE_S", 0.05)
    release = threading.Event()
    found, _ = made(release)

    async def look() -> str:
        seen = await found.look(Wanted())
        release.set()
        return seen.error

    assert asyncio.run(look()) == "kafka1:9092 tells nothing within 0.05 s"


class Queue:
    """A reader whose readings take a while, and that must not be closed while one goes on."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s, self.under_way, self.most = takes_s, 0, 0
        self.closed_early, self.closed = False, threading.Event()

    def read(self, topics: Any, coordinators: Any, *, ports: bool) -> ClusterView:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        threading.Event().wait(self.takes_s)
        self.under_way -= 1
        return ClusterView()

    def close(self) -> None:
        self.closed_early = self.under_way > 0
        self.closed.set()


def test_the_time_of_those_before_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "DEADLINE_S", 1.0)
    found, reader = Lookout("kafka1:9092"), Queue(0.25)
    found._reader = reader  # type: ignore[assignment]

    async def looks() -> list[str]:
        seen = await asyncio.gather(*(found.look(Wanted()) for _ in range(8)))
        return [one.error for one in seen]

    assert asyncio.run(looks()) == [""] * 8
    assert reader.most == 1
    found.close()
    assert reader.closed.is_set()


def test_connections_are_closed_after_the_looks_on_them() -> None:
    found, reader = Lookout("kafka1:9092"), Queue(0.2)
    found._reader = reader  # type: ignore[assignment]

    async def look() -> str:
        looking = asyncio.create_task(found.look(Wanted()))
        await async_wait_until(lambda: reader.under_way, 5, "the look")
        found.close()
        assert not reader.closed.is_set()
        return (await looking).error

    assert asyncio.run(look()) == ""
    assert reader.closed.wait(5) and not reader.closed_early


def test_a_look_waits_for_no_thread_of_somebody_else() -> None:
    found, _ = made(VIEW)
    release = threading.Event()

    async def look() -> str:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        blocked = loop.run_in_executor(None, release.wait, 30)
        try:
            async with asyncio.timeout(5):
                return (await found.look(Wanted())).error
        finally:
            release.set()
            await blocked

    assert asyncio.run(look()) == ""


def test_a_cluster_that_an_experiment_names_is_looked_at_only_where_that_is_allowed() -> None:
    found = Lookout("kafka1:9092", None, Destinations(hosts=("10.0.0.1",)).check_brokers)
    order = LookAtCluster("t", 1, Wanted(), other=OtherCluster("192.0.2.1:9092", ""))
    seen = asyncio.run(found.answer(order))
    assert "start it with ‹allow-probe› 192.0.2.1:9092" in seen.sighting.error
    found.close()
