"""The agent's worker table: events in, effects out, no clock, no socket, no machine.

`handle(event, now_ms)` returns what the shell must do; `deadline()` says when it must come back with `Ticked`. Times
are CLOCK_BOOTTIME ms of this node. The protocol's agent half lives here: stamps, freshness, once, leases, ends.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from trogdor_bus.agents.events import (
    AddressesRead,
    Effect,
    EndRequested,
    Event,
    Exit,
    Forget,
    Heal,
    Healed,
    Inject,
    Injected,
    KeepLatch,
    LatchKept,
    Look,
    Looked,
    NotHealed,
    NotInjected,
    NotYet,
    ReadBack,
    Reapplied,
    Reapply,
    SendBeat,
    SnapshotHeard,
    Stirred,
    StraysSeen,
    Ticked,
)
from trogdor_bus.agents.moves import ASKED, LIVE, TABLE, Move
from trogdor_bus.agents.worker import Worker
from trogdor_bus.errors import InvalidTransitionError
from trogdor_bus.messages import MAX_EPOCH, UNTOLD, Beat, Order, Report, Snapshot, Stamp, UnreadOrder
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.states import Outcome, WorkerState, ended, undone_late

FRESH_MS = 5_000
"""A snapshot may start work or renew the lease only if it echoes a beat younger than this."""
SOON_MS = 50
"""How long the news of something under way may wait for its outcome."""
LONELY_BEAT_MS = 250
"""The beat of an agent that no coordinator answers."""
STUCK_RETRY_MS = 15_000
"""How often the undo of a stuck worker is tried again."""
AGAIN_MS = 100
"""When what goes on by itself is asked for again."""
REFUSED_MS = 10_000
"""For so long a word counts by which this agent is refused."""
STORY_LINES = 30
ABORTED = "aborted: everything on this node was ended by `‹abort›`"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's own settings, ms; `lease_ms` None: no lease. What is undone later than `late_ms` is LATE."""

    beat_ms: int = 1_000
    lease_ms: int | None = 30_000
    ceiling_ms: int = 86_400_000
    late_ms: int = 1_000


