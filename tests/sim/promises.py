"""What an agent of the simulation must keep to, checked by somebody who has only seen the same frames and steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tests.sim.model import FOREIGN, dropped
from trogdor_bus.actions import Peer
from trogdor_bus.agents.events import Heal, Inject, KeepLatch, NotHealed
from trogdor_bus.agents.journal import Journal, JournalState
from trogdor_bus.agents.worker import Worker
from trogdor_bus.messages import Beat, Report, Snapshot, Stamp
from trogdor_bus.states import Outcome, WorkerState

if TYPE_CHECKING:
    from tests.sim.agent import SimAgent

FRESH_MS = 5_000
"""The promise that is checked; the machine has a constant of its own."""
LATE_MS = 15_000
"""For so long an undo may wait for others of its lane, each of which takes up to 300 ms."""
SLACK_MS = 1_000
"""How late an agent that is awake may notice something."""


class Promises:
    """What was seen of one agent: in this life, and (`kept`, `latch`) of what its disk must know for ever."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._world = agent, agent.world
        self.kept: set[int] = set()
        self.journal_id = self.latch = ""
        self.fresh_ms: int | None = None
        self._unsure = False
        self._ending: dict[int, int] = {}
        self._sent: dict[int, int] = {}
        self._stamp: Stamp | None = None

    def begin(self, journal: Journal) -> None:
        """Check, when a life begins, that the disk kept who we are and that nothing of an earlier life is in force."""
        agent = self._agent
        self._ending.clear()
        self.fresh_ms, self._sent, self._stamp = None, {}, None
        self._fresh_since, self._fresh_of, self._echoed_ms, self._in_order = 0, "", None, False
        if self.journal_id and journal.id != self.journal_id:
            self._world.fail((agent.node,), f"{agent.node} lost its journal {self.journal_id}")
        self.journal_id = journal.id
        for worker in self.kept:
            if not journal.knows(worker):
                self._world.fail((agent.node, str(worker)), f"the journal of {agent.node} lost worker {worker}")
        if not self._unsure and journal.latch != self.latch:
            self._world.fail((agent.node,), f"{agent.node} forgot its latch {self.latch!r}, it has {journal.latch!r}")
        self.latch, self._unsure = journal.latch, False
        goes_on = agent.platform.waits > 0
        known = {entry.worker for entry in journal.live() if goes_on or entry.state is JournalState.STUCK}
        for worker, effect in agent.platform.held():
            if worker not in known:
                self._world.fail((agent.node, str(worker)), f"{effect} of worker {worker} outlived its agent")
        self.check_foreign()

    def acknowledge(self, before: tuple[int, ...]) -> None:
        """Note which workers are told of no more since the last word: its store knows how they ended."""
        machine = self._agent.machine
        if machine is not None and self._stamp is not None:
            store = self._world.kept[self._stamp.coordinator]
            for worker in before:
                if worker not in machine.workers:
                    self._world.acknowledged[worker] = (store, store.replaced)

    def lose(self) -> None:
        """Forget what the disk should know: it was wiped."""
        self.kept.clear()
        self.journal_id, self._unsure = "", True

    # --- frames -----------------------------------------------------------------------------------------------------

    def listen(self, snapshot: Snapshot) -> None:
        """Note, by ourselves, how fresh a word is."""
        agent, echo = self._agent, snapshot.echo
        stamp = (snapshot.stamp.epoch, snapshot.stamp.revision)
        held = (self._stamp.epoch, self._stamp.revision) if self._stamp else (0, 0)
        self._in_order = stamp >= held
        ours = echo is not None and agent.journal is not None and echo.journal == agent.journal.id
        sent_ms = self._sent.get(echo.counter) if ours and echo else None
        self._echoed_ms = sent_ms
        if ours and self._in_order and not self._clashes(snapshot.stamp):
            self._stamp = snapshot.stamp
            if sent_ms is not None and agent.clock.now_ms() - sent_ms < FRESH_MS:
                self.fresh_ms = agent.clock.now_ms()
                self._fresh_since, self._fresh_of = self._world.now, snapshot.stamp.coordinator

    def _clashes(self, stamp: Stamp) -> bool:
        held = self._stamp
        return held is not None and stamp.epoch == held.epoch and stamp.coordinator != held.coordinator

    def check_send(self, beat: Beat) -> None:
        """Check a beat against the machine, and remember when it was sent."""
        self._sent[beat.counter] = self._agent.clock.now_ms()
        for report in beat.reports:
            if report.state in (WorkerState.DONE, WorkerState.STUCK):
                self._check_report(report)
        if beat.latch and beat.latch == self.latch:
            open_ = {one.worker for one in beat.reports if one.state is not WorkerState.DONE}
            left = [effect for worker, effect in self._agent.platform.held() if worker not in open_]
            if left:
                self._world.fail((self._agent.node,), f"{self._agent.node} is aborted, and {left} is in force")

    def _check_report(self, report: Report) -> None:
        """Check that what is called done is gone, and that all that is left of what is stuck is told."""
        agent, own = self._agent, f"{report.worker}: "
        left = {what for who, what in agent.platform.held() if who == report.worker and what.startswith(own)}
        ids = (agent.node, report.task, str(report.worker))
        self._world.truth.setdefault(report.worker, set()).add((report.outcome, report.error))
        if report.state is WorkerState.DONE:
            if left:
                self._world.fail(ids, f"worker {report.worker} is called done, but {left} is in force")
            if report.outcome is Outcome.DONE and (error := agent.platform.over.get(report.worker)):
                self._world.fail(ids, f"worker {report.worker} is called done, but its program {error}")
        elif not left <= set(report.residue):
            self._world.fail(ids, f"worker {report.worker} is stuck with {left}, but tells {report.residue}")

    # --- what the machine asks for ----------------------------------------------------------------------------------

    def check_order(self, effect: Inject, snapshot: Snapshot | None) -> None:
        """Check that a worker may start."""
        order, now_ms = effect.order, self._agent.clock.now_ms()
        where = (self._agent.node, order.task, str(order.worker))
        fail = self._world.fail
        if snapshot is None:
            fail(where, f"worker {order.worker} starts without a word from the coordinator")
        if self._echoed_ms is None or now_ms - self._echoed_ms >= FRESH_MS:
            fail(where, f"worker {order.worker} starts on a stale word (echoes {self._echoed_ms}, now {now_ms})")
        if not self._in_order or self._stamp != snapshot.stamp:
            fail(where, f"worker {order.worker} starts on an old word: {snapshot.stamp}, not {self._stamp}")
        if self.latch:
            fail(where, f"worker {order.worker} starts though {self._agent.node} is aborted by {self.latch}")
        self._world.watch(self._agent, effect)

    def check_stop(self, effect: Heal) -> None:
        """Check that a worker is not ended as done before its time, unless its coordinator says so."""
        agent = self._agent
        assert agent.machine is not None
        worker = agent.machine.workers[effect.worker]
        early = agent.clock.now_ms() < worker.ends_ms
        as_done = effect.outcome in (Outcome.DONE, Outcome.DISTURBED)
        over = agent.platform.over.get(effect.worker) == ""
        if early and as_done and not over and worker.state is not WorkerState.STUCK:
            store = self._world.kept.get(self._stamp.coordinator) if self._stamp else None
            kept = store.worker(effect.worker) if store else None
            if store and kept and kept.row.wanted and effect.worker not in store.unwanted_since:
                where = (agent.node, worker.task, str(worker.id))
                self._world.fail(where, f"worker {worker.id} ends early as done, though the coordinator wants it")

    def check_latch(self, effect: KeepLatch, snapshot: Snapshot | None) -> None:
        """Check that a latch is dropped only when the word says so; from now on nothing may start under a new one."""
        resumed = snapshot.resume if snapshot else ""
        if not effect.id and resumed != self.latch:
            self._world.fail((self._agent.node,), f"latch {self.latch} is dropped by a word that resumes {resumed!r}")
        self.latch, self._unsure = effect.id, True  # whether the disk has it is not sure until it is said

    def latch_kept(self, latch: str) -> None:
        """Note that the latch, or its absence, is on disk."""
        self._unsure = self._unsure and latch != self.latch

    def check_not_healed(self, event: NotHealed) -> None:
        """Check that what is stuck has a reason to be."""
        if event.worker not in self._agent.platform.failed:
            ids = (self._agent.node, str(event.worker))
            self._world.fail(ids, f"the undo of worker {event.worker} fails for no reason: {event.error}")

    def check_blocked(self, worker: int, blocked: Iterable[Peer]) -> None:
        """Check that what is called blocked is."""
        for node, address in [(peer.node, address) for peer in blocked for address in peer.addresses]:
            self._world.tally.counts["new addresses blocked"] += 1
            if dropped(worker, node, address) not in self._agent.platform.effects:
                where = (self._agent.node, str(worker))
                self._world.fail(where, f"{address} of {node} is called blocked by worker {worker}, and is not")

    # --- at any moment ----------------------------------------------------------------------------------------------

    def check_foreign(self) -> None:
        """Check that what is not ours is there, in its order."""
        effects = self._agent.platform.effects
        if tuple(effect for effect in effects if effect in FOREIGN) != FOREIGN:
            self._world.fail((self._agent.node,), f"what is not ours was touched: {effects}")

    def check(self) -> None:
        """Check what must hold at any moment while the process runs."""
        agent = self._agent
        if agent.machine is None or agent.frozen:
            return
        self.check_foreign()
        if agent.machine.stamp != self._stamp:
            self._world.fail((agent.node,), f"{agent.node} obeys {agent.machine.stamp}, it should {self._stamp}")
        for worker in agent.machine.workers.values():
            if worker.state in (WorkerState.STARTING, WorkerState.RUNNING):
                self._check_working(worker)
            self._check_ending(worker)

    def _check_ending(self, worker: Worker) -> None:
        """Check that an undo waits for nothing but what it touches."""
        agent, now = self._agent, self._world.now
        entry = agent.journal.entries.get(worker.id) if agent.journal else None
        lanes = {agent.platform.lane("undo", step) for step in entry.steps} if entry else set[str]()
        waits = worker.awaits or lanes & agent.platform.hanging or not agent.platform.healthy
        if worker.state is not WorkerState.STOPPING or waits:
            self._ending.pop(worker.id, None)
            return
        hung = [agent.hung.get(lane, 0) for lane in lanes]
        since = max(self._ending.setdefault(worker.id, now), agent.awake_since, *hung)
        if now - since > LATE_MS:
            self._world.fail((agent.node, str(worker.id)), f"the undo of worker {worker.id} waits for something else")

    def _check_working(self, worker: Worker) -> None:
        agent, world = self._agent, self._world
        where = (agent.node, worker.task, str(worker.id))
        obeyed = world.leaders.get(self._fresh_of)
        stopped = obeyed.store.unwanted_since.get(worker.id) if obeyed else None
        if stopped is not None and self._fresh_since > stopped + FRESH_MS + SLACK_MS:
            world.fail(where, f"worker {worker.id} goes on though {agent.node} has heard that it must not")
        if self.latch:
            world.fail(where, f"worker {worker.id} goes on though {agent.node} is aborted")
        lease_ms = agent.limits.lease_ms
        if lease_ms is not None and world.now > agent.awake_since + SLACK_MS:
            silent = agent.clock.now_ms() - (self.fresh_ms or 0)
            if self.fresh_ms is None or silent > lease_ms + SLACK_MS:
                world.fail(where, f"worker {worker.id} goes on without a lease")
