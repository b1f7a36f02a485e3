"""What every bus promises, on every bus."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.buses import KINDS, Agent, Bus, Coordinator, Monitor, be_heard, be_seen, make_bus, reach
from tests.support import async_wait_until
from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.errors import BusError, NoCoordinatorError

NAMES = ("n1", "n10", "n", "two words", " n1", "größe-节点-🦖", "100%", "%6e1", "node", "*", "n1\\")


class Opened:
    """Opens ends and closes them all after the test."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._ends: list[Any] = []

    def coordinator(self) -> Coordinator:
        return self._keep(Coordinator(self.bus))

    def agent(self, node: str) -> Agent:
        return self._keep(Agent(self.bus, node))

    def monitor(self) -> Monitor:
        return self._keep(Monitor(self.bus))

    def client(self) -> Any:
        client = self.bus.client()
        self._ends.append(client)
        return client

    def _keep(self, end: Any) -> Any:
        self._ends.append(end.bus)
        return end

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            try:
                await scenario()
            finally:
                for end in self._ends:
                    end.close()

        asyncio.run(whole())


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    bootstrap = request.getfixturevalue("bootstrap") if request.param.startswith("kafka") else ""
    yield Opened(make_bus(request.param, tmp_path, bootstrap))


def test_only_kafka_alone_is_what_the_bus_hangs_on(opened: Opened) -> None:
    async def scenario() -> None:
        bus = opened.coordinator().bus
        if not opened.bus.url.startswith("kafka:") or " " in opened.bus.url:
            assert bus.brokers() is None
            return
        await async_wait_until(lambda: (seen := bus.brokers()) is not None and seen.brokers, 30, "brokers to be seen")
        seen = bus.brokers()
        ids = {broker.id for broker in seen.brokers}
        assert all(broker.addresses and broker.port for broker in seen.brokers)
        assert {one for group in seen.replicas for one in group} <= ids
        assert 1 <= seen.min_in_sync <= min(map(len, seen.replicas))
        assert set(seen.quorum) <= ids, "the tests' brokers are the controllers as well"

    opened.run(scenario)


def test_a_published_frame_reaches_the_agent_of_that_name_and_no_other(opened: Opened) -> None:
    async def scenario() -> None:
        coordinator = opened.coordinator()
        agents = [opened.agent(name) for name in NAMES]
        for agent in agents:
            await reach(coordinator, agent, b"for " + agent.node.encode())
        for agent in agents:
            await reach(coordinator, agent, b"end")
            assert set(agent.snapshots) == {b"for " + agent.node.encode(), b"end"}

    opened.run(scenario)


def test_two_agents_of_one_name_hear_the_same(opened: Opened) -> None:
    async def scenario() -> None:
        coordinator, one, other = opened.coordinator(), opened.agent("n1"), opened.agent("n1")
        await reach(coordinator, one, b"x")
        await reach(coordinator, other, b"x")

    opened.run(scenario)


def test_agents_frames_reach_the_coordinator_unchanged(opened: Opened) -> None:
    async def scenario() -> None:
        coordinator, one, other = opened.coordinator(), opened.agent("n1"), opened.agent("n2")
        for frame in (b"a", b"", bytes(range(256)), b"x" * 1_000_000):
            await be_heard(one, coordinator, frame)
        await be_heard(other, coordinator, b"b")
        assert set(coordinator.beats) == {b"a", b"", bytes(range(256)), b"x" * 1_000_000, b"b"}

    opened.run(scenario)


def test_every_monitor_sees_every_topic(opened: Opened) -> None:
    async def scenario() -> None:
        coordinator = opened.coordinator()
        monitors = [opened.monitor() for _ in range(3)]
        agent = opened.agent("n1")
        for monitor in monitors:
            await be_seen(coordinator, monitor, "view/", b"all")
        coordinator.bus.announce("event/task/größe", b"1")
        coordinator.bus.announce("event/", b"2")
        for monitor in monitors:
            await async_wait_until(lambda monitor=monitor: monitor.seen[-1] == ("event/", b"2"))
            assert monitor.seen[-2] == ("event/task/größe", b"1")
        await reach(coordinator, agent, b"end")
        assert set(agent.snapshots) == {b"end"}

    opened.run(scenario)


def test_a_request_is_answered(opened: Opened) -> None:
    async def scenario() -> None:
        opened.coordinator()
        assert await opened.client().request(b"ping", 5) == b"echo ping"

    opened.run(scenario)


def test_concurrent_requests_of_several_clients_get_their_own_answers(opened: Opened) -> None:
    async def scenario() -> None:
        opened.coordinator()
        clients = [opened.client() for _ in range(3)]
        frames = [str(number).encode() for number in range(200)]
        answers = await asyncio.gather(*(clients[int(frame) % 3].request(frame, 10) for frame in frames))
        assert answers == [b"echo " + frame for frame in frames]

    opened.run(scenario)


