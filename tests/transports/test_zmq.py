"""What only the ZeroMQ bus has: keys, hostile peers, what is known about silence, addresses."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.contract.buses import Agent, Bus, Coordinator, Monitor, be_heard, be_seen, free_ports, reach
from tests.support import async_wait_until, require
from trogdor_bus import keys
from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.errors import BusError, NoCoordinatorError, NotFoundError
from trogdor_bus.platform import Endpoint
from trogdor_bus.transports.zmq import new_key_pair

RAW = """
import sys, zmq
kind, url, size = sys.argv[1:]
context = zmq.Context()
sock = context.socket(getattr(zmq, kind))
sock.linger = 0
sock.connect(url)
sock.setsockopt(zmq.SNDTIMEO, 5000)
frame = b"x" * int(size)
for _ in range(2):
    sock.send(frame)
    sock.poll(500)
sock.close()
context.term()
"""


def run(scenario: Callable[[list[Any]], Awaitable[None]]) -> None:
    """Run in a loop; what the scenario puts into its list is closed afterwards."""

    async def whole() -> None:
        ends: list[Any] = []
        try:
            await scenario(ends)
        finally:
            for end in ends:
                end.close()

    asyncio.run(whole())


def loopback(keys: Path | None = None) -> Bus:
    return Bus(f"zmq://127.0.0.1:{free_ports()}", keys)


def keyed(directory: Path) -> Path:
    keys.ensure(directory, new_key_pair)
    return directory


async def trouble(agent: Agent, *words: str) -> None:
    await async_wait_until(
        lambda: all(word in agent.bus.trouble() for word in words), what=f"{words} (it is {agent.bus.trouble()!r})"
    )


def member_of(coordinator: Path, other: Path, directory: Path) -> Path:
    """Make keys that know the coordinator but hold another member's pair."""
    right, wrong = keys.load_member(coordinator), keys.load_member(other)
    text = f'{{"coordinator":"{right.coordinator}","public":"{wrong.public}","secret":"{wrong.secret}"}}'
    keys.import_(directory, text)
    return directory


@pytest.mark.parametrize(
    ("server", "client", "words"),
    [
        ("right", "stranger", ("refused our key", "export-keys")),
        ("right", "other", ("another key", "export-keys")),
        ("right", None, ("uses keys and we do not",)),
        (None, "right", ("uses no keys",)),
    ],
)
def test_without_the_right_keys_nothing_passes_and_the_trouble_says_why(
    server: str | None, client: str | None, words: tuple[str, ...], tmp_path: Path
) -> None:
    places = {None: None, "right": keyed(tmp_path / "right"), "other": keyed(tmp_path / "other")}
    places["stranger"] = member_of(tmp_path / "right", tmp_path / "other", tmp_path / "stranger")
    bus = loopback(places[server])
    wrong = Bus(bus.url, places[client])

    async def scenario(ends: list[Any]) -> None:
        coordinator, agent, asker, monitor = Coordinator(bus), Agent(wrong, "n1"), wrong.client(), Monitor(wrong)
        good = Agent(bus, "n1")
        ends.extend((coordinator.bus, agent.bus, asker, monitor.bus, good.bus))
        pending = asyncio.ensure_future(asker.request(b"let me in", 1.5))
        for number in range(30):
            agent.bus.send(b"let me in")
            coordinator.bus.publish("n1", b"secret %d" % number)
            coordinator.bus.announce("view/", b"secret")
            await asyncio.sleep(0.02)
        await trouble(agent, *words)
        with pytest.raises(NoCoordinatorError) as raised:
            await pending
        assert any(word in str(raised.value) for word in words)
        await reach(coordinator, good, b"end")
        await be_heard(good, coordinator, b"end")
        assert (agent.snapshots, monitor.seen, coordinator.requests) == ([], [], [])
        assert b"let me in" not in coordinator.beats

    run(scenario)


