"""What waits in a lane at the same time, done at once where operations say so."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
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
    together: Callable[[Sequence[Operation]], Iterable[T | Exception]],
    alone: Callable[[int], T],
) -> Sequence[T | Exception]:
    """Return what comes of each: those of one batch are done `together`, any other `alone` by its index.

    Where that raises something, or does not answer for each, or one of them cannot say what its batch is, each of these
    is done alone: a package that fails so must keep nobody else.
    """
    groups: dict[Hashable, list[tuple[int, Operation]]] = {}
    outcomes: dict[int, T | Exception] = {}
    for index, operation in enumerate(operations):
        caught(partial(_sort, groups, verb, index, operation))
    for group in groups.values():
        each = caught(partial(_listed, together, [typed for _, typed in group]))
        if not isinstance(each, Exception):
            outcomes.update(zip((index for index, _ in group), each, strict=True))
    for index in range(len(operations)):
        if index not in outcomes:
            outcomes[index] = caught(partial(alone, index))
    return [outcomes[index] for index in range(len(operations))]


def _sort(groups: dict[Hashable, list[tuple[int, Operation]]], verb: Verb, index: int, operation: Plain) -> None:
    """Put the typed operation to those with which it has in common what its batch is, if it has one."""
    typed = read(operation)
    batch = typed.batch(verb)
    if batch is not None:
        groups.setdefault((type(typed), batch), []).append((index, typed))


def _listed(
    together: Callable[[Sequence[Operation]], Iterable[T | Exception]], many: Sequence[Operation]
) -> Sequence[T | Exception]:
    """Return what comes of each of a batch; ValueError if that is not one for each."""
    each = list(itertools.islice(together(many), len(many) + 1))  # it may have no end
    if len(each) != len(many):
        raise ValueError(f"{len(each)} outcomes of {len(many)}")
    return each
