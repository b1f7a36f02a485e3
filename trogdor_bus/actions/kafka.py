"""Moving what Kafka keeps where."""

from __future__ import annotations

from trogdor_bus.actions import Action, Impact
from trogdor_bus.cluster import NOBODY


class MoveLeader(Action, frozen=True, tag="move-leader"):
    """Make the broker `to` the preferred leader of a partition, and elect it; -1: the next replica in sync.

    The brokers of `bootstrap` (HOST:PORT,...) are asked, with the librdkafka properties in the file `config`, if given.
    """

    topic: str
    partition: int
    bootstrap: str
    to: int = NOBODY
    config: str = ""

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        who = f"broker {self.to}" if self.to != NOBODY else "the next replica in sync"
        name = f"{self.topic}-{self.partition}"
        return f"make {who} lead {name}, asking {self.bootstrap}", f"restore the order of the replicas of {name}"

    def impact(self) -> Impact:
        """Return the partition."""
        return Impact(leads=(self.topic, self.partition))