class AgentMachine:
    """The pure worker table of one agent."""

    def __init__(
        self,
        node: str,
        journal: str,
        life: int,
        workers: tuple[Worker, ...] = (),
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        *,
        version: str = "",
        pid: int = 0,
        now_ms: int = 0,
        latch: str = "",
        attached: bool = False,
        counted: int = 0,
        barred: str = "",
    ) -> None:
        """Begin a life with the workers of earlier ones; `counted`: so many beats may have been sent in it already.

        `barred` is why nothing starts in this life, "" if it may.
        """
        self.node, self.journal, self.limits = node, journal, limits
        self.workers = {worker.id: worker for worker in workers}
        for worker in workers:
            worker.outcome, worker.error = undone_late(worker.outcome, worker.error, worker.late_ms, limits.late_ms)
        self.stamp: Stamp | None = None
        self.clash: Stamp | None = None
        self.fresh_ms: int | None = None
        self.leaving = False
        self._rival: tuple[str, int] = ("", 0)
        self.strays: tuple[str, ...] = ()
        self.latch = self._kept = latch
        self.taken: set[tuple[WorkerState, Move]] = set()
        self._version, self._pid, self._attached = version, pid, attached
        self._counter = (life << 32) + counted
        self._sent: dict[int, int] = {}
        self._past: dict[int, Worker] = {}
        self._place, self._barred = AddressesRead(()), barred
        self._coordinator: ProcessIdentity | None = None
        self._describe = False
        self._looking: set[int] = set()
        self._exited = False
        self._beat_ms = now_ms

    # --- what the shell calls ---------------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:  # noqa: PLR0912 (one case per event)
        """Return the effects of one event; an illegal one raises InvalidTransitionError and changes nothing."""
        effects: list[Effect] = []
        before = self._visible()
        match event:
            case SnapshotHeard(snapshot=snapshot):
                self._snapshot(snapshot, now_ms, effects)
            case Injected():
                self._injected(event, now_ms, effects)
            case NotInjected():
                self._not_injected(event, now_ms)
            case NotYet():
                self._not_yet(event, now_ms)
            case Healed():
                self._healed(event, now_ms)
            case NotHealed():
                self._not_healed(event, now_ms)
            case Looked(found=found):
                self._looked(found, now_ms, effects)
            case Reapplied():
                self._reapplied(event, now_ms)
            case Stirred(worker=worker_id):
                self._stirred(worker_id, now_ms, effects)
            case LatchKept(id=latch):
                self._kept = latch
            case AddressesRead():
                self._place = event
            case StraysSeen(lines=lines):
                self.strays = lines
            case EndRequested():
                self.leaving = True
                for worker in self.workers.values():
                    self._stop(worker, Outcome.RESTARTED, "agent stopped, fault undone", now_ms, effects)
            case Ticked():
                self._tick(now_ms, effects)
        done = self.leaving and not any(w.state in LIVE and w.state is not WorkerState.STUCK for w in self._all())
        settled, under_way = self._visible()
        if settled != before[0] or now_ms >= self._beat_ms or (done and not self._exited):
            effects.append(SendBeat(self._beat(now_ms, leaving=done)))
        elif under_way != before[1]:
            self._beat_ms = min(self._beat_ms, now_ms + SOON_MS)
        if done and not self._exited:
            self._exited = True
            effects.append(Exit())
        return effects

    def deadline(self) -> int:
        """Return when `Ticked` is due, CLOCK_BOOTTIME ms."""
        due = self._beat_ms
        for worker in self.workers.values():
            if worker.state in (WorkerState.STARTING, WorkerState.RUNNING):
                due = min(due, worker.ends_ms)
                if self.limits.lease_ms is not None and self.fresh_ms is not None:
                    due = min(due, self.fresh_ms + self.limits.lease_ms)
            if worker.state in ASKED and worker.retry_ms is not None:
                due = min(due, worker.retry_ms)
        return due

    def lonely(self, now_ms: int) -> bool:
        """Return whether no coordinator has answered for three beats."""
        return self.fresh_ms is None or now_ms - self.fresh_ms > 3 * self.limits.beat_ms

    def refused_by(self, now_ms: int) -> str:
        """Return the journal of the agent that is heard in this one's place, "" if none was told of lately."""
        journal, told_ms = self._rival
        return journal if now_ms - told_ms <= REFUSED_MS else ""

    # --- what was done ------------------------------------------------------------------------------------------------

    def _injected(self, event: Injected, now_ms: int, effects: list[Effect]) -> None:
        worker = self._known(event.worker, "injected")
        if self._move(worker, "injected", now_ms) is WorkerState.STOPPING:
            effects.append(Heal(worker.id, worker.outcome, worker.error, due_ms=worker.due_ms))
        elif worker.stirred:
            effects.append(Look((worker.id,)))
        worker.warnings, worker.met_nothing = event.warnings, event.met_nothing
        worker.since_ms = worker.stopped_ms = now_ms
        worker.awaits, worker.retry_ms, worker.inject = "", None, None

    def _not_injected(self, event: NotInjected, now_ms: int) -> None:
        worker = self._known(event.worker, "not-injected")
        self._move(worker, "half-injected" if event.stuck else "not-injected", now_ms)
        worker.fail(event.error, event.residue, event.by_hand, now_ms + STUCK_RETRY_MS)

    def _not_yet(self, event: NotYet, now_ms: int) -> None:
        worker = self._known(event.worker, "not-yet")
        self._move(worker, "not-yet", now_ms)
        worker.wait(event.why, now_ms, now_ms if worker.stirred else now_ms + AGAIN_MS, overdue=event.overdue)
        worker.stirred = False
        worker.warnings += event.notes
        if event.last is not None:
            worker.see_last(event.last)
            worker.outcome, worker.error = ended(worker.outcome, worker.error, worker.disturbed, worker.met_nothing)

    def _healed(self, event: Healed, now_ms: int) -> None:
        worker = self._known(event.worker, "healed")
        self._move(worker, "healed", now_ms)
        worker.see_last(event.last)
        if event.outcome is Outcome.NONE:
            how = ended(worker.outcome, worker.error, worker.disturbed, worker.met_nothing)
        else:
            how = event.outcome, event.error
        worker.late_ms += event.late_ms
        worker.outcome, worker.error = undone_late(*how, worker.late_ms, self.limits.late_ms)
        worker.warnings += (*event.notes, *worker.told_at_the_end(self.limits.late_ms))
        worker.residue = worker.by_hand = ()

    def _not_healed(self, event: NotHealed, now_ms: int) -> None:
        worker = self._known(event.worker, "not-healed")
        self._move(worker, "not-healed", now_ms)
        worker.see_last(event.last)
        worker.fail(event.error, event.residue, event.by_hand, now_ms + STUCK_RETRY_MS)

    # --- the protocol -----------------------------------------------------------------------------------------------

    def _snapshot(self, snapshot: Snapshot, now_ms: int, effects: list[Effect]) -> None:
        echo = snapshot.echo
        if snapshot.node == self.node and echo is not None and self.journal in snapshot.refused:
            self._rival = (echo.journal, now_ms)
        if snapshot.node != self.node or (echo is not None and echo.journal != self.journal):
            return  # meant for another agent, perhaps one of our name: what it should not have says nothing about us
        if not self._accept(snapshot.stamp):
            return
        if echo is None:  # it has not heard us: only an abort is meant for whoever is there
            self._heed_latch(snapshot, False, now_ms, effects)
            return
        sent_ms = self._sent.get(echo.counter)
        fresh = sent_ms is not None and now_ms - sent_ms < FRESH_MS
        self.stamp = snapshot.stamp
        self._describe = snapshot.describe
        if fresh:
            self.fresh_ms, self._rival = now_ms, ("", now_ms)
            self._coordinator = snapshot.coordinator
        self._heed_latch(snapshot, fresh, now_ms, effects)
        wanted = {order.worker: order for order in snapshot.orders if order.journal == self.journal}
        for worker_id in wanted.keys() & self._past.keys():
            past = self.workers[worker_id] = self._past.pop(worker_id)
            past.done_counter = 0  # an older store asks: tell again how it ended
        for worker in [one for one in self._all() if one.id not in wanted]:
            self._stop(worker, Outcome.DONE, "", now_ms, effects)
            heard = fresh and 0 < worker.done_counter <= echo.counter
            if worker.state is WorkerState.DONE and heard:
                self._move(worker, "forget", now_ms)
                self._past[worker.id] = self.workers.pop(worker.id)
        if fresh and sent_ms is not None and not self.leaving:
            self._obey(wanted, sent_ms, now_ms, effects)

    def _obey(self, orders: dict[int, Order], sent_ms: int, now_ms: int, effects: list[Effect]) -> None:
        """Start what is ordered by the answer to a beat that was sent then, and mend what runs as it says."""
        for order in orders.values():
            if order.worker not in self.workers and order.actions is not None:
                ends_ms = min(sent_ms + order.remaining_ms, now_ms + order.duration_ms)  # wall clocks can jump
                self._start(order, ends_ms, now_ms, effects)
            if (one := self.workers.get(order.worker)) and one.state is WorkerState.RUNNING:
                one.see_drift(order.drift, now_ms)

    def _heed_latch(self, snapshot: Snapshot, fresh: bool, now_ms: int, effects: list[Effect]) -> None:
        """Keep a latch that we are told of, drop the one that may be dropped, and end everything under one."""
        if snapshot.abort and snapshot.abort != self.latch:
            self.latch = snapshot.abort
            effects.append(KeepLatch(self.latch))
        elif fresh and self.latch and snapshot.resume == self.latch:
            self.latch = ""
            effects.append(KeepLatch(""))
        if self.latch:
            for worker in self._all():
                self._stop(worker, Outcome.ABORTED, ABORTED, now_ms, effects)

    def _accept(self, stamp: Stamp) -> bool:
        held = self.stamp
        if not 0 <= stamp.epoch <= MAX_EPOCH:
            return False
        if held is None or stamp.epoch > held.epoch:
            return True
        if stamp.epoch == held.epoch and stamp.coordinator != held.coordinator:
            self.clash = stamp
            return False
        return stamp.epoch == held.epoch and stamp.revision >= held.revision

    def _start(self, order: Order, ends_ms: int, now_ms: int, effects: list[Effect]) -> None:
        worker = Worker(
            id=order.worker,
            task=order.task,
            state=WorkerState.STARTING,
            texts=order.texts,
            ends_ms=ends_ms,
            spec=order.spec,
            reapply=order.reapply,
        )
        self.workers[worker.id] = worker
        worker.story.append(f"{now_ms}: ordered by {self.stamp}, ends {ends_ms}")
        refusal = self._refusal(order)
        if ends_ms <= now_ms and not isinstance(order, UnreadOrder):
            self._move(worker, "not-injected", now_ms)
            worker.outcome, worker.error = Outcome.EXPIRED, "worker expired"
        elif refusal:
            self._move(worker, "not-injected", now_ms)
            worker.outcome, worker.error = Outcome.FAILED, refusal
        else:
            worker.inject, worker.retry_ms = Inject(order, ends_ms, self._coordinator), None
            effects.append(worker.inject)

    def _refusal(self, order: Order) -> str:
        if isinstance(order, UnreadOrder):
            return f"the agent of node {self.node} does not know what it was ordered: {order.why}; upgrade the agent"
        if self._barred:
            return f"nothing starts on node {self.node} until its agent is ended and started anew: {self._barred}"
        if self.latch:
            return f"node {self.node} is aborted: nothing starts there until `‹resume›`"
        if order.duration_ms > self.limits.ceiling_ms:
            return (
                f"durationMs {order.duration_ms} is above this agent's ceiling of {self.limits.ceiling_ms} ms; "
                "shorten it, or start the agent with a higher ceiling"
            )
        stuck = [worker.task for worker in self._all() if worker.state is WorkerState.STUCK]
        if stuck and not order.force:
            return f"node {self.node} is dirty, the undo of task {stuck[0]} is stuck; heal it, or submit with ‹force›"
        if self.strays and not order.force:
            return f"node {self.node} is dirty, {self.strays[0]}; or submit with ‹force›"
        return ""

    def _stop(
        self,
        worker: Worker,
        outcome: Outcome,
        error: str,
        now_ms: int,
        effects: list[Effect],
        *,
        move: Literal["stop", "ended"] = "stop",
    ) -> None:
        before = worker.state
        self._move(worker, move, now_ms)
        if before in (WorkerState.STARTING, WorkerState.RUNNING):
            worker.stop(outcome, error, now_ms)  # the first reason counts
        if before is WorkerState.RUNNING:
            worker.retry_ms, held_ms = None, now_ms - worker.since_ms
            effects.append(Heal(worker.id, worker.outcome, worker.error, held_ms, worker.due_ms))

    def _tick(self, now_ms: int, effects: list[Effect]) -> None:
        lease_ms = self.limits.lease_ms
        lapsed = lease_ms is not None and self.fresh_ms is not None and now_ms - self.fresh_ms >= lease_ms
        for worker in self._all():
            if worker.state in (WorkerState.STARTING, WorkerState.RUNNING):
                if now_ms >= worker.ends_ms:
                    self._stop(worker, Outcome.DONE, "", now_ms, effects)
                elif lapsed:
                    error = f"lease expired: no fresh word from the coordinator for {lease_ms} ms"
                    self._stop(worker, Outcome.LEASE, error, now_ms, effects)
            if worker.state in ASKED and worker.retry_ms is not None and now_ms >= worker.retry_ms:
                worker.retry_ms = None
                if worker.state is WorkerState.STARTING and worker.inject is not None:
                    effects.append(worker.inject)
                else:  # what was begun is not brought to its end
                    effects.append(Heal(worker.id, worker.outcome, worker.error, due_ms=worker.due_ms))
        for worker in [worker for worker in self._past.values() if now_ms >= worker.ends_ms]:
            del self._past[worker.id]
            effects.append(Forget(worker.id))
        running = tuple(worker.id for worker in self._all() if worker.state is WorkerState.RUNNING)
        if now_ms >= self._beat_ms and (unseen := tuple(one for one in running if one not in self._looking)):
            self._looking |= set(unseen)
            effects.append(Look(unseen))

    def _looked(self, found: dict[int, ReadBack], now_ms: int, effects: list[Effect]) -> None:
        self._looking -= found.keys()
        for worker_id, seen in found.items():
            worker = self.workers.get(worker_id)
            if worker and worker.state is WorkerState.RUNNING:
                worker.see(seen, now_ms)
                if seen.ended is not None:
                    outcome = Outcome.FAILED if seen.ended else Outcome.DONE
                    self._stop(worker, outcome, seen.ended, now_ms, effects, move="ended")
                elif worker.reapply and (seen.found or seen.unseen or worker.drift.open):
                    self._looking.add(worker_id)  # it is looked at when it is put back
                    effects.append(Reapply(worker_id, worker.drift.open))

    def _stirred(self, worker_id: int, now_ms: int, effects: list[Effect]) -> None:
        worker = self.workers.get(worker_id)
        if worker and worker.state is WorkerState.RUNNING:
            effects.append(Look((worker_id,)))
        elif worker and worker.awaits and worker.retry_ms is not None:
            worker.retry_ms = now_ms
        elif worker:
            worker.stirred = True

    def _reapplied(self, event: Reapplied, now_ms: int) -> None:
        self._looking.discard(event.worker)
        worker = self.workers.get(event.worker)
        if worker is not None and worker.state is WorkerState.RUNNING:
            worker.see_put_back(event.error, event.after, event.blocked, now_ms)

    # --- beats ------------------------------------------------------------------------------------------------------

    def _beat(self, now_ms: int, *, leaving: bool) -> Beat:
        self._counter += 1
        self._sent = {counter: at for counter, at in self._sent.items() if now_ms - at < FRESH_MS}
        self._sent[self._counter] = now_ms
        self._beat_ms = now_ms + (LONELY_BEAT_MS if self.lonely(now_ms) else self.limits.beat_ms)
        for worker in self._all():
            if worker.state is WorkerState.DONE and not worker.done_counter:
                worker.done_counter = self._counter
        return Beat(
            node=self.node,
            journal=self.journal,
            counter=self._counter,
            stamp=self.stamp,
            reports=tuple(self._report(worker, now_ms) for worker in self._all()),
            addresses=self._place.addresses,
            version=self._version,
            pid=self._pid,
            clash=self.clash,
            latch=self._kept,
            leaving=leaving,
            broker=self._place.broker,
            controller=self._place.controller,
            trouble="; ".join(filter(None, (self._barred, self._place.trouble))),
            attached=self._attached,
            strays=self.strays,
        )

    def _report(self, worker: Worker, now_ms: int) -> Report:
        return Report(
            worker=worker.id,
            task=worker.task,
            state=worker.state,
            status=worker.status(),
            progress=worker.progress,
            error=worker.error,
            outcome=worker.outcome if worker.state in (WorkerState.DONE, WorkerState.STUCK) else Outcome.NONE,
            warnings=worker.warnings,
            disturbed=worker.disturbed,
            residue=worker.residue,
            by_hand=worker.by_hand,
            dropped=worker.dropped,
            late_ms=worker.late_ms,
            remaining_ms=max(0, worker.ends_ms - now_ms) if worker.state is not WorkerState.DONE else 0,
            spec=worker.spec if self._describe else UNTOLD,
        )

    # --- the table --------------------------------------------------------------------------------------------------

    def _move(self, worker: Worker, move: Move, now_ms: int) -> WorkerState | Literal["GONE"]:
        target = TABLE.get((worker.state, move))
        if target is None:
            raise InvalidTransitionError(f"worker {worker.id}", worker.state, move, tuple(worker.story))
        self.taken.add((worker.state, move))
        if target != worker.state:
            worker.story.append(f"{now_ms}: {move}: {worker.state} -> {target}")
            del worker.story[:-STORY_LINES]
        if target != "GONE":
            worker.state = target
        return target

    def _known(self, worker_id: int, move: Move) -> Worker:
        if worker_id not in self.workers:
            raise InvalidTransitionError(f"worker {worker_id}", "unknown", move)
        return self.workers[worker_id]

    def _all(self) -> tuple[Worker, ...]:
        return tuple(self.workers.values())

    def _visible(self) -> tuple[object, object]:
        """Return what a change of which is told at once, and what is told soon: most of it is settled by then."""
        workers = self._all()
        settled = tuple(
            (w.id, w.state, w.error, w.warnings, w.disturbed, w.residue, w.dropped) for w in workers if not _moving(w)
        )
        moving = tuple((w.id, w.state) for w in workers if _moving(w))
        return (self.clash, self._place, self.strays, self._describe, self._kept, settled), (self.stamp, moving)


def _moving(worker: Worker) -> bool:
    return worker.state in (WorkerState.STARTING, WorkerState.CANCELLING, WorkerState.STOPPING)
