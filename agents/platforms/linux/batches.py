"""What waits in a lane at the same time, done at once where operations say so."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeVar

from trogdor_bus.agents.lanes import caught
from trogdor_bus.agents.platforms.linux.operations import Operation, read
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Operation as Plain
from trogdor_bus.platform import Verb

T = TypeVar("T")


def done(
    verb: Verb,
    operations: Sequence[Plain],
    together: Callable[[Sequence[Operation]], Sequence[T | Exception]],
    alone: Callable[[int], T],
) -> Sequence[T | Exception]:
    """Return what comes of each: those of one batch are done `together`, any other `alone` by its index.

    Where `together` raises a HostError, each of them is done alone.
    """
    groups: dict[Hashable, list[tuple[int, Operation]]] = {}
    outcomes: dict[int, T | Exception] = {}
    for index, operation in enumerate(operations):
        try:
            typed = read(operation)
        except HostError:
            continue
        if (batch := typed.batch(verb)) is not None:
            groups.setdefault((type(typed), batch), []).append((index, typed))
    for group in groups.values():
        try:
            found = together([typed for _, typed in group])
        except HostError:
            continue
        outcomes.update(zip((index for index, _ in group), found, strict=True))
    for index in range(len(operations)):
        if index not in outcomes:
            outcomes[index] = caught(partial(alone, index))
    return [outcomes[index] for index in range(len(operations))]
