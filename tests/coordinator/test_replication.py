"""Running coordinators on one log: what clients are told of it, who is fenced by it, and standbys."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support import async_wait_until
from trogdor_bus.client import Client
from trogdor_bus.config import CoordinatorSettings
from trogdor_bus.coordinator import replica, service
from trogdor_bus.coordinator.changes import Meta, PutMeta
from trogdor_bus.coordinator.replica import Found, Replica
from trogdor_bus.coordinator.store import Store
from trogdor_bus.errors import NoCoordinatorError, RefusedError, SpecError
from trogdor_bus.fuse import Fuse
from trogdor_bus.messages import VERSION, VIEW_TOPIC, CoordinatorStatus
from trogdor_bus.transports import open_log, transport
from trogdor_bus.transports.memory_log import KEEPERS, MemoryKeeper

BEAT_MS = 50
STANDBY_MS = 400
SPEC = b'{"class":"noop","durationMs":1000,"startMs":9000000000000}'
_names = itertools.count()


async def _run(settings: CoordinatorSettings) -> int:
    return await service._run(settings, Fuse(settings.state_dir))


class Place:
    """A bus with a log, and the coordinators that run on it, each with a state directory of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.url = f"memory://replication-{next(_names)}"
        self.keeper = KEEPERS.setdefault(self.url.removeprefix("memory://"), MemoryKeeper())
        self._tmp_path = tmp_path

    def settings(self, name: str, **fields: Any) -> CoordinatorSettings:
        return CoordinatorSettings(url=self.url, state_dir=self._tmp_path / name, keys=None, beat_ms=BEAT_MS, **fields)

    @asynccontextmanager
    async def coordinator(self, name: str, **fields: Any) -> Any:
        """Run a coordinator inside the `with`; its task is the exit code."""
        running = asyncio.create_task(_run(self.settings(name, **fields)))
        try:
            yield running
        finally:
            while not running.done():  # Python 3.11's wait_for may swallow one
                running.cancel()
                await asyncio.wait([running], timeout=0.05)

    def client(self, timeout_s: float = 3.0) -> Client:
        return Client(transport(self.url).open_client(self.url, None), self.url, timeout_s)

    async def status(self) -> CoordinatorStatus | None:
        async with self.client(0.2) as client:
            try:
                return await client.status()
            except NoCoordinatorError:
                return None

    async def until(self, condition: Callable[[CoordinatorStatus], bool], what: str) -> CoordinatorStatus:
        """Wait until a coordinator's status is so."""
        seen: list[CoordinatorStatus] = []
        for _ in range(200):
            status = await self.status()
            if status is not None and condition(status):
                return status
            seen += [status] if status else []
            await asyncio.sleep(0.05)
        raise AssertionError(f"waited in vain until {what}: {seen[-1:]}")

    async def replicated(self) -> CoordinatorStatus:
        return await self.until(lambda found: not found.listening and found.replicated is True, "all is replicated")

    async def create(self, task: str) -> bool | None:
        async with self.client() as client:
            await client.create(task, SPEC)
            return client.replicated

    async def tasks(self) -> set[str]:
        async with self.client() as client:
            return {info.task.id for info in await client.tasks()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(tmp_path)


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(scene(), 60)

    asyncio.run(whole())


def test_a_client_is_told_whether_what_it_asked_for_is_in_the_log(place: Place) -> None:
    async def scene() -> None:
        async with place.coordinator("a"):
            await place.replicated()
            assert await place.create("t") is True
            place.keeper.acknowledging = False
            began = asyncio.get_running_loop().time()
            assert await place.create("u") is False
            assert 0.9 < asyncio.get_running_loop().time() - began < 2.5
            behind = await place.until(lambda found: found.replicated is False, "it is not replicated")
            assert isinstance(behind.behind_ms, int)
            assert 0 <= behind.now_ms - behind.behind_ms < 10_000
            async with place.client() as client:
                for verb in (client.stop("t"), client.destroy("t"), client.abort("latch"), client.resume()):
                    client.replicated = None
                    await verb
                    assert client.replicated is False
            place.keeper.acknowledging = True
            place.keeper.settle()
            assert (await place.replicated()).behind_ms == -1
            assert await place.create("u") is True, "asking again asks about the log, too"

    play(scene)


def test_other_requests_do_not_wait_for_the_log(place: Place) -> None:
    async def scene() -> None:
        async with place.coordinator("a"):
            await place.replicated()
            place.keeper.reachable = False
            slow = asyncio.create_task(place.create("t"))
            await async_wait_until(lambda: True)
            async with place.client(0.5) as client:
                await client.status()
                await client.nodes()
                assert client.replicated is None
            assert not slow.done()
            assert await slow is False

    play(scene)


def test_a_coordinator_that_starts_while_the_log_is_out_replicates_once_it_is_back(place: Place) -> None:
    async def scene() -> None:
        async with place.coordinator("a"):
            await place.replicated()
            await place.create("t")
        place.keeper.reachable = False
        async with place.coordinator("a"):
            await place.until(lambda found: not found.listening and found.replicated is False, "it leads")
            assert await place.create("u") is False
            place.keeper.reachable = True
            place.keeper.settle()
            await place.replicated()
        found = replica.read(place.keeper.open(), 1.0)
        assert found.state is not None
        assert {task.id for task in found.state.tasks} == {"t", "u"}
        assert found.epoch == 2

    play(scene)


def test_another_machine_takes_over_and_the_old_store_cannot_lead_any_more(place: Place) -> None:
    async def scene() -> None:
        async with place.coordinator("a"):
            first = await place.replicated()
            assert await place.create("t") is True
        with pytest.raises(RefusedError, match="‹take-over›"):
            await _run(place.settings("b"))
        async with place.coordinator("b", take_over=True):
            second = await place.replicated()
            assert second.epoch > first.epoch
            assert await place.tasks() == {"t"}
            await place.create("u")
        with pytest.raises(RefusedError, match=f"epoch {second.epoch}, this store is of epoch {first.epoch}"):
            await _run(place.settings("a"))
        async with place.coordinator("a", take_over=True):
            await place.replicated()
            assert await place.tasks() == {"t", "u"}

    play(scene)


def test_a_coordinator_that_finds_another_one_s_state_in_the_log_is_fenced(place: Place) -> None:
    async def scene() -> None:
        async with place.coordinator("a"):
            await place.replicated()
        place.keeper.reachable = False
        async with place.coordinator("a") as running:
            await place.until(lambda found: not found.listening, "it leads")
            place.keeper.reachable = True
            foreign = Replica(place.keeper.open(), "foreign")
            store = Store(place._tmp_path / "foreign")
            store.commit([PutMeta(Meta(cluster="c", epoch=1001, next_worker=0))], durable=True)
            foreign.begin(store.load(), Found(state=None))
            store.close()
            place.keeper.settle()
            assert await asyncio.wait_for(running, 10) == 1
        assert replica.read(place.keeper.open(), 1.0).epoch == 1001

    play(scene)


def test_a_bus_without_a_log_has_nothing_to_take_over(tmp_path: Path) -> None:
    settings = CoordinatorSettings(url="zmq://127.0.0.1:5560", state_dir=tmp_path, keys=None)
    assert open_log("zmq://127.0.0.1:5560", None) is None
    for asked in ({"take_over": True}, {"standby_ms": 1000}):
        with pytest.raises(SpecError, match=r"no log .*kafka"):
            asyncio.run(_run(msgspec.structs.replace(settings, **asked)))


def test_the_first_link_with_a_log_provides_it(place: Place) -> None:
    log = open_log(f"zmq://127.0.0.1:5560 {place.url} memory://another", None)
    assert log is not None
    log.append("key", b"value")
    assert place.keeper.records == [("key", b"value")]
    log.close()


# --- standbys ---------------------------------------------------------------------------------------------------------


def test_a_standby_takes_over_when_the_leader_is_silent_and_not_before(place: Place) -> None:
    async def scene() -> None:
        async with place.coordinator("b", standby_ms=STANDBY_MS) as standby:
            async with place.coordinator("a"):
                first = await place.replicated()
                await place.create("t")
                await asyncio.sleep(3 * STANDBY_MS / 1000)
                found = await place.status()
                assert found is not None
                assert found.coordinator == first.coordinator
            began = asyncio.get_running_loop().time()
            second = await place.replicated()
            assert 0.9 * STANDBY_MS / 1000 < asyncio.get_running_loop().time() - began < 5
            assert second.epoch > first.epoch
            assert await place.tasks() == {"t"}
            assert not standby.done()

    play(scene)


def test_no_standby_takes_over_while_the_log_is_out(place: Place) -> None:
    async def scene() -> None:
        async with place.coordinator("b", standby_ms=STANDBY_MS) as standby:
            async with place.coordinator("a"):
                await place.replicated()
                place.keeper.reachable = False
            await asyncio.sleep(4 * STANDBY_MS / 1000)
            assert await place.status() is None
            assert not standby.done()
            place.keeper.reachable = True
            await place.replicated()

    play(scene)


def test_of_two_standbys_one_leads_and_the_other_follows_it(place: Place) -> None:
    async def scene() -> None:
        async with (
            place.coordinator("b", standby_ms=STANDBY_MS) as one,
            place.coordinator("c", standby_ms=STANDBY_MS) as two,
        ):
            first = await place.replicated()
            await place.create("t")
            await asyncio.sleep(3 * STANDBY_MS / 1000)
            assert not one.done()
            assert not two.done()
            async with place.client() as client:
                await client.shutdown()
            await async_wait_until(lambda: one.done() or two.done())
            second = await place.replicated()
            assert second.epoch > first.epoch
            assert await place.tasks() == {"t"}

    play(scene)


@pytest.mark.parametrize("heard", ["at once", "when it is about to announce"])
def test_a_standby_that_led_and_is_fenced_stands_by_again(
    place: Place, heard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if heard != "at once":
        monkeypatch.setattr(service, "GATHER_S", 60.0)

    async def scene() -> None:
        async with place.coordinator("b", standby_ms=STANDBY_MS) as standby:
            first = await place.replicated()
            await place.create("t")
            agent = transport(place.url).open_agent(place.url, "node1", None)
            agent.receive(lambda frame: None)
            stamp = {"epoch": first.epoch + 5, "coordinator": "other", "revision": 1}
            beat = {"v": VERSION, "node": "node1", "journal": "j", "counter": 1, "stamp": stamp}
            agent.send(msgspec.json.encode(beat))
            agent.close()
            again = await place.until(
                lambda found: found.coordinator != first.coordinator and not found.listening, "it leads again"
            )
            assert again.epoch > first.epoch
            assert await place.tasks() == {"t"}
            assert not standby.done()

    play(scene)


def test_a_leader_of_another_version_is_seen_and_nobody_takes_its_place(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        old = transport(place.url).open_coordinator(place.url, None)
        async with place.coordinator("b", standby_ms=STANDBY_MS) as standby:
            with caplog.at_level(logging.INFO, "trogdor_bus.coordinator"):
                for _ in range(4 * STANDBY_MS // BEAT_MS):
                    old.announce(VIEW_TOPIC, msgspec.json.encode({"v": 1, "seq": 1, "nodes": "?"}))
                    await asyncio.sleep(BEAT_MS / 1000)
            assert not place.keeper.open().read(1.0), "nobody has claimed its place"
            old.close()
            await place.replicated()
            assert not standby.done()
        told = "the coordinator speaks version 1 of the protocol, this trogdor-bus version 2: upgrade the coordinator"
        assert [one.message for one in caplog.records if "version 1" in one.message] == [f"standing by: {told}"]

    play(scene)


def test_a_standby_ends_when_it_is_told_to(place: Place) -> None:
    async def scene() -> None:
        async with place.coordinator("a"):
            await place.replicated()
            async with place.coordinator("b", standby_ms=60_000) as standby:
                await asyncio.sleep(0.2)
                signal.raise_signal(signal.SIGTERM)
                assert await asyncio.wait_for(standby, 5) == 0

    play(scene)
