"""Clocks that start anywhere and run a little fast or slow; all arithmetic is exact."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


class DriftingClock:
    """A `Clock` that shows `shown_ms` at the true time `start` and runs `rate` thousandths as fast as true time."""

    def __init__(self, true_now: Callable[[], int], shown_ms: int, rate: int) -> None:
        self._true_now = true_now
        self._start, self._shown_ms, self.rate = true_now(), shown_ms, rate

    def now_ms(self) -> int:
        return (self._true_now() - self._start) * self.rate // 1000 + self._shown_ms

    def when(self, ms: int) -> int:
        """Return the first true time at which the clock shows `ms` or more."""
        return self._start - (-(ms - self._shown_ms) * 1000 // self.rate)


def some_rate(random: Random) -> int:
    """Return how fast a clock runs: mostly within half a percent, sometimes three percent off."""
    return random.randint(995, 1005) if random.random() < 0.85 else random.choice((970, 985, 1015, 1030))
