"""Which calls of the Linux platform wait for each other, and which lock they take: by what they touch."""

from __future__ import annotations

from trogdor_bus.actions import Action
from trogdor_bus.agents.platforms.linux.operations import FIREWALL, PROCESSES, Operation, performing, read
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Operation as Plain
from trogdor_bus.platform import Step, Verb

OTHERS = "others"
"""What cannot be read: its undo says so."""


def lane(verb: Verb, what: Step | Action | None) -> str:
    """Return the lane of a call."""
    if what is None:
        return FIREWALL
    if isinstance(what, Action):
        try:
            return performing(what).prepares_in(what)
        except HostError:
            return OTHERS
    if verb == "by-hand":
        return f"{verb} {_resource(what)}"
    halves = filter(None, (_read(what.do), _read(what.undo)))
    return next(filter(None, (half.lane(verb) for half in halves)), "") or _resource(what)


def lock_of(step: Step) -> str:
    """Return what of the namespace is locked while the step is done, or undone."""
    return _resource(step).partition(" ")[0]


def _resource(step: Step) -> str:
    undo, do = _read(step.undo), _read(step.do)
    if undo is None and do is None:
        return OTHERS
    return (undo.resource() if undo else "") or (do.resource() if do else "") or PROCESSES


def _read(operation: Plain) -> Operation | None:
    try:
        return read(operation)
    except HostError:
        return None
