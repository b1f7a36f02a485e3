"""An agent in the simulation: the real core, journal and performer; only clock, threads, bus and machine are ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tests.agents.simdisk import Crash, SimDisk
from tests.sim.clock import DriftingClock, some_rate
from tests.sim.fuse import PlantedError, SimFuse
from tests.sim.model import Machine, program
from tests.sim.promises import Promises
from tests.sim.skew import Speech, newer_beat, older
from trogdor_bus.agents.core import AgentCore
from trogdor_bus.agents.events import (
    AddressesRead,
    Effect,
    EndRequested,
    Event,
    Forget,
    Heal,
    Inject,
    Injected,
    KeepLatch,
    LatchKept,
    NotHealed,
    Reapplied,
    Reapply,
    SnapshotHeard,
    Stirred,
)
from trogdor_bus.agents.journal import Entry, Journal
from trogdor_bus.agents.lanes import Call, Lanes, carry_out, run
from trogdor_bus.agents.machine import AgentMachine, Limits
from trogdor_bus.agents.perform import Performer
from trogdor_bus.agents.service import remembered
from trogdor_bus.agents.work import Chore, Work
from trogdor_bus.clock import boot_ms
from trogdor_bus.errors import HostError, VersionError
from trogdor_bus.messages import Beat, Snapshot, decode, encode
from trogdor_bus.transports.memory import COORDINATOR, MemoryAgent, MemoryCoordinator

if TYPE_CHECKING:
    from tests.sim.world import World

HANGS_MS = 500
"""How often a lane that hangs is looked at."""


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
        self.frozen = self.retired = self.poisoned = False
        self.speech: Speech = "ours"
        self.fuse = SimFuse()
        self.awake_since = self._life = 0
        self.promises = Promises(self)
        self._suspended_ms: int | None = None
        self._again: set[int] = set()
        self.hung: dict[str, int] = {}
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
            self._performer = _Performer(self.journal, self.platform, self.clock.now_ms)
            run(self._performer.recover(), self._pause)
        except HostError as error:
            world.tell((self.node,), "agent cannot start: {}", error)
            run(_Performer(Journal.read_only(self.disk), self.platform).recover(), self._pause)
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
        self.fuse.start(world.now)
        self.machine = AgentMachine(
            self.node,
            self.journal.id,
            self.journal.life,
            tuple(map(remembered, self.journal.entries.values())),
            self.limits,
            now_ms=self.clock.now_ms(),
            latch=self.journal.latch,
            barred=self.fuse.said(),
        )
        self._taken = self.machine.taken
        world.journals[self.journal.id] = self
        world.tell((self.node,), "agent starts, journal {} life {}", self.journal.id, self.journal.life)
        self.awake_since, self._suspended_ms = world.now, None
        self._timer: int | None = None
        self._paused_ms = 0
        self._snapshot: Snapshot | None = None
        self._again.clear()
        self.lanes = Lanes(self._carry, lambda seconds, go_on: self._after(round(seconds * 1_000), go_on))
        self.work = Work(self._performer)
        self.bus: MemoryAgent = world.network.agent(self.node)
        self._core = _Core(self)
        self.bus.receive(self._hear)
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
        run(_Performer(journal, self.platform).recover(wait=True), self._pause)
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

    def hang(self, lane: str, *, hangs: bool) -> None:
        """Let what touches a part of the machine hang, or go on."""
        self.hung[lane] = self.world.now
        (self.platform.hanging.add if hangs else self.platform.hanging.discard)(lane)

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
        self.bus.close()
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

    def handle(self, event: Event) -> None:
        """Let something happen to the process."""
        self._core.feed(event)
        self._leave_at_the_end()

    def _leave_at_the_end(self) -> None:
        if self._core.ended and self.machine is not None:
            self.world.tell((self.node,), "agent ends")
            self._leave()

    def told(self, event: Event, now_ms: int) -> Sequence[Effect]:
        """Give an event to the machine, and return its effects."""
        assert self.machine is not None
        if self.world.telling:
            self.world.tell_agent(self.node, event)
        if self.poisoned and isinstance(event, SnapshotHeard) and event.snapshot.orders:
            self.machine.handle(event, now_ms)  # it has changed, and nobody is told how
            raise PlantedError
        return self.machine.handle(event, now_ms)

    def broke(self, error: Exception) -> None:
        """End the process, as a fuse does, at an error that was planted; any other is ours."""
        world = self.world
        if not isinstance(error, PlantedError):
            world.fail((self.node,), f"the shell of {self.node} broke: {error!r} {error.__cause__!r}")
        world.tally.counts["errors nobody foresaw"] += 1
        world.tally.counts["errors with a blown fuse"] += bool(self.fuse.said())
        world.tell((self.node,), "agent ends at what nobody foresaw")
        self.fuse.end(world.now, "")
        self.crash()
        world.after(world.random.randint(1_000, 3_000), self.start)

    def begin(self, chore: Chore) -> None:
        """Check that a chore may be done."""
        assert self.machine is not None
        if isinstance(chore, Inject) and self.fuse.said():
            self.world.fail((self.node,), f"{self.node} starts {chore.order.worker}, and its fuse is blown")
        if isinstance(chore, Inject) and not self.machine.workers[chore.order.worker].awaits:
            self.promises.check_order(chore, self._snapshot)
        elif isinstance(chore, Heal):
            self.platform.failed.discard(chore.worker)
            self.platform.tell_to_end(chore.worker)
            self.promises.check_stop(chore)
        elif isinstance(chore, KeepLatch):
            self.promises.check_latch(chore, self._snapshot)
        elif isinstance(chore, Forget):
            self.promises.kept.discard(chore.worker)
        elif isinstance(chore, Reapply):
            self._again.add(chore.worker)

    def came(self, outcome: Event | Exception | None) -> None:
        """Check what came of a chore."""
        promises = self.promises
        match outcome:
            case Injected(worker=worker):
                self.world.performed(worker)
                promises.kept.add(worker)
            case NotHealed():
                promises.check_not_healed(outcome)
            case Reapplied(worker=worker):
                self._again.discard(worker)
                if not outcome.error:
                    promises.check_blocked(worker, outcome.blocked)
            case LatchKept(id=latch, error=""):
                promises.latch_kept(latch)

    def fed(self) -> None:
        """Come back when it is due."""
        if self.machine is not None:
            self._set_timer()

    def _hear(self, frame: bytes) -> None:
        if self._suspended_ms is None:
            self._awake(lambda: self._frame(frame))

    def _frame(self, frame: bytes) -> None:
        try:
            self._snapshot = snapshot = decode(frame, Snapshot)
        except VersionError:
            self._core.hear(frame)
            return
        if not (self.poisoned and snapshot.orders):
            self.promises.listen(snapshot)
        assert self.machine is not None
        before = tuple(self.machine.workers)
        self._core.hear(frame)
        self._snapshot = None
        self.promises.acknowledge(before)

    def send(self, beat: Beat, on: Callable[[Beat], None]) -> None:
        """Check a beat, and send it if the world lets it out."""
        world = self.world
        self.promises.check_send(beat)
        if world.reaches(self.node, COORDINATOR) and world.network.listening(MemoryCoordinator, COORDINATOR):
            world.lag()
            on(beat)
        world.tally.counts["frames"] += 1

    def say(self, frame: bytes) -> None:
        """Send a frame in the words of the version that the process speaks."""
        if self.speech == "newer":
            frame, strange = newer_beat(frame, self.world.random)
            self.world.strange |= strange
            self.world.tally.counts["reports that cannot be read"] += len(strange)
        self.bus.send(older(frame) if self.speech == "older" else frame)

    def _set_timer(self) -> None:
        at = max(self.world.now, self.clock.when(self._core.shell.due()))
        if at != self._timer:
            self._timer = at
            self.world.at(at, self._alive(lambda: self._timed(at)))

    def _timed(self, at: int) -> None:
        if at == self._timer:
            self._timer = None
            self._tick()

    def _tick(self) -> None:
        if self.clock.now_ms() >= self._core.shell.due():
            self._core.shell.tick()
            self._leave_at_the_end()
        else:
            self._set_timer()

    # --- the lanes --------------------------------------------------------------------------------------------------

    def _carry(self, lane: str, calls: Sequence[Call[Any]]) -> None:
        """Do calls when it has taken its time; a lane that hangs does them later."""
        self._after(self.world.work_ms(self.platform.sticky), lambda: self._carried(lane, calls))

    def _carried(self, lane: str, calls: Sequence[Call[Any]]) -> None:
        world = self.world
        if lane in self.platform.hanging:
            self._after(HANGS_MS, lambda: self._carried(lane, calls))
            return
        if world.random.random() < world.crash_chance:
            self.platform.points.left = world.random.randint(1, 6)
        try:
            outcomes = carry_out(calls)
        except Crash as crash:
            power = world.random.random() < 0.4
            world.tally.counts["crashes in the middle"] += 1
            world.tell((self.node,), "agent crashes {} ({})", crash, "power" if power else "process")
            self.crash(power=power)
            world.after(world.random.randint(200, 15_000), self.start)
            return
        finally:
            self.platform.points.left = 0
        self.lanes.carried(lane, outcomes)
        self._leave_at_the_end()

    def _pause(self, seconds: float) -> None:
        self._paused_ms += round(seconds * 1000)

    def _stepped(self, worker: int, effect: str) -> None:
        if worker not in self._again:
            self.world.stepped(self.node, worker, effect)
        random = self.world.random
        if effect == program(worker) and random.random() < 0.7:
            error, stirs = random.choice(("", "exited with return code 3")), random.random() < 0.7
            self._after(random.randint(0, 10_000), lambda: self._program_ends(worker, error, stirs=stirs))

    def _program_ends(self, worker: int, error: str, *, stirs: bool) -> None:
        self.platform.end_program(worker, error)
        if stirs:
            self.handle(Stirred(worker))

    def _new_clock(self) -> DriftingClock:
        random = self.world.random
        return DriftingClock(lambda: self.world.now, random.randint(1_000, 10**9), some_rate(random))


class _Performer(Performer):
    """The performer itself; while the machine is `cursed`, each undo ends in an error that no code of ours knows."""

    def __init__(self, journal: Journal, platform: Machine, now_ms: Callable[[], int] = boot_ms) -> None:
        super().__init__(journal, platform, now_ms, lambda seconds, work: work())

    async def _undo_all(self, entry: Entry, *rest: Any) -> Any:
        undoing = await super()._undo_all(entry, *rest)
        if isinstance(self.platform, Machine) and self.platform.cursed:
            self.platform.failed.add(entry.worker)
            raise PlantedError
        return undoing


class _Core(AgentCore):
    """The agent itself, and somebody who looks over its shoulder."""

    def __init__(self, host: SimAgent) -> None:
        assert host.machine is not None
        super().__init__(
            host.machine,
            host.bus,
            host.work,
            host.lanes,
            host.clock.now_ms,
            fed=host.fed,
            broken=host.broke,
            watched=_Watched(host),
        )
        self._host = host

    def _send(self, beat: Beat) -> None:
        self._host.send(beat, lambda beat: self._host.say(encode(beat)))

    def _begin(self, chore: Chore) -> None:
        self._host.begin(chore)
        super()._begin(chore)

    def _came(self, outcome: Event | Exception | None) -> None:
        self._host.came(outcome)
        super()._came(outcome)


class _Watched:
    """The machine of a host, and who tells of it."""

    def __init__(self, host: SimAgent) -> None:
        assert host.machine is not None
        self.handle, self.deadline = host.told, host.machine.deadline
