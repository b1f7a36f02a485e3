"""An agent in the simulation: the real machine, journal and performer; only the shell around them is ours."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.agents.simdisk import Crash, SimDisk
from tests.sim.clock import DriftingClock, some_rate
from tests.sim.model import Machine
from tests.sim.promises import Promises
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
    Ticked,
)
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.machine import AgentMachine, Limits
from trogdor_bus.agents.perform import NotInjectedError, Performer
from trogdor_bus.agents.service import remembered
from trogdor_bus.errors import BusError, CannotHealError, HostError, NotYetError, TrogdorBusError
from trogdor_bus.messages import Beat, Snapshot, decode, encode
from trogdor_bus.platform import Surroundings
from trogdor_bus.transports.memory import COORDINATOR, MemoryAgent, MemoryCoordinator

if TYPE_CHECKING:
    from tests.sim.world import World


class SimAgent:
    """One host with its disk, clock and model machine, and the agent's process on it, if that runs.

    On some hosts a guard undoes at once what a killed process leaves.
    """

    def __init__(self, world: World, node: str, address: str, limits: Limits) -> None:
        self.world, self.node, self.limits = world, node, limits
        self.guarded = world.random.random() < 0.5
        self.platform = Machine(world.random, address, self._stepped)
        self.disk: SimDisk = world.new_disk(self.platform.points)
        self.clock = self._new_clock()
        self.machine: AgentMachine | None = None
        self.journal: Journal | None = None
        self.frozen = self.retired = False
        self.awake_since = self._life = 0
        self.promises = Promises(self)
        self._suspended_ms: int | None = None
        self._again = False
        self._unrecorded: set[int] = set()
        self._held_back: list[tuple[int, Callable[[], None]]] = []

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
        self.disk.gone = False
        self._count_leaks()
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
        if self.journal.broken:
            world.fail((self.node,), f"the journal of {self.node} is broken: {self.journal.broken}")
        if not self.promises.journal_id:
            world.journals = {name: at for name, at in world.journals.items() if at is not self}
        self.promises.begin(self.journal)
        self.machine = AgentMachine(
            self.node,
            self.journal.id,
            self.journal.life,
            tuple(map(remembered, self.journal.entries.values())),
            self.limits,
            now_ms=self.clock.now_ms(),
            latch=self.journal.latch,
        )
        self._taken = self.machine.taken
        world.journals[self.journal.id] = self
        world.tell((self.node,), "agent starts, journal {} life {}", self.journal.id, self.journal.life)
        self.awake_since, self._suspended_ms = world.now, None
        self._timer: int | None = None
        self._queue: deque[Effect] = deque()
        self._busy = False
        self._paused_ms = 0
        self._bus: MemoryAgent = world.network.agent(self.node)
        self._bus.receive(self._hear)
        self.handle(AddressesRead(self.platform.addresses()))

    def crash(self, *, power: bool = False) -> None:
        """End the process at once, and with `power` the whole machine."""
        ran = self.machine is not None
        if ran:
            self._leave()
        self._life += 1
        if power:
            self.disk.crash()
            self.platform.reboot()
            self.clock = self._new_clock()
        elif ran and self.guarded:
            self.world.after(self.world.random.randint(100, 1_000), self._alive(self._guard, dead=True))

    def wipe(self, *, gone: bool = False) -> None:
        """Let somebody empty the state directory, or (`gone`) remove it until the next start."""
        self.disk.wipe(gone=gone)
        self._unrecorded |= {worker for worker, _ in self.platform.applied}
        self.promises.lose()

    def _guard(self) -> None:
        """Undo what the dead process left, as the guard does; the node is clean then, or known to be stuck."""
        self._count_leaks()
        if self.disk.gone:
            return
        try:
            journal = Journal(self.disk, new_id=self.world.new_journal)
        except HostError:
            journal = Journal.read_only(self.disk)
        Performer(journal, self.platform, self._pause).recover(wait=True)
        self._paused_ms = 0
        if (held := self.platform.held()) and self.platform.healthy:
            self.world.fail((self.node,), f"the guard of {self.node} leaves {held}")

    def _count_leaks(self) -> None:
        """Give up what no file tells of since the directory was wiped: the one who remembered it is dead."""
        if self._unrecorded and self.machine is None:
            names = () if self.disk.gone else self.disk.names()
            self.platform.leak({worker for worker in self._unrecorded if f"worker-{worker}.json" not in names})
            self._unrecorded.clear()

    def end(self) -> None:
        """Ask the process to undo everything and end."""
        if self.machine is not None and self._suspended_ms is None:
            self._awake(lambda: self.handle(EndRequested()))

    def announce(self, address: str) -> None:
        """Let the machine get another address, which the process sees if it runs."""
        self.platform.more += (address,)
        if self.machine is not None and self._suspended_ms is None:
            self._awake(lambda: self.handle(AddressesRead(self.platform.addresses())))

    def freeze(self) -> None:
        """Stop the process where it is; what comes in waits."""
        self.frozen = self.machine is not None

    def suspend(self) -> None:
        """Let the machine sleep: its clock goes on, its timers do not, and what comes in is lost."""
        if self.machine is not None and not self.frozen:
            self.frozen, self._suspended_ms = True, self.world.now

    def thaw(self) -> None:
        """Let it go on: a frozen one with what has come in, in any order, a suspended one with its timers."""
        if not self.frozen:
            return
        waiting, self._held_back = self._held_back, []
        self.frozen, self.awake_since = False, self.world.now
        if self._suspended_ms is not None:
            assert self.machine is not None
            self._suspended_ms, self.awake_since = None, self.world.now + self.limits.beat_ms
            for left_ms, go_on in waiting:
                self.world.after(left_ms, go_on)
            return
        tick = (0, self._alive(self._tick))
        waiting = [*waiting, tick] if self.world.random.random() < 0.5 else [tick, *waiting]
        for _, go_on in waiting:
            go_on()

    def _leave(self) -> None:
        assert self.machine is not None
        self._bus.close()
        self.world.tally.agent_taken |= self._taken
        self.machine, self.frozen, self._suspended_ms, self._held_back = None, False, None, []

    def _awake(self, go_on: Callable[[], None]) -> None:
        """Go on now, or when the process is thawed; never in another life."""
        if self.frozen:
            slept_ms = self.world.now - self._suspended_ms if self._suspended_ms is not None else 0
            self._held_back.append((slept_ms, self._alive(go_on)))
        else:
            go_on()

    def _alive(self, go_on: Callable[[], None], *, dead: bool = False) -> Callable[[], None]:
        life = self._life

        def in_this_life() -> None:
            if life == self._life and (self.machine is None) is dead:
                self._awake(go_on)

        return in_this_life

    def _after(self, ms: int, go_on: Callable[[], None]) -> None:
        self.world.after(ms, self._alive(go_on))

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
                    if isinstance(effect, Inject) and not self.machine.workers[effect.order.worker].awaits:
                        self.promises.check_order(effect, snapshot)
                    elif isinstance(effect, Heal):
                        self.promises.check_stop(effect)
                    elif isinstance(effect, KeepLatch):
                        self.promises.check_latch(effect, snapshot)
                    self._queue.append(effect)
                    if not self._busy:
                        self._work()
                        if self.machine is None:
                            return
        self._set_timer()

    def _hear(self, frame: bytes) -> None:
        if self._suspended_ms is None:
            self._awake(lambda: self._frame(frame))

    def _frame(self, frame: bytes) -> None:
        try:
            snapshot: Snapshot = decode(frame, Snapshot)
        except BusError as error:
            self.world.fail((self.node,), f"{self.node} cannot read {frame!r}: {error}")
        self.promises.listen(snapshot)
        assert self.machine is not None
        before = tuple(self.machine.workers)
        self.handle(SnapshotHeard(snapshot), snapshot)
        self.promises.acknowledge(before)

    def _send(self, beat: Beat) -> None:
        world = self.world
        self.promises.check_send(beat)
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
            self._tick()

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

    def _perform(self, effect: Effect) -> Event | None:  # noqa: PLR0912 (one case per effect)
        match effect:
            case Inject(order=order):
                try:
                    warnings = self._performer.inject(order, effect.ends_ms, Surroundings(force=order.force))
                except NotInjectedError as error:
                    by_hand = self._performer.by_hand(order.worker) if error.stuck else ()
                    return NotInjected(order.worker, str(error), error.residue, by_hand, error.stuck)
                except NotYetError as error:
                    return NotYet(order.worker, str(error), error.notes)
                self.world.performed(order.worker)
                self.promises.kept.add(order.worker)
                return Injected(order.worker, warnings, self._performer.journal.entries[order.worker].met_nothing)
            case Heal(worker=worker):
                if not self._performer.journal.knows(worker):
                    return Healed(worker, last=None)
                seen: list[ReadBack] = []
                try:
                    notes = self._performer.heal(worker, effect.outcome, effect.error, effect.held_ms, seen.append)
                    entry = self._performer.journal.entries[worker]
                    return Healed(worker, notes, seen[0] if seen else None, entry.outcome, entry.error)
                except NotYetError as error:
                    return NotYet(worker, str(error), error.notes, seen[0] if seen else None)
                except CannotHealError as error:
                    entry = self._performer.journal.entries[worker]
                    by_hand = self._performer.by_hand(worker)
                    event = NotHealed(worker, str(error), entry.residue, by_hand, seen[0] if seen else None)
                    self.promises.check_not_healed(event)
                    return event
            case Look(workers=workers):
                return Looked({worker: self._performer.look(worker) for worker in workers})
            case Reapply(worker=worker, drift=drift):
                self._again = True
                try:
                    after = self._performer.reapply(worker, drift)
                    self.promises.check_blocked(worker, drift)
                    return Reapplied(worker, after=after, blocked=drift)
                except TrogdorBusError as error:
                    return Reapplied(worker, str(error))
                finally:
                    self._again = False
            case KeepLatch(id=latch):
                try:
                    self._performer.journal.keep_latch(latch)
                except HostError as error:
                    self.world.tell((self.node,), "the latch of {} is not on disk: {}", self.node, error)
                else:
                    self.promises.latch_kept(latch)
                return LatchKept(latch)
            case Forget(worker=worker):
                self.promises.kept.discard(worker)
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
        if not self._again:
            self.world.stepped(self.node, worker, effect)

    def _new_clock(self) -> DriftingClock:
        random = self.world.random
        return DriftingClock(lambda: self.world.now, random.randint(1_000, 10**9), some_rate(random))
