"""Processes that take the place of those of a fault: somebody started them while it was in force."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import msgspec

from trogdor_bus.actions import ProcessMatch
from trogdor_bus.agents.platforms.linux import processes
from trogdor_bus.agents.platforms.linux.node import Node
from trogdor_bus.agents.platforms.linux.operations import PROCESSES, SEARCH
from trogdor_bus.errors import GoneError
from trogdor_bus.platform import ProcessIdentity, Surroundings, Verb


class Watch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who takes the place of a process of a fault: what matches and was started after `since_ticks` (since boot)."""

    match: ProcessMatch
    since_ticks: int


def watch(match: ProcessMatch) -> Watch:
    """Return a watch for what is started from now on."""
    return Watch(match, processes.now_ticks())


def may_be_replaced(watched: Watch | None, process: ProcessIdentity) -> bool:
    """Return whether it is watched, and has ended: one that lives on starts children of its own."""
    return watched is not None and not processes.thread_states(process)


def find(
    on: Node, asked: Sequence[tuple[Watch | None, ProcessIdentity]], surroundings: Surroundings
) -> list[Sequence[processes.Process]]:
    """Return for each watch and process the newcomers, by one look at all processes.

    RefusedError if none of them may be touched; HostError if it cannot be seen who is there.
    """
    if not any(may_be_replaced(*one) for one in asked):
        return [()] * len(asked)
    try:
        with on.open() as namespace, processes.Look(namespace) as look:
            return [_newer(look, *one, surroundings) for one in asked]
    except GoneError:  # its container is down
        return [()] * len(asked)


def _newer(
    look: processes.Look, watched: Watch | None, process: ProcessIdentity, surroundings: Surroundings
) -> Sequence[processes.Process]:
    if watched is None or not may_be_replaced(watched, process):
        return ()
    try:
        found = look.find(watched.match, surroundings).processes
    except GoneError:  # its pid file is gone
        return ()
    return [one for one in found if one.identity.start_ticks > watched.since_ticks]


def named(found: Sequence[processes.Process]) -> str:
    """Return who they are, for people."""
    return ", ".join(f"pid {process.pid} ({process.name})" for process in found)


def lane(verb: Verb) -> str:
    """Return the lane of what is asked of an operation with a watch, "" for that of any other."""
    return {"look": PROCESSES, "search": SEARCH, "again": SEARCH}.get(verb, "")


def batch(verb: Verb) -> Hashable:
    """Return what those have in common for whom one look at all processes is enough."""
    return SEARCH if verb == "search" else None