def test_an_agent_gets_in_once_its_keys_are_imported_without_a_restart(tmp_path: Path) -> None:
    right, other = keyed(tmp_path / "right"), keyed(tmp_path / "other")
    stranger = member_of(right, other, tmp_path / "stranger")
    elsewhere = tmp_path / "elsewhere"
    keys.import_(elsewhere, keys.export(other))
    bus = loopback(right)

    async def scenario(ends: list[Any]) -> None:
        coordinator = Coordinator(bus)
        agents = [Agent(Bus(bus.url, place), "n1") for place in (stranger, elsewhere)]
        ends.extend((coordinator.bus, *(agent.bus for agent in agents)))
        await trouble(agents[0], "refused our key")
        await trouble(agents[1], "another key")
        for place, agent in zip((stranger, elsewhere), agents, strict=True):
            keys.import_(place, keys.export(right), force=True)
            await reach(coordinator, agent, b"welcome")
            await be_heard(agent, coordinator, b"thanks")
            assert agent.bus.trouble() == ""

    run(scenario)


def test_an_agent_comes_back_when_a_coordinator_without_keys_is_replaced_by_one_with_them(tmp_path: Path) -> None:
    with_keys = loopback(keyed(tmp_path / "keys"))

    async def scenario(ends: list[Any]) -> None:
        insecure, agent = Coordinator(Bus(with_keys.url)), Agent(with_keys, "n1")
        ends.extend((insecure.bus, agent.bus))
        await trouble(agent, "uses no keys")
        insecure.bus.close()
        coordinator = Coordinator(with_keys)
        ends.append(coordinator.bus)
        await reach(coordinator, agent, b"x")
        await be_heard(agent, coordinator, b"x")

    run(scenario)


def test_missing_keys_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="export-keys"):
        Bus("zmq://127.0.0.1:9", tmp_path / "none").agent("n1")


def test_trouble_tells_refused_from_silent() -> None:
    async def scenario(ends: list[Any]) -> None:
        refused = loopback()
        agent = Agent(refused, "n1")
        ends.append(agent.bus)
        await trouble(agent, "connection refused by", refused.url.removeprefix("zmq://"))
        base = free_ports()
        listeners = [socket.create_server(("127.0.0.1", base + offset)) for offset in range(2)]
        ends.extend(listeners)
        mute = Agent(Bus(f"zmq://127.0.0.1:{base}"), "n1")
        ends.append(mute.bus)
        await trouble(mute, f"127.0.0.1:{base} does not answer")

    run(scenario)


def test_trouble_tells_that_packets_vanish() -> None:
    async def scenario(ends: list[Any]) -> None:
        base = free_ports()
        full = socket.socket()
        ends.append(full)
        full.bind(("127.0.0.1", base))
        full.listen(0)
        for _ in range(3):  # a full backlog: Linux drops further SYNs, as a firewall would
            filler = socket.socket()
            ends.append(filler)
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", base))
        agent = Agent(Bus(f"zmq://127.0.0.1:{base}"), "n1")
        ends.append(agent.bus)
        await trouble(agent, f"127.0.0.1:{base} does not answer")

    run(scenario)


def test_a_frame_of_100_mb_neither_grows_memory_nor_stops_service() -> None:
    bus = loopback()
    base = int(bus.url.rpartition(":")[2])

    async def scenario(ends: list[Any]) -> None:
        coordinator, agent = Coordinator(bus), Agent(bus, "n1")
        ends.extend((coordinator.bus, agent.bus))
        await reach(coordinator, agent, b"before")
        before = psutil.Process().memory_info().rss
        for kind, offset in (("DEALER", 1), ("DEALER", 3)):
            raw = subprocess.Popen(
                [sys.executable, "-c", RAW, kind, f"tcp://127.0.0.1:{base + offset}", str(100 << 20)]
            )
            try:
                peak = before
                while raw.poll() is None:
                    await be_heard(agent, coordinator, b"still heard")
                    coordinator.beats.clear()
                    peak = max(peak, psutil.Process().memory_info().rss)
                    await asyncio.sleep(0.01)
            finally:
                raw.kill()
                raw.wait()
            assert peak - before < 30 << 20
        assert coordinator.requests == []
        assert all(len(frame) < 100 for frame in coordinator.beats)

    run(scenario)


