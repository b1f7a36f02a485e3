"""Performs workers in the one right order: the undo is on disk before the do, and every failure is undone at once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import msgspec

from trogdor_bus.actions import BlockFrom, Peer
from trogdor_bus.agents import looks
from trogdor_bus.agents.drift import beyond, together
from trogdor_bus.agents.events import ReadBack
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.agents.looks import in_words
from trogdor_bus.errors import (
    CannotHealError,
    HostError,
    InvalidTransitionError,
    NotFoundError,
    NotYetError,
    TrogdorBusError,
)
from trogdor_bus.messages import Order
from trogdor_bus.platform import (
    Operation,
    Platform,
    Prepared,
    Step,
    Surroundings,
)
from trogdor_bus.states import Outcome, ended

log = logging.getLogger("trogdor_bus.agents")
RESTARTED = "agent restarted, fault undone"
UNREADABLE = "the fault may still be there: {} in the journal cannot be read by this version"
_PAUSES_S = (0.05, 0.2)
"""Between the three attempts at one undo."""
AGAIN_S = 0.1
"""When a recovery that waits asks again."""
MAX_STEPS = 200
"""Putting back what is disturbed may add steps to a worker up to so many."""


class NotInjectedError(TrogdorBusError):
    """A worker was not injected: nothing of it is left, unless `stuck`; then `residue` is what was seen to be left."""

    def __init__(self, text: str, *, residue: tuple[str, ...] = (), stuck: bool = False) -> None:
        self.residue, self.stuck = residue, stuck
        super().__init__(text)


@dataclasses.dataclass
class _Undoing:
    """What came of undoing some steps; `left` are those that may still be in force, `awaited` what some wait for."""

    notes: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    residue: list[str] = dataclasses.field(default_factory=list)
    awaited: list[str] = dataclasses.field(default_factory=list)
    left: tuple[Step, ...] = ()


class Performer:
    """Injects and heals workers on one node. Every method may block; call them from one thread.

    NotYetError of `inject` and `heal`: it goes on, so call it again soon. Meanwhile other workers have their turn.
    """

    def __init__(self, journal: Journal, platform: Platform, sleep: Callable[[float], None] = time.sleep) -> None:
        self.journal = journal
        self.platform = platform
        self._sleep = sleep
        self._surroundings: dict[int, Surroundings] = {}
        self._begun: dict[int, Callable[[str], tuple[str, ...]]] = {}
        self._followed: dict[int, tuple[Peer, ...]] = {}

    def inject(self, order: Order, ends_ms: int, surroundings: Surroundings) -> tuple[str, ...]:
        """Perform a new worker and return warnings; NotInjectedError says why not, and whether anything is left.

        `ends_ms` is on CLOCK_BOOTTIME. A worker id is performed at most once, failures included. NotYetError: call it
        again with the same, or `heal` if it is to go no further.
        """
        if go_on := self._begun.pop(order.worker, None):
            with self._alone(self.journal.entries[order.worker].steps) as barred:
                return go_on(barred)
        if self.journal.knows(order.worker):
            raise NotInjectedError(f"worker {order.worker} was already performed here, which happens only once")
        if order.actions is None:
            raise NotInjectedError(f"adopted worker {order.worker} is unknown here and is not started anew")
        entry = Entry(
            worker=order.worker,
            task=order.task,
            state=JournalState.INTENDED,
            boot_id="",
            ends_ms=ends_ms,
            spec=order.spec,
            texts=order.texts,
        )
        with self._alone(()) as barred:
            return self._inject(entry, order, surroundings, barred)

    def _inject(self, entry: Entry, order: Order, surroundings: Surroundings, barred: str) -> tuple[str, ...]:
        assert order.actions is not None
        try:
            if barred:
                raise HostError(barred)
            held = self.journal.held(excluding=order.worker)
            boot_id = self.platform.boot_id()
            prepared = [self.platform.prepare(order.worker, action, surroundings, held) for action in order.actions]
        except NotYetError:  # nothing was changed
            raise
        except Exception as error:
            self._keep(_failed(entry, in_words(error)))
            raise NotInjectedError(in_words(error)) from error
        intent = msgspec.structs.replace(
            entry,
            boot_id=boot_id,
            steps=tuple(step for one in prepared for step in one.steps),
            warnings=tuple(warning for one in prepared for warning in one.warnings),
            met_nothing="; ".join(_met_nothing(one) for one in prepared if not one.steps),
        )
        self._surroundings[order.worker] = surroundings
        try:
            self.journal.put(intent)
        except HostError as error:
            text = f"nothing was done, because its undo could not be written down first: {error}"
            self.journal.entries[order.worker] = _failed(entry, text)
            raise NotInjectedError(text) from error
        return self._apply(intent, list(intent.steps), 0)

    def heal(
        self,
        worker: int,
        outcome: Outcome,
        error: str,
        held_ms: int = 0,
        saw: Callable[[ReadBack], object] = lambda _: None,
    ) -> tuple[str, ...]:
        """Take a worker back, read back that nothing is left, and return notes for people.

        `saw` is given what a last look found, directly before the undo of what is applied: DONE becomes DISTURBED if it
        did not hold, for `held_ms`, until then. An undone worker is left alone. CannotHealError lists what is left; all
        steps were tried, so try again later. NotYetError: what is left goes on by itself, so try again soon.
        """
        self._begun.pop(worker, None)
        unreadable = worker in self.journal.unreadable
        if unreadable and (name := self.journal.read_again(worker)):
            raise CannotHealError(UNREADABLE.format(name))
        entry = self.journal.entries.get(worker)
        if entry is None and unreadable:
            return ("somebody removed its file from the journal",)
        if entry is None:
            raise NotFoundError(f"worker {worker} is unknown here")
        if entry.state is JournalState.UNDONE:
            return ()
        with self._alone(entry.steps) as barred:
            if entry.state is JournalState.APPLIED:
                last = self.look(worker)
                last = msgspec.structs.replace(last, found=(*last.found, *looks.missed(self.platform, entry.steps)))
                saw(last)
                if outcome is Outcome.DONE:
                    outcome, error = ended(outcome, error, last.disturbances(held_ms), entry.met_nothing)
            notes, trouble = self._heal(entry, outcome, error, error, barred)
        return (*notes, trouble) if trouble else notes

    def recover(self, *, wait: bool = False) -> tuple[str, ...]:
        """Undo what an earlier life left, newest first, and return lines for the log; never raises for a fault.

        With `wait`, what goes on by itself is waited for, when all others are undone; else it stays live.
        """
        lines = [
            f"{name} in the journal cannot be read: look whether its fault is gone, then remove the file"
            for name in self.journal.broken
        ]
        left = [entry.worker for entry in reversed(self.journal.live())]
        while left:
            left = self._recover([self.journal.entries[worker] for worker in left], lines)
            if not wait:
                break
            self._sleep(AGAIN_S)
        return tuple(lines)

    def _recover(self, entries: Sequence[Entry], lines: list[str]) -> list[int]:
        """Undo, add lines, and return the workers whose undo goes on by itself; what they wait for is told once."""
        going_on: list[int] = []
        with self._alone([step for entry in entries for step in entry.steps]) as barred:
            for entry in entries:
                what = f"worker {entry.worker} of task {entry.task}"
                try:
                    notes, trouble = self._heal(entry, Outcome.RESTARTED, RESTARTED, "agent restarted", barred)
                except NotYetError as error:
                    going_on.append(entry.worker)
                    if (line := "; ".join([f"{what}: the undo goes on: {error}", *error.notes])) not in lines:
                        lines.append(line)
                except CannotHealError as error:
                    lines.append(str(error))
                else:
                    line = f"{what}: {self.journal.entries[entry.worker].error}"
                    lines.append("; ".join(filter(None, [line, *notes, trouble])))
        return going_on

    def look_again(self, workers: Sequence[int]) -> tuple[str, ...]:
        """Read back undone workers once more, undo again what has come back, and return lines for the log."""
        with self._alone([step for worker in workers for step in self.journal.entries[worker].steps]) as barred:
            return tuple(line for worker in workers for line in self._look_again(worker, barred))

    def look(self, worker: int) -> ReadBack:
        """Return what no longer holds of an applied worker, and how many packets it dropped; never raises."""
        entry = self.journal.entries.get(worker)
        if entry is None or entry.state is not JournalState.APPLIED:
            return ReadBack()
        return looks.read_back(self.platform, entry.steps)

    def reapply(self, worker: int, drift: tuple[Peer, ...] = ()) -> ReadBack:
        """Do again what no longer holds of an applied worker, block the `drift` of its peers; return how it is then.

        A step that is new (for a process that somebody started again, for addresses) is on disk before it is done, as
        ever. HostError says why something cannot be; the rest is done.
        """
        entry = self.journal.entries.get(worker)
        if entry is None or entry.state is not JournalState.APPLIED:
            return ReadBack()
        with self._alone(entry.steps) as barred:
            if barred:
                raise HostError(barred)
            try:
                self._reapply(entry)
            finally:
                self._follow(worker, drift)
            return self.look(worker)

    def _follow(self, worker: int, drift: tuple[Peer, ...]) -> None:
        """Block what is new; what was begun before and did not hold is a step of the worker, and done again as one."""
        known = self._followed.get(worker, ())
        new = beyond(drift, known)
        if not new:
            return
        entry = self.journal.entries[worker]
        held = self.journal.held(excluding=worker)
        prepared = self.platform.prepare(worker, BlockFrom(peers=new), self._surroundings[worker], held)
        if len(entry.steps) + len(prepared.steps) > MAX_STEPS:
            raise HostError(f"it was put back {MAX_STEPS} times; whose addresses change so often?")
        self.journal.put(msgspec.structs.replace(entry, steps=(*entry.steps, *prepared.steps)))
        self._followed[worker] = together(known, new)
        for step in prepared.steps:
            self.platform.do(step)
        if prepared.warnings:
            raise HostError("; ".join(prepared.warnings))

    def _reapply(self, entry: Entry) -> None:
        held = self.journal.held(excluding=entry.worker)
        for step in entry.steps:
            if looks.holds(self.platform, step):
                continue
            for again in self.platform.again(step, self._surroundings[entry.worker], held):
                if again not in entry.steps:
                    if len(entry.steps) >= MAX_STEPS:
                        raise HostError(f"it was put back {MAX_STEPS} times; who undoes it?")
                    entry = msgspec.structs.replace(entry, steps=(*entry.steps, again))
                    self.journal.put(entry)
                if done := self._done(again):
                    steps = tuple(done if step == again else step for step in entry.steps)
                    entry = msgspec.structs.replace(entry, steps=steps)
                    self._keep(entry)

    def by_hand(self, worker: int) -> tuple[str, ...]:
        """Return what a person would type to undo what may be left of a worker."""
        entry = self.journal.entries.get(worker)
        if entry is None or entry.state is JournalState.UNDONE:
            return ()
        return tuple(filter(None, (self._typed(step) for step in reversed(entry.steps))))

    def _typed(self, step: Step) -> str:
        try:
            return self.platform.by_hand(step)
        except Exception as error:  # such as an operation of a newer version
            undo = msgspec.json.encode(step.undo).decode("utf-8", "replace")
            return f"# {in_words(error)}; look what it left and undo it: {undo}"

    def forget(self, worker: int) -> None:
        """Drop an undone worker from the journal; an unknown one is none. InvalidTransitionError for any other."""
        entry = self.journal.entries.get(worker)
        if entry is None:
            return
        if entry.state is not JournalState.UNDONE:
            raise InvalidTransitionError(f"worker {worker} of task {entry.task}", entry.state, "forget")
        self._surroundings.pop(worker, None)
        self._followed.pop(worker, None)
        self.journal.forget(worker)

    @contextlib.contextmanager
    def _alone(self, steps: Sequence[Step]) -> Iterator[str]:
        """Hold the lock of what is acted on; yield "" or why it could not be had."""
        barred = ""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self.platform.alone(steps))
            except Exception as error:
                barred = in_words(error)
            yield barred

    def _look_again(self, worker: int, barred: str) -> Iterator[str]:
        entry = self.journal.entries[worker]
        held = self.journal.held(excluding=worker)
        if entry.state is not JournalState.UNDONE:
            return
        try:
            back = [text for step in entry.steps for text in self.platform.residue(step, held)]
            what = f"came back: {'; '.join(back)}" if back else ""
        except Exception as error:
            what = f"cannot be looked at again: {in_words(error)}"
        if what:
            yield f"worker {worker} of task {entry.task} {what}; undoing again"
            self.journal.entries[worker] = msgspec.structs.replace(entry, state=JournalState.UNKNOWN)
            try:
                trouble = self._heal_to_the_end(worker, barred)
            except CannotHealError as error:
                trouble = str(error)
            if trouble:
                yield trouble

    def _heal_to_the_end(self, worker: int, barred: str) -> str:
        while True:
            entry = self.journal.entries[worker]
            try:
                return self._heal(entry, entry.outcome, entry.error, entry.error, barred)[1]
            except NotYetError:
                self._sleep(AGAIN_S)

    def _apply(self, intent: Entry, steps: list[Step], index: int, barred: str = "") -> tuple[str, ...]:
        """Perform the steps from that index on; `barred` is why they may not be."""
        worker = intent.worker
        try:
            if barred:
                raise HostError(barred)
            while index < len(steps):
                steps[index] = self._done(steps[index]) or steps[index]
                index += 1
        except NotYetError:
            self._begun[worker] = functools.partial(self._apply, intent, steps, index)
            raise
        except Exception as error:
            begun = msgspec.structs.replace(intent, steps=tuple(steps))
            raise self._take_back(begun, in_words(error), barred) from error
        applied = msgspec.structs.replace(intent, state=JournalState.APPLIED, steps=tuple(steps))
        if trouble := self._keep(applied):
            warning = f"the journal could not note that this was done (it can still be undone): {trouble}"
            applied = msgspec.structs.replace(applied, warnings=(*applied.warnings, warning))
            self.journal.entries[worker] = applied
        return applied.warnings

    def _done(self, step: Step) -> Step | None:
        """Perform a step; return it with another undo if it has one from then on."""
        undo = self.platform.do(step)
        return msgspec.structs.replace(step, undo=undo) if undo is not None else None

    def _take_back(self, intent: Entry, why: str, barred: str = "") -> NotInjectedError:
        try:
            _, trouble = self._heal(intent, Outcome.FAILED, why, why, barred)  # notes would tell of steps never done
        except NotYetError:
            self._begun[intent.worker] = functools.partial(self._go_on_taking_back, intent.worker, why)
            raise
        except CannotHealError as error:
            residue = self.journal.entries[intent.worker].residue
            return NotInjectedError(f"{why}; {error}", residue=residue, stuck=True)
        return NotInjectedError(f"{why}; {trouble}" if trouble else why)

    def _go_on_taking_back(self, worker: int, why: str, barred: str) -> NoReturn:
        raise self._take_back(self.journal.entries[worker], why, barred)

    def _heal(
        self, entry: Entry, outcome: Outcome, error: str, cause: str, barred: str = ""
    ) -> tuple[tuple[str, ...], str]:
        """Undo, look, and write; return the platform's notes, and "" or the trouble with the journal.

        NotYetError if nothing failed, and what is left goes on by itself: a later life would undo it, too.
        The caller holds the lock; `barred` is why it does not, and then nothing is touched and everything is left.
        """
        try:
            return self._heal_steps(entry, outcome, error, cause, barred)
        except TrogdorBusError:
            raise
        except Exception as unforeseen:  # it must not keep others from being undone, in no life
            log.exception("internal error in the undo of task %s", entry.task)
            undoing = _Undoing(failures=[f"internal error: {in_words(unforeseen)}"], left=entry.steps)
            undoing.residue = self._seen_left(entry)
            raise self._stuck(entry, undoing, cause) from unforeseen

    def _seen_left(self, entry: Entry) -> list[str]:
        """Return what can be seen of a worker that may not be undone; never raises."""
        held, seen = self.journal.held(excluding=entry.worker), list[str]()
        for step in entry.steps:
            with contextlib.suppress(Exception):
                seen += self.platform.residue(step, held)
        return seen

    def _heal_steps(
        self, entry: Entry, outcome: Outcome, error: str, cause: str, barred: str
    ) -> tuple[tuple[str, ...], str]:
        if barred:
            undoing = _Undoing(failures=[barred], left=entry.steps)
        else:
            undoing = self._undo_all(entry, self.journal.held(excluding=entry.worker))
        if undoing.awaited and not undoing.failures and not undoing.residue:
            raise self._going_on(entry, undoing, outcome, error)
        if undoing.left:
            raise self._stuck(entry, undoing, cause)
        if entry.state is JournalState.STUCK:
            outcome, error = Outcome.FAILED, _late(entry)
        undone = msgspec.structs.replace(
            entry, state=JournalState.UNDONE, outcome=outcome, error=error, residue=(), cause="", trouble=""
        )
        if trouble := self._keep(undone):
            trouble = f"undone, but this could not be written down, so a restart undoes it once more: {trouble}"
        return tuple(note for note in undoing.notes if note), trouble

    def _stuck(self, entry: Entry, undoing: _Undoing, cause: str) -> CannotHealError:
        """Note what could not be undone, and return the error that tells of it."""
        cause = entry.cause if entry.state is JournalState.STUCK else cause
        trouble = "; ".join([*undoing.failures, *undoing.residue, *undoing.awaited])
        text = f"worker {entry.worker} of task {entry.task}: the fault may still be there: {trouble}"
        stuck = msgspec.structs.replace(
            entry,
            state=JournalState.STUCK,
            steps=undoing.left,  # what is undone is no longer held, so that other workers do not leave it to us
            outcome=Outcome.FAILED,
            error=f"{cause}; {text}" if cause else text,
            residue=tuple(undoing.residue),
            cause=cause,
            trouble=trouble,
        )
        if trouble := self._keep(stuck):
            text = f"{text}; and the journal could not be written: {trouble}"
        return CannotHealError(text)

    def _going_on(self, entry: Entry, undoing: _Undoing, outcome: Outcome, error: str) -> NotYetError:
        state = JournalState.STUCK if entry.state is JournalState.STUCK else JournalState.UNKNOWN
        begun = msgspec.structs.replace(entry, state=state, steps=undoing.left, outcome=outcome, error=error)
        notes = [note for note in undoing.notes if note]
        if begun != self.journal.entries[entry.worker] and (trouble := self._keep(begun)):
            notes.append(f"the journal could not note how far the undo is (a restart begins it once more): {trouble}")
        return NotYetError("; ".join(undoing.awaited), tuple(notes))

    def _undo_all(self, entry: Entry, held: Sequence[Step]) -> _Undoing:
        undoing = _Undoing()
        left, going_on = set[int](), set[int]()
        steps = list(entry.steps)

        def note(index: int, operation: Operation) -> None:
            steps[index] = msgspec.structs.replace(steps[index], undo=operation)
            if trouble := self._keep(msgspec.structs.replace(entry, steps=tuple(steps))):
                undoing.notes.append(
                    f"what was started could not be written down, so it may be started twice: {trouble}"
                )

        for index in reversed(range(len(steps))):
            try:
                undoing.notes.append(self._undo(steps, index, held, functools.partial(note, index)))
            except NotYetError as error:
                undoing.awaited.append(in_words(error))
                left.add(index)
                going_on.add(index)
            except Exception as error:
                undoing.failures.append(in_words(error))
                left.add(index)
        for index, step in enumerate(steps):
            if index in going_on:
                continue
            try:
                residue = self.platform.residue(step, held)
            except Exception as error:
                undoing.failures.append(f"cannot look whether anything is left: {in_words(error)}")
                left.add(index)
            else:
                undoing.residue.extend(residue)
                left |= {index} if residue else set()
        undoing.left = tuple(step for index, step in enumerate(steps) if index in left)
        return undoing

    def _undo(self, steps: Sequence[Step], index: int, held: Sequence[Step], note: Callable[[Operation], None]) -> str:
        for pause_s in _PAUSES_S:
            try:
                return self.platform.undo(steps[index], held, note)
            except NotYetError:
                raise
            except Exception:
                self._sleep(pause_s)
        return self.platform.undo(steps[index], held, note)  # as an attempt before may have noted it

    def _keep(self, entry: Entry) -> str:
        """Write the entry; if that fails, keep it in memory all the same and return the trouble."""
        try:
            self.journal.put(entry)
        except HostError as error:
            self.journal.entries[entry.worker] = entry
            return str(error)
        return ""


def _failed(entry: Entry, error: str) -> Entry:
    return msgspec.structs.replace(entry, state=JournalState.UNDONE, outcome=Outcome.FAILED, error=error)


def _met_nothing(prepared: Prepared) -> str:
    return "; ".join(prepared.warnings) or "there was nothing to do"


def _late(entry: Entry) -> str:
    """Return what is true of a worker that was stuck and is undone now."""
    because = f"; at first its undo failed: {entry.trouble}" if entry.trouble else ""
    late = f"undone late, and nothing is left{because}"
    return f"{entry.cause}; {late}" if entry.cause else late
