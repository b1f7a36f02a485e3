"""Several links at once."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.buses import (
    Agent,
    Bus,
    Coordinator,
    Monitor,
    be_heard,
    be_seen,
    free_ports,
    memory_url,
    reach,
)
from tests.support import async_wait_until
from trogdor_bus.bus import Answer
from trogdor_bus.errors import BusError, NoCoordinatorError, NotFoundError, SpecError, TakenError
from trogdor_bus.transports import memory, transport
from trogdor_bus.transports.fan import coordinator as fan_coordinator
from trogdor_bus.transports.fan import links as fan_links
from trogdor_bus.transports.fan.envelope import MARK, Asked, Echo, Report, unwrap, wrap

FLIP_S = 5.0
"""3.5 s, a beat, and what a busy machine needs."""


def run(scenario: Callable[[Callable[[Any], Any]], Awaitable[None]]) -> None:
    """Run a scenario; the ends that it hands to its argument are closed after it."""

    async def whole() -> None:
        ends: list[Any] = []

        def keep(end: Any) -> Any:
            ends.append(end)
            return end

        try:
            await scenario(keep)
        finally:
            for end in ends:
                (end.bus if hasattr(end, "bus") else end).close()

    asyncio.run(whole())


def network(url: str) -> memory.MemoryNetwork:
    return memory._network(url)


def cut(url: str, *names: str) -> None:
    for name in names:
        network(url).cut(name, "coordinator")
        network(url).cut("coordinator", name)


def heal(url: str, *names: str) -> None:
    for name in names:
        network(url).heal(name, "coordinator")
        network(url).heal("coordinator", name)


async def beating(agent: Agent, until: Callable[[], bool], what: str) -> float:
    """Send a beat each second, as an agent does, until the condition is true; return after how long that was."""
    began_s, number = time.monotonic(), 0
    while not until():
        assert time.monotonic() - began_s < 10, f"{what} did not come true"
        if time.monotonic() - began_s >= number:
            agent.bus.send(b"%d" % number)
            number += 1
        await asyncio.sleep(0.01)
    return time.monotonic() - began_s


def test_the_links_are_called_by_their_schemes_and_addresses() -> None:
    assert fan_links.names(["kafka://b1:9092/trogdor", "zmq://10.0.0.1:5560"]) == ["kafka", "zmq"]
    assert fan_links.names(["kafka://b1:9092/t", "zmq://10.0.0.1:5560", "zmq://[::1]:5560"]) == [
        "kafka",
        "zmq 10.0.0.1:5560",
        "zmq [::1]:5560",
    ]


def test_envelopes() -> None:
    header = Asked(client="c", number=7)
    assert unwrap(wrap(header, b"frame"), Asked) == (header, b"frame")
    assert unwrap(wrap(header), Asked) == (header, b"")
    for plain in (b"", b"{}", MARK[:3], bytes(range(256))):
        assert unwrap(plain, Asked) == (None, plain)
    for broken in (MARK, MARK + b"\0", MARK + b"\0\2{", MARK + b"\0\2{}", wrap(Echo(life=1, sent_ms=1))):
        with pytest.raises(BusError, match="envelope"):
            unwrap(broken, Asked)


def test_a_frame_arrives_on_either_link() -> None:
    first, second = memory_url(), memory_url()
    bus = Bus(f"{first} {second}")

    async def scenario(keep: Callable[[Any], Any]) -> None:
        coordinator, agent, monitor = keep(Coordinator(bus)), keep(Agent(bus, "n1")), keep(Monitor(bus))
        client = keep(bus.client())
        for dead, life in ((first, b"1"), (second, b"2")):
            cut(dead, "n1", "client", "monitor")
            await reach(coordinator, agent, life)
            await be_heard(agent, coordinator, life)
            await be_seen(coordinator, monitor, "view/", life)
            assert await client.request(life, 5) == b"echo " + life
            heal(dead, "n1", "client", "monitor")

    run(scenario)


def test_a_request_on_two_links_is_delivered_once_and_answered_on_both() -> None:
    urls = memory_url(), memory_url()
    bus = Bus(" ".join(urls))

    async def scenario(keep: Callable[[Any], Any]) -> None:
        coordinator = keep(Coordinator(bus))
        coordinator.mute = {b"later"}
        singles = [keep(Bus(url).client()) for url in urls]
        now = wrap(Asked(client="c", number=1), b"now")
        assert await asyncio.gather(*(single.request(now, 5) for single in singles)) == [b"echo now"] * 2
        assert await singles[0].request(now, 5) == b"echo now"
        later = wrap(Asked(client="c", number=2), b"later")
        waiting = asyncio.gather(*(single.request(later, 5) for single in singles))
        await async_wait_until(lambda: b"later" in coordinator.answers)
        coordinator.answers[b"later"](b"at last")
        assert await waiting == [b"at last"] * 2
        assert coordinator.requests == [b"now", b"later"]
        assert await singles[1].request(wrap(Asked(client="d", number=2), b"later too"), 5) == b"echo later too"

    run(scenario)


def test_an_answer_that_was_lost_is_given_again_when_the_question_is_repeated() -> None:
    urls = memory_url(), memory_url()
    bus = Bus(" ".join(urls))

    async def scenario(keep: Callable[[Any], Any]) -> None:
        coordinator, client = keep(Coordinator(bus)), keep(bus.client())
        for url in urls:
            network(url).cut("coordinator", "client")
        began_s = time.monotonic()
        waiting = asyncio.ensure_future(client.request(b"ask", 5))
        await async_wait_until(lambda: bool(coordinator.requests))
        network(urls[1]).heal("coordinator", "client")
        assert await waiting == b"echo ask"
        assert 0.9 < time.monotonic() - began_s < 2
        assert coordinator.requests == [b"ask"]

    run(scenario)


def test_answers_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_coordinator, "MAX_KEPT", 5)
    monkeypatch.setattr(fan_coordinator, "MAX_KEPT_BYTES", 1000)
    url = memory_url()
    bus = Bus(f"{url} {memory_url()}")

    async def scenario(keep: Callable[[Any], Any]) -> None:
        coordinator, client = keep(Coordinator(bus)), keep(bus.client())
        for number in range(20):
            await client.request(b"%d" % number, 5)
        assert len(coordinator.bus._questions) == 5
        for number in range(20):
            await client.request(b"%d" % number * 300, 5)
        assert coordinator.bus._kept_bytes <= 1000
        monkeypatch.setattr(fan_coordinator, "MAX_ANSWERS", 2)
        coordinator.mute = {b"mute"}
        single = keep(Bus(url).client())
        repeated = [single.request(wrap(Asked(client="c", number=1), b"mute"), 0.2) for _ in range(5)]
        await asyncio.gather(*repeated, return_exceptions=True)
        assert coordinator.requests.count(b"mute") == 1
        assert len(coordinator.bus._questions["c", 1].waiting) == 2
        monkeypatch.setattr(fan_coordinator, "KEEP_S", 0.0)
        await client.request(b"last", 5)
        assert len(coordinator.bus._questions) <= 1

    run(scenario)


def test_peers_of_one_link_pass() -> None:
    urls = memory_url(), memory_url()

    async def scenario(keep: Callable[[Any], Any]) -> None:
        coordinator = keep(Coordinator(Bus(" ".join(urls))))
        for number, url in enumerate(urls):
            single = Bus(url)
            agent, monitor = keep(Agent(single, f"single{number}")), keep(Monitor(single))
            await reach(coordinator, agent, b"down")
            await be_heard(agent, coordinator, b"up %d" % number)
            await be_seen(coordinator, monitor, "view/", b"view %d" % number)
            assert await keep(single.client()).request(b"ask", 5) == b"echo ask"
            assert set(agent.snapshots) == {b"down"}
        assert coordinator.bus.links() == {}

    run(scenario)


def test_a_coordinator_of_one_link_serves_peers_of_several() -> None:
    seat = memory_url()
    bus = Bus(f"{memory_url()} {seat}", seat=seat)

    async def scenario(keep: Callable[[Any], Any]) -> None:
        coordinator, agent, client = keep(Coordinator(bus)), keep(Agent(bus, "n1")), keep(bus.client())
        await reach(coordinator, agent, b"down")
        await be_heard(agent, coordinator, b"up")
        assert await client.request(b"ask", 5) == b"echo ask"
        name = f"memory {seat.removeprefix('memory://')}"
        await beating(agent, lambda: coordinator.bus.links() == {"n1": {name: True}}, "the link to be alive")
        assert set(agent.snapshots) == {b"down"}

    run(scenario)


def test_a_link_that_dies_is_known_within_four_and_a_half_seconds_and_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kafkaesque, other = memory_url(), memory_url()
    dying, staying = (f"memory {url.removeprefix('memory://')}" for url in (kafkaesque, other))
    bus = Bus(f"{kafkaesque} {other}")

    async def scenario(keep: Callable[[Any], Any]) -> None:
        coordinator, agent = keep(Coordinator(bus)), keep(Agent(bus, "n1"))

        def seen(alive: bool) -> Callable[[], bool]:
            return lambda: coordinator.bus.links() == {"n1": {dying: alive, staying: True}}

        assert await beating(agent, seen(True), "both links to be alive") < FLIP_S
        cut(kafkaesque, "n1")
        assert 2 < await beating(agent, seen(False), "the link to be dead") < FLIP_S
        heal(kafkaesque, "n1")
        assert await beating(agent, seen(True), "the link to be alive again") < 2.5
        network(kafkaesque).cut("coordinator", "n1")  # one way is enough
        assert await beating(agent, seen(False), "the link to be dead") < FLIP_S
        agent.bus.close()
        none = {"n1": {dying: False, staying: False}}
        await async_wait_until(lambda: coordinator.bus.links() == none, FLIP_S)

    with caplog.at_level(logging.INFO):
        run(scenario)
    texts = [record.getMessage() for record in caplog.records]
    assert texts[0] == f"the coordinator answers on {dying}, {staying}"
    assert texts[1] == f"the coordinator answers on {staying}; {dying} is silent (no echo)"
    assert texts[2:] == texts[:2]


def test_a_link_that_was_dead_from_the_start_is_called_so_only_when_that_is_known() -> None:
    dead, other = memory_url(), memory_url()
    bus = Bus(f"{dead} {other}")

    async def scenario(keep: Callable[[Any], Any]) -> None:
        coordinator, agent = keep(Coordinator(bus)), keep(Agent(bus, "n1"))
        cut(dead, "n1")
        seen: list[dict[str, bool]] = []

        def known() -> bool:
            state = coordinator.bus.links().get("n1", {})
            if state and state not in seen:
                seen.append(state)
            return False in state.values()

        network(dead).heal("n1", "coordinator")  # frames come, echoes do not go
        await beating(agent, known, "the dead link to be known")
        names = [f"memory {url.removeprefix('memory://')}" for url in (dead, other)]
        assert seen == [{names[1]: True}, {names[0]: False, names[1]: True}]

    run(scenario)


def test_old_and_foreign_reports_and_echoes_change_nothing() -> None:
    urls = memory_url(), memory_url()
    bus = Bus(" ".join(urls))

    async def scenario(keep: Callable[[Any], Any]) -> None:
        coordinator, agent, single = keep(Coordinator(bus)), keep(Agent(bus, "n1")), keep(Agent(Bus(urls[0]), "n1"))
        await beating(agent, lambda: len(coordinator.bus.links().get("n1", {})) == 2, "both links to be alive")
        states = coordinator.bus.links()
        none = dict.fromkeys(states["n1"])
        old = Report(node="n1", life=1, sent_ms=2**60, on="memory x", ages_ms=none)
        single.bus.send(wrap(old, b"old"))
        await async_wait_until(lambda: b"old" in coordinator.beats)
        assert coordinator.bus.links() == states
        assert any(MARK in frame for frame in single.snapshots)  # an end of one link hears them and drops them
        assert not any(MARK in frame for frame in agent.snapshots)

    run(scenario)


def test_broken_envelopes_are_dropped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    urls = memory_url(), memory_url()

    async def scenario(keep: Callable[[Any], Any]) -> None:
        bus = Bus(" ".join(urls))
        coordinator, agent = keep(Coordinator(bus)), keep(Agent(bus, "n1"))
        single, client = keep(Agent(Bus(urls[0]), "n1")), keep(Bus(urls[0]).client())
        for _ in range(20):
            single.bus.send(MARK + b"\xff\xff")
        with pytest.raises(NoCoordinatorError):
            await client.request(MARK + b"\0\2{}", 0.2)
        memory._network(urls[0]).listening(memory.MemoryCoordinator, "coordinator")[0].publish("n1", MARK)
        await be_heard(agent, coordinator, b"x")
        await reach(coordinator, agent, b"y")
        assert set(coordinator.beats) == {b"x"} and coordinator.requests == []

    run(scenario)
    assert sum("was dropped" in record.getMessage() for record in caplog.records) == fan_coordinator.MAX_COMPLAINTS + 1


def test_the_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_coordinator, "MAX_NODES", 3)
    url = memory_url()

    async def scenario(keep: Callable[[Any], Any]) -> None:
        coordinator, agent = keep(Coordinator(Bus(f"{url} {memory_url()}"))), keep(Agent(Bus(url), "x"))
        for number in range(10):
            agent.bus.send(wrap(Report(node=f"n{number}", life=1, sent_ms=1, on="a", ages_ms={"a": 0}), b"beat"))
        await async_wait_until(lambda: len(coordinator.beats) == 10)
        assert list(coordinator.bus.links()) == ["n7", "n8", "n9"]

    run(scenario)


# --- opening ---------------------------------------------------------------------------------------------------------


class Opening:
    """Stands before the memory transport: fails, or takes its time, as long as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        for kind in ("coordinator", "agent", "client", "monitor"):
            monkeypatch.setattr(memory, f"open_{kind}", self._standing_before(getattr(memory, f"open_{kind}")))

    def _standing_before(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opener(url: str, *rest: Any) -> Any:
            self.gate.wait(10)
            if self.error is not None:
                raise self.error
            return real(url, *rest)

        return opener


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> Opening:
    monkeypatch.setattr(fan_links, "RETRY_S", 0.05)
    return Opening(monkeypatch)


@pytest.mark.parametrize("error", [BusError("cannot find the address"), NotFoundError("there are no keys")])
def test_a_link_that_cannot_be_opened_yet_does_not_keep_the_others_from_working(
    opening: Opening, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    late, seat = memory_url(), f"zmq://127.0.0.1:{free_ports()}"
    bus = Bus(f"{late} {seat}")

    async def scenario(keep: Callable[[Any], Any]) -> None:
        opening.error = error
        coordinator, agent, monitor = keep(Coordinator(bus)), keep(Agent(bus, "n1")), keep(Monitor(bus))
        client = keep(bus.client())
        await reach(coordinator, agent, b"1")
        await be_heard(agent, coordinator, b"1")
        await be_seen(coordinator, monitor, "view/", b"1")
        assert await client.request(b"1", 5) == b"echo 1"
        assert agent.bus.control() == keep(Agent(Bus(seat), "n2")).bus.control()
        opening.error = None
        single = Bus(late)
        await async_wait_until(lambda: bool(network(late).listening(memory.MemoryCoordinator, "coordinator")))
        assert await keep(single.client()).request(b"2", 5) == b"echo 2"
        await async_wait_until(lambda: bool(network(late).listening(memory.MemoryAgent, "n1")))
        await async_wait_until(lambda: bool(network(late).listening(memory.MemoryMonitor, "monitor")))
        await async_wait_until(lambda: bool(network(late).listening(memory.MemoryClient, "client")))

    with caplog.at_level(logging.INFO):
        run(scenario)
    texts = [record.getMessage() for record in caplog.records]
    assert f"link memory is left out: {error}; trying again each 0.05 s" in texts
    assert "link memory is open" in texts


def test_the_trouble_names_each_link(opening: Opening) -> None:
    port = free_ports()
    bus = Bus(f"{memory_url()} zmq://127.0.0.1:{port}")

    async def scenario(keep: Callable[[Any], Any]) -> None:
        opening.error = BusError("no such host")
        agent, client = keep(Agent(bus, "n1")), keep(bus.client())
        refused = f"zmq: connection refused by 127.0.0.1:{port}"
        await async_wait_until(lambda: agent.bus.trouble() == f"memory: no such host; {refused}")
        with pytest.raises(NoCoordinatorError) as told:
            await client.request(b"x", 0.3)
        first, *links = str(told.value).splitlines()
        assert first == "no coordinator answered on any of 2 links within 0.3 s"
        assert links[0] == "  memory: no such host"
        assert re.match(rf"  zmq: no coordinator answered at 127.0.0.1:{port} within 0\.\d s: connection ref", links[1])

    run(scenario)


def test_a_slow_link_is_not_waited_for(opening: Opening) -> None:
    seat = f"zmq://127.0.0.1:{free_ports()}"
    bus = Bus(f"{memory_url()} {seat}")

    async def scenario(keep: Callable[[Any], Any]) -> None:
        keep(Coordinator(Bus(seat, seat=seat)))
        opening.gate.clear()
        began_s = time.monotonic()
        agent, client = keep(Agent(bus, "n1")), keep(bus.client())
        assert time.monotonic() - began_s < 2
        assert await client.request(b"x", 5) == b"echo x"
        assert "still being opened" not in agent.bus.trouble()
        client.close()
        opening.gate.set()
        await async_wait_until(lambda: threading.active_count() == 1)
        name = bus.url.split(" ")[0]
        await async_wait_until(lambda: len(network(name).listening(memory.MemoryAgent, "n1")) == 1)
        assert network(name).listening(memory.MemoryClient, "client") == []  # closed as soon as it was open

    run(scenario)


def test_without_any_link_the_error_is_that_of_the_links(opening: Opening) -> None:
    one, other = memory_url(), memory_url()
    opening.error = NotFoundError("there are no keys")
    for opener in (
        lambda url: transport(url).open_agent(url, "n1", None),
        lambda url: transport(url).open_client(url, None),
        lambda url: transport(url).open_monitor(url, None),
        lambda url: transport(url).open_coordinator(url, None),
    ):
        with pytest.raises(NotFoundError, match=r"^there are no keys$"):
            opener(f"{one} {other}")
    with pytest.raises(BusError, match=r"memory: there are no keys; zmq: cannot find the address"):
        url = f"{one} zmq://no.such.host.invalid"
        transport(url).open_client(url, None)
    with pytest.raises(BusError, match="no transport is called 'carrier-pigeon'"):
        transport("a b").open_client(f"{one} carrier-pigeon://x", None)
    with pytest.raises(BusError, match="twice"):
        transport("a b").open_client(f"{one} {one}", None)


@pytest.mark.parametrize("fatal", [TakenError("another coordinator is there"), SpecError("broken keys")])
def test_a_coordinator_does_not_begin_beside_another_or_with_what_a_person_must_mend(
    opening: Opening, fatal: Exception
) -> None:
    async def scenario(keep: Callable[[Any], Any]) -> None:
        bound = memory_url()
        opening.error = fatal
        url = f"{bound} zmq://127.0.0.1:{free_ports()}"
        with pytest.raises(type(fatal), match=str(fatal)):
            transport(url).open_coordinator(url, None)
        opening.error = None
        keep(Coordinator(Bus(url)))  # nothing is left of the first try

    run(scenario)


def test_another_coordinator_on_one_link_is_a_refusal(tmp_path: Path) -> None:
    async def scenario(keep: Callable[[Any], Any]) -> None:
        taken = memory_url()
        keep(Coordinator(Bus(taken)))
        url = f"zmq://127.0.0.1:{free_ports()} {taken}"
        with pytest.raises(TakenError, match="another coordinator"):
            transport(url).open_coordinator(url, None)

    run(scenario)


def test_an_answer_is_given_once(opening: Opening) -> None:
    async def scenario(keep: Callable[[Any], Any]) -> None:
        url = memory_url()
        bus = keep(transport("a b").open_coordinator(f"{url} {memory_url()}", None))
        answers: list[Answer] = []
        bus.receive(lambda frame: None, lambda frame, answer: answers.append(answer))
        client = keep(Bus(url).client())
        frame = wrap(Asked(client="c", number=1), b"x")
        waiting = asyncio.ensure_future(client.request(frame, 5))
        await async_wait_until(lambda: bool(answers))
        answers[0](b"first")
        answers[0](b"second")
        assert await waiting == b"first"
        assert await client.request(frame, 5) == b"first"

    run(scenario)
