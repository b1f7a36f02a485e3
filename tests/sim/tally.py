"""What a run of the simulation saw: counts, and the transitions that were taken."""

from __future__ import annotations

from collections import Counter
from typing import Any

from trogdor_bus.agents import moves as agent
from trogdor_bus.coordinator import moves as coordinator

RARE = {
    "CANCELLING: not-injected": "a stop and a failure within the same few ms",
    "CANCELLING: half-injected": "a stop, a failure and a stuck undo within the same second",
    "CANCELLING: not-yet": "a stop while what was begun goes on by itself, which is then asked for again",
    "CANCELLING: healed": "a stop while what was begun goes on by itself",
    "CANCELLING: not-healed": "a stop while what was begun goes on by itself, and a stuck undo",
    "STUCK: not-yet": "an undo that was stuck, and then goes on by itself",
}
"""The transitions that many schedules may miss, and what it takes to see them."""


class Tally:
    """Counts and transitions of one schedule, or of many added up."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.agent_taken: set[tuple[Any, Any]] = set()
        self.coordinator_taken: set[tuple[Any, Any]] = set()

    def add(self, other: Tally) -> None:
        """Add what another schedule saw."""
        self.counts += other.counts
        self.agent_taken |= other.agent_taken
        self.coordinator_taken |= other.coordinator_taken

    def missing(self) -> list[str]:
        """Return the transitions that were not taken."""
        pairs = ((agent.TABLE, self.agent_taken), (coordinator.TABLE, self.coordinator_taken))
        return [f"{state}: {move}" for table, taken in pairs for state, move in table if (state, move) not in taken]

    def lines(self) -> list[str]:
        """Return the report."""
        out = [f"{count:>9} {what}" for what, count in sorted(self.counts.items())]
        for name, table, taken in (
            ("agent", agent.TABLE, self.agent_taken),
            ("coordinator", coordinator.TABLE, self.coordinator_taken),
        ):
            out.append(f"{name}: {len(taken)} of {len(table)} transitions reached")
        return out + [f"  not reached: {line}" for line in self.missing()]
