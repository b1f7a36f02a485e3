"""From a thread into an asyncio loop, never waiting: what the loop is too slow for is forgotten, the oldest first."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

BATCH = 256
"""Items handed over before the loop gets its turn."""
MAX_ITEMS = 10_000
MAX_BYTES = 64 << 20

log = logging.getLogger("trogdor_bus.transports.kafka")
Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """A bounded queue: a thread puts, and once it is open a loop takes, one item at a time."""

    def __init__(self) -> None:
        self.dropped = 0
        self._lock = threading.Lock()
        self._items: deque[tuple[int, Item]] = deque()
        self._bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._take: Callable[[Item], None] = lambda _: None
        self._scheduled = False
        self._closed = False

    def open(self, take: Callable[[Item], None]) -> None:
        """Begin to call `take` in the running loop with everything that was put and will be."""
        self._take = take
        with self._lock:
            self._loop = asyncio.get_running_loop()
            self._schedule()

    def put(self, item: Item, size: int) -> None:
        """Queue an item of that many bytes."""
        with self._lock:
            if self._closed:
                return
            self._items.append((size, item))
            self._bytes += size
            while len(self._items) > MAX_ITEMS or (self._bytes > MAX_BYTES and len(self._items) > 1):
                self._bytes -= self._items.popleft()[0]
                self.dropped += 1
            self._schedule()

    def close(self) -> None:
        """Hand over nothing more."""
        with self._lock:
            self._closed = True
            self._items.clear()

    def _schedule(self) -> None:
        if self._loop is None or self._scheduled or self._closed or not self._items:
            return
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the loop is closed: nobody listens any more
            return
        self._scheduled = True

    def _drain(self) -> None:
        try:
            for _ in range(BATCH):
                with self._lock:
                    if not self._items:
                        break
                    size, item = self._items.popleft()
                    self._bytes -= size
                try:
                    self._take(item)
                except Exception:
                    log.exception("a receiver failed; the frame is lost")
        finally:
            with self._lock:
                self._scheduled = False
                self._schedule()
