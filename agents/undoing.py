"""Undoing the steps of a worker, each in its lane, and looking whether anything is left."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import msgspec

from trogdor_bus.agents.hands import BarredError, Hands, Held, in_words
from trogdor_bus.agents.lanes import All, Call, Pause, Rank
from trogdor_bus.errors import NotYetError
from trogdor_bus.platform import Operation, Step

PAUSES_S = (0.05, 0.2)
"""Between the three attempts at one undo."""


@dataclasses.dataclass
class Undoing:
    """What came of undoing some steps; `left` are those that may still be in force, `awaited` what some wait for.

    `overdue`: some of that should have happened by now.
    """

    notes: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    residue: list[str] = dataclasses.field(default_factory=list)
    awaited: list[str] = dataclasses.field(default_factory=list)
    overdue: bool = False
    left: tuple[Step, ...] = ()

    def fail(self, failure: str) -> None:
        """Take in what has failed; what several steps have in common is told once."""
        if failure not in self.failures:
            self.failures.append(failure)


async def undo_all(
    hands: Hands, applied: Sequence[Step], held: Held, noted: Callable[[tuple[Step, ...]], str], rank: Rank
) -> Undoing:
    """Undo the steps, read back, and return what came of it.

    `noted` writes down, here and now, how the steps are undone from then on, and returns why it cannot, or "".
    """
    undoing = Undoing()
    left: set[int] = set()
    going_on: set[int] = set()
    steps = list(applied)

    def note(index: int, operation: Operation) -> None:
        """Write it down in the lane that is about to start what it tells of."""
        steps[index] = msgspec.structs.replace(steps[index], undo=operation)
        if trouble := noted(tuple(steps)):
            undoing.notes.append(f"what was started could not be written down, so it may be started twice: {trouble}")

    def undo(index: int) -> Call[str]:
        return hands.undo(steps[index], held, functools.partial(note, index), rank)  # as it was noted last

    newest_first = list(reversed(range(len(steps))))
    undone = await All([functools.partial(_tried, functools.partial(undo, index)) for index in newest_first])
    for index, outcome in zip(newest_first, undone, strict=True):
        if isinstance(outcome, NotYetError):
            undoing.awaited.append(in_words(outcome))
            undoing.overdue = undoing.overdue or outcome.overdue
            left.add(index)
            going_on.add(index)
        elif isinstance(outcome, Exception):
            undoing.fail(in_words(outcome))
            left.add(index)
        else:
            undoing.notes.append(outcome)
    looked_at = [index for index in range(len(steps)) if index not in going_on]
    seen = await All([hands.residue(steps[index], held, rank) for index in looked_at])
    for index, residue in zip(looked_at, seen, strict=True):
        if isinstance(residue, Exception):
            undoing.fail(f"cannot look whether anything is left: {in_words(residue)}")
            left.add(index)
        else:
            undoing.residue.extend(residue)
            left |= {index} if residue else set()
    undoing.left = tuple(step for index, step in enumerate(steps) if index in left)
    return undoing


async def _tried(undo: Callable[[], Call[str]]) -> str:
    for pause_s in PAUSES_S:
        try:
            return await undo()
        except (NotYetError, BarredError):
            raise
        except Exception:
            await Pause(pause_s)
    return await undo()
