"""What an agent finds beside itself: chains that are in nobody's journal, and another agent of its name."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from trogdor_bus.agents.events import StraysSeen
from trogdor_bus.agents.hands import Hands
from trogdor_bus.agents.lanes import Call
from trogdor_bus.agents.perform import Performer
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.platform import StrayPlatform

log = logging.getLogger("trogdor_bus.agents")


class Strays:
    """Looks for what looks like ours and is in nobody's journal, and logs what is new."""

    def __init__(self, performer: Performer, state_dir: Path) -> None:
        self._performer, self._directory = performer, os.path.realpath(state_dir)
        self._found: tuple[str, ...] | None = None

    @property
    def wanted(self) -> bool:
        """Whether to look again: until it was possible once and nothing was left; later ones are another agent's."""
        return self._found is None or bool(self._found)

    async def look(self) -> StraysSeen | None:
        """Look, where nothing is begun meanwhile that is not in the journal yet; None if that cannot be done here."""
        return await Call(Hands(self._performer.platform).lane("strays", None), self._look)

    def _look(self) -> StraysSeen | None:
        platform = self._performer.platform
        if not isinstance(platform, StrayPlatform):
            found: tuple[str, ...] = ()
        else:
            held = tuple(step for entry in self._performer.journal.live() for step in entry.steps)
            try:
                found = platform.strays(held, self._directory)
            except TrogdorBusError as error:
                log.debug("cannot look for chains of nobody: %s", error)
                return None
        for line in found:
            if line not in (self._found or ()):
                log.error("this node is dirty: %s", line)
        if self._found and not found:
            log.warning("this node is clean: what was nobody's is gone")
        self._found = found
        return StraysSeen(found)


class Refusal:
    """Says that another agent has this one's name; `by` is the journal of that one, "" if there is none."""

    def __init__(self, node: str, journal: str) -> None:
        self._node, self._journal, self.by = node, journal, ""

    def heed(self, refused_by: str, *, again: bool = False) -> None:
        """Take in who is heard in this agent's place, and say so if it is news, or `again`."""
        if refused_by and (again or refused_by != self.by):
            log.error(
                "refused: another agent named %s (journal %s) is alive, and the coordinator heeds that one; this one "
                "(journal %s) does nothing. End one of them, or give this one another ‹node›. Trying on.",
                self._node,
                refused_by[:8],
                self._journal[:8],
            )
        self.by = refused_by