def test_an_agent_gets_over_a_frame_too_large_from_a_strange_coordinator() -> None:
    import zmq

    bus = loopback()
    base = int(bus.url.rpartition(":")[2])

    async def scenario(ends: list[Any]) -> None:
        agent = Agent(bus, "n1")
        ends.append(agent.bus)
        with zmq.Context() as context:
            strange = context.socket(zmq.PUB)
            strange.linger = 0
            strange.bind(f"tcp://127.0.0.1:{base}")
            strange.setsockopt(zmq.SNDHWM, 1)

            def got_something() -> bool:
                strange.send_multipart([b"node/n1/", b"small"])
                return b"small" in agent.snapshots

            await async_wait_until(got_something)
            strange.send_multipart([b"node/n1/", b"x" * (MAX_FRAME_BYTES + 5000)])
            strange.send_multipart([b"node/n1/"])
            strange.send_multipart([b"node/n1/more", b"x"])
            await trouble(agent, "lost the connection")
            strange.close()
        coordinator = Coordinator(bus)
        ends.append(coordinator.bus)
        await reach(coordinator, agent, b"after")
        assert set(agent.snapshots) == {b"small", b"after"}

    run(scenario)


@pytest.mark.parametrize("secure", [False, True])
def test_garbage_on_every_port_is_survived(secure: bool, tmp_path: Path) -> None:
    bus = loopback(keyed(tmp_path / "keys") if secure else None)
    base = int(bus.url.rpartition(":")[2])
    garbage = (
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(2000),
        b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03" + b"\0" * 1000,
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL" + b"\0" * 48 + os.urandom(500),
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL" + b"\0" * 48 + b"\x06\xff\xff\xff\xff\xff\xff\xff\xff",
    )

    async def scenario(ends: list[Any]) -> None:
        coordinator, agent, client, monitor = Coordinator(bus), Agent(bus, "n1"), bus.client(), Monitor(bus)
        ends.extend((coordinator.bus, agent.bus, client, monitor.bus))
        for port in range(base, base + 4):
            for text in garbage:
                with socket.create_connection(("127.0.0.1", port)) as raw:
                    raw.sendall(text)
                half_open = socket.create_connection(("127.0.0.1", port))
                ends.append(half_open)
                half_open.sendall(text)
        await reach(coordinator, agent, b"x")
        await be_heard(agent, coordinator, b"x")
        await be_seen(coordinator, monitor, "view/", b"x")
        assert await client.request(b"x", 5) == b"echo x"
        if secure:  # without keys, noise may happen to be a frame: to tell is up to who decodes it
            assert (set(coordinator.beats), coordinator.requests) == ({b"x"}, [b"x"])

    run(scenario)


def test_messages_with_other_parts_than_ours_are_ignored() -> None:
    import zmq

    bus = loopback()
    base = int(bus.url.rpartition(":")[2])

    async def scenario(ends: list[Any]) -> None:
        coordinator = Coordinator(bus)
        ends.append(coordinator.bus)
        with zmq.Context() as context:
            for offset, shapes in (
                (1, ([b"a", b"b"], [b""] * 9, [b"ours"])),
                (3, ([b"a"], [b"a", b"b", b"c"], [b"n", b"ours"])),
            ):
                sock = context.socket(zmq.DEALER)
                sock.linger = 1000
                sock.connect(f"tcp://127.0.0.1:{base + offset}")
                for shape in shapes:
                    sock.send_multipart(shape)
                sock.close()
            await async_wait_until(lambda: coordinator.beats and coordinator.requests)
        assert (coordinator.beats, coordinator.requests) == ([b"ours"], [b"ours"])

    run(scenario)


def test_a_flood_of_beats_does_not_starve_the_loop() -> None:
    bus = loopback()

    async def scenario(ends: list[Any]) -> None:
        coordinator, agents = Coordinator(bus), [Agent(bus, f"n{number}") for number in range(3)]
        ends.extend((coordinator.bus, *(agent.bus for agent in agents)))
        for agent in agents:
            await be_heard(agent, coordinator, b"first")
        longest, begin = 0.0, time.monotonic()
        while (now := time.monotonic()) < begin + 1:
            for agent in agents:
                for _ in range(100):
                    agent.bus.send(b"x" * 100)
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - now)
        assert longest < 0.5
        await be_heard(agents[0], coordinator, b"last")

    run(scenario)


