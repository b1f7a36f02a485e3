"""A log inside one process, for tests and the simulation: what other machines would keep, and how they may fail."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

from trogdor_bus.errors import BusError


class MemoryKeeper:
    """The machines that keep the log. Two switches say how they are, and take effect when `settle` is called.

    `reachable` False: nothing arrives there, and nothing can be read. `acknowledging` False: what arrives is kept, but
    nobody is told.
    """

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes]] = []
        self.reachable = self.acknowledging = True
        self._ends: list[MemoryLog] = []

    def open(self) -> MemoryLog:
        """Return a new end of the log."""
        self._ends.append(MemoryLog(self))
        return self._ends[-1]

    def settle(self) -> None:
        """Let what has waited for the machines arrive, if it may."""
        for end in self._ends:
            end.arrive()

    def leave(self, end: MemoryLog) -> None:
        """Forget an end; its `close` does so."""
        self._ends.remove(end)


class MemoryLog:
    """One end of a log; what it could not write when it closes is lost."""

    def __init__(self, keeper: MemoryKeeper) -> None:
        self.keeper = keeper
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._unsaid = 0
        self._closed = False

    def append(self, key: str, value: bytes) -> None:
        """Put a value after all before it, b"" to remove the key."""
        self._waiting.append((key, value))
        self.arrive()

    def arrive(self) -> None:
        """Hand over what waits, if the machines can be reached."""
        if self.keeper.reachable:
            self.hand_over(len(self._waiting))
            if self.keeper.acknowledging:
                self._unsaid = 0

    def hand_over(self, most: int) -> None:
        """Hand over the oldest of what waits, without being told so, as before the connection broke."""
        for _ in range(min(most, len(self._waiting))):
            self.keeper.records.append(self._waiting.popleft())
            self._unsaid += 1

    def unwritten(self) -> int:
        """Return how many values are not known to be kept yet."""
        return len(self._waiting) + self._unsaid

    def read(self, timeout_s: float) -> dict[str, bytes]:
        """Return the newest value of each key; BusError if the machines cannot be reached."""
        if not self.keeper.reachable:
            raise BusError("the log cannot be read: nobody who keeps it answers")
        return {key: value for key, value in dict(self.keeper.records).items() if value}

    def close(self) -> None:
        """Let go; closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self.keeper.leave(self)


KEEPERS: dict[str, MemoryKeeper] = {}
"""Who keeps the log of `memory://NAME`, by name, for as long as the process lives."""


def open_log(url: str, keys: Path | None) -> MemoryLog:
    """Return a new end of the log of that name."""
    return KEEPERS.setdefault(urlsplit(url).netloc, MemoryKeeper()).open()
