"""What waits in a lane at the same time, done at once where that is faster: blocks of one namespace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from trogdor_bus.agents.lanes import caught
from trogdor_bus.agents.platforms.linux.operations import Block, Unblock, read
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Operation

Chains = TypeVar("Chains", Block, Unblock)
T = TypeVar("T")


def done(
    operations: Sequence[Operation],
    kind: type[Chains],
    together: Callable[[Sequence[Chains]], Sequence[T | Exception]],
    alone: Callable[[int], T],
) -> Sequence[T | Exception]:
    """Return what comes of each: those of that kind are done `together` by namespace, any other `alone` by its index.

    Where `together` raises a HostError, each of them is done alone.
    """
    groups: dict[str, list[tuple[int, Chains]]] = {}
    outcomes: dict[int, T | Exception] = {}
    for index, operation in enumerate(operations):
        try:
            typed = read(operation)
        except HostError:
            continue
        if isinstance(typed, kind):
            groups.setdefault(f"{typed.namespace.boot_id} {typed.namespace.cookie}", []).append((index, typed))
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
