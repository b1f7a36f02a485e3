"""A coordinator that waits: it watches the one that leads, and takes over when that is silent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import uuid

from trogdor_bus.bus import StateLog
from trogdor_bus.config import CoordinatorSettings
from trogdor_bus.coordinator.store import Store
from trogdor_bus.coordinator.takeover import Taken, take_over
from trogdor_bus.errors import BusError, HostError, RefusedError, VersionError
from trogdor_bus.messages import VIEW_TOPIC, Pulse, decode
from trogdor_bus.transports import link_with_log, transport

log = logging.getLogger("trogdor_bus.coordinator")
AGAIN_S = (0.5, 1.5)
"""How long it waits before it tries again, by chance: two that hinder each other must not go on to."""


class Standby:
    """Waits for its turn; `wait` may be called again after having led."""

    def __init__(self, settings: CoordinatorSettings, store: Store, kept_in: StateLog) -> None:
        self._settings, self._store, self._log = settings, store, kept_in
        self._me = uuid.uuid4().hex
        self._after_s = (settings.standby_ms or 0) / 1000
        self._ended = asyncio.Event()
        self._seen_s = 0.0
        self._said = ""

    async def wait(self) -> Taken | None:
        """Return once no coordinator was seen for long enough and the store has been taken over; None: told to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        self._seen_s = loop.time()
        self._say(f"standing by: taking over when no coordinator is seen for {self._after_s:g} s")
        link = link_with_log(self._settings.url)  # where the log is out, nobody may take over anyhow
        monitor = transport(link).open_monitor(link, self._settings.keys)
        try:
            monitor.receive(self._on_topic)
            while not self._ended.is_set():
                left_s = self._seen_s + self._after_s - loop.time()
                if left_s <= 0:
                    taken = await self._try()
                    if taken is not None:
                        return taken
                    left_s = random.uniform(*AGAIN_S)  # noqa: S311 (no secret)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), left_s)
        finally:
            monitor.close()
        return None

    async def _try(self) -> Taken | None:
        began_s = self._seen_s
        try:
            taken = await asyncio.to_thread(take_over, self._store, self._log, self._me, first=True)
        except (RefusedError, BusError, HostError) as error:
            self._say(f"no coordinator is seen, but {error}")
            return None
        if self._seen_s != began_s:
            self._say("a coordinator is seen again")
            return None
        log.warning("no coordinator was seen for %g s: %s", self._after_s, taken.said)
        return taken

    def _on_topic(self, topic: str, frame: bytes) -> None:
        if topic != VIEW_TOPIC:
            return
        try:
            status = decode(frame, Pulse).status
        except VersionError as error:  # one that lives, and that nobody here can hear
            self._seen_s = asyncio.get_running_loop().time()
            self._say(f"standing by: {error}")
            return
        except BusError as error:
            log.debug("a pulse was dropped: %s", error)
            return
        self._seen_s = asyncio.get_running_loop().time()
        self._say(f"standing by: coordinator {status.coordinator[:8]} leads in epoch {status.epoch}")

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            log.info("%s", text)