def test_a_late_answer_is_not_taken_for_the_answer_to_a_later_request(opened: Opened) -> None:
    async def scenario() -> None:
        coordinator, client = opened.coordinator(), opened.client()
        assert await client.request(b"first", 5) == b"echo first"
        coordinator.mute = {b"slow", b"next"}
        with pytest.raises(NoCoordinatorError):
            await client.request(b"slow", 0.2)
        pending = asyncio.ensure_future(client.request(b"next", 5))
        await async_wait_until(lambda: b"next" in coordinator.answers)
        coordinator.answers[b"slow"](b"late")
        coordinator.answers[b"next"](b"right")
        coordinator.answers[b"next"](b"twice")
        assert await pending == b"right"
        coordinator.mute = set()
        assert await client.request(b"after", 5) == b"echo after"

    opened.run(scenario)


def test_answers_given_at_any_time_do_not_hold_up_other_requests(opened: Opened) -> None:
    async def scenario() -> None:
        coordinator, clients = opened.coordinator(), [opened.client() for _ in range(3)]
        frames = [b"%d" % number for number in range(300)]
        coordinator.mute = set(frames)

        async def ask(number: int) -> None:
            await asyncio.sleep(number % 10 / 1000)
            for frame in frames[number::30]:
                assert await clients[number % 3].request(frame, 10) == b"for " + frame

        async def answer() -> None:
            answered: set[bytes] = set()
            while len(answered) < len(frames):
                for frame in list(coordinator.answers.keys() - answered)[:2]:
                    coordinator.answers[frame](b"for " + frame)
                    answered.add(frame)
                await asyncio.sleep(0)

        await asyncio.gather(answer(), *(ask(number) for number in range(30)))

    opened.run(scenario)


def test_answering_a_client_that_went_away_is_harmless(opened: Opened) -> None:
    async def scenario() -> None:
        coordinator, client = opened.coordinator(), opened.client()
        coordinator.mute = {b"bye"}
        with pytest.raises(NoCoordinatorError):
            await client.request(b"bye", opened.bus.impatience_s)
        assert b"bye" in coordinator.answers
        client.close()
        for _ in range(20):
            coordinator.answers[b"bye"](b"too late")
            await asyncio.sleep(0)
        assert await opened.client().request(b"next", 5) == b"echo next"

    opened.run(scenario)


def test_without_a_coordinator_a_request_fails_in_time(opened: Opened) -> None:
    async def scenario() -> None:
        client = opened.client()
        begin = time.monotonic()
        with pytest.raises(NoCoordinatorError, match=r"no coordinator answered .* within 0\.4 s"):
            await client.request(b"ping", 0.4)
        assert 0.35 < time.monotonic() - begin < 2

    opened.run(scenario)


def test_a_request_whose_caller_gave_up_is_not_delivered_later(opened: Opened) -> None:
    async def scenario() -> None:
        client = opened.client()
        with pytest.raises(NoCoordinatorError):
            await client.request(b"forgotten", 0.3)
        coordinator = opened.coordinator()
        assert await client.request(b"fresh", 10) == b"echo fresh"
        assert coordinator.requests == [b"fresh"]

    opened.run(scenario)


