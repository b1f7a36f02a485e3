"""Waiting that holds up nobody: a short look, and the word that it is to be asked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from trogdor_bus.errors import NotYetError

LOOK_S = 0.05
"""How long one look waits for what is about to happen."""


class Patience:
    """What is waited for in this life, and since when."""

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}

    def await_(self, what: Hashable, done: Callable[[], bool], within_s: float, why: str) -> bool:
        """Return whether it came true, False when it was waited for so long; NotYetError, with `why`, before."""
        since_s = self._since.setdefault(what, time.monotonic())
        came = wait(done, min(LOOK_S, within_s))
        if not came and time.monotonic() - since_s < within_s:
            raise NotYetError(why, overdue=True)
        self._since.pop(what, None)
        return came


def wait(done: Callable[[], bool], within_s: float) -> bool:
    """Return whether it came true in that short time; it is asked at least once."""
    deadline = time.monotonic() + within_s
    pause_s = 0.0002
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)
    return True
