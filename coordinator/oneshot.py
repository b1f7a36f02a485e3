"""A coordinator for one errand: it takes the place of one that is dead, ends everything, and goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from trogdor_bus.config import CoordinatorSettings
from trogdor_bus.coordinator.service import Service
from trogdor_bus.coordinator.store import Store
from trogdor_bus.errors import ConflictError, FencedError
from trogdor_bus.messages import Latch, Proof
from trogdor_bus.transports import several


class Errand:
    """The one-shot coordinator as a client sees it, without a bus between them, and without a log."""

    replicated: bool | None = None

    def __init__(self, service: Service, running: asyncio.Task[int]) -> None:
        self._api, self._running = service.api, running

    async def abort(self, latch: str, node: str = "") -> Latch:
        """End everything; as `Client.abort`."""
        return self._api.abort(latch, node)

    async def proof(self, latch: str, node: str = "") -> Proof:
        """Return what is proven; as `Client.proof`, or FencedError if another coordinator took over."""
        self.check()
        return self._api.proof(latch, node)

    def check(self) -> None:
        """Raise FencedError, or KeyboardInterrupt, if the coordinator ended before its errand."""
        if self._running.done():
            if self._running.result() == 0:
                raise KeyboardInterrupt  # by a signal, which its service has caught
            raise FencedError("another coordinator took over before the proof: abort again, to ask it")


def last_url(state_dir: Path) -> str:
    """Return where the last coordinator with that state listened, "" if none did; ConflictError while one runs."""
    if not os.path.exists(state_dir / "coordinator.db"):  # noqa: PTH110 (no error where the directory is closed)
        return ""
    try:
        store = Store(state_dir)
    except ConflictError:
        pid = (state_dir / "coordinator.lock").read_text().strip()
        raise ConflictError(
            f"the coordinator with its state in {state_dir} runs (process {pid}), but does not answer: "
            f"is it at another address? If it hangs: kill -KILL {pid}, then abort again"
        ) from None
    with contextlib.closing(store):
        return store.load().meta.url


@asynccontextmanager
async def take_place(settings: CoordinatorSettings) -> AsyncIterator[Errand]:
    """Lead in a new epoch inside the `with`, on the state that the dead coordinator left, and end after it.

    ConflictError if it lives, BusError if its ports cannot be bound here, FencedError if another one is in charge.
    """
    with contextlib.closing(Store(settings.state_dir)) as store:
        bus = several().open_coordinator(settings.url, settings.keys)
        try:
            service = Service(msgspec.structs.replace(settings, abort_all=True), store, bus)
            running = asyncio.create_task(service.run())
            try:
                errand = Errand(service, running)
                while service.api.status().listening:
                    errand.check()
                    await asyncio.sleep(0.02)
                yield errand
            finally:
                service.end("the errand is done")
                await running
        finally:
            bus.close()
