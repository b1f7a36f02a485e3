"""A coordinator for one errand: it takes the place of one that is dead, ends everything, and goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from trogdor_bus.config import CoordinatorSettings
from trogdor_bus.coordinator.service import Service
from trogdor_bus.coordinator.store import Store
from trogdor_bus.errors import FencedError
from trogdor_bus.messages import Latch, NodeRow, TaskInfo
from trogdor_bus.transports import transport


class Errand:
    """The one-shot coordinator as a client sees it, without a bus between them."""

    def __init__(self, service: Service) -> None:
        self._api = service.api

    async def abort(self, latch: str, node: str = "") -> Latch:
        """End everything; as `Client.abort`."""
        return self._api.abort(latch, node)

    async def nodes(self) -> tuple[NodeRow, ...]:
        """Return the nodes that were heard, or had something to do."""
        return tuple(self._api.nodes())

    async def tasks(self) -> tuple[TaskInfo, ...]:
        """Return every task."""
        return tuple(self._api.all_tasks())


def last_url(state_dir: Path) -> str:
    """Return where the last coordinator with that state listened, "" if none did; ConflictError while one runs."""
    if not (state_dir / "coordinator.db").exists():
        return ""
    with contextlib.closing(Store(state_dir)) as store:
        return store.load().meta.url


@asynccontextmanager
async def take_place(settings: CoordinatorSettings) -> AsyncIterator[Errand]:
    """Lead in a new epoch inside the `with`, on the state that the dead coordinator left, and end after it.

    ConflictError if it lives, BusError if its ports cannot be bound here, FencedError if another one is in charge.
    """
    with contextlib.closing(Store(settings.state_dir)) as store:
        bus = transport(settings.url).open_coordinator(settings.url, settings.keys)
        try:
            service = Service(msgspec.structs.replace(settings, abort_all=True), store, bus)
            running = asyncio.create_task(service.run())
            try:
                while service.api.status().listening:
                    if running.done():
                        raise FencedError("another coordinator is in charge of these agents")
                    await asyncio.sleep(0.02)
                yield Errand(service)
            finally:
                service.end("the errand is done")
                await running
        finally:
            bus.close()
