"""Performs workers in the one right order: the undo is on disk before the do, and every failure is undone at once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from trogdor_bus.actions import BlockFrom, Peer
from trogdor_bus.agents.drift import beyond, together
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.errors import CannotHealError, HostError, InvalidTransitionError, NotFoundError, TrogdorBusError
from trogdor_bus.messages import Order
from trogdor_bus.platform import CountingPlatform, Operation, Platform, Step, Surroundings
from trogdor_bus.states import Outcome

RESTARTED = "agent restarted, fault undone"
_PAUSES_S = (0.05, 0.2)
"""Between the three attempts at one undo."""
MAX_STEPS = 200
"""Putting back what is disturbed may add steps to a worker up to so many."""


class NotInjectedError(TrogdorBusError):
    """A worker was not injected: nothing of it is left, unless `stuck`; then `residue` is what was seen to be left."""

    def __init__(self, text: str, *, residue: tuple[str, ...] = (), stuck: bool = False) -> None:
        self.residue, self.stuck = residue, stuck
        super().__init__(text)


@dataclasses.dataclass
class _Undoing:
    """What came of undoing some steps; `left` are those that may still be in force."""

    notes: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    residue: list[str] = dataclasses.field(default_factory=list)
    left: tuple[Step, ...] = ()


class Performer:
    """Injects and heals workers on one node. Every method may block; call them from one thread."""

    def __init__(self, journal: Journal, platform: Platform, sleep: Callable[[float], None] = time.sleep) -> None:
        self.journal = journal
        self.platform = platform
        self._sleep = sleep
        self._surroundings: dict[int, Surroundings] = {}
        self._followed: dict[int, tuple[Peer, ...]] = {}

    def inject(self, order: Order, ends_ms: int, surroundings: Surroundings) -> tuple[str, ...]:
        """Perform a new worker and return warnings; NotInjectedError says why not, and whether anything is left.

        `ends_ms` is on CLOCK_BOOTTIME. A worker id is performed at most once, failures included.
        """
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
        except Exception as error:
            self._keep(_failed(entry, _words(error)))
            raise NotInjectedError(_words(error)) from error
        intent = msgspec.structs.replace(
            entry,
            boot_id=boot_id,
            steps=tuple(step for one in prepared for step in one.steps),
            warnings=tuple(warning for one in prepared for warning in one.warnings),
        )
        self._surroundings[order.worker] = surroundings
        try:
            self.journal.put(intent)
        except HostError as error:
            text = f"nothing was done, because its undo could not be written down first: {error}"
            self.journal.entries[order.worker] = _failed(entry, text)
            raise NotInjectedError(text) from error
        return self._apply(order.worker)

    def heal(self, worker: int, outcome: Outcome, error: str) -> tuple[str, ...]:
        """Take a worker back, read back that nothing is left, and return notes for people.

        An undone worker is left alone. CannotHealError lists what is left; all steps were tried, so try again later.
        """
        entry = self.journal.entries.get(worker)
        if entry is None:
            raise NotFoundError(f"worker {worker} is unknown here")
        if entry.state is JournalState.UNDONE:
            return ()
        with self._alone(entry.steps) as barred:
            notes, trouble = self._heal(entry, outcome, error, error, barred)
        return (*notes, trouble) if trouble else notes

    def recover(self) -> tuple[str, ...]:
        """Undo what an earlier life left, newest first, and return lines for the log; never raises for a fault."""
        lines = [
            f"{name} in the journal cannot be read: look whether its fault is gone, then remove the file"
            for name in self.journal.broken
        ]
        live = self.journal.live()
        if not live:
            return tuple(lines)
        with self._alone([step for entry in live for step in entry.steps]) as barred:
            for entry in reversed(live):
                try:
                    notes, trouble = self._heal(entry, Outcome.RESTARTED, RESTARTED, "agent restarted", barred)
                except CannotHealError as error:
                    lines.append(str(error))
                else:
                    line = f"worker {entry.worker} of task {entry.task}: {RESTARTED}"
                    lines.append("; ".join(filter(None, [line, *notes, trouble])))
        return tuple(lines)

    def look_again(self, workers: Sequence[int]) -> tuple[str, ...]:
        """Read back undone workers once more, undo again what has come back, and return lines for the log."""
        with self._alone([step for worker in workers for step in self.journal.entries[worker].steps]) as barred:
            return tuple(line for worker in workers for line in self._look_again(worker, barred))

    def disturbances(self, worker: int) -> tuple[str, ...]:
        """Return what no longer holds of an applied worker; () if all holds or the worker is not applied."""
        entry = self.journal.entries.get(worker)
        if entry is None or entry.state is not JournalState.APPLIED:
            return ()
        return tuple(text for text in map(self._disturbance, entry.steps) if text)

    def dropped(self, worker: int) -> int:
        """Return how many packets the rules of an applied worker dropped; 0 if that is not to be known."""
        entry = self.journal.entries.get(worker)
        if entry is None or entry.state is not JournalState.APPLIED or not isinstance(self.platform, CountingPlatform):
            return 0
        try:
            return sum(map(self.platform.dropped, entry.steps))
        except Exception:  # a count must not keep a fault
            return 0

    def reapply(self, worker: int, drift: tuple[Peer, ...] = ()) -> tuple[Peer, ...]:
        """Do again what no longer holds of an applied worker, block the `drift` of its peers, too, and return that.

        A step that is new (for a process that somebody started again, for addresses) is on disk before it is done, as
        ever. HostError says why something cannot be; the rest is done.
        """
        entry = self.journal.entries.get(worker)
        if entry is None or entry.state is not JournalState.APPLIED:
            return ()
        with self._alone(entry.steps) as barred:
            if barred:
                raise HostError(barred)
            try:
                self._reapply(entry)
            finally:
                self._follow(worker, drift)
        return drift

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
            if not self._disturbance(step):
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
        return tuple(filter(None, map(self.platform.by_hand, reversed(entry.steps))))

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
                barred = _words(error)
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
            what = f"cannot be looked at again: {_words(error)}"
        if what:
            yield f"worker {worker} of task {entry.task} {what}; undoing again"
            unknown = msgspec.structs.replace(entry, state=JournalState.UNKNOWN)
            self.journal.entries[worker] = unknown
            try:
                _, trouble = self._heal(unknown, entry.outcome, entry.error, entry.error, barred)
            except CannotHealError as error:
                trouble = str(error)
            if trouble:
                yield trouble

    def _apply(self, worker: int) -> tuple[str, ...]:
        intent = self.journal.entries[worker]
        steps = list(intent.steps)
        try:
            for index, step in enumerate(intent.steps):
                steps[index] = self._done(step) or step
        except Exception as error:
            raise self._take_back(msgspec.structs.replace(intent, steps=tuple(steps)), _words(error)) from error
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

    def _take_back(self, intent: Entry, why: str) -> NotInjectedError:
        try:
            _, trouble = self._heal(intent, Outcome.FAILED, why, why)  # notes would tell of steps that were never done
        except CannotHealError as error:
            residue = self.journal.entries[intent.worker].residue
            return NotInjectedError(f"{why}; {error}", residue=residue, stuck=True)
        return NotInjectedError(f"{why}; {trouble}" if trouble else why)

    def _heal(
        self, entry: Entry, outcome: Outcome, error: str, cause: str, barred: str = ""
    ) -> tuple[tuple[str, ...], str]:
        """Undo, look, and write; return the platform's notes, and "" or the trouble with the journal.

        The caller holds the lock; `barred` is why it does not, and then nothing is touched and everything is left.
        """
        if barred:
            undoing = _Undoing(failures=[barred], left=entry.steps)
        else:
            undoing = self._undo_all(entry, self.journal.held(excluding=entry.worker))
        if undoing.left:
            what = f"worker {entry.worker} of task {entry.task}: the fault may still be there: "
            text = what + "; ".join([*undoing.failures, *undoing.residue])
            cause = cause.partition(what)[0].rstrip("; ")  # when tried again, the cause says what was left before
            stuck = msgspec.structs.replace(
                entry,
                state=JournalState.STUCK,
                steps=undoing.left,  # what is undone is no longer held, so that other workers do not leave it to us
                outcome=outcome,
                error=f"{cause}; {text}" if cause else text,
                residue=tuple(undoing.residue),
            )
            if trouble := self._keep(stuck):
                text = f"{text}; and the journal could not be written: {trouble}"
            raise CannotHealError(text)
        undone = msgspec.structs.replace(entry, state=JournalState.UNDONE, outcome=outcome, error=error, residue=())
        if trouble := self._keep(undone):
            trouble = f"undone, but this could not be written down, so a restart undoes it once more: {trouble}"
        return tuple(note for note in undoing.notes if note), trouble

    def _undo_all(self, entry: Entry, held: Sequence[Step]) -> _Undoing:
        undoing = _Undoing()
        left: set[int] = set()
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
            except Exception as error:
                undoing.failures.append(_words(error))
                left.add(index)
        for index, step in enumerate(steps):
            try:
                residue = self.platform.residue(step, held)
            except Exception as error:
                undoing.failures.append(f"cannot look whether anything is left: {_words(error)}")
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
            except Exception:
                self._sleep(pause_s)
        return self.platform.undo(steps[index], held, note)  # as an attempt before may have noted it

    def _disturbance(self, step: Step) -> str:
        try:
            return self.platform.disturbance(step)
        except Exception as error:
            return f"cannot look whether it holds: {_words(error)}"

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


def _words(error: Exception) -> str:
    """Return the text of an error in characters that JSON can carry; a foreign one is named."""
    text = str(error) if isinstance(error, TrogdorBusError) else f"{type(error).__name__}: {error}"
    return text.encode("utf-8", "backslashreplace").decode()
