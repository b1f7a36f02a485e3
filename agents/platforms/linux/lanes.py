"""Which calls of the Linux platform wait for each other, and which lock they take: by what they touch."""

from __future__ import annotations

from collections.abc import Callable

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
    if verb == "by-hand":
        return f"{verb} {resource_of(what)}"
    halves = filter(None, (_read(what.do), _read(what.undo)))
    return _told(lambda: next(filter(None, (half.lane(verb) for half in halves)), "")) or resource_of(what)


def resource_of(step: Step) -> str:
    """Return what the step touches: that is locked while it is done, or undone."""
    undo, do = _read(step.undo), _read(step.do)
    if undo is None and do is None:
        return OTHERS
    return _told(lambda: (undo.resource() if undo else "") or (do.resource() if do else "")) or PROCESSES


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
