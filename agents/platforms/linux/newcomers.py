"""Processes that take the place of those of a fault: somebody started them while it was in force."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Self

import msgspec

from trogdor_bus.actions import ProcessMatch
from trogdor_bus.agents.platforms.linux import processes
from trogdor_bus.agents.platforms.linux.node import Node
from trogdor_bus.agents.platforms.linux.operations import PROCESSES, SEARCH, Operation
from trogdor_bus.errors import GoneError
from trogdor_bus.platform import ProcessIdentity, Seen, Surroundings, Verb


class Watch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who takes the place of a process of a fault: what matches and was started at `since_ticks` (since boot) or later.

    The `known` are none: they were found when the fault began, and had been started just then.
    """

    match: ProcessMatch
    since_ticks: int
    known: tuple[ProcessIdentity, ...] = ()

    def but(self, found: Sequence[processes.Process]) -> Watch:
        """Return the watch to which those that were found are no newcomers."""
        just_then = tuple(one.identity for one in found if one.identity.start_ticks >= self.since_ticks)
        return msgspec.structs.replace(self, known=just_then)


def watch(match: ProcessMatch) -> Watch:
    """Return a watch for what is started from now on; what the search that follows finds is left out by `but`."""
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
    watches = [watched if may_be_replaced(watched, process) else None for watched, process in asked]
    if not any(watches):
        return [()] * len(asked)
    try:
        with on.open() as namespace, processes.Look(namespace) as look:
            return [_newer(look, watched, surroundings) for watched in watches]
    except GoneError:  # its container is down
        return [()] * len(asked)


def _newer(look: processes.Look, watched: Watch | None, surroundings: Surroundings) -> Sequence[processes.Process]:
    if watched is None:
        return ()
    try:
        found = look.find(watched.match, surroundings).processes
    except GoneError:  # its pid file is gone
        return ()
    since, known = watched.since_ticks, watched.known
    return [one for one in found if one.identity.start_ticks >= since and one.identity not in known]


def named(found: Sequence[processes.Process]) -> str:
    """Return who they are, for people."""
    return ", ".join(f"pid {process.pid} ({process.name})" for process in found)


class Watched(Operation, frozen=True):
    """A `do` that is done to one process, and watches who takes its place."""

    process: ProcessIdentity
    name: str

    def watched(self) -> Watch | None:
        """Return the watch, None if another one of its worker has it."""
        raise NotImplementedError

    def met(self, found: Sequence[processes.Process]) -> Seen:
        """Return whether it holds, by those who took the place of a process that ended."""
        raise NotImplementedError

    def newer(self, on: Node, around: Surroundings) -> Sequence[processes.Process]:
        """Return who took its place; errors as for `find`."""
        return find(on, [(self.watched(), self.process)], around)[0]

    def search(self, on: Node) -> Seen:
        """Return what became of it by those who took its place."""
        return self.search_together(on, [self])[0]

    def resource(self) -> str:
        """Return the processes."""
        return PROCESSES

    def lane(self, verb: Verb) -> str:
        """Return the lane of the search, for what searches; a look at the process itself goes with its undo."""
        return {"look": PROCESSES, "search": SEARCH, "again": SEARCH}.get(verb, "")

    def batch(self, verb: Verb) -> Hashable:
        """Return the same for all that one look at all processes is for."""
        return SEARCH if verb == "search" else None

    @classmethod
    def search_together(cls, on: Node, many: Sequence[Self]) -> Sequence[Seen]:
        """Return what `search` does for each."""
        found = find(on, [(one.watched(), one.process) for one in many], Surroundings(force=True))
        return [one.met(newer) for one, newer in zip(many, found, strict=True)]
