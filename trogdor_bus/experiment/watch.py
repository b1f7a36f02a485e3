"""Looks at the cluster all the time: who leads, who is in sync, who is there; and on demand at all of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from trogdor_bus.clock import Clock
from trogdor_bus.cluster import ClusterView
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.experiment.history import History
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.reader import Reader

POLL_MS = 200
"""How often leaders are looked at: the resolution of everything that is measured by that."""
QUICK_S = 1.0
WHOLE_S = 5.0


class Watch:
    """Keeps `history` up to date inside the `async with`: of the partitions of `topics`, brokers, controllers.

    The changes of leaders that are told are those of `topic`.
    """

    def __init__(self, access: Access, topic: str, topics: tuple[str, ...], clock: Clock) -> None:
        self.history = History(topic)
        self.trouble = ""
        self._topics = topics
        self._partitions, self._quorum, self._whole = (Reader(access, clock) for _ in range(3))
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._go_on(self._look_at_partitions)),
            asyncio.create_task(self._go_on(self._look_at_quorum)),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for reader in (self._partitions, self._quorum, self._whole):
            await asyncio.to_thread(reader.close)

    async def whole(self) -> ClusterView:
        """Return everything that is to be seen now; HostError if no broker answers."""
        return await asyncio.to_thread(self._whole.read, timeout_s=WHOLE_S)

    async def settings(self, broker: int, timeout_s: float = WHOLE_S) -> dict[str, str]:
        """Return the settings that a broker itself tells; HostError if it is silent, NotFoundError if there is none."""
        return await asyncio.to_thread(self._whole.settings, broker, timeout_s)

    async def _look_at_partitions(self) -> None:
        self.history.see(await asyncio.to_thread(self._partitions.read, self._topics, (), QUICK_S, quorum=False))

    async def _look_at_quorum(self) -> None:
        self.history.see_quorum(await asyncio.to_thread(self._quorum.read, (), (), QUICK_S))

    async def _go_on(self, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            began_s = time.monotonic()
            try:
                await look()
                self.trouble = ""
            except TrogdorBusError as error:
                self.trouble = str(error)
            await asyncio.sleep(max(0.0, POLL_MS / 1000 - (time.monotonic() - began_s)))
