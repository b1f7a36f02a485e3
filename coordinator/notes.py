"""What people were told already: the same note comes again only after an hour. Pure."""

from __future__ import annotations

AGAIN_MS = 3_600_000
MOST = 1_000
"""So many different notes are told within an hour."""


class Notes:
    """The notes of the last hour."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def once(self, note: str, now_ms: int) -> str:
        """Return a note for people the first time, and again after an hour; "" otherwise, or if there are too many."""
        while self._told and now_ms - next(iter(self._told.values())) >= AGAIN_MS:
            del self._told[next(iter(self._told))]
        if note in self._told or len(self._told) >= MOST:
            return ""
        self._told[note] = now_ms
        return note
