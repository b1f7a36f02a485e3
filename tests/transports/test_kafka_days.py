"""The Kafka bus on real brokers: topics as they should not be, coordinators that die, strangers, old records."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.buses import Agent, Bus, Coordinator, Monitor, be_heard, be_seen, reach
from tests.support import async_wait_until
from tests.transports.kafka_topics import Administrator
from trogdor_bus import keys
from trogdor_bus.errors import BusError, NoCoordinatorError
from trogdor_bus.transports.kafka import open_log, topics
from trogdor_bus.transports.kafka.presence import SILENT_S
from trogdor_bus.transports.zmq import new_key_pair

pytestmark = pytest.mark.kafka
BEATS = 3 * 3600
"""Three agents' beats of an hour."""


class Place:
    """A prefix of its own on the shared cluster, and ends that are closed after the test."""

    def __init__(self, bootstrap: str) -> None:
        self.prefix = f"day-{secrets.token_hex(4)}"
        self.bus = Bus(f"kafka://{bootstrap}/{self.prefix}")
        self.boss = Administrator(bootstrap)
        self._ends: list[Any] = []

    def topic(self, name: str) -> str:
        return f"{self.prefix}.{name}"

    def sealed(self, directory: Path) -> Bus:
        return Bus(self.bus.url, directory)

    def coordinator(self, bus: Bus | None = None) -> Coordinator:
        return self._keep(Coordinator(bus or self.bus))

    def agent(self, node: str, bus: Bus | None = None) -> Agent:
        return self._keep(Agent(bus or self.bus, node))

    def monitor(self) -> Monitor:
        return self._keep(Monitor(self.bus))

    def client(self, bus: Bus | None = None) -> Any:
        client = (bus or self.bus).client()
        self._ends.append(client)
        return client

    def log(self) -> Any:
        log = open_log(self.bus.url, None)
        self._ends.append(log)
        return log

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            try:
                await scenario()
            finally:
                for end in self._ends:
                    end.close()

        asyncio.run(whole())

    async def works(self, coordinator: Coordinator, nodes: tuple[str, ...] = ("n1", "n2", "n3")) -> None:
        """See every kind of frame arrive."""
        word = secrets.token_hex(4).encode()
        for node in nodes:
            agent = self.agent(node)
            await reach(coordinator, agent, word)
            await be_heard(agent, coordinator, word + node.encode())
            assert agent.bus.trouble() == ""
        await be_seen(coordinator, self.monitor(), "view/", word)
        assert await self.client().request(word, 10) == b"echo " + word

    def _keep(self, end: Any) -> Any:
        self._ends.append(end.bus)
        return end


@pytest.fixture
def place(bootstrap: str) -> Place:
    return Place(bootstrap)


def keyed(directory: Path) -> Path:
    keys.ensure(directory, new_key_pair)
    return directory


@pytest.mark.core
def test_the_topics_are_made_as_the_documentation_says(place: Place) -> None:
    async def scenario() -> None:
        place.coordinator()
        replicas = min(3, len(place.boss.admin.list_topics(timeout=10).brokers))
        for topic in topics.BUS:
            name, found = place.topic(topic.name), place.boss.settings(place.topic(topic.name))
            assert place.boss.partitions(name) == topic.partitions
            assert topics.settings(topic, replicas).items() <= found.items()

    place.run(scenario)


def test_nobody_but_the_coordinator_makes_topics(place: Place) -> None:
    """The shared brokers make whatever topic is asked for, if the client wishes so."""

    async def scenario() -> None:
        agent, client = place.agent("n1"), place.client()
        place.monitor()
        place.boss.make(place.topic("control"), 8)
        await async_wait_until(lambda: f"has made {place.topic('status')} yet" in agent.bus.trouble())
        agent.bus.send(b"x")
        with pytest.raises(
            NoCoordinatorError, match=rf"has made {place.topic('replies')}, {place.topic('requests')} yet"
        ):
            await client.request(b"x", 2)
        found = place.boss.admin.list_topics(timeout=10).topics
        assert {name for name in found if name.startswith(place.prefix)} == {place.topic("control")}
        await place.works(place.coordinator())

    place.run(scenario)


