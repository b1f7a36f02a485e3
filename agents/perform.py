"""Performs workers in the one right order: the undo is on disk before the do, and every failure is undone at once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn, TypeVar

import msgspec

from trogdor_bus.actions import Peer
from trogdor_bus.actions.network import BlockFrom
from trogdor_bus.agents import looks, threads
from trogdor_bus.agents.drift import beyond, together
from trogdor_bus.agents.events import ReadBack
from trogdor_bus.agents.hands import Hands, in_words
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.agents.lanes import All, Call, Pause, Within, first
from trogdor_bus.agents.undoing import Undoing, undo_all
from trogdor_bus.clock import boot_ms
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
    Platform,
    Prepared,
    Step,
    Surroundings,
)
from trogdor_bus.states import Outcome

log = logging.getLogger("trogdor_bus.agents")
RESTARTED = "agent restarted, fault undone"
UNREADABLE = "the fault may still be there: {} in the journal cannot be read by this version"
AGAIN_S = 0.1
"""When a recovery that waits asks again."""
MAX_STEPS = 200
"""Putting back what is disturbed may add steps to a worker up to so many."""
JOURNAL = "journal"
"""The lane of the disk."""
DISK_S = 5.0
"""So long is waited for the disk; it may hang, and what it was given is written when it answers again."""
T = TypeVar("T")


class NotInjectedError(TrogdorBusError):
    """A worker was not injected: nothing of it is left, unless `stuck`; then `residue` is what was seen to be left."""

    def __init__(self, text: str, *, residue: tuple[str, ...] = (), stuck: bool = False) -> None:
        self.residue, self.stuck = residue, stuck
        super().__init__(text)


class Performer:
    """Injects and heals workers on one node, by jobs that are run in lanes (see `trogdor_bus.agents.lanes`).

    NotYetError of `inject` and `heal`: it goes on, so call it again soon. Meanwhile other workers have their turn.
    `now_ms` is CLOCK_BOOTTIME: how late an undo is counts from when it was due until it is read back that nothing is
    left. `within` does what may hang, for so many seconds at most.
    """

    def __init__(
        self,
        journal: Journal,
        platform: Platform,
        now_ms: Callable[[], int] = boot_ms,
        within: Callable[[float, Callable[[], Entry]], Entry] = threads.within,
    ) -> None:
        self.journal = journal
        self.platform = platform
        self._hands, self._now_ms, self._within = Hands(platform), now_ms, within
        self._surroundings: dict[int, Surroundings] = {}
        self._begun: dict[int, Callable[[], Awaitable[tuple[str, ...]]]] = {}
        self._followed: dict[int, tuple[Peer, ...]] = {}
        self._undoing: set[int] = set()

    async def inject(self, order: Order, ends_ms: int, surroundings: Surroundings) -> tuple[str, ...]:
        """Perform a new worker and return warnings; NotInjectedError says why not, and whether anything is left.

        `ends_ms` is on CLOCK_BOOTTIME. A worker id is performed at most once, failures included. NotYetError: call it
        again with the same, or `heal` if it is to go no further.
        """
        if go_on := self._begun.pop(order.worker, None):
            return await go_on()
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
        held = functools.partial(self._held, order.worker)
        try:
            boot_id = self.platform.boot_id()
            prepared = [await self._hands.prepare(order.worker, action, surroundings, held) for action in order.actions]
            intent = msgspec.structs.replace(
                entry,
                boot_id=boot_id,
                steps=tuple(step for one in prepared for step in one.steps),
                warnings=tuple(warning for one in prepared for warning in one.warnings),
                met_nothing="; ".join(_met_nothing(one) for one in prepared if not one.steps),
            )
        except NotYetError:  # nothing was changed
            raise
        except Exception as error:
            await self._keep(_failed(entry, in_words(error)))
            raise NotInjectedError(in_words(error)) from error
        self._surroundings[order.worker] = surroundings
        try:
            await self._put(intent)
        except HostError as error:
            text = f"nothing was done, because its undo could not be written down first: {error}"
            self.journal.keep(_failed(entry, text))
            raise NotInjectedError(text) from error
        return await self._apply(intent, list(intent.steps), 0)

    async def heal(
        self,
        worker: int,
        outcome: Outcome,
        error: str,
        held_ms: int = 0,
        *,
        saw: Callable[[ReadBack], object] = lambda _: None,
        due_ms: int | None = None,
    ) -> tuple[str, ...]:
        """Take a worker back, read back that nothing is left, and return notes for people.

        `saw` is given what a last look found, directly before the undo of what is applied: DONE becomes DISTURBED if it
        did not hold, for `held_ms`, until then. An undone worker is left alone. CannotHealError lists what is left; all
        steps were tried, so try again later. NotYetError: what is left goes on by itself, so try again soon. `due_ms`
        is when it was to be gone, None for now.
        """
        due_ms = self._now_ms() if due_ms is None else due_ms
        self._begun.pop(worker, None)
        unreadable = worker in self.journal.unreadable
        if unreadable:
            try:
                name = await _disk(functools.partial(self.journal.read_again, worker))
            except HostError as hangs:
                raise CannotHealError(str(hangs)) from hangs
            if name:
                raise CannotHealError(UNREADABLE.format(name))
        entry = self.journal.entries.get(worker)
        if entry is None and unreadable:
            return ("somebody removed its file from the journal",)
        if entry is None:
            raise NotFoundError(f"worker {worker} is unknown here")
        if entry.state is JournalState.UNDONE:
            return ()
        if entry.state is JournalState.APPLIED:
            last = await looks.read_back(self._hands, entry.steps, first(due_ms), last=True)
            missed = await looks.missed(self._hands, entry.steps, first(due_ms))
            last = msgspec.structs.replace(last, found=(*last.found, *missed))
            saw(last)
            if outcome is Outcome.DONE:
                outcome, error = last.judge(held_ms, entry.met_nothing)
        notes, trouble = await self._heal(entry, outcome, error, error, due_ms)
        return (*notes, trouble) if trouble else notes

    async def recover(self, *, wait: bool = False) -> tuple[str, ...]:
        """Undo what an earlier life left, newest first, and return lines for the log; never raises for a fault.

        With `wait`, what goes on by itself is waited for; else it stays live.
        """
        found = _or_raise(await All([functools.partial(self.recover_one, worker, wait=wait) for worker in self.left()]))
        return (*self.broken(), *(line for lines in found for line in lines))

    def left(self) -> tuple[int, ...]:
        """Return the workers that an earlier life left, newest first."""
        return tuple(entry.worker for entry in reversed(self.journal.live()))

    def broken(self) -> tuple[str, ...]:
        """Return a line for the log for each file of the journal that cannot be read."""
        text = "{} in the journal cannot be read: look whether its fault is gone, then remove the file"
        return tuple(map(text.format, self.journal.broken))

    async def recover_one(self, worker: int, *, wait: bool = False) -> tuple[str, ...]:
        """Undo one worker as `recover` does, and return lines for the log; what it waits for is told once."""
        lines: list[str] = []
        while True:
            entry = self.journal.entries[worker]
            if entry.state is JournalState.UNDONE:
                return tuple(lines)
            what = f"worker {worker} of task {entry.task}"
            try:
                notes, trouble = await self._heal(
                    entry, Outcome.RESTARTED, RESTARTED, "agent restarted", self._due_ms(entry)
                )
            except NotYetError as error:
                if (line := "; ".join([f"{what}: the undo goes on: {error}", *error.notes])) not in lines:
                    lines.append(line)
            except CannotHealError as error:
                return (*lines, str(error))
            else:
                line = f"{what}: {self.journal.entries[worker].error}"
                return (*lines, "; ".join(filter(None, [line, *notes, trouble])))
            if not wait:
                return tuple(lines)
            await Pause(AGAIN_S)

    async def look_again(self, workers: Sequence[int]) -> tuple[str, ...]:
        """Read back undone workers once more, undo again what has come back, and return lines for the log."""
        found = _or_raise(await All([functools.partial(self._look_again, worker) for worker in workers]))
        return tuple(line for lines in found for line in lines)

    async def look(self, worker: int) -> ReadBack:
        """Return what no longer holds of an applied worker, and how many packets it dropped; never raises."""
        entry = self.journal.entries.get(worker)
        if entry is None or entry.state is not JournalState.APPLIED:
            return ReadBack()
        return await looks.read_back(self._hands, entry.steps)

    def lanes(self, worker: int) -> frozenset[str]:
        """Return the lanes in which a worker is looked at."""
        entry = self.journal.entries.get(worker)
        return frozenset(self._hands.lane("look", step) for step in entry.steps) if entry else frozenset()

    async def reapply(self, worker: int, drift: tuple[Peer, ...] = ()) -> ReadBack:
        """Do again what no longer holds of an applied worker, block the `drift` of its peers; return how it is then.

        A step that is new (for a process that somebody started again, for addresses) is on disk before it is done, as
        ever. HostError says why something cannot be; the rest is done.
        """
        entry = self.journal.entries.get(worker)
        if entry is None or entry.state is not JournalState.APPLIED:
            return ReadBack()
        failed: Exception | None = None
        try:
            await self._reapply(entry)
        except Exception as error:  # of another package, too
            failed = error
        await self._follow(worker, drift)
        if failed is not None:
            raise failed if isinstance(failed, TrogdorBusError) else HostError(in_words(failed)) from failed
        return await self.look(worker)

    async def _follow(self, worker: int, drift: tuple[Peer, ...]) -> None:
        """Block what is new; what was begun before and did not hold is a step of the worker, and done again as one."""
        known = self._followed.get(worker, ())
        new = beyond(drift, known)
        if not new:
            return
        entry = self.journal.entries[worker]
        held = functools.partial(self._held, worker)
        prepared = await self._hands.prepare(worker, BlockFrom(peers=new), self._surroundings[worker], held)
        if len(entry.steps) + len(prepared.steps) > MAX_STEPS:
            raise HostError(f"it was put back {MAX_STEPS} times; whose addresses change so often?")
        await self._put(msgspec.structs.replace(entry, steps=(*entry.steps, *prepared.steps)))
        self._followed[worker] = together(known, new)
        for step in prepared.steps:
            await self._hands.do(step)
        if prepared.warnings:
            raise HostError("; ".join(prepared.warnings))

    async def _reapply(self, entry: Entry) -> None:
        held = self._held(entry.worker)
        for step in entry.steps:
            if await looks.holds(self._hands, step):
                continue
            for again in await self._hands.again(step, self._surroundings[entry.worker], lambda: held):
                if again not in entry.steps:
                    if len(entry.steps) >= MAX_STEPS:
                        raise HostError(f"it was put back {MAX_STEPS} times; who undoes it?")
                    entry = msgspec.structs.replace(entry, steps=(*entry.steps, again))
                    await self._put(entry)
                if done := await self._done(again):
                    steps = tuple(done if step == again else step for step in entry.steps)
                    entry = msgspec.structs.replace(entry, steps=steps)
                    await self._keep(entry)

    async def by_hand(self, worker: int) -> tuple[str, ...]:
        """Return what a person would type to undo what may be left of a worker."""
        entry = self.journal.entries.get(worker)
        if entry is None or entry.state is JournalState.UNDONE:
            return ()
        typed = _or_raise(await All([functools.partial(self._hands.typed, step) for step in reversed(entry.steps)]))
        return tuple(filter(None, typed))

    async def begin(self, then: Callable[[], None]) -> None:
        """Have this life on disk, and do `then`; HostError if it cannot be written yet."""
        await _disk(self.journal.begin)
        await _disk(then)

    async def keep_latch(self, latch: str) -> None:
        """Keep the id of an abort over restarts, "" for none; after a HostError it counts for this life only."""
        self.journal.latch = latch
        await _disk(functools.partial(self.journal.write_latch, latch))

    async def forget(self, worker: int) -> None:
        """Drop an undone worker from the journal; an unknown one is none. InvalidTransitionError for any other."""
        entry = self.journal.entries.get(worker)
        if entry is None:
            return
        if entry.state is not JournalState.UNDONE:
            raise InvalidTransitionError(f"worker {worker} of task {entry.task}", entry.state, "forget")
        self._surroundings.pop(worker, None)
        self._followed.pop(worker, None)
        await _disk(functools.partial(self.journal.remove, worker))
        self.journal.drop(worker)

    def _held(self, worker: int) -> tuple[Step, ...]:
        """Return the live steps of the others; what is on its way out holds nothing any more."""
        return self.journal.held(excluding={worker, *self._undoing})

    def _due_ms(self, entry: Entry) -> int:
        """Return when what an earlier life left was due: at its end, or now if that is to come."""
        now_ms = self._now_ms()
        return min(entry.ends_ms, now_ms) if entry.boot_id == self.platform.boot_id() else now_ms

    async def _look_again(self, worker: int) -> list[str]:
        entry, lines = self.journal.entries[worker], list[str]()
        if entry.state is not JournalState.UNDONE:
            return lines
        held = functools.partial(self._held, worker)
        found = await All([self._hands.residue(step, held, first(0)) for step in entry.steps])
        failed = [in_words(one) for one in found if isinstance(one, Exception)]
        back = [text for one in found if not isinstance(one, Exception) for text in one]
        what = f"came back: {'; '.join(back)}" if back else ""
        if failed:
            what = f"cannot be looked at again: {failed[0]}"
        if what:
            lines.append(f"worker {worker} of task {entry.task} {what}; undoing again")
            self.journal.keep(msgspec.structs.replace(entry, state=JournalState.UNKNOWN))
            try:
                trouble = await self._heal_to_the_end(worker)
            except CannotHealError as error:
                trouble = str(error)
            lines += [trouble] if trouble else []
        return lines

    async def _heal_to_the_end(self, worker: int) -> str:
        while True:
            entry = self.journal.entries[worker]
            try:
                return (await self._heal(entry, entry.outcome, entry.error, entry.error, self._now_ms()))[1]
            except NotYetError:
                await Pause(AGAIN_S)

    async def _apply(self, intent: Entry, steps: list[Step], index: int) -> tuple[str, ...]:
        """Perform the steps from that index on."""
        worker = intent.worker
        try:
            while index < len(steps):
                if done := await self._done(steps[index]):
                    steps[index] = done
                    if index + 1 < len(steps):  # what it is undone by is on disk before the next one is done
                        await self._put(msgspec.structs.replace(intent, steps=tuple(steps)))
                index += 1
        except NotYetError:
            self._begun[worker] = functools.partial(self._apply, intent, steps, index)
            raise
        except Exception as error:
            begun = msgspec.structs.replace(intent, steps=tuple(steps))
            raise await self._take_back(begun, in_words(error)) from error
        applied = msgspec.structs.replace(intent, state=JournalState.APPLIED, steps=tuple(steps))
        if trouble := await self._keep(applied):
            warning = f"the journal could not note that this was done (it can still be undone): {trouble}"
            applied = msgspec.structs.replace(applied, warnings=(*applied.warnings, warning))
            self.journal.keep(applied)
        return applied.warnings

    async def _done(self, step: Step) -> Step | None:
        """Perform a step; return it with another undo if it has one from then on."""
        undo = await self._hands.do(step)
        return msgspec.structs.replace(step, undo=undo) if undo is not None else None

    async def _take_back(self, intent: Entry, why: str) -> NotInjectedError:
        try:  # notes would tell of steps never done
            _, trouble = await self._heal(intent, Outcome.FAILED, why, why, self._now_ms())
        except NotYetError:
            self._begun[intent.worker] = functools.partial(self._go_on_taking_back, intent.worker, why)
            raise
        except CannotHealError as error:
            residue = self.journal.entries[intent.worker].residue
            return NotInjectedError(f"{why}; {error}", residue=residue, stuck=True)
        return NotInjectedError(f"{why}; {trouble}" if trouble else why)

    async def _go_on_taking_back(self, worker: int, why: str) -> NoReturn:
        raise await self._take_back(self.journal.entries[worker], why)

    async def _heal(
        self, entry: Entry, outcome: Outcome, error: str, cause: str, due_ms: int
    ) -> tuple[tuple[str, ...], str]:
        """Undo, look, and write; return the platform's notes, and "" or the trouble with the journal.

        NotYetError if nothing failed, and what is left goes on by itself: a later life would undo it, too.
        """
        self._undoing.add(entry.worker)  # until it is written down: others must not leave anything to it meanwhile
        try:
            return await self._heal_steps(entry, outcome, error, cause, due_ms)
        except TrogdorBusError:
            raise
        except Exception as unforeseen:  # it must not keep others from being undone, in no life
            log.exception("internal error in the undo of task %s", entry.task)
            undoing = Undoing(failures=[f"internal error: {in_words(unforeseen)}"], left=entry.steps)
            undoing.residue = await self._seen_left(entry)
            raise await self._stuck(entry, undoing, cause) from unforeseen
        finally:
            self._undoing.discard(entry.worker)

    async def _seen_left(self, entry: Entry) -> list[str]:
        """Return what can be seen of a worker that may not be undone; never raises."""
        held = functools.partial(self._held, entry.worker)
        found = await All([self._hands.residue(step, held, first(0)) for step in entry.steps])
        return [text for one in found if not isinstance(one, Exception) for text in one]

    async def _heal_steps(
        self, entry: Entry, outcome: Outcome, error: str, cause: str, due_ms: int
    ) -> tuple[tuple[str, ...], str]:
        undoing = await self._undo_all(entry, due_ms)
        late_ms = max(0, self._now_ms() - due_ms)
        if undoing.awaited and not undoing.failures and not undoing.residue:
            raise await self._going_on(entry, undoing, outcome, error)
        if undoing.left:
            raise await self._stuck(entry, undoing, cause)
        if entry.state is JournalState.STUCK:
            outcome, error = Outcome.FAILED, _late(entry)
        undone = msgspec.structs.replace(
            entry,
            state=JournalState.UNDONE,
            outcome=outcome,
            error=error,
            residue=(),
            cause="",
            trouble="",
            late_ms=late_ms,
        )
        if trouble := await self._keep(undone):
            trouble = f"undone, but this could not be written down, so a restart undoes it once more: {trouble}"
        return tuple(note for note in undoing.notes if note), trouble

    async def _stuck(self, entry: Entry, undoing: Undoing, cause: str) -> CannotHealError:
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
        if trouble := await self._keep(stuck):
            text = f"{text}; and the journal could not be written: {trouble}"
        return CannotHealError(text)

    async def _going_on(self, entry: Entry, undoing: Undoing, outcome: Outcome, error: str) -> NotYetError:
        state = JournalState.STUCK if entry.state is JournalState.STUCK else JournalState.UNKNOWN
        begun = msgspec.structs.replace(entry, state=state, steps=undoing.left, outcome=outcome, error=error)
        notes = [note for note in undoing.notes if note]
        if begun != self.journal.entries[entry.worker] and (trouble := await self._keep(begun)):
            notes.append(f"the journal could not note how far the undo is (a restart begins it once more): {trouble}")
        return NotYetError("; ".join(undoing.awaited), tuple(notes), overdue=undoing.overdue)

    async def _undo_all(self, entry: Entry, due_ms: int) -> Undoing:
        def noted(steps: tuple[Step, ...]) -> str:
            return self._keep_now(msgspec.structs.replace(entry, steps=steps))

        held = functools.partial(self._held, entry.worker)
        return await undo_all(self._hands, entry.steps, held, noted, first(due_ms))

    async def _put(self, entry: Entry) -> None:
        """Have the entry on disk; after a HostError the memory is as before."""
        self.journal.keep(await _disk(functools.partial(self.journal.write, entry)))

    async def _keep(self, entry: Entry) -> str:
        """Write the entry; if that fails, keep it in memory all the same and return the trouble."""
        try:
            await self._put(entry)
        except HostError as error:
            self.journal.keep(entry)
            return str(error)
        return ""

    def _keep_now(self, entry: Entry) -> str:
        """Do the same in the lane of an undo, which the disk must not keep either."""
        try:
            self.journal.keep(self._within(DISK_S, functools.partial(self.journal.write, entry)))
        except HostError as error:
            self.journal.keep(entry)
            return str(error)
        return ""


async def _disk(work: Callable[[], T]) -> T:
    try:
        return await Within(DISK_S, Call(JOURNAL, work))
    except TimeoutError:
        raise HostError(f"the disk of the state directory does not answer within {DISK_S:g} s") from None


def _or_raise(outcomes: Sequence[T | Exception]) -> list[T]:
    """Return the outcomes; raise the first of those that are what nobody foresaw."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]


def _failed(entry: Entry, error: str) -> Entry:
    return msgspec.structs.replace(entry, state=JournalState.UNDONE, outcome=Outcome.FAILED, error=error)


def _met_nothing(prepared: Prepared) -> str:
    return "; ".join(prepared.warnings) or "there was nothing to do"


def _late(entry: Entry) -> str:
    """Return what is true of a worker that was stuck and is undone now."""
    because = f"; at first its undo failed: {entry.trouble}" if entry.trouble else ""
    late = f"undone late, and nothing is left{because}"
    return f"{entry.cause}; {late}" if entry.cause else late
