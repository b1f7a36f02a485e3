"""Somebody who submits and stops, measures how long that takes, and remembers how each task must end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from tests.kafka.daemons import Daemons
from trogdor_bus.client import Client
from trogdor_bus.errors import NoCoordinatorError, NotFoundError
from trogdor_bus.messages import TaskInfo
from trogdor_bus.states import Outcome, TaskState

LOOK_S = 0.1
PATIENCE_S = 30.0


class Commands:
    """Commands to one coordinator; the names of the tasks begin with `word`."""

    def __init__(self, daemons: Daemons, client: Client, word: str) -> None:
        self._daemons, self._client, self._word = daemons, client, word
        self.outcomes: dict[str, Outcome] = {}
        self.delays_s: dict[str, float] = {}
        """How long each command took until it was answered, and until it showed: submit to active, stop to done."""

    def task(self, name: str) -> str:
        """Return the id of a task."""
        return f"{self._word}-{name}"

    async def submit(self, name: str, spec: dict[str, Any], ends: Outcome = Outcome.CANCELLED) -> TaskInfo:
        """Submit a task, and return it when it is active on all its nodes."""
        self.outcomes[self.task(name)] = ends
        creating = self._client.create(self.task(name), msgspec.json.encode(spec))
        return await self._measured(f"submit {name}", creating, name, lambda info: info.task.active)

    async def stop(self, name: str) -> TaskInfo:
        """Stop a task, and return it when it is done."""
        return await self._measured(f"stop {name}", self._client.stop(self.task(name)), name, _done)

    async def done(self, name: str) -> TaskInfo:
        """Return a task when it is done."""
        return await self._until(name, _done)

    async def links(self, expected: dict[str, dict[str, bool]], timeout_s: float) -> float:
        """Wait until the nodes' links are told to be so, and return how long that took."""
        begun = time.monotonic()
        while (told := {node.name: node.links for node in await self._client.nodes()}) != expected:
            assert time.monotonic() < begun + timeout_s, f"after {timeout_s} s the links are {told}, not {expected}"
            await asyncio.sleep(LOOK_S)
        return time.monotonic() - begun

    async def check_all(self) -> None:
        """Check that every task ended as it was to, and was performed once by each of its workers and nobody else."""
        for task, outcome in self.outcomes.items():
            info = await self._client.show(task)
            assert (info.task.state, info.task.outcome) == (TaskState.DONE, outcome), info
            workers = {row.node: row for row in info.workers}
            for node in self._daemons.agents:
                assert self._daemons.performed(node)[task] == (node in workers), (node, task, info)
                noted = self._daemons.workers(node, task)
                assert noted == ({workers[node].id} if node in workers else set()), (node, task, info)

    async def _measured(
        self, what: str, asking: Coroutine[Any, Any, object], name: str, reached: Callable[[TaskInfo], bool]
    ) -> TaskInfo:
        begun, answering = time.monotonic(), asyncio.ensure_future(asking)
        answering.add_done_callback(lambda _: self._took(f"answer to {what}", begun))
        info = await self._until(name, reached)
        self._took(what, begun)
        await asyncio.to_thread(self._daemons.note_journals)
        await answering
        return info

    def _took(self, what: str, begun: float) -> None:
        self.delays_s[what] = time.monotonic() - begun

    async def _until(self, name: str, reached: Callable[[TaskInfo], bool]) -> TaskInfo:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(NotFoundError, NoCoordinatorError):
                    info = await self._client.show(self.task(name))
                    if reached(info):
                        return info
                await asyncio.sleep(LOOK_S)


def _done(info: TaskInfo) -> bool:
    return info.task.state is TaskState.DONE
