"""A whole coordinator in this process, on a bus in memory: its doors, and what an error at one of them does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import pytest

from tests.support import async_wait_until
from trogdor_bus.client import Client
from trogdor_bus.config import CoordinatorSettings
from trogdor_bus.coordinator.oneshot import take_place
from trogdor_bus.coordinator.service import Service
from trogdor_bus.coordinator.store import Store
from trogdor_bus.errors import NoCoordinatorError, NotFoundError, RefusedError, SpecError
from trogdor_bus.registry import registry
from trogdor_bus.states import TaskState
from trogdor_bus.transports import transport

NOOP = b'{"class":"noop","durationMs":60000,"startMs":32503680000000}'
BY_ROLE = b'{"class":"process-stop","durationMs":1000,"nodes":["controller"],"match":"x"}'


class BlownError(Exception):
    """The process would have ended."""


class Recorder:
    """A fuse that notes what would have ended the process, and at which task."""

    aside: Collection[str] = ()
    bare = False

    def __init__(self) -> None:
        self.blown: list[tuple[str, str]] = []

    def said(self) -> str:
        return ""

    def blow(self, error: BaseException, about: str = "") -> NoReturn:
        if not isinstance(error, BlownError):
            self.blown.append((repr(error), about))
        raise BlownError


Act = Callable[[Service, Client], Awaitable[None]]


def settings(directory: Path) -> CoordinatorSettings:
    return CoordinatorSettings(url=f"memory://{uuid4().hex}", state_dir=directory, keys=None, beat_ms=50)


def play(directory: Path, act: Act, timeout_s: float = 10.0) -> tuple[int, list[tuple[str, str]]]:
    """Let a client act on a running coordinator; return the exit code of that one, and what blew its fuse."""

    async def run() -> tuple[int, list[tuple[str, str]]]:
        known, fuse = settings(directory), Recorder()
        bus = transport(known.url).open_coordinator(known.url, None)
        with contextlib.closing(Store(directory)) as store, contextlib.closing(bus):
            service = Service(known, store, bus, fuse)
            running = asyncio.create_task(service.run())
            try:
                async with Client(transport(known.url).open_client(known.url, None), "here", timeout_s) as client:
                    await async_wait_until(lambda: not service._machine.listening)
                    await act(service, client)
            finally:
                service.end("the test is over")
                code = await running
            return code, fuse.blown

    return asyncio.run(run())


def test_it_says_when_it_starts_which_packages_are_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(service: Service, client: Client) -> None:
        await client.create("t", NOOP)

    monkeypatch.setattr(registry(), "broken", ("the entry point x = y cannot be loaded; uninstall it",))
    assert play(tmp_path, act) == (0, [])
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == ["the entry point x = y cannot be loaded; uninstall it"]


def test_requests_of_the_bus_go_through_the_door(tmp_path: Path) -> None:
    async def act(service: Service, client: Client) -> None:
        created = await client.create("t", NOOP)
        assert (created.task.state, client.replicated) == (TaskState.PENDING, None)
        assert await client.show("t") == created
        with pytest.raises(SpecError, match="No node names specified"):
            await client.validate(NOOP)
        with pytest.raises(SpecError, match="did you mean"):
            await client.create("u", b'{"class":"nop"}')
        with pytest.raises(NotFoundError, match='No task with ID "u" exists'):
            await client.show("u")
        with pytest.raises(RefusedError, match="knows none"):
            await client.validate(BY_ROLE)
        await client.stop("t")
        assert (await client.show("t")).task.state is TaskState.DONE
        await client.shutdown()

    assert play(tmp_path, act) == (0, [])


def test_many_requests_at_once_are_each_answered(tmp_path: Path) -> None:
    async def act(service: Service, client: Client) -> None:
        made = await asyncio.gather(*(client.create(f"t{number}", NOOP) for number in range(50)))
        assert [info.task.id for info in made] == [f"t{number}" for number in range(50)]
        assert len(await client.tasks()) == 50

    assert play(tmp_path, act) == (0, [])


@pytest.mark.parametrize("where", ["machine", "door"])
def test_what_nobody_foresaw_of_a_request_blows_the_fuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def broken(*_: object) -> NoReturn:
        raise ZeroDivisionError

    async def act(service: Service, client: Client) -> None:
        await client.create("t", NOOP)
        monkeypatch.setattr(
            *((service._machine, "_stop") if where == "machine" else (service._core.api, "show_task")), broken
        )
        with pytest.raises(NoCoordinatorError):
            await (client.stop("t") if where == "machine" else client.show("t"))

    code, blown = play(tmp_path, act, timeout_s=0.5)
    assert (code, [error for error, _ in blown]) == (0, ["ZeroDivisionError()"])
    assert where == "door" or blown[0][1] == "t"


def test_an_errand_goes_through_the_same_door(tmp_path: Path) -> None:
    async def run() -> None:
        async with take_place(settings(tmp_path)) as errand:
            assert not await errand.listening()
            latch = await errand.abort("the-latch")
            assert (latch.id, errand.replicated) == ("the-latch", None)
            assert (await errand.proof("the-latch")).nodes == ()
            with pytest.raises(NotFoundError):
                await errand.abort("another", "nowhere")

    asyncio.run(run())
    with contextlib.closing(Store(tmp_path)) as store:
        assert store.load().meta.latches == {"": "the-latch"}
