"""Each request is let in once: it shows a ticket of this coordinator's life, and its number is new under it.

So a request that was copied from the topic, sealed as it is, and put there again later does nothing.
"""

from __future__ import annotations

import secrets

TICKET_BYTES = 16
LIFE_S = 600.0


class Tickets:
    """The ticket of now and the one before it; each is good for ten minutes at least, twenty at most."""

    def __init__(self) -> None:
        self._ends_s = 0.0
        self._seen: dict[bytes, set[tuple[bytes, bytes]]] = {}

    def now(self, now_s: float) -> bytes:
        """Return the ticket that requests should show."""
        if now_s >= self._ends_s or not self._seen:
            kept = list(self._seen)[-1:] if now_s < self._ends_s + LIFE_S else []
            self._seen = {ticket: self._seen[ticket] for ticket in kept} | {secrets.token_bytes(TICKET_BYTES): set()}
            self._ends_s = now_s + LIFE_S
        return list(self._seen)[-1]

    def knows(self, ticket: bytes, now_s: float) -> bool:
        """Tell whether a ticket is still good."""
        self.now(now_s)
        return ticket in self._seen

    def admit(self, ticket: bytes, client: bytes, number: bytes) -> bool:
        """Note a request under a ticket that is good; False if it was there before."""
        seen = self._seen[ticket]
        new = (client, number) not in seen
        seen.add((client, number))
        return new
