"""A coordinator for one errand: it takes the place of one that is dead, ends everything, and goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import msgspec

from trogdor_bus.config import CoordinatorSettings
from trogdor_bus.coordinator.service import Service
from trogdor_bus.coordinator.store import Store
from trogdor_bus.errors import BusError, ConflictError, FencedError, TrogdorBusError
from trogdor_bus.messages import Abort, AskProof, AskStatus, CoordinatorStatus, Latch, Proof
from trogdor_bus.transports import several


class Unfused:
    """A fuse for one errand: what nobody foresaw ends the errand, and the coordinator's own is left alone."""

    aside: Collection[str] = ()
    bare = False

    def said(self) -> str:
        """Return "": nothing is done without."""
        return ""

    def blow(self, error: BaseException, about: str = "") -> NoReturn:
        """Raise a BusError: nothing is proven."""
        at = f" at task {about}" if about else ""
        raise BusError(f"internal error{at}, so nothing is proven: {type(error).__name__}: {error}") from error


class Errand:
    """The one-shot coordinator as a client sees it, without a bus between them, and without a log."""

    replicated: bool | None = None

    def __init__(self, service: Service, running: asyncio.Task[int]) -> None:
        self._commands, self._running = service.commands, running

    async def abort(self, latch: str, node: str = "") -> Latch:
        """End everything; as `Client.abort`."""
        latched: Latch = (await self._commands.execute(Abort(latch=latch, node=node))).result
        return latched

    async def proof(self, latch: str, node: str = "") -> Proof:
        """Return what is proven; as `Client.proof`, or FencedError if another coordinator took over."""
        self.check()
        proof: Proof = (await self._commands.execute(AskProof(latch=latch, node=node))).result
        return proof

    async def listening(self) -> bool:
        """Return whether it still listens for another coordinator, and does nothing yet."""
        status: CoordinatorStatus = (await self._commands.execute(AskStatus())).result
        return status.listening

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
        fuse = Unfused()
        try:
            service = Service(msgspec.structs.replace(settings, abort_all=True), store, bus, fuse)
            running = asyncio.create_task(service.run())
            try:
                errand = Errand(service, running)
                while await errand.listening():
                    errand.check()
                    await asyncio.sleep(0.02)
                yield errand
            finally:
                service.end("the errand is done")
                await running
        except TrogdorBusError:
            raise
        except Exception as error:
            fuse.blow(error)
        finally:
            bus.close()
