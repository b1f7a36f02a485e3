"""What a look at the steps of a worker finds: whether they hold, how many packets they met, what they missed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec

from trogdor_bus.agents.events import ReadBack
from trogdor_bus.agents.hands import Hands, in_words
from trogdor_bus.agents.lanes import SOON, All, Rank, Within
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Seen, Step

LAST_S = 0.8
"""How long a search before an undo may take: less than what counts as late."""


async def read_back(hands: Hands, steps: Sequence[Step], rank: Rank = SOON, *, last: bool = False) -> ReadBack:
    """Return what no longer holds of applied steps, and how many packets they dropped; never raises.

    The `last` look, directly before an undo, does not wait for a search that takes its time.
    """
    found: list[str] = []
    unseen: list[str] = []
    counts: list[int] = []
    ended: str | None = None
    status = msgspec.Raw(b"null")
    for seen in await All([partial(_seen, hands, step, rank, last=last) for step in steps]):
        if not isinstance(seen, Seen):  # a look must not keep a fault
            unseen.append(f"cannot look whether it holds: {in_words(seen)}")
        else:
            found += [str(seen.disturbance)] if seen.disturbance else []
            counts += [seen.dropped] if seen.dropped is not None else []
            ended = seen.ended if ended is None else ended
            status = seen.status if bytes(seen.status) != b"null" else status
    return ReadBack(tuple(found), tuple(unseen), sum(counts) if counts else None, ended, status)


async def holds(hands: Hands, step: Step) -> bool:
    """Return whether an applied step was seen to hold; never raises."""
    try:
        return not (await _seen(hands, step, SOON)).disturbance
    except Exception:
        return False


async def _seen(hands: Hands, step: Step, rank: Rank, *, last: bool = False) -> Seen:
    seen = await hands.look(step, rank)
    if not seen.unsure:
        return seen
    search = hands.search(step, rank)
    if not last:
        return await search
    try:
        return await Within(LAST_S, search)
    except TimeoutError:
        raise HostError(f"the search for processes takes more than {LAST_S:g} s") from None


async def missed(hands: Hands, steps: Sequence[Step], rank: Rank) -> tuple[str, ...]:
    """Return how applied steps whose time is over have missed what they were meant for; never raises."""
    found: list[str] = []
    for told in await All(hands.missed(steps, rank)):
        if isinstance(told, Exception):  # a judgement must not keep a fault
            return (f"cannot look whether it did what it was for: {in_words(told)}",)
        found += [told] if told else []
    return tuple(found)