def test_a_frame_too_large_is_dropped_loudly_and_the_next_one_passes(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        coordinator, agent, monitor = opened.coordinator(), opened.agent("n1"), opened.monitor()
        await reach(coordinator, agent, b"before")
        await be_heard(agent, coordinator, b"before")
        await be_seen(coordinator, monitor, "view/", b"before")
        limit, large = b"l" * MAX_FRAME_BYTES, b"x" * (MAX_FRAME_BYTES + 1)
        with caplog.at_level(logging.WARNING):
            coordinator.bus.publish("n1", large)
            agent.bus.send(large)
            coordinator.bus.announce("view/", large)
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
        coordinator.bus.publish("n1", limit)
        await async_wait_until(lambda: limit in agent.snapshots)
        agent.bus.send(limit)
        await async_wait_until(lambda: limit in coordinator.beats)
        with pytest.raises(BusError, match="at most"):
            await opened.client().request(large, 5)
        assert large not in agent.snapshots
        assert large not in coordinator.beats
        assert large not in (frame for _, frame in monitor.seen)

    opened.run(scenario)


def test_a_receiver_that_raises_goes_on_receiving(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        got: list[bytes] = []

        def take(frame: bytes) -> None:
            got.append(frame)
            raise ValueError("a bug in the receiver")

        coordinator, end = opened.coordinator(), opened.bus.agent("n2")
        end.receive(take)
        try:
            for frame in (b"1", b"2", b"3"):

                def reached(frame: bytes = frame) -> bool:
                    coordinator.bus.publish("n2", frame)
                    return frame in got

                await async_wait_until(reached)
        finally:
            end.close()

    opened.run(scenario)
    assert "a bug in the receiver" in caplog.text


def test_a_receiver_may_close_its_own_end(opened: Opened) -> None:
    async def scenario() -> None:
        coordinator, agent = opened.coordinator(), opened.bus.agent("n1")
        got: list[bytes] = []
        agent.receive(lambda frame: (got.append(frame), agent.close()))

        def reached() -> bool:
            for _ in range(5):
                coordinator.bus.publish("n1", b"x")
            return bool(got)

        await async_wait_until(reached)
        await asyncio.sleep(0.05)
        assert got == [b"x"]

    opened.run(scenario)


def test_agents_clients_and_monitors_survive_the_restart_of_the_coordinator(opened: Opened) -> None:
    async def scenario() -> None:
        agent, client, monitor = opened.agent("n1"), opened.client(), opened.monitor()
        for life in (b"1", b"2", b"3"):
            coordinator = opened.coordinator()
            await reach(coordinator, agent, b"down " + life)
            await be_heard(agent, coordinator, b"up " + life)
            await be_seen(coordinator, monitor, "view/", life)
            assert await client.request(b"ask " + life, 10) == b"echo ask " + life
            assert agent.bus.trouble() == ""
            coordinator.bus.close()
            agent.bus.send(b"to nobody")

    opened.run(scenario)


def test_the_coordinator_survives_the_restart_of_an_agent(opened: Opened) -> None:
    async def scenario() -> None:
        coordinator = opened.coordinator()
        for life in (b"1", b"2", b"3"):
            agent = opened.agent("n1")
            await reach(coordinator, agent, b"down " + life)
            await be_heard(agent, coordinator, b"up " + life)
            agent.bus.close()
            coordinator.bus.publish("n1", b"to nobody")

    opened.run(scenario)


def test_a_second_coordinator_is_refused_with_a_remedy(opened: Opened) -> None:
    async def scenario() -> None:
        coordinator = opened.coordinator()
        with pytest.raises(BusError, match="another"):
            opened.bus.coordinator()
        agent = opened.agent("n1")
        await reach(coordinator, agent, b"still here")

    opened.run(scenario)


def test_the_trouble_of_an_agent_without_coordinator_is_told(opened: Opened) -> None:
    async def scenario() -> None:
        agent = opened.agent("n1")
        await async_wait_until(lambda: "refused" in agent.bus.trouble() or "no coordinator" in agent.bus.trouble())
        opened.coordinator()
        await async_wait_until(lambda: agent.bus.trouble() == "")

    opened.run(scenario)


def test_closing_twice_and_using_a_closed_end_is_harmless(opened: Opened) -> None:
    async def scenario() -> None:
        coordinator, agent, client, monitor = (
            opened.coordinator(),
            opened.agent("n1"),
            opened.client(),
            opened.monitor(),
        )
        await reach(coordinator, agent, b"x")
        coordinator.mute = {b"hold"}
        pending = asyncio.ensure_future(client.request(b"hold", 10))
        await async_wait_until(lambda: b"hold" in coordinator.answers)
        for end in (client, agent.bus, monitor.bus, coordinator.bus) * 2:
            end.close()
        with pytest.raises(BusError, match="closed"):
            await pending
        with pytest.raises(BusError):
            await client.request(b"x", 0.1)
        agent.bus.send(b"x")
        coordinator.bus.publish("n1", b"x")
        coordinator.bus.announce("view/", b"x")
        coordinator.answers[b"hold"](b"x")

    opened.run(scenario)


def test_closing_leaves_no_threads_or_descriptors_and_does_not_hang(opened: Opened) -> None:
    others = set(threading.enumerate())  # of tests before: the thread of a lane goes on for seconds

    def count() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))

    async def scenario() -> None:
        async def life() -> None:
            coordinator, agent, monitor, client = (
                Coordinator(opened.bus),
                Agent(opened.bus, "n1"),
                Monitor(opened.bus),
                opened.bus.client(),
            )
            await reach(coordinator, agent, b"x")
            await be_seen(coordinator, monitor, "view/", b"x")
            await client.request(b"x", 5)
            begin = time.monotonic()
            for end in (coordinator.bus, agent.bus, monitor.bus, client):
                end.close()
            assert time.monotonic() - begin < 4

        await life()
        before = count()
        for _ in range(3):
            await life()
        await async_wait_until(lambda: count() <= before, what="threads and descriptors to end")
        assert {one.name for one in set(threading.enumerate()) - others} == set()

    opened.run(scenario)
