"""Work in lanes, one for each resource: what hangs in one of them holds up nothing in another.

A job is a coroutine. It waits for a `Call` that is done in a lane, or `Within` some seconds for one, for a `Pause`, or
for several at once (`All`), and everything between two of these runs where the jobs are begun, one at a time. So jobs
share memory without a lock.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Hashable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Job = Coroutine[Any, Any, T]
Rank = tuple[int, int]
SOON: Rank = (1, 0)
"""What is no undo comes after all that are."""
Carry = Callable[[str, Sequence["Call[Any]"]], None]
"""Has calls of that lane done, and gives their outcomes to `Lanes.carried`."""
Later = Callable[[float, Callable[[], None]], object]
"""Calls a function in so many seconds; 0: when those who run now are done."""


def first(due_ms: int) -> Rank:
    """Return the rank of an undo: the one that was due first comes first."""
    return (0, due_ms)


class Call(Generic[T]):
    """`work`, done in `lane` when it is its turn; whoever awaits it gets what that returns or raises.

    With `together` the calls of one lane that have the same one, and wait at the same time, are done at once: it takes
    their `of`s and returns what each would return, or the Exception that it would raise.
    """

    def __init__(
        self,
        lane: str,
        work: Callable[[], T],
        rank: Rank = SOON,
        together: Callable[[Sequence[Any]], Sequence[T | Exception]] | None = None,
        of: object = None,
    ) -> None:
        self.lane, self.work, self.rank, self.together, self.of = lane, work, rank, together, of

    def __await__(self) -> Generator[Any, Any, T]:
        return (yield self)  # type: ignore[no-any-return]


class Pause:
    """Some seconds in which the job does nothing, and holds up nobody."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __await__(self) -> Generator[Any, Any, None]:
        yield self


class Within(Generic[T]):
    """A call that is waited for so many seconds at most: then TimeoutError; it is done all the same, for nobody."""

    def __init__(self, seconds: float, call: Call[T]) -> None:
        self.seconds, self.call = seconds, call

    def __await__(self) -> Generator[Any, Any, T]:
        return (yield self)  # type: ignore[no-any-return]


class All(Generic[T]):
    """Several calls or jobs at once; whoever awaits it gets, in their order, what each returned, or its Exception.

    A job is given as the function that makes it.
    """

    def __init__(self, parts: Sequence[Call[T] | Callable[[], Job[T]]]) -> None:
        self.parts = parts

    def __await__(self) -> Generator[Any, Any, list[T | Exception]]:
        return (yield self)  # type: ignore[no-any-return]


class _Lane:
    def __init__(self) -> None:
        self.waiting: list[tuple[Rank, int, Call[Any], Callable[[Any], None]]] = []
        self.answers: list[Callable[[Any], None]] = []