def test_what_is_wrong_with_topics_is_repaired_and_what_somebody_chose_stays(place: Place) -> None:
    async def scenario() -> None:
        place.boss.make(place.topic("control"), 8, {"cleanup.policy": "delete", "segment.ms": "1234567"})
        place.boss.make(place.topic("events"), 1, {"cleanup.policy": "compact", "max.message.bytes": "1000"})
        place.boss.make(place.topic("state"), 1, {"retention.ms": "60000"})
        place.boss.make(place.topic("replies"), 1, {"max.message.bytes": "20000000"})
        await place.works(place.coordinator())
        control, events = place.boss.settings(place.topic("control")), place.boss.settings(place.topic("events"))
        assert (control["cleanup.policy"], control["segment.ms"]) == ("compact", "1234567")
        assert control["max.compaction.lag.ms"] == "600000"
        assert (events["cleanup.policy"], events["max.message.bytes"]) == ("delete", "8454144")
        assert place.boss.settings(place.topic("replies"))["max.message.bytes"] == "20000000"
        assert place.boss.settings(place.topic("state"))["cleanup.policy"] == "delete"
        log = place.log()
        log.append("meta", b"x")
        await async_wait_until(lambda: log.unwritten() == 0)
        assert place.boss.settings(place.topic("state"))["cleanup.policy"] == "compact"

    place.run(scenario)


def test_topics_with_other_numbers_of_partitions_work_all_the_same(place: Place) -> None:
    async def scenario() -> None:
        numbers = {"control": 3, "status": 4, "events": 2, "requests": 2, "replies": 3, "state": 2}
        for name, partitions in numbers.items():
            place.boss.make(place.topic(name), partitions)
        await place.works(place.coordinator(), tuple(f"n{number}" for number in range(6)))
        log = place.log()
        for number in range(10):
            log.append(f"task/{number}", b"x")
        await async_wait_until(lambda: log.unwritten() == 0)
        assert log.read(10).keys() == {f"task/{number}" for number in range(10)}

    place.run(scenario)


def test_a_control_topic_that_grows_is_followed(place: Place) -> None:
    async def scenario() -> None:
        coordinator = place.coordinator()
        agents = [place.agent(f"n{number}") for number in range(6)]
        for agent in agents:
            await reach(coordinator, agent, b"before")
        place.boss.grow(place.topic("control"), 11)
        moved = [
            agent
            for agent in agents
            if topics.partition_of(agent.node.encode(), 8) != topics.partition_of(agent.node.encode(), 11)
        ]
        assert moved

        def all_heard() -> bool:
            word = f"after {time.monotonic()}".encode()
            for agent in moved:
                coordinator.bus.publish(agent.node, word)
            return coordinator.bus._counts[place.topic("control")] == 11 and all(
                agent.snapshots[-1].startswith(b"after") and agent.bus._counts[place.topic("control")] == 11
                for agent in moved
            )

        await async_wait_until(all_heard, 30, "everybody on the new partitions")
        await place.works(coordinator)

    place.run(scenario)


def test_topics_that_somebody_removed_are_made_again(place: Place) -> None:
    async def scenario() -> None:
        coordinator, agent = place.coordinator(), place.agent("n1")
        await reach(coordinator, agent, b"before")
        for topic in topics.BUS:
            place.boss.remove(place.topic(topic.name))

        def reached() -> bool:
            coordinator.bus.publish("n1", b"after")
            agent.bus.send(b"after")
            return b"after" in agent.snapshots and b"after" in coordinator.beats

        await async_wait_until(reached, 30, "the topics to be there again")
        await place.works(coordinator)

    place.run(scenario)


def test_retention_that_ate_the_snapshots_is_harmless(place: Place) -> None:
    async def scenario() -> None:
        coordinator, old = place.coordinator(), place.agent("n1")
        await reach(coordinator, old, b"before")
        for topic in topics.BUS:
            place.boss.change(place.topic(topic.name), {"cleanup.policy": "compact,delete"})
            place.boss.eat(place.topic(topic.name))
        new = place.agent("n1")
        await reach(coordinator, old, b"after")
        await reach(coordinator, new, b"after")
        assert new.snapshots[0] == b"after"
        await place.works(coordinator)

    place.run(scenario)


