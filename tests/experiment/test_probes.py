"""Probes against the real thing: a web server, a listening port, programs; their modes, and what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.support import async_wait_until
from trogdor_bus.experiment.destinations import Destinations
from trogdor_bus.experiment.probes import REFUSED, Looks
from trogdor_bus.faults.stream import ProbeSpec

LOOPBACK = Destinations(loopback=True)


class Page(http.server.BaseHTTPRequestHandler):
    status, body, seen = 200, b"all is well", 0

    def do_GET(self) -> None:
        type(self).seen += 1
        self.send_response(self.status)
        if self.status == 302:
            self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def page() -> Iterator[type[Page]]:
    class Own(Page):
        url = ""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        Own.url = f"http://127.0.0.1:{server.server_port}/health"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Own
        server.shutdown()
        thread.join()


def probe(**fields: Any) -> ProbeSpec:
    found = msgspec.convert({"name": "p", **fields}, ProbeSpec)
    found.check("$.probe")
    return found


async def whole(_: ProbeSpec) -> str:
    return ""


def look(*, commands: bool = False, **fields: Any) -> str:
    async def once() -> str:
        return await Looks((), whole, commands=commands, to=LOOPBACK).look(probe(**fields))

    return asyncio.run(once())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


# --- one look ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "fields", "wrong"),
    [
        (200, {}, ""),
        (200, {"contains": "well"}, ""),
        (200, {"contains": "ill"}, "the page does not contain 'ill'"),
        (503, {}, "answered with status 503, not 200"),
        (503, {"status": 503}, ""),
        (302, {"status": 302}, ""),
    ],
)
def test_a_page(page: Any, status: int, fields: dict[str, Any], wrong: str) -> None:
    page.status = status
    found = look(type="http", url=page.url, **fields)
    assert found.endswith(wrong) and bool(found) == bool(wrong)


def test_a_page_that_nobody_serves() -> None:
    assert "Connection refused" in look(type="http", url=f"http://127.0.0.1:{free_port()}/")


def test_what_never_answers_takes_no_longer_than_its_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert look(type="http", url=url, timeoutMs=100)
    assert look(type="command", command=["sleep", "60"], timeoutMs=100, commands=True) == (
        "nothing came of it within 0.1 s"
    )


def test_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        assert look(type="tcp", address=f"127.0.0.1:{held.getsockname()[1]}") == ""
    assert "Connect call failed" in look(type="tcp", address=f"127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("words", "fields", "wrong"),
    [
        (["true"], {}, ""),
        (["echo", "a  b; $HOME"], {"contains": "a  b; $HOME"}, ""),
        (["echo", "a"], {"contains": "b"}, "what it printed does not contain 'b'"),
        (["sh", "-c", "echo no disk >&2; exit 3"], {}, "sh ended with exit status 3, and said last: no disk"),
        (["/nowhere/to/be/found"], {}, "No such file or directory"),
    ],
)
def test_a_command_is_a_list_of_words(words: list[str], fields: dict[str, Any], wrong: str) -> None:
    assert look(type="command", command=words, commands=True, **fields) == wrong


def test_commands_must_be_allowed() -> None:
    assert look(type="command", command=["true"]) == REFUSED


def test_what_a_command_started_ends_with_it() -> None:
    script = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"

    async def once() -> str:
        looks = Looks((), whole, commands=True)
        return await looks.look(probe(type="command", command=[sys.executable, "-c", script], contains="x"))

    assert asyncio.run(once())


def test_kafka_is_looked_at_by_who_knows_it() -> None:
    async def broken(_: ProbeSpec) -> str:
        return "orders-0 has no leader"

    async def once() -> str:
        return await Looks((), broken, commands=False, to=LOOPBACK).look(probe(type="kafka"))

    assert asyncio.run(once()) == "orders-0 has no leader"


# --- all looks --------------------------------------------------------------------------------------------------------


def told(looks: Looks) -> dict[str, tuple[bool | None, str]]:
    return {one.name: (one.passed, one.text) for one in looks.results()}


def test_each_mode_looks_at_its_time(page: Any) -> None:
    async def run() -> None:
        modes = ("before", "after", "edge", "continuous", "during")
        probes = tuple(probe(name=mode, type="http", url=page.url, mode=mode, intervalMs=10) for mode in modes)
        looks = Looks(probes, whole, commands=False, to=LOOPBACK)
        assert {passed for passed, _ in told(looks).values()} == {None}
        await looks.before()
        found = told(looks)
        assert found["before"] == (True, "1 of 1 looks were good")
        assert found["edge"] == (None, "1 of 1 looks were good"), "it owes another look"
        assert found["after"] == found["during"] == (None, "it never looked")
        await async_wait_until(lambda: told(looks)["continuous"][0])
        looks.during()
        await async_wait_until(lambda: told(looks)["during"][0])
        await looks.after()
        assert {passed for passed, _ in told(looks).values()} == {True}
        seen = page.seen
        await asyncio.sleep(0.1)
        assert page.seen == seen, "nobody looks any more"

    asyncio.run(run())


def test_one_wrong_look_decides_and_is_told(page: Any) -> None:
    async def run() -> None:
        looks = Looks((probe(type="http", url=page.url, mode="edge"),), whole, commands=False, to=LOOPBACK)
        await looks.before()
        page.status = 500
        await looks.after()
        passed, text = told(looks)["p"]
        assert passed is False
        assert text.startswith("1 of 2 looks were good; the first wrong one: ") and "status 500" in text

    asyncio.run(run())


def test_a_look_is_repeated_before_it_is_wrong(page: Any) -> None:
    page.status = 500

    async def run() -> None:
        looks = Looks(
            (probe(type="http", url=page.url, attempts=50, intervalMs=10),), whole, commands=False, to=LOOPBACK
        )
        looking = asyncio.create_task(looks.before())
        await async_wait_until(lambda: page.seen > 2)
        page.status = 200
        await looking
        assert told(looks)["p"][1] == "1 of 1 looks were good"

    asyncio.run(run())


@pytest.mark.parametrize("halt", [True, False])
def test_one_that_halts_says_so(page: Any, halt: bool) -> None:
    async def run() -> None:
        looks = Looks(
            (probe(type="http", url=page.url, mode="continuous", intervalMs=10, halt=halt),),
            whole,
            commands=False,
            to=LOOPBACK,
        )
        await looks.before()
        await async_wait_until(lambda: page.seen > 1)
        page.status = 500
        await async_wait_until(lambda: told(looks)["p"][0] is False)
        await asyncio.sleep(0)
        assert looks.broken.done() == halt
        if halt:
            assert looks.broken.result() == f"probe p: {page.url} answered with status 500, not 200"
        await looks.end()

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run())


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_it_connects_only_where_it_may(page: type[Page], kind: str) -> None:
    place = page.url.split("/")[2]
    fields = {"url": page.url} if kind == "http" else {"address": place}

    async def once(to: Destinations) -> str:
        return await Looks((), whole, commands=False, to=to).look(probe(type=kind, **fields))

    said = asyncio.run(once(Destinations()))
    assert f"{place} is no node of this cluster" in said and f"start it with ‹allow-probe› {place}" in said
    assert page.seen == 0
    assert asyncio.run(once(Destinations(typed=(place,)))) == ""


def test_a_name_that_means_another_address_than_it_should_is_not_dialled() -> None:
    async def once() -> str:
        spec = probe(type="tcp", address=f"localhost:{free_port()}")
        return await Looks((), whole, commands=False, to=Destinations(hosts=("10.0.0.1",))).look(spec)

    assert "(127.0.0.1) is no node" in asyncio.run(once()).replace("(::1)", "(127.0.0.1)")
