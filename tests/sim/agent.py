"""An agent in the simulation: the real machine, journal and performer; only the shell around them is ours."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.agents.simdisk import Crash, SimDisk
from tests.sim.clock import DriftingClock
from tests.sim.model import FOREIGN, Machine
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
    Look,
    Looked,
    NotHealed,
    NotInjected,
    SendBeat,
    SnapshotHeard,
    Ticked,
)
from trogdor_bus.agents.journal import Journal, JournalState
from trogdor_bus.agents.machine import AgentMachine, Limits, Worker
from trogdor_bus.agents.perform import NotInjectedError, Performer
from trogdor_bus.agents.service import remembered
from trogdor_bus.errors import BusError, CannotHealError, HostError, TrogdorBusError
from trogdor_bus.messages import Beat, Snapshot, decode, encode
from trogdor_bus.platform import Surroundings
from trogdor_bus.states import Outcome, WorkerState
from trogdor_bus.transports.memory import COORDINATOR, MemoryAgent, MemoryCoordinator

if TYPE_CHECKING:
    from tests.sim.world import World

FRESH_MS = 5_000
"""The promise that is checked; the machine has a constant of its own."""
SLACK_MS = 1_000
"""How late an agent that is awake may notice something."""


class SimAgent:
    """One host with its disk, clock and model machine, and the agent's process on it, if that runs."""

    def __init__(self, world: World, node: str, address: str, limits: Limits) -> None:
        self.world, self.node, self.limits = world, node, limits
        self.platform = Machine(world.random, address, self._stepped)
        self.disk: SimDisk = world.new_disk(self.platform.points)
        self.clock = self._new_clock()
        self.machine: AgentMachine | None = None
        self.journal: Journal | None = None
        self.frozen = self.retired = False
        self.awake_since = 0
        self._kept: set[int] = set()
        self._journal_id = ""
        self.fresh_ms: int | None = None
        self._life = 0
        self._held_back: list[Callable[[], None]] = []

    @property
    def up(self) -> bool:
        """Whether the process runs and is not frozen."""
        return self.machine is not None and not self.frozen

    # --- life and death ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process, if it does not run: heal what the journal holds, then listen."""
        if self.machine is not None or self.retired:
            return
        world = self.world
        self._life += 1
        try:
            self.journal = Journal(self.disk, new_id=world.new_journal)
            self._performer = Performer(self.journal, self.platform, self._pause)
            self._performer.recover()
        except HostError as error:
            world.tell((self.node,), "agent cannot start: {}", error)
            Performer(Journal.read_only(self.disk), self.platform, self._pause).recover()
            world.after(2_000, self.start)
            return
        except Crash:
            world.tell((self.node,), "agent crashes while it starts")
            self.crash(power=world.random.random() < 0.3)
            world.after(1_000, self.start)
            return
        self._check_journal(self.journal)
        if self.journal.broken:
            world.fail((self.node,), f"the journal of {self.node} is broken: {self.journal.broken}")
        self.machine = AgentMachine(
            self.node,
            self.journal.id,
            self.journal.life,
            tuple(map(remembered, self.journal.entries.values())),
            self.limits,
            now_ms=self.clock.now_ms(),
        )
        self._taken = self.machine.taken
        world.journals[self.journal.id] = self
        world.tell((self.node,), "agent starts, journal {} life {}", self.journal.id, self.journal.life)
        self.awake_since, self.fresh_ms = world.now, None
        self._sent: dict[int, int] = {}
        self._highest = (0, 0)
        self._fresh_since = 0
        self._timer: int | None = None
        self._queue: deque[Effect] = deque()
        self._busy = False
        self._paused_ms = 0
        self._bus: MemoryAgent = world.network.agent(self.node)
        self._bus.receive(lambda frame: self._awake(lambda: self._frame(frame)))
        self._held()
        self.handle(AddressesRead(self.platform.addresses()))

    def crash(self, *, power: bool = False, wipe: bool = False) -> None:
        """End the process at once, and with `power` the whole machine."""
        if self.machine is not None:
            self._leave()
        self._life += 1
        if power:
            self.disk.crash()
            self.platform.reboot()
            self.clock = self._new_clock()
            if wipe:
                self.world.journals = {name: at for name, at in self.world.journals.items() if at is not self}
                self.disk = self.world.new_disk(self.platform.points)
                self.journal, self._journal_id = None, ""
                self._kept.clear()

    def end(self) -> None:
        """Ask the process to undo everything and end."""
        if self.machine is not None:
            self._awake(lambda: self.handle(EndRequested()))

    def freeze(self) -> None:
        """Stop the process where it is."""
        self.frozen = self.machine is not None

    def thaw(self) -> None:
        """Let it go on with what has come in meanwhile, in any order."""
        if not self.frozen:
            return
        self.frozen, self.awake_since = False, self.world.now
        waiting, self._held_back = self._held_back, []
        if self.world.random.random() < 0.5:
            waiting.append(self._alive(self._tick))
        else:
            waiting.insert(0, self._alive(self._tick))
        for go_on in waiting:
            go_on()

    def _leave(self) -> None:
        assert self.machine is not None
        self._bus.close()
        self.world.tally.agent_taken |= self._taken
        self.machine, self.frozen, self._held_back = None, False, []

    def _awake(self, go_on: Callable[[], None]) -> None:
        """Go on now, or when the process is thawed; never in another life."""
        if self.frozen:
            self._held_back.append(self._alive(go_on))
        else:
            go_on()

    def _alive(self, go_on: Callable[[], None]) -> Callable[[], None]:
        life = self._life

        def in_this_life() -> None:
            if life == self._life and self.machine is not None:
                go_on()

        return in_this_life

    def _after(self, ms: int, go_on: Callable[[], None]) -> None:
        self.world.after(ms, self._alive(lambda: self._awake(go_on)))

    # --- the shell --------------------------------------------------------------------------------------------------

    def handle(self, event: Event, snapshot: Snapshot | None = None) -> None:
        """Give an event to the machine and perform what follows."""
        assert self.machine is not None
        if self.world.telling:
            self.world.tell_agent(self.node, event)
        try:
            effects = self.machine.handle(event, self.clock.now_ms())
        except TrogdorBusError as error:
            self.world.fail((self.node,), f"the machine of {self.node} refuses {type(event).__name__}: {error}")
        for effect in effects:
            match effect:
                case SendBeat(beat=beat):
                    self._send(beat)
                case Exit():
                    self.world.tell((self.node,), "agent ends")
                    self._leave()
                    return
                case _:
                    if isinstance(effect, Inject):
                        self._check_order(effect, snapshot)
                    elif isinstance(effect, Heal):
                        self._check_stop(effect)
                    self._queue.append(effect)
                    if not self._busy:
                        self._work()
                        if self.machine is None:
                            return
        self._set_timer()

    def _frame(self, frame: bytes) -> None:
        try:
            snapshot: Snapshot = decode(frame, Snapshot)
        except BusError as error:
            self.world.fail((self.node,), f"{self.node} cannot read {frame!r}: {error}")
        self._listen(snapshot)
        self.handle(SnapshotHeard(snapshot), snapshot)

    def _send(self, beat: Beat) -> None:
        world = self.world
        self._sent[beat.counter] = self.clock.now_ms()
        for report in beat.reports:
            if report.state is WorkerState.DONE:
                world.truth.setdefault(report.worker, set()).add((report.outcome, report.error))
        if world.reaches(self.node, COORDINATOR) and world.network.listening(MemoryCoordinator, COORDINATOR):
            world.lag()
            self._bus.send(encode(beat))
        world.tally.counts["frames"] += 1

    def _set_timer(self) -> None:
        assert self.machine is not None
        at = max(self.world.now, self.clock.when(self.machine.deadline()))
        if at != self._timer:
            self._timer = at
            self.world.at(at, self._alive(lambda: self._timed(at)))

    def _timed(self, at: int) -> None:
        if at == self._timer:
            self._timer = None
            self._awake(self._tick)

    def _tick(self) -> None:
        assert self.machine is not None
        if self.clock.now_ms() >= self.machine.deadline():
            self.handle(Ticked())
        else:
            self._set_timer()

    # --- the hands --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Begin the first thing in the queue: an injection acts at once and answers later, the rest acts later."""
        if not self._queue:
            return
        effect, self._busy = self._queue.popleft(), True
        takes_ms = self.world.work_ms(self.platform.sticky)
        if isinstance(effect, Inject):
            event = self._do(effect)
            if self.machine is not None:
                self._after(takes_ms + self._pauses(), lambda: self._worked(event))
        else:
            self._after(takes_ms, lambda: self._finish(effect))

    def _finish(self, effect: Effect) -> None:
        event = self._do(effect)
        if self.machine is not None:
            self._after(self._pauses(), lambda: self._worked(event))

    def _worked(self, event: Event | None) -> None:
        self._busy = False
        if event is not None:
            self.handle(event)
        if self.machine is not None and not self._busy:
            self._work()

    def _do(self, effect: Effect) -> Event | None:
        world = self.world
        if world.random.random() < world.crash_chance:
            self.platform.points.left = world.random.randint(1, 24)
        try:
            return self._perform(effect)
        except Crash as crash:
            power = world.random.random() < 0.4
            world.tally.counts["crashes in the middle"] += 1
            world.tell((self.node,), "agent crashes {} ({})", crash, "power" if power else "process")
            self.crash(power=power)
            world.after(world.random.randint(200, 15_000), self.start)
            return None
        finally:
            self.platform.points.left = 0

    def _perform(self, effect: Effect) -> Event | None:
        match effect:
            case Inject(order=order):
                try:
                    warnings = self._performer.inject(order, effect.ends_ms, Surroundings(force=order.force))
                except NotInjectedError as error:
                    return NotInjected(order.worker, str(error), error.residue, error.stuck)
                self.world.performed(order.worker)
                self._kept.add(order.worker)
                return Injected(order.worker, warnings)
            case Heal(worker=worker):
                try:
                    return Healed(worker, self._performer.heal(worker, effect.outcome, effect.error))
                except CannotHealError as error:
                    return NotHealed(worker, str(error), self._performer.journal.entries[worker].residue)
            case Look(workers=workers):
                return Looked({worker: self._performer.disturbances(worker) for worker in workers})
            case Forget(worker=worker):
                self._kept.discard(worker)
                try:
                    self._performer.forget(worker)
                except TrogdorBusError as error:
                    self.world.tell((self.node,), "worker {} stays in the journal: {}", worker, error)
        return None

    def _pause(self, seconds: float) -> None:
        self._paused_ms += round(seconds * 1000)

    def _pauses(self) -> int:
        paused, self._paused_ms = self._paused_ms, 0
        return paused

    def _stepped(self, worker: int, effect: str) -> None:
        self.world.stepped(self.node, worker, effect)

    def _new_clock(self) -> DriftingClock:
        random = self.world.random
        return DriftingClock(lambda: self.world.now, random.randint(1_000, 10**9), random.randint(995, 1005))

    # --- what is promised -------------------------------------------------------------------------------------------

    def _listen(self, snapshot: Snapshot) -> None:
        """Note, by ourselves, how fresh the coordinator's word is."""
        assert self.journal is not None
        stamp = (snapshot.stamp.epoch, snapshot.stamp.revision)
        self._in_order = stamp >= self._highest
        echo = snapshot.echo
        ours = echo is not None and echo.journal == self.journal.id
        if ours:
            self._highest = max(self._highest, stamp)
        sent_ms = self._sent.get(echo.counter) if ours and echo else None
        self._echoed_ms = sent_ms
        if sent_ms is not None and self.clock.now_ms() - sent_ms < FRESH_MS and self._in_order:
            self.fresh_ms = self.clock.now_ms()
            self._fresh_since = self.world.now

    def _check_order(self, effect: Inject, snapshot: Snapshot | None) -> None:
        world, order, now_ms = self.world, effect.order, self.clock.now_ms()
        where = (self.node, order.task, str(order.worker))
        if snapshot is None:
            world.fail(where, f"worker {order.worker} starts without a word from the coordinator")
        if self._echoed_ms is None or now_ms - self._echoed_ms >= FRESH_MS:
            world.fail(where, f"worker {order.worker} starts on a stale word (echoes {self._echoed_ms}, now {now_ms})")
        if not self._in_order:
            world.fail(where, f"worker {order.worker} starts on an old word: {snapshot and snapshot.stamp}")
        world.watch(self, effect)

    def _check_stop(self, effect: Heal) -> None:
        assert self.machine is not None
        worker = self.machine.workers[effect.worker]
        early = self.clock.now_ms() < worker.ends_ms
        if early and effect.outcome is Outcome.DONE and worker.state is not WorkerState.STUCK:
            kept = self.world.coordinator.store.worker(effect.worker)
            if kept is not None and kept.row.wanted:
                where = (self.node, worker.task, str(worker.id))
                self.world.fail(where, f"worker {worker.id} ends early as done, though the coordinator wants it")

    def _check_journal(self, journal: Journal) -> None:
        """Check that the disk kept who we are, and what was performed and not forgotten."""
        if self._journal_id and journal.id != self._journal_id:
            self.world.fail((self.node,), f"{self.node} lost its journal {self._journal_id}")
        self._journal_id = journal.id
        for worker in self._kept:
            if not journal.knows(worker):
                self.world.fail((self.node, str(worker)), f"the journal of {self.node} lost worker {worker}")

    def _held(self) -> None:
        """Check, when a life begins, that nothing of an earlier life is in force, unless it is known to be stuck."""
        assert self.machine is not None
        assert self.journal is not None
        stuck = {entry.worker for entry in self.journal.live() if entry.state is JournalState.STUCK}
        for worker, effect in self.platform.applied:
            if effect in self.platform.effects and worker not in stuck:
                self.world.fail(
                    (self.node, str(worker)), f"{effect} of worker {worker} outlived a restart of its agent"
                )
        self._check_foreign()

    def _check_foreign(self) -> None:
        foreign = tuple(effect for effect in self.platform.effects if effect in FOREIGN)
        if foreign != FOREIGN:
            self.world.fail((self.node,), f"what is not ours was touched: {self.platform.effects}")

    def check(self) -> None:
        """Check what must hold at any moment while the process runs."""
        if self.machine is None or self.frozen:
            return
        self._check_foreign()
        for worker in self.machine.workers.values():
            if worker.state in (WorkerState.STARTING, WorkerState.RUNNING):
                self._check_working(worker)

    def _check_working(self, worker: Worker) -> None:
        where = (self.node, worker.task, str(worker.id))
        stopped = self.world.coordinator.store.unwanted_since.get(worker.id)
        if stopped is not None and self._fresh_since > stopped + FRESH_MS + SLACK_MS:
            self.world.fail(where, f"worker {worker.id} goes on though {self.node} has heard that it must not")
        lease_ms = self.limits.lease_ms
        if lease_ms is not None and self.world.now > self.awake_since + SLACK_MS:
            silent = self.clock.now_ms() - (self.fresh_ms or 0)
            if self.fresh_ms is None or silent > lease_ms + SLACK_MS:
                self.world.fail(where, f"worker {worker.id} goes on without a lease")