def test_compaction_really_happens(place: Place) -> None:
    async def scenario() -> None:
        coordinator, agent = place.coordinator(), place.agent("n1")
        status = place.topic("status")
        place.boss.change(status, {"segment.ms": "1000", "max.compaction.lag.ms": "1000", "segment.bytes": "1048576"})
        await be_heard(agent, coordinator, b"first")
        for number in range(2000):
            agent.bus.send(b"%d " % number + secrets.token_bytes(1000))
            await asyncio.sleep(0)
        await be_heard(agent, coordinator, b"all are in")
        before = len(place.boss.records(status))
        assert before > 1900
        deadline_s = time.monotonic() + 90
        while (after := len(place.boss.records(status))) > before / 2:
            assert time.monotonic() < deadline_s, f"{status} has {after} records still, it had {before}"
            await asyncio.to_thread(time.sleep, 1)
            agent.bus.send(b"a beat, or no segment ends")
        print(f"\ncompaction: {before} records of one key became {after}")

    place.run(scenario)


def test_an_hour_of_frames_does_not_keep_late_joiners_waiting(place: Place) -> None:
    async def scenario() -> None:
        place.coordinator().bus.close()
        for name in ("control", "status", "events"):
            place.boss.fill(place.topic(name), ((b"n%d" % (number % 3), b"x" * 500) for number in range(BEATS)))
        began = time.monotonic()
        coordinator = place.coordinator()
        opened = time.monotonic() - began
        began = time.monotonic()
        agent = place.agent("n1")
        await reach(coordinator, agent, b"late")
        reached = time.monotonic() - began
        began = time.monotonic()
        await be_heard(agent, coordinator, b"late")
        heard = time.monotonic() - began
        began = time.monotonic()
        monitor = place.monitor()
        await be_seen(coordinator, monitor, "view/", b"late")
        seen = time.monotonic() - began
        print(
            f"\nafter {BEATS} records in each topic: a coordinator opens in {opened:.2f} s, an agent hears in "
            f"{reached:.2f} s, is heard in {heard:.2f} s, a monitor sees in {seen:.2f} s"
        )
        assert max(reached, heard, seen) < 5
        assert set(agent.snapshots) == {b"late"}

    place.run(scenario)


@pytest.mark.core
def test_a_coordinator_that_died_is_followed_after_three_seconds_and_one_that_ended_at_once(place: Place) -> None:
    async def scenario() -> None:
        first, agent = place.coordinator(), place.agent("n1")
        await reach(first, agent, b"first")
        with pytest.raises(BusError, match=r"another coordinator .* stop it, or choose another ‹topic-prefix›"):
            place.coordinator()
        first.bus._say_goodbye = lambda: None  # as if it were killed
        first.bus.close()
        began = time.monotonic()
        second = place.coordinator()
        waited = time.monotonic() - began
        assert waited >= SILENT_S
        await async_wait_until(lambda: agent.bus.trouble() == "")
        second.bus.close()
        await async_wait_until(lambda: "has ended" in agent.bus.trouble())
        began = time.monotonic()
        third = place.coordinator()
        opened = time.monotonic() - began
        print(f"\na coordinator opens {waited:.2f} s after a death, {opened:.2f} s after an end")
        assert opened < waited
        await reach(third, agent, b"third")

    place.run(scenario)


def test_a_silent_coordinator_is_told_by_the_agent(place: Place) -> None:
    async def scenario() -> None:
        coordinator, agent = place.coordinator(), place.agent("n1")
        await reach(coordinator, agent, b"x")
        coordinator.bus._say_goodbye = lambda: None
        coordinator.bus.close()
        assert agent.bus.trouble() == ""
        await async_wait_until(lambda: "no coordinator has been heard for" in agent.bus.trouble())

    place.run(scenario)


