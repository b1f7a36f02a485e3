"""One worker as the agent knows it: what it is told to do, what was seen of it, and how it ends. Pure."""

from __future__ import annotations

import msgspec

from trogdor_bus.actions import Peer
from trogdor_bus.agents.drift import Drift
from trogdor_bus.agents.events import Inject, ReadBack
from trogdor_bus.messages import UNTOLD, is_readable
from trogdor_bus.spec import Texts
from trogdor_bus.states import Disturbance, Outcome, WorkerState, ended, how_late

DISTURBANCES = 10
"""So many are told of each worker, the first ones; one that is not put back is among them."""
UNMET = "no packet met it: nothing was cut that anybody sent"


class Worker(msgspec.Struct, kw_only=True):
    """One worker as the agent knows it; times on CLOCK_BOOTTIME, `retry_ms` None while nothing is to be asked again.

    `since_ms` is when it took hold, `stopped_ms` when it was told to end, `due_ms` when it is to be gone (after a wait
    for somebody: when it is asked for again), and `late_ms` how long after that it was, waits left out. `inject` is
    what it began with, `awaits` what its do or undo waits for; `overdue`: that should have happened by now.
    `met_nothing`: why there was nothing to do. `put_back`: how often what was disturbed was put back. `progress` is
    what runs for it said last of itself (JSON), `stirred` whether that may have ended since. `counted` are packets
    since its rules are there (None: not to be known), `before` those that were counted before its rules were put back.
    `drift` is what its peers announce since.
    """

    id: int
    task: str
    state: WorkerState
    texts: Texts
    ends_ms: int
    spec: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    outcome: Outcome = Outcome.NONE
    warnings: tuple[str, ...] = ()
    disturbed: tuple[Disturbance, ...] = ()
    residue: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    dropped: int = 0
    counted: int | None = None
    before: int = 0
    reapply: bool = False
    drift: Drift = msgspec.field(default_factory=Drift)
    put_back: int = 0
    progress: msgspec.Raw = msgspec.Raw(b"null")
    stirred: bool = False
    met_nothing: str = ""
    since_ms: int = 0
    stopped_ms: int = 0
    due_ms: int = 0
    late_ms: int = 0
    done_counter: int = 0
    retry_ms: int | None = 0
    inject: Inject | None = None
    awaits: str = ""
    overdue: bool = False
    story: list[str] = msgspec.field(default_factory=list)

    def status(self) -> str:
        """Return the status text of the present state."""
        if self.state is WorkerState.STARTING:
            return f"{self.texts.starting}: {self.awaits}" if self.awaits else self.texts.starting
        if self.state is WorkerState.RUNNING:
            return self.texts.running
        if self.state is WorkerState.DONE:
            return self.texts.done if self.outcome is Outcome.DONE else self.error
        return f"{self.texts.stopping}: {self.awaits}" if self.awaits else self.texts.stopping

    def see(self, seen: ReadBack, now_ms: int) -> None:
        """Take in a look while it runs."""
        self._count(seen.dropped)
        self.dropped = self.dropped or self._total()  # that it drops is news; how much is told at its end
        self._hear(seen.status)
        self._look(seen, now_ms)

    def see_last(self, last: ReadBack | None) -> None:
        """Take in the look directly before the undo; None if there was one before."""
        if last is None:
            return
        self._count(last.dropped)
        self.dropped = max(self.dropped, self._total())
        self._hear(last.status)
        if last.ended and self.outcome in (Outcome.DONE, Outcome.DISTURBED):  # before it was told to
            self.outcome, self.error = Outcome.FAILED, last.ended
        self._look(last, self.stopped_ms)

    def see_drift(self, drift: tuple[Peer, ...], now_ms: int) -> None:
        """Take in what its peers announce and no rule named when it was ordered."""
        self._disturb(self.drift.heed(drift), now_ms)

    def see_put_back(self, error: str, after: ReadBack, blocked: tuple[Peer, ...], now_ms: int) -> None:
        """Take in that what no longer held was done again, or why not, and what a look found afterwards."""
        if error:
            self._disturb((f"cannot be put back: {error}",), now_ms)
            return
        known, left = self.disturbed, (*after.found, *after.unseen, *self.drift.close(blocked))
        self.disturbed = tuple(one if one.text in left else msgspec.structs.replace(one, mended=True) for one in known)
        self.put_back += self.disturbed != known
        self._look(after, now_ms)

    def stop(self, outcome: Outcome, error: str, now_ms: int) -> None:
        """Note why it ends; of what is not known the last look decides."""
        seen = (one for one in self.disturbed if not one.unseen)
        self.outcome, self.error = ended(outcome, error, seen, self.met_nothing)
        self.stopped_ms, self.due_ms = now_ms, min(self.ends_ms, now_ms)

    def wait(self, why: str, now_ms: int, retry_ms: int, *, overdue: bool) -> None:
        """Note that its do or undo goes on by itself, and is asked for again then: who is not overdue is not late."""
        if self.state is WorkerState.STOPPING and not overdue:
            self.late_ms += 0 if self.awaits and not self.overdue else max(0, now_ms - self.due_ms)
            self.due_ms = retry_ms
        self.overdue = overdue
        self.awaits, self.retry_ms = why, retry_ms

    def fail(self, error: str, residue: tuple[str, ...], by_hand: tuple[str, ...], retry_ms: int) -> None:
        """Note that its do or undo failed, what is left, and when that is tried again."""
        self.error, self.outcome, self.residue, self.by_hand = error, Outcome.FAILED, residue, by_hand
        self.retry_ms, self.awaits, self.inject = retry_ms, "", None

    def told_at_the_end(self, bound_ms: int) -> tuple[str, ...]:
        """Return what people should know of it once it is undone; who changes rules takes their counts along."""
        times = f"{self.put_back} times" if self.put_back > 1 else "once"
        mended = (f"it was disturbed, and put back {times}",) if self.put_back else ()
        unmet = self.counted == 0 and not self.before and not self.disturbed
        late = self.late_ms > bound_ms and self.outcome is not Outcome.LATE
        return (*mended, *([UNMET] if unmet else []), *([how_late(self.late_ms)] if late else []))

    def _hear(self, status: msgspec.Raw) -> None:
        if status != UNTOLD and is_readable(status):
            self.progress = status

    def _look(self, seen: ReadBack, now_ms: int) -> None:
        """Note what a look found; what could not be looked at before, and can be now, is told by this look."""
        if not seen.unseen:
            self.disturbed = tuple(
                msgspec.structs.replace(one, mended=True) if one.unseen else one for one in self.disturbed
            )
        self._note(seen.disturbances(now_ms - self.since_ms))

    def _disturb(self, found: tuple[str, ...], now_ms: int) -> None:
        self._note(ReadBack(found).disturbances(now_ms - self.since_ms))

    def _note(self, found: tuple[Disturbance, ...]) -> None:
        """Note what is not known yet."""
        known = {one.text for one in self.disturbed if not one.mended}
        new = [one for one in found if one.text not in known]
        every = (*self.disturbed, *new)
        shown = every[:DISTURBANCES]
        left = [one for one in every[DISTURBANCES:] if not one.mended]
        if left and all(one.mended for one in shown):
            shown = (*shown[:-1], left[0])
        self.disturbed = shown

    def _count(self, dropped: int | None) -> None:
        """Take in a count of packets; one that is lower than before began anew, when the rules were put back."""
        if self.counted and (dropped or 0) < self.counted:
            self.before += self.counted
        self.counted = dropped

    def _total(self) -> int:
        return self.before + (self.counted or 0)
