"""Keeps the log up with the store while a coordinator leads, and tells since when it is behind."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from trogdor_bus.bus import StateLog
from trogdor_bus.coordinator.changes import Change, Loaded
from trogdor_bus.coordinator.replica import Replica, read
from trogdor_bus.coordinator.takeover import outrun
from trogdor_bus.errors import BusError, HostError

log = logging.getLogger("trogdor_bus.coordinator")
KEPT_S = 1.0
"""How long an answer waits for the log; a log that is behind for longer is told of."""
READ_S = 3.0
LOOK_S = 0.1
AGAIN_S = 1.0


class Replication:
    """The replica of a running coordinator. `epoch` tells in which it leads, 0 before; `load` what it has stored.

    `fenced` is called, with the reason, when the log shows that another coordinator is in charge.
    """

    def __init__(
        self,
        kept_in: StateLog,
        me: str,
        *,
        load: Callable[[], Loaded],
        epoch: Callable[[], int],
        fenced: Callable[[str], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._log, self._replica = kept_in, Replica(kept_in, me)
        self._load, self._epoch, self._fenced, self._now_ms = load, epoch, fenced, now_ms
        self._since_ms = now_ms()
        self._why = "the log was not read yet"
        self._told = False

    def follow(self, changes: Sequence[Change]) -> None:
        """Write one commit of the store."""
        self._replica.follow(changes)

    def behind_ms(self) -> int:
        """Return since when the log has not held everything, epoch ms; -1 if it does, or did within the last second."""
        self._look()
        late = self._since_ms >= 0 and self._now_ms() - self._since_ms >= KEPT_S * 1000
        return self._since_ms if late else -1

    async def kept(self) -> bool:
        """Return whether everything that is stored by now is in the log, having waited for up to a second."""
        replica, until = self._replica, time.monotonic() + KEPT_S
        mark = replica.appended if replica.following else None
        while not (replica.complete() if mark is None else replica.following and replica.kept() >= mark):
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.005)
        return True

    async def run(self) -> None:
        """Begin once the coordinator leads and the log can be read, and again after having been too far behind."""
        while True:
            if self._epoch() and not self._replica.following and not self._log.unwritten():
                await self._begin()
            late = self._epoch() > 0 and self.behind_ms() >= 0
            if late != self._told:
                self._told = late
                log.warning("not replicated: %s", self._why) if late else log.info("everything is replicated")
            await asyncio.sleep(LOOK_S)

    async def _begin(self) -> None:
        try:
            found = await asyncio.to_thread(read, self._log, READ_S)
        except (BusError, HostError) as error:
            self._why = str(error)
            await asyncio.sleep(AGAIN_S)
            return
        loaded = self._load()
        if why := outrun(found, loaded, self._replica.me):
            self._fenced(f"fenced: {why}")
            return
        self._replica.begin(loaded, found)
        self._why = "the log does not acknowledge what is written"

    def _look(self) -> None:
        if self._replica.complete():
            self._since_ms = -1
        elif self._since_ms < 0:
            self._since_ms = self._now_ms()