class Lanes:
    """Runs jobs. `carry` has calls done elsewhere, at most one batch of each lane at a time; `later` is the timer."""

    def __init__(self, carry: Carry, later: Later) -> None:
        self._carry, self._later = carry, later
        self._lanes: dict[str, _Lane] = {}
        self._count = itertools.count()
        self._behind: dict[Hashable, deque[tuple[Job[Any], Callable[[Any], None]]]] = {}
        self._asked = False

    def begin(self, job: Job[T], ended: Callable[[T | Exception], None], key: Hashable = None) -> None:
        """Run a job and hand what it returned, or raised, to `ended`; jobs of one `key` (None: none) are run in order.

        Nothing is carried before `later` has called back, so that what is begun at the same time is done together.
        """
        if key is None:
            self._go_on(job, None, ended)
        elif key in self._behind:
            self._behind[key].append((job, ended))
        else:
            self._behind[key] = deque()
            self._run(job, ended, key)

    def carried(self, lane: str, outcomes: Sequence[object]) -> None:
        """Take in what the calls that a lane carried have returned or raised."""
        this = self._lanes[lane]
        answers, this.answers = this.answers, []
        for answer, outcome in zip(answers, outcomes, strict=True):
            answer(outcome)
        if not this.waiting:
            del self._lanes[lane]
        self._ask()

    def idle(self) -> bool:
        """Return whether no lane has anything to do."""
        return not any(lane.waiting or lane.answers for lane in self._lanes.values())

    def _run(self, job: Job[Any], ended: Callable[[Any], None], key: Hashable) -> None:
        def done(outcome: object) -> None:
            behind = self._behind[key]
            if behind:
                self._run(*behind.popleft(), key)
            else:
                del self._behind[key]
            ended(outcome)

        self._go_on(job, None, done)

    def _go_on(self, job: Job[Any], outcome: object, ended: Callable[[Any], None]) -> None:
        try:
            wanted = job.throw(outcome) if isinstance(outcome, Exception) else job.send(outcome)
        except StopIteration as end:
            ended(end.value)
        except Exception as error:
            ended(error)
        else:
            self._want(wanted, lambda outcome: self._go_on(job, outcome, ended))

    def _want(self, wanted: object, answer: Callable[[Any], None]) -> None:
        if isinstance(wanted, Call):
            lane = self._lanes.setdefault(wanted.lane, _Lane())
            heapq.heappush(lane.waiting, (wanted.rank, next(self._count), wanted, answer))
            self._ask()
        elif isinstance(wanted, Pause):
            self._later(wanted.seconds, lambda: answer(None))
        elif isinstance(wanted, Within):
            self._within(wanted, answer)
        elif isinstance(wanted, All):
            self._gather(wanted.parts, answer)
        else:
            raise TypeError(f"a job waits for {wanted!r}")

    def _within(self, wanted: Within[Any], answer: Callable[[Any], None]) -> None:
        waits = [answer]

        def first_of(outcome: object) -> None:
            if waits:
                waits.pop()(outcome)

        self._want(wanted.call, first_of)
        self._later(wanted.seconds, lambda: first_of(TimeoutError()))

    def _gather(self, parts: Sequence[Call[Any] | Callable[[], Job[Any]]], answer: Callable[[Any], None]) -> None:
        outcomes: list[object] = [None] * len(parts)
        left = len(parts)

        def took(index: int, outcome: object) -> None:
            nonlocal left
            outcomes[index] = outcome
            left -= 1
            if not left:
                answer(outcomes)

        if not parts:
            answer(outcomes)
        for index, part in enumerate(parts):
            one = lambda outcome, index=index: took(index, outcome)  # noqa: E731
            if isinstance(part, Call):
                self._want(part, one)
            else:
                self._go_on(part(), None, one)

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._later(0, self._send_off)

    def _send_off(self) -> None:
        """Have every lane that is free do what comes first, together with what can be done with it."""
        self._asked = False
        for name, lane in list(self._lanes.items()):
            if lane.waiting and not lane.answers:
                calls = self._next(lane)
                self._carry(name, calls)

    def _next(self, lane: _Lane) -> list[Call[Any]]:
        _, _, call, answer = heapq.heappop(lane.waiting)
        calls, lane.answers = [call], [answer]
        if call.together is not None:
            rest = []
            for one in sorted(lane.waiting, key=lambda one: one[:2]):
                if one[2].together == call.together:
                    calls.append(one[2])
                    lane.answers.append(one[3])
                else:
                    rest.append(one)
            lane.waiting = rest
        return calls


def carry_out(calls: Sequence[Call[Any]]) -> Sequence[object]:
    """Do the calls of one batch here and now, and return what each returned or the Exception that it raised."""
    together = calls[0].together
    try:
        if together is not None and len(calls) > 1:
            return together([call.of for call in calls])
        return [calls[0].work()]
    except (Exception, SystemExit) as error:
        return [_kept(error)] * len(calls)


def caught(work: Callable[[], T]) -> T | Exception:
    """Return what it returns, or the Exception that it raises."""
    try:
        return work()
    except (Exception, SystemExit) as error:
        return _kept(error)


def _kept(error: Exception | SystemExit) -> Exception:
    """Return what a job is told: a package that ends its thread would keep its lane for ever."""
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def run(job: Job[T], sleep: Callable[[float], None]) -> T:
    """Run a job here and now, one call after the other, and return what it returns."""
    outcome: object = None
    while True:
        try:
            wanted = job.throw(outcome) if isinstance(outcome, Exception) else job.send(outcome)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        outcome = _here(wanted, sleep)


def _here(wanted: object, sleep: Callable[[float], None]) -> object:
    if isinstance(wanted, Call):
        return carry_out([wanted])[0]
    if isinstance(wanted, Within):
        return _here(wanted.call, sleep)
    if isinstance(wanted, Pause):
        sleep(wanted.seconds)
        return None
    if isinstance(wanted, All):
        return [_outcome(part, sleep) for part in wanted.parts]
    raise TypeError(f"a job waits for {wanted!r}")


def _outcome(part: Call[Any] | Callable[[], Job[Any]], sleep: Callable[[float], None]) -> object:
    if isinstance(part, Call):
        return _here(part, sleep)
    return caught(lambda: run(part(), sleep))