def test_ipv6_and_the_wildcard_work() -> None:
    require(socket.has_dualstack_ipv6(), "this machine has no IPv6", "enable IPv6 on loopback")

    async def scenario(ends: list[Any]) -> None:
        for bind, dial in (("[::1]", "[::1]"), ("*", "127.0.0.1"), ("*", "[::1]"), ("0.0.0.0", "127.0.0.1")):
            base = free_ports()
            coordinator = Coordinator(Bus(f"zmq://{bind}:{base}"))
            agent = Agent(Bus(f"zmq://{dial}:{base}"), "n1")
            ends.extend((coordinator.bus, agent.bus))
            await reach(coordinator, agent, b"x")
            await be_heard(agent, coordinator, b"x")
            assert agent.bus.trouble() == ""
            assert agent.bus.control() == (Endpoint(dial.strip("[]"), (base, base + 1, base + 2, base + 3)),)

    run(scenario)


def test_a_host_name_is_dialled_at_each_of_its_addresses() -> None:
    addresses = {str(entry[4][0]) for entry in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}

    async def scenario(ends: list[Any]) -> None:
        for address in sorted(addresses):
            base = free_ports()
            coordinator = Coordinator(Bus(f"zmq://{f'[{address}]' if ':' in address else address}:{base}"))
            agent, client = Agent(Bus(f"zmq://localhost:{base}"), "n1"), Bus(f"zmq://localhost:{base}").client()
            ends.extend((coordinator.bus, agent.bus, client))
            await reach(coordinator, agent, b"x")
            await be_heard(agent, coordinator, b"x")
            assert await client.request(b"x", 5) == b"echo x"
            assert agent.bus.trouble() == ""
            assert {endpoint.address for endpoint in agent.bus.control()} == addresses

    run(scenario)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("zmq://no-such-host.invalid:5560", "cannot find the address of 'no-such-host.invalid'"),
        ("zmq://", "names no host"),
        ("zmq://h:x", "is no address"),
        ("zmq://fd00::1:5560", "brackets"),
        ("zmq://127.0.0.1:65534", "out of range"),
        ("zmq://127.0.0.1:0", "out of range"),
        ("zmq://" + "x" * 300, "cannot find the address"),
    ],
)
def test_a_bad_address_is_a_clear_error(url: str, words: str) -> None:
    for opener in (Bus(url).agent, lambda name: Bus(url).coordinator()):
        with pytest.raises(BusError, match=words):
            opener("n1")


def test_binding_is_all_or_nothing_and_says_what_is_taken() -> None:
    base = free_ports()
    with socket.create_server(("127.0.0.1", base + 3)), pytest.raises(BusError, match=f"127.0.0.1:{base + 3} is taken"):
        Bus(f"zmq://127.0.0.1:{base}").coordinator()
    for port in range(base, base + 3):
        socket.create_server(("127.0.0.1", port)).close()
    with pytest.raises(BusError, match="no address of this machine"):
        Bus(f"zmq://192.0.2.1:{base}").coordinator()
    Bus(f"zmq://127.0.0.1:{base}").coordinator().close()


def test_an_end_opened_in_another_thread_works_in_the_loop() -> None:
    bus = loopback()

    async def scenario(ends: list[Any]) -> None:
        coordinator = Coordinator(bus)
        agent = await asyncio.to_thread(bus.agent, "n1")
        ends.extend((coordinator.bus, agent))
        got: list[bytes] = []
        agent.receive(got.append)

        def reached() -> bool:
            coordinator.bus.publish("n1", b"x")
            return bool(got)

        await async_wait_until(reached)

    run(scenario)


def test_closing_is_bounded_while_nobody_reads(caplog: pytest.LogCaptureFixture) -> None:
    bus = loopback()

    async def scenario(ends: list[Any]) -> None:
        coordinator, agent = bus.coordinator(), Agent(bus, "n1")
        monitor = bus.monitor()
        ends.extend((coordinator, agent.bus, monitor))
        await async_wait_until(lambda: agent.bus.trouble() == "")
        for _ in range(10):
            agent.bus.send(b"x" * MAX_FRAME_BYTES)
            coordinator.announce("view/", b"x" * MAX_FRAME_BYTES)
        begin = time.monotonic()
        for end in (agent.bus, monitor, coordinator):
            end.close()
        assert time.monotonic() - begin < 3

    with caplog.at_level(logging.WARNING):
        run(scenario)
    assert caplog.records == []
