"""What waits in a lane at the same time, done at once where operations say so."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeVar

from trogdor_bus.agents.lanes import caught
from trogdor_bus.agents.platforms.linux.operations import Operation, read
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

    Where that raises something, or one of them cannot say what its batch is, each of these is done alone.
    """
    groups: dict[Hashable, list[tuple[int, Operation]]] = {}
    outcomes: dict[int, T | Exception] = {}
    for index, operation in enumerate(operations):
        found = caught(partial(_batch, verb, operation))
        if isinstance(found, tuple):  # else it has none, or its package fails, which must keep nobody else
            typed, batch = found
            groups.setdefault((type(typed), batch), []).append((index, typed))
    for group in groups.values():
        each = caught(partial(together, [typed for _, typed in group]))
        if not isinstance(each, Exception) and len(each) == len(group):
            outcomes.update(zip((index for index, _ in group), each, strict=True))
    for index in range(len(operations)):
        if index not in outcomes:
            outcomes[index] = caught(partial(alone, index))
    return [outcomes[index] for index in range(len(operations))]


def _batch(verb: Verb, operation: Plain) -> tuple[Operation, Hashable] | None:
    """Return the typed operation with what is common to those of its batch; None if it is done by itself."""
    typed = read(operation)
    batch = typed.batch(verb)
    hash(batch)  # what has no hash is no batch
    return None if batch is None else (typed, batch)
