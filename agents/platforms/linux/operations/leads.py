"""Moving the leadership of a partition, and restoring it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trogdor_bus.actions.kafka import MoveLeader
from trogdor_bus.agents.platforms.linux.leaders import Leaders, Moving, typed
from trogdor_bus.agents.platforms.linux.operations import Note, Operation, step
from trogdor_bus.cluster import Move
from trogdor_bus.platform import Prepared, Step, Surroundings

if TYPE_CHECKING:
    from trogdor_bus.agents.platforms.linux.node import Node

LEADERS = "leaders"


class Lead(Operation, frozen=True, tag="lead"):
    """Make a replica lead; the brokers of `bootstrap` are asked, with the properties in the file `config`, if any."""

    bootstrap: str
    config: str
    move: Move

    performs = (MoveLeader,)

    @classmethod
    def prepares_in(cls, action: MoveLeader) -> str:
        """Return the lane of the cluster."""
        return LEADERS

    @classmethod
    def prepare(cls, on: Node, worker: int, action: MoveLeader, around: Surroundings, held: Sequence[Step]) -> Prepared:
        """Return one step; HostError in the cluster's words if nobody can take over."""
        moving = on.memory(Leaders).prepare(worker, action)
        return Prepared((step(cls(*moving), LeadBack(*moving)),))

    def do(self, on: Node, undo: Operation) -> None:
        """Make the replica lead."""
        on.memory(Leaders).move(Moving(self.bootstrap, self.config, self.move))

    def resource(self) -> str:
        """Return the cluster."""
        return LEADERS


class LeadBack(Operation, frozen=True, tag="lead-back"):
    """Restore the order of the replicas that was found, and have the first one lead."""

    bootstrap: str
    config: str
    move: Move

    def undo(self, on: Node, do: Operation, held: Sequence[Step], note: Note) -> str:
        """Restore the order; returns a note if nothing was to be done."""
        return on.memory(Leaders).restore(self._moving())

    def leftovers(self, on: Node, held: Sequence[Step]) -> tuple[str, ...]:
        """Return what is left of the move."""
        return on.memory(Leaders).residue(self._moving())

    def manual(self, on: Node, do: Operation) -> str:
        """Return the command that restores the order."""
        return typed(self._moving())

    def resource(self) -> str:
        """Return the cluster."""
        return LEADERS

    def _moving(self) -> Moving:
        return Moving(self.bootstrap, self.config, self.move)