def test_what_strangers_write_reaches_nobody_and_is_told(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        bus = place.sealed(keyed(tmp_path / "keys"))
        coordinator, agent, client = place.coordinator(bus), place.agent("n1", bus), place.client(bus)
        await reach(coordinator, agent, b"right")
        await be_heard(agent, coordinator, b"right")
        assert await client.request(b"right", 10) == b"echo right"
        sealed = next(record for record in place.boss.records(place.topic("control")) if record.key() == b"n1")
        for headers in (None, sealed.headers()):
            place.boss.fill(place.topic("control"), [(b"n1", b"forged")], headers, sealed.partition())
            place.boss.fill(place.topic("status"), [(b"n1", b"forged")], headers)
            place.boss.fill(place.topic("requests"), [(b"0" * 32, b"forged")], headers)
        await reach(coordinator, agent, b"end")
        await be_heard(agent, coordinator, b"end")
        assert await client.request(b"end", 10) == b"echo end"
        await async_wait_until(lambda: caplog.text.count("dropped a record") == 6)
        for frames in (agent.snapshots, coordinator.beats, coordinator.requests):
            assert set(frames) == {b"right", b"end"}

    place.run(scenario)


def test_a_sealed_request_that_is_put_into_the_topic_again_does_nothing(place: Place, tmp_path: Path) -> None:
    async def scenario() -> None:
        bus = place.sealed(keyed(tmp_path / "keys"))
        coordinator, client = place.coordinator(bus), place.client(bus)
        assert await client.request(b"once", 10) == b"echo once"
        copies = place.boss.records(place.topic("requests"))
        assert {copy.value() for copy in copies} == {b"once"}

        async def replay(word: bytes) -> None:
            for copy in copies:
                place.boss.fill(place.topic("requests"), [(copy.key(), copy.value())], copy.headers())
            assert await place.client(bus).request(word, 10) == b"echo " + word

        await replay(b"end")
        assert coordinator.requests == [b"once", b"end"]
        coordinator.bus.close()
        later = place.coordinator(bus)
        await replay(b"later")
        assert later.requests == [b"later"]

    place.run(scenario)


def test_who_has_no_keys_or_others_says_so(place: Place, tmp_path: Path) -> None:
    async def scenario() -> None:
        right = place.sealed(keyed(tmp_path / "keys"))
        other = place.sealed(keyed(tmp_path / "other"))
        coordinator = place.coordinator(right)
        keyless, wrong = place.agent("n1"), place.agent("n1", other)
        await async_wait_until(lambda: "leave out ‹insecure›" in keyless.bus.trouble())
        await async_wait_until(lambda: "import-keys" in wrong.bus.trouble())
        keys.import_(tmp_path / "other", keys.export(tmp_path / "keys"), force=True)
        await reach(coordinator, wrong, b"welcome")
        await async_wait_until(lambda: wrong.bus.trouble() == "")
        assert keyless.snapshots == []

    place.run(scenario)


def test_a_log_keeps_the_newest_of_each_key_and_what_is_removed_is_gone(place: Place) -> None:
    async def scenario() -> None:
        log = place.log()
        assert log.read(20) == {}
        for number in range(500):
            log.append(f"task/{number % 50}", b"%d" % number)
        log.append("task/7", b"")
        log.append("größe/ \ud800", b"odd")
        await async_wait_until(lambda: log.unwritten() == 0)
        rows = {f"task/{number % 50}": b"%d" % number for number in range(450, 500)} | {"größe/ \ud800": b"odd"}
        del rows["task/7"]
        assert log.read(20) == rows
        other = place.log()
        other.append("meta", b"1")
        await async_wait_until(lambda: other.unwritten() == 0)
        assert log.read(20) == rows | {"meta": b"1"}

    place.run(scenario)


def test_a_log_that_was_closed_has_written_what_it_was_given(place: Place) -> None:
    async def scenario() -> None:
        log = place.log()
        log.append("meta", b"0")
        await async_wait_until(lambda: log.unwritten() == 0)
        for number in range(300):
            log.append(f"task/{number}", b"x" * 1000)
        log.close()
        assert len(place.log().read(20)) == 301

    place.run(scenario)


def test_a_log_of_another_bus_is_not_taken_for_an_empty_one(place: Place, tmp_path: Path) -> None:
    async def scenario() -> None:
        log = open_log(place.bus.url, keyed(tmp_path / "keys"))
        log.append("meta", b"1")
        await async_wait_until(lambda: log.unwritten() == 0)
        assert log.read(20) == {"meta": b"1"}
        log.close()
        other = open_log(place.bus.url, keyed(tmp_path / "other"))
        with pytest.raises(BusError, match=r"nothing in .*state can be trusted: .* other keys"):
            other.read(20)
        other.close()

    place.run(scenario)
