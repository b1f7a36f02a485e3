"""Which calls of the Linux platform wait for each other, and which lock they take: by what they touch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from trogdor_bus.actions import Action
from trogdor_bus.agents.platforms.linux.operations import FIREWALL, PROCESSES, Operation, performing, read
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Operation as Plain
from trogdor_bus.platform import Step, Verb

OTHERS = "others"
"""What cannot be read, or says nothing: its undo says so."""


def lane(verb: Verb, what: Step | Action | None) -> str:
    """Return the lane of a call."""
    if what is None:
        return FIREWALL
    if isinstance(what, Action):
        return _told(lambda: performing(what).prepares_in(what))
    halves = _halves(what)
    if verb == "by-hand":
        return f"{verb} {_resource(halves)}"
    return _first(half.lane(verb) for half in reversed(halves)) or _resource(halves)


def resource_of(step: Step) -> str:
    """Return what the step touches: that is locked while it is done, or undone."""
    return _resource(_halves(step))


def _resource(halves: Sequence[Operation]) -> str:
    return _first(half.resource() for half in halves) or (PROCESSES if halves else OTHERS)


def _halves(step: Step) -> Sequence[Operation]:
    """Return undo and do, as far as they can be read."""
    return [half for half in (_read(step.undo), _read(step.do)) if half is not None]


def _first(told: Iterable[str]) -> str:
    """Return the first that is not empty, "" if all are."""
    return _told(lambda: next(filter(None, told), ""))


def _told(ask: Callable[[], str]) -> str:
    """Return what an operation says of itself; one of another package that fails has no lane of its own."""
    try:
        return str(ask())
    except (Exception, SystemExit):
        return OTHERS


def _read(operation: Plain) -> Operation | None:
    try:
        return read(operation)
    except HostError:
        return None
