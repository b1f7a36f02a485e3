"""Processes that take the place of those of a fault: somebody started them while it was in force."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from trogdor_bus.actions import ProcessMatch
from trogdor_bus.agents.platforms.linux import processes
from trogdor_bus.agents.platforms.linux.node import Node
from trogdor_bus.errors import HostError
from trogdor_bus.platform import ProcessIdentity, Surroundings


class Watch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who takes the place of a process of a fault: what matches and was started after `since_ticks` (since boot)."""

    match: ProcessMatch
    since_ticks: int


def watch(match: ProcessMatch) -> Watch:
    """Return a watch for what is started from now on."""
    return Watch(match, processes.now_ticks())


def find(
    watched: Watch | None, process: ProcessIdentity, on: Node, surroundings: Surroundings
) -> Sequence[processes.Process]:
    """Return the newcomers; RefusedError if none of them may be touched."""
    if watched is None or processes.thread_states(process):  # one that lives on starts children of its own
        return ()
    try:
        with on.open() as namespace:
            found = processes.find(watched.match, namespace, surroundings).processes
    except HostError:  # its container is down, or its pid file is gone
        return ()
    return [one for one in found if one.identity.start_ticks > watched.since_ticks]


def named(found: Sequence[processes.Process]) -> str:
    """Return who they are, for people."""
    return ", ".join(f"pid {process.pid} ({process.name})" for process in found)
