"""What a look at the steps of a worker finds: whether they hold, how many packets they met, what they missed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from trogdor_bus.agents.events import ReadBack
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.platform import CountingPlatform, JudgingPlatform, Platform, Seen, Step


def read_back(platform: Platform, steps: Iterable[Step]) -> ReadBack:
    """Return what no longer holds of applied steps, and how many packets they dropped; never raises."""
    found: list[str] = []
    unseen: list[str] = []
    counts: list[int] = []
    ended: str | None = None
    status = msgspec.Raw(b"null")
    for step in steps:
        try:
            seen = _seen(platform, step)
        except Exception as error:  # a look must not keep a fault
            unseen.append(f"cannot look whether it holds: {in_words(error)}")
        else:
            found += [seen.disturbance] if seen.disturbance else []
            counts += [seen.dropped] if seen.dropped is not None else []
            ended = seen.ended if ended is None else ended
            status = seen.status if bytes(seen.status) != b"null" else status
    return ReadBack(tuple(found), tuple(unseen), sum(counts) if counts else None, ended, status)


def holds(platform: Platform, step: Step) -> bool:
    """Return whether an applied step was seen to hold; never raises."""
    try:
        return not _seen(platform, step).disturbance
    except Exception:
        return False


def missed(platform: Platform, steps: Iterable[Step]) -> tuple[str, ...]:
    """Return how applied steps whose time is over have missed what they were meant for; never raises."""
    if not isinstance(platform, JudgingPlatform):
        return ()
    try:
        return tuple(filter(None, map(platform.missed, steps)))
    except Exception as error:  # a judgement must not keep a fault
        return (f"cannot look whether it did what it was for: {in_words(error)}",)


def in_words(error: Exception) -> str:
    """Return the text of an error in characters that JSON can carry; a foreign one is named."""
    text = str(error) if isinstance(error, TrogdorBusError) else f"{type(error).__name__}: {error}"
    return text.encode("utf-8", "backslashreplace").decode()


def _seen(platform: Platform, step: Step) -> Seen:
    if isinstance(platform, CountingPlatform):
        return platform.look(step)
    return Seen(platform.disturbance(step))
