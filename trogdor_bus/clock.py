"""Clocks: one port, so that tests and the simulation own time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells milliseconds; what they count from is the implementation's."""

    def now_ms(self) -> int:
        """Return the present, in milliseconds."""
        ...


def boot_ms() -> int:
    """Return milliseconds since boot, suspend included (CLOCK_BOOTTIME): never jumps when somebody sets the time."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class BootClock:
    """The clock of this boot; see `boot_ms`."""

    def now_ms(self) -> int:
        """Return milliseconds since boot."""
        return boot_ms()


class SteadyWallClock:
    """Epoch milliseconds read once at the start and then advanced by CLOCK_BOOTTIME: a wall clock that cannot jump."""

    def __init__(self) -> None:
        self._boot = BootClock()
        self._offset_ms = time.time_ns() // 1_000_000 - self._boot.now_ms()

    def now_ms(self) -> int:
        """Return milliseconds since the epoch."""
        return self._offset_ms + self._boot.now_ms()


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Return the time it was last set to."""
        return self._now_ms

    def advance(self, ms: int) -> int:
        """Move forward by `ms` and return the new time."""
        self._now_ms += ms
        return self._now_ms
