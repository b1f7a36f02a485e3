"""Which processes no fault touches: init, and whatever belongs to trogdor-bus, by who it is and whom it belongs to."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping

from trogdor_bus import badge
from trogdor_bus.supervisor import tree


class Ours:
    """One look at the machine; `parents` is the parent of each living process."""

    def __init__(self, parents: Mapping[int, int]) -> None:
        self._parents = parents
        self._children = defaultdict[int, list[int]](list)
        for pid, parent in parents.items():
            self._children[parent].append(pid)
        self._own = os.getpid()
        self._above = set(self._ancestors(self._own))
        self._mark = tree.mark_of(self._own)[0]

    def why(self, pid: int) -> str:
        """Return why a process is never touched, "" if it may be."""
        if pid == 1:
            return "init"
        if pid == self._own or pid in self._above:
            return "this agent or one of its parents"
        if self._own in self._ancestors(pid):
            return "a child of this agent"
        if tree.mark_of(pid)[0] not in ("", self._mark):  # or an orphan of it
            return "a child of an agent"
        if badge.worn(pid):
            return "trogdor-bus itself"
        return "a parent of trogdor-bus" if any(map(badge.worn, self._descendants(pid))) else ""

    def _ancestors(self, pid: int) -> Iterator[int]:
        seen = {0}
        while (pid := self._parents.get(pid, 0)) not in seen:
            seen.add(pid)
            yield pid

    def _descendants(self, pid: int) -> Iterator[int]:
        for child in self._children.get(pid, ()):
            yield child
            yield from self._descendants(child)
