"""What waits in a lane at the same time, done at once where that is faster: blocks of one namespace, and programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from trogdor_bus.agents.lanes import caught
from trogdor_bus.agents.platforms.linux.operations import NamespaceIdentity, read
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Operation

T = TypeVar("T")
Together = Mapping[type, Callable[[Sequence[Any]], Sequence[T | Exception]]]
"""How the operations of a kind are done at once."""


def done(
    operations: Sequence[Operation],
    together: Together[T],
    alone: Callable[[int], T],
) -> Sequence[T | Exception]:
    """Return what comes of each: those of a kind that is done `together` so, by namespace, any other by its index.

    Where `together` raises a HostError, each of them is done alone.
    """
    groups: dict[tuple[type, str], list[tuple[int, object]]] = {}
    outcomes: dict[int, T | Exception] = {}
    for index, operation in enumerate(operations):
        try:
            typed = read(operation)
        except HostError:
            continue
        if type(typed) in together:
            groups.setdefault((type(typed), _place(typed)), []).append((index, typed))
    for (kind, _), group in groups.items():
        try:
            found = together[kind]([typed for _, typed in group])
        except HostError:
            continue
        outcomes.update(zip((index for index, _ in group), found, strict=True))
    for index in range(len(operations)):
        if index not in outcomes:
            outcomes[index] = caught(partial(alone, index))
    return [outcomes[index] for index in range(len(operations))]


def _place(operation: object) -> str:
    """Return which namespace it acts on, "" if it is in none."""
    match operation:
        case object(namespace=NamespaceIdentity(boot_id=boot, cookie=cookie)):
            return f"{boot} {cookie}"
    return ""
