"""Lanes in an asyncio loop: the jobs are run there, their calls in threads that hold up neither it nor its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar

from trogdor_bus.agents.lanes import Call, Carry, Job, Lanes
from trogdor_bus.agents.threads import Threads

T = TypeVar("T")


class LoopLanes(Lanes):
    """The lanes of the running loop; what nobody foresaw goes to `broken`."""

    def __init__(self, broken: Callable[[Exception], object]) -> None:
        self._loop, self._broken = asyncio.get_running_loop(), broken
        self.carry: Carry = Threads(self.deliver, self.later).carry
        super().__init__(self._hand_over, self.later)

    def done(self, job: Job[T], key: Hashable = None) -> asyncio.Future[T]:
        """Begin a job, and return the future of what it returns."""
        future: asyncio.Future[T] = self._loop.create_future()

        def ended(outcome: T | Exception) -> None:
            if not future.cancelled():
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

        self.begin(job, ended, key)
        return future

    def call(self, lane: str, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have that done in a lane, and return the future of what it returns."""
        return self.done(_one(Call(lane, work)))

    def later(self, seconds: float, go_on: Callable[[], None]) -> None:
        """Call a function in so many seconds."""
        self._loop.call_later(seconds, self.guarded, go_on)

    def deliver(self, lane: str, outcomes: Sequence[object]) -> None:
        """Bring what a lane has done into the loop, whatever thread says so."""
        self.soon(partial(self.carried, lane, outcomes))

    def soon(self, work: Callable[[], None]) -> None:
        """Call a function in the loop, whatever thread says so; not while there is no loop any more."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.guarded, work)

    def guarded(self, work: Callable[[], None]) -> None:
        """Do it here and now; the loop would go on without what came of it."""
        try:
            work()
        except Exception as error:
            self._broken(error)

    async def settle(self, seconds: float) -> None:
        """Let the lanes end what they are at, but wait for none that hangs."""
        until_s = self._loop.time() + seconds
        while not self.idle() and self._loop.time() < until_s:
            await asyncio.sleep(0.01)

    def _hand_over(self, lane: str, calls: Sequence[Call[Any]]) -> None:
        self.carry(lane, calls)


async def _one(call: Call[Any]) -> Any:
    return await call
