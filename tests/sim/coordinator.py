"""The coordinator in the simulation: the real machine and API on a store that can lose power."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from tests.agents.simdisk import Crash
from tests.sim.clock import DriftingClock
from tests.sim.store import SimStore
from trogdor_bus.coordinator.api import Api
from trogdor_bus.coordinator.changes import AppendEvent, Change
from trogdor_bus.coordinator.events import BeatHeard, Effect, Event, Exit, Publish, Ticked
from trogdor_bus.coordinator.fleet import Fleet
from trogdor_bus.coordinator.machine import CoordinatorMachine, Limits, Place
from trogdor_bus.coordinator.service import must_last
from trogdor_bus.errors import BusError, InvalidTransitionError
from trogdor_bus.messages import Beat, decode, encode
from trogdor_bus.states import TaskState
from trogdor_bus.topology import Node
from trogdor_bus.transports.memory import COORDINATOR, MemoryAgent

if TYPE_CHECKING:
    from tests.sim.world import World

EPOCH_MS = 1_700_000_000_000


class SimCoordinator:
    """One host with its store and clock, and the coordinator's process on it, if that runs."""

    def __init__(self, world: World, limits: Limits, configured: dict[str, Node] | None) -> None:
        self.world, self.limits, self.configured = world, limits, configured
        self.store = SimStore(world.random.randrange(2**40), lambda: world.now)
        self.clock = self._new_clock()
        self.machine: CoordinatorMachine | None = None
        self.frozen = False
        self.crash_at: Literal["", "commit", "publish"] = ""
        self._orphans: Literal["refuse", "adopt", "abort"] = "refuse"
        self._life = 0
        self._held_back: list[Callable[[], None]] = []

    @property
    def up(self) -> bool:
        """Whether the process runs and is not frozen."""
        return self.machine is not None and not self.frozen

    # --- life and death ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process on what the store kept."""
        if self.machine is not None:
            return
        world = self.world
        self._life += 1
        self.clock = self._new_clock()
        self.machine = CoordinatorMachine(
            self.store.load(),
            Fleet(self.configured, self.limits.beat_ms),
            Place(me=f"coordinator-{self._life}"),
            self.limits,
            self.clock.now_ms(),
            orphans=self._orphans,
        )
        self._taken = self.machine.taken
        self.api = Api(self.machine, self._handle_now, self.clock.now_ms, lambda: None)
        self._pending: list[Event] = []
        self._flushing = False
        self._timer: int | None = None
        self._bus = world.network.coordinator()
        self._bus.receive(lambda frame: self._awake(lambda: self._frame(frame)), lambda frame, answer: None)
        world.tell(("coordinator",), "coordinator starts, epoch after {}", self.machine.epoch)
        self.check_fold()
        self._set_timer()

    def crash(self, *, power: bool = False) -> None:
        """End the process at once, and with `power` lose what need not last."""
        if self.machine is not None:
            self._leave()
        self._life += 1
        if power:
            lost = self.store.lose_power(self.world.random)
            self.world.tell(("coordinator",), "coordinator loses power and {} batches", lost)
            self.world.tally.counts["batches lost"] += lost

    def lose_store(self, orphans: Literal["adopt", "abort"]) -> None:
        """Forget everything that was kept; the next start is told what to do with what it hears."""
        self.crash()
        self.store = SimStore(self.world.random.randrange(2**40), lambda: self.world.now)
        self._orphans = orphans

    def freeze(self) -> None:
        """Stop the process where it is."""
        self.frozen = self.machine is not None

    def thaw(self) -> None:
        """Let it go on with what has come in meanwhile."""
        if not self.frozen:
            return
        self.frozen = False
        waiting, self._held_back = self._held_back, []
        for go_on in [*waiting, self._alive(self._tick)]:
            go_on()

    def _leave(self) -> None:
        self._bus.close()
        self.world.tally.coordinator_taken |= self._taken
        self.machine, self.frozen, self._held_back, self.crash_at = None, False, [], ""

    def _awake(self, go_on: Callable[[], None]) -> None:
        if self.frozen:
            self._held_back.append(self._alive(go_on))
        else:
            go_on()

    def _die(self) -> None:
        """Crash in the middle, and come back later."""
        power = self.world.random.random() < 0.5
        self.world.tell(("coordinator",), "coordinator crashes in the middle")
        self.world.tally.counts["crashes in the middle"] += 1
        self.crash(power=power)
        self.world.after(self.world.random.randint(100, 8_000), self.start)

    # --- the shell --------------------------------------------------------------------------------------------------

    def ask(self, frame: bytes) -> bytes | None:
        """Return the answer to a client's request, None if there is none."""
        if not self.up:
            return None
        try:
            return self.api.answer(frame)
        except Crash:
            self._die()
            return None

    def _frame(self, frame: bytes) -> None:
        try:
            self._pending.append(BeatHeard(decode(frame, Beat)))
        except BusError as error:
            self.world.fail(("coordinator",), f"the coordinator cannot read {frame!r}: {error}")
        if not self._flushing:
            self._flushing = True
            self._soon(self._flush)

    def _soon(self, go_on: Callable[[], None]) -> None:
        self.world.at(self.world.now, self._alive(lambda: self._awake(go_on)))

    def _alive(self, go_on: Callable[[], None]) -> Callable[[], None]:
        life = self._life

        def in_this_life() -> None:
            if life == self._life and self.machine is not None:
                try:
                    go_on()
                except Crash:
                    self._die()

        return in_this_life

    def _flush(self) -> None:
        self._flushing = False
        events, self._pending = self._pending, []
        self._perform([effect for event in events for effect in self._effects(event)])

    def _handle_now(self, event: Event) -> None:
        self._flush()
        self._perform(self._effects(event))

    def _effects(self, event: Event) -> list[Effect]:
        assert self.machine is not None
        if self.world.telling:
            self.world.tell_coordinator(event)
        try:
            return self.machine.handle(event, self.clock.now_ms())
        except InvalidTransitionError as error:
            self.world.fail(("coordinator",), f"the coordinator's machine refuses {type(event).__name__}: {error}")

    def _perform(self, effects: Sequence[Effect]) -> None:
        changes = [effect for effect in effects if isinstance(effect, Change)]
        newest = {effect.snapshot.node: effect.snapshot for effect in effects if isinstance(effect, Publish)}
        if changes:
            self._may_crash("commit")
            self.store.commit(changes, durable=any(map(must_last, changes)))
            if self.world.telling:
                for change in changes:
                    if isinstance(change, AppendEvent) and change.event.text:
                        self.world.tell(("coordinator",), "  {}", change.event.text)
        for node, snapshot in newest.items():
            self._may_crash("publish")
            if self.world.reaches(COORDINATOR, node) and self.world.network.listening(MemoryAgent, node):
                self.world.lag()
                self._bus.publish(node, encode(snapshot))
            self.world.tally.counts["frames"] += 1
        exits = [effect for effect in effects if isinstance(effect, Exit)]
        if exits:
            self._exit(exits[0])
        else:
            self._set_timer()

    def _may_crash(self, moment: str) -> None:
        if self.crash_at == moment:
            raise Crash(moment)

    def _exit(self, effect: Exit) -> None:
        if self._orphans == "refuse" or not effect.fenced:
            self.world.fail(("coordinator",), f"the coordinator ends by itself: {effect.reason}")
        self._leave()
        self._life += 1
        self.world.after(1_000, self.start)

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
            self._handle_now(Ticked())
        else:
            self._set_timer()

    def _new_clock(self) -> DriftingClock:
        world = self.world
        shown_ms = EPOCH_MS + world.now + world.random.randint(-300, 300)
        return DriftingClock(lambda: world.now, shown_ms, world.random.randint(995, 1005))

    # --- what is promised -------------------------------------------------------------------------------------------

    def check_fold(self) -> None:
        """Check that what the machine believes is what it kept, and what its events say."""
        if self.machine is None:
            return
        view, told = self.machine.view, self.store.told
        workers = {name: dict(rows) for name, rows in view.workers.items()}
        kept = {name: {row.row.id: row.row for row in rows.values()} for name, rows in self.store.workers.items()}
        if view.tasks != told.tasks or workers != told.workers:
            self.world.fail(("coordinator",), "the coordinator's view is not the fold of its events")
        if view.tasks != self.store.tasks or workers != kept:
            self.world.fail(("coordinator",), "the coordinator's view is not what it stored")
        for task in view.tasks.values():
            ended = task.state is TaskState.DONE
            if ended != bool(task.outcome) or ended != (task.done_ms >= 0):
                self.world.fail((task.id,), f"task {task.id} is {task.state} with outcome {task.outcome!r}")
