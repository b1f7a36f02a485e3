"""For people who write faults: a platform that touches nothing, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import msgspec

from trogdor_bus.actions import Action
from trogdor_bus.clock import ManualClock
from trogdor_bus.platform import Operation, Prepared, Step, Surroundings

__all__ = ["ManualClock", "RecordingPlatform", "unnoted"]


def unnoted(operation: Operation) -> None:
    """Take the third argument of `Platform.undo` where no journal keeps what it is told."""


class RecordingPlatform:
    """A Platform that records what it was asked, and remembers which steps are in force.

    `asked` are the actions in order, `calls` the names of the methods that change something ("do", "undo") with the
    number of the step, `in_force` the steps that were done and not undone.
    """

    def __init__(self, addresses: tuple[str, ...] = (), boot_id: str = "boot-1") -> None:
        self.asked: list[Action] = []
        self.calls: list[tuple[str, int]] = []
        self.in_force: list[Step] = []
        self._addresses, self._boot_id = addresses, boot_id

    def addresses(self) -> tuple[str, ...]:
        """Return the addresses that it was made with."""
        return self._addresses

    def boot_id(self) -> str:
        """Return the boot id that it was made with."""
        return self._boot_id

    def alone(self, steps: Sequence[Step]) -> AbstractContextManager[None]:
        """Hold nothing: there is nobody else."""
        return nullcontext()

    def prepare(self, worker: int, action: Action, surroundings: Surroundings, held: Sequence[Step]) -> Prepared:
        """Record the action and return one step for it, numbered from 1; its `do` holds the action as JSON would."""
        self.asked.append(action)
        number = {"step": len(self.asked), "worker": worker}
        step = Step(do={**number, "action": msgspec.json.decode(msgspec.json.encode(action))}, undo=dict(number))
        return Prepared((step,))

    def do(self, step: Step) -> None:
        """Put the step in force."""
        self.calls.append(("do", step.do["step"]))
        if step not in self.in_force:
            self.in_force.append(step)

    def undo(self, step: Step, held: Sequence[Step], note: Callable[[Operation], None]) -> str:
        """Take the step back, if it is in force."""
        self.calls.append(("undo", step.undo["step"]))
        if step in self.in_force:
            self.in_force.remove(step)
        return ""

    def disturbance(self, step: Step) -> str:
        """Return "" if the step is in force."""
        return "" if step in self.in_force else "the step is not in force"

    def again(self, step: Step, surroundings: Surroundings, held: Sequence[Step]) -> tuple[Step, ...]:
        """Return the same step."""
        return (step,)

    def residue(self, step: Step, held: Sequence[Step]) -> tuple[str, ...]:
        """Return a line if the step is in force."""
        return (f"step {step.undo['step']} is in force",) if step in self.in_force else ()

    def by_hand(self, step: Step) -> str:
        """Return a command with the number of the step."""
        return f"undo {step.undo['step']}"
