"""What a performer has done to the machine: each call in the lane of what it touches, under the lock of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from trogdor_bus.actions import Action
from trogdor_bus.agents.lanes import SOON, Call, Rank, caught
from trogdor_bus.errors import HostError, TrogdorBusError
from trogdor_bus.platform import (
    BatchPlatform,
    CountingPlatform,
    JudgingPlatform,
    LanedPlatform,
    Operation,
    Platform,
    Prepared,
    SearchingPlatform,
    Seen,
    Step,
    Surroundings,
    Verb,
)

T = TypeVar("T")
Held = Callable[[], Sequence[Step]]
"""Tells the live steps of every other worker, as they are when it is called."""
Note = Callable[[Operation], None]


class BarredError(HostError):
    """The lock of what would have been touched could not be had; nothing was."""


class _Undo(NamedTuple):
    step: Step
    held: Held
    note: Note


class _Residue(NamedTuple):
    step: Step
    held: Held


class Hands:
    """The calls that a platform takes, for whoever awaits them."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._batch = platform if isinstance(platform, BatchPlatform) else None

    def lane(self, verb: Verb, what: Step | Action | None) -> str:
        """Return in which lane that is done; a platform that knows no lanes has one."""
        return self._platform.lane(verb, what) if isinstance(self._platform, LanedPlatform) else ""

    def prepare(self, worker: int, action: Action, around: Surroundings, held: Held) -> Call[Prepared]:
        """Read the machine and return the steps."""
        lane = self.lane("prepare", action)
        return Call(lane, lambda: self._platform.prepare(worker, action, around, held()))

    def do(self, step: Step) -> Call[Operation | None]:
        """Perform the step."""
        return Call(self.lane("do", step), lambda: self._alone([step], lambda: self._platform.do(step)))

    def undo(self, step: Step, held: Held, note: Note, rank: Rank) -> Call[str]:
        """Take the step back. BarredError if nobody may touch that now."""
        asked = _Undo(step, held, note)
        many = self._undo_many if self._batch is not None else None
        return Call(self.lane("undo", step), lambda: self._undo(asked), rank, many, asked)

    def residue(self, step: Step, held: Held, rank: Rank) -> Call[tuple[str, ...]]:
        """Return what is left of an undone step."""
        asked = _Residue(step, held)
        many = self._residue_many if self._batch is not None else None
        return Call(self.lane("residue", step), lambda: self._platform.residue(step, held()), rank, many, asked)

    def look(self, step: Step, rank: Rank = SOON) -> Call[Seen]:
        """Return how an applied step is."""
        many = self._look_many if self._batch is not None else None
        return Call(self.lane("look", step), lambda: self._look(step), rank, many, step)

    def search(self, step: Step, rank: Rank = SOON) -> Call[Seen]:
        """Return how an applied step is of which a look was unsure."""
        searcher = self._platform
        assert isinstance(searcher, SearchingPlatform)
        return Call(self.lane("search", step), lambda: searcher.search(step), rank, searcher.search_many, step)

    def missed(self, steps: Sequence[Step], rank: Rank) -> Sequence[Call[str]]:
        """Return "" for each applied step whose time is over, or how it has missed what it was meant for."""
        if not isinstance(judge := self._platform, JudgingPlatform):
            return ()
        return [
            Call(self.lane("missed", step), partial(judge.missed, step), rank, self._missed_many, step)
            for step in steps
        ]

    def again(self, step: Step, around: Surroundings, held: Held) -> Call[tuple[Step, ...]]:
        """Return the steps that make a disturbed step hold again."""
        return Call(self.lane("again", step), lambda: self._platform.again(step, around, held()))

    def by_hand(self, step: Step) -> Call[str]:
        """Return what a person would type to undo the step."""
        return Call(self.lane("by-hand", step), lambda: self._platform.by_hand(step))

    def _undo(self, asked: _Undo) -> str:
        return self._alone([asked.step], lambda: self._platform.undo(asked.step, asked.held(), asked.note))

    def _look(self, step: Step) -> Seen:
        if isinstance(self._platform, CountingPlatform):
            return self._platform.look(step)
        return Seen(self._platform.disturbance(step))

    def _missed_many(self, steps: Sequence[Step]) -> Sequence[str | Exception]:
        assert isinstance(self._platform, JudgingPlatform)
        return [caught(partial(self._platform.missed, step)) for step in steps]

    def _undo_many(self, many: Sequence[_Undo]) -> Sequence[str | Exception]:
        assert self._batch is not None
        batch, asked = self._batch, [(one.step, held, one.note) for one, held in _with_held(many)]
        return self._alone([one.step for one in many], lambda: batch.undo_many(asked))

    def _residue_many(self, many: Sequence[_Residue]) -> Sequence[tuple[str, ...] | Exception]:
        assert self._batch is not None
        return self._batch.residue_many([(one.step, held) for one, held in _with_held(many)])

    def _look_many(self, steps: Sequence[Step]) -> Sequence[Seen | Exception]:
        assert self._batch is not None
        return self._batch.look_many(steps)

    def _alone(self, steps: Sequence[Step], work: Callable[[], T]) -> T:
        lock = self._platform.alone(steps)
        try:
            lock.__enter__()
        except Exception as error:
            raise BarredError(in_words(error)) from error
        try:
            return work()
        finally:
            lock.__exit__(None, None, None)


_Asked = TypeVar("_Asked", _Undo, _Residue)


def _with_held(many: Sequence[_Asked]) -> list[tuple[_Asked, Sequence[Step]]]:
    """Return each with what others hold, which those of one worker have in common."""
    told: dict[Any, Sequence[Step]] = {}
    for one in many:
        if one.held not in told:
            told[one.held] = one.held()
    return [(one, told[one.held]) for one in many]


def in_words(error: Exception) -> str:
    """Return the text of an error in characters that JSON can carry; a foreign one is named."""
    text = str(error) if isinstance(error, TrogdorBusError) else f"{type(error).__name__}: {error}"
    return text.encode("utf-8", "backslashreplace").decode()
