"""What an agent cannot read of what it is told: a coordinator of another version, or orders of one."""

from __future__ import annotations

import logging

from trogdor_bus.errors import VersionError
from trogdor_bus.messages import Snapshot, UnreadOrder
from trogdor_bus.names import shown

log = logging.getLogger("trogdor_bus.agents")
AGAIN_MS = 60_000
"""How often it is said that the coordinator speaks another version."""


class Strangers:
    """Says what cannot be read: the words of another version once a minute, an order once as long as it is told."""

    def __init__(self) -> None:
        self._refused, self._refused_ms, self._again_ms = "", 0, 0
        self._unread: set[str] = set()

    def refuse(self, error: VersionError, now_ms: int) -> None:
        """Take in that a word was refused."""
        if str(error) != self._refused or now_ms >= self._again_ms:
            log.error("refused: %s. Trying on.", error)
            self._again_ms = now_ms + AGAIN_MS
        self._refused, self._refused_ms = str(error), now_ms

    def refused(self, now_ms: int) -> str:
        """Return why words are refused, "" if none was within the last minute."""
        return self._refused if self._refused and now_ms - self._refused_ms <= AGAIN_MS else ""

    def heed(self, snapshot: Snapshot) -> None:
        """Take in a word that is read, and say which of its orders are not."""
        unread = [order for order in snapshot.orders if isinstance(order, UnreadOrder)]
        lines = {f"task {shown(one.task) or '?'}: what was ordered is not known here: {one.why}" for one in unread}
        for line in sorted(lines - self._unread):
            log.error("%s; upgrade the agent", line)
        self._refused, self._unread = "", lines
