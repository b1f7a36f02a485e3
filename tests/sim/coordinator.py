"""A coordinator in the simulation: the real machine and API on a store that can lose power."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import msgspec

from tests.agents.simdisk import Crash
from tests.coordinator.driver import unheard
from tests.sim.clock import DriftingClock
from tests.sim.cluster import sighting
from tests.sim.fuse import PlantedError, SimFuse
from tests.sim.programs import SimPrograms
from tests.sim.replica import SimReplica
from tests.sim.skew import Speech, newer_snapshot, older
from tests.sim.store import SimStore
from tests.support import at_once
from trogdor_bus.coordinator.changes import AppendEvent, Change, PutTask, PutWorker
from trogdor_bus.coordinator.commands import Commands, answer
from trogdor_bus.coordinator.core import CoordinatorCore
from trogdor_bus.coordinator.events import (
    BeatHeard,
    ClusterSeen,
    Effect,
    Event,
    LookAtCluster,
    Publish,
    Ticked,
)
from trogdor_bus.coordinator.fleet import Fleet
from trogdor_bus.coordinator.machine import CoordinatorMachine
from trogdor_bus.coordinator.place import Limits, Place
from trogdor_bus.coordinator.service import load, without
from trogdor_bus.errors import HostError, RefusedError
from trogdor_bus.messages import VERSION, AskView, Beat, Noted
from trogdor_bus.mirror import Mirror
from trogdor_bus.shell import UnforeseenError
from trogdor_bus.states import TaskRow, TaskState, WorkerRow, WorkerState
from trogdor_bus.topology import Node
from trogdor_bus.transports.memory import COORDINATOR, MemoryAgent

if TYPE_CHECKING:
    from tests.sim.world import World

EPOCH_MS = 1_700_000_000_000
Orphans = Literal["refuse", "adopt", "abort"]


class SimCoordinator:
    """One host with its store and clock, and the coordinator's process on it, if that runs.

    `wrong_ms` is how wrong the host's wall clock is, which counts from the next start on. `retired`: the host is gone
    for ever. `takes_over`: whoever starts the next process tells it to take over. `restored`: its store is another one.
    """

    def __init__(self, world: World, name: str, limits: Limits, configured: dict[str, Node] | None) -> None:
        self.world, self.name, self.limits, self.configured = world, name, limits, configured
        self.store = world.new_store()
        self.wrong_ms = self.started_wrong_ms = 0
        self.hopeless: dict[int, int] = {}
        self.clock = self._new_clock()
        self.machine: CoordinatorMachine | None = None
        self.frozen = self.cut_off = self.restored = False
        self.crash_at: Literal["", "commit", "publish", "replicate"] = ""
        self.orphans: Orphans = "refuse"
        self.retired = self.takes_over = False
        self.speech: Speech = "ours"
        self.replica: SimReplica | None = None
        self.fuse = SimFuse()
        self.notes: list[str] = []
        self._life = 0
        self._held_back: list[Callable[[], None]] = []

    @property
    def up(self) -> bool:
        """Whether the process runs and is not frozen."""
        return self.machine is not None and not self.frozen

    @property
    def leads(self) -> bool:
        """Whether the process runs and publishes."""
        return self.machine is not None and not self.machine.listening

    # --- life and death ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process on what the store kept."""
        world = self.world
        if self.machine is not None or self.retired:
            return
        me, above = f"{self.name}-{self._life + 1}", 0
        if world.keeper is not None:
            self.replica = SimReplica(world, world.keeper, me)
            try:
                above = self.replica.admit(self.store, takes_over=self.takes_over)
            except RefusedError as error:
                self.replica = None
                world.tell((self.name,), "{} does not start: {}", self.name, error)
                world.tally.counts["starts refused by the log"] += 1
                world.after(1_000, self.start if self.takes_over else self._take_over)
                return
            world.tally.counts["take-overs"] += self.takes_over
            self.takes_over = False
        self._life += 1
        self.clock = self._new_clock()
        self.fuse.start(world.now)
        before = {name: (task, dict(self.store.workers[name])) for name, task in self.store.tasks.items()}
        loaded = load(self.store, self.fuse, self.clock.now_ms())
        now = {name: (task, self.store.workers[name]) for name, task in self.store.tasks.items()}
        world.set_aside |= {name for name, kept in before.items() if now.get(name, kept) != kept}
        world.bare |= self.fuse.bare
        self.machine = CoordinatorMachine(
            loaded,
            Fleet(self.configured, self.limits.beat_ms),
            Place(me=me, cluster="kafka1:9092"),
            self.limits,
            self.clock.now_ms(),
            orphans=self.orphans,
            above=above,
            barred=without(self.fuse),
        )
        world.leaders[self.machine.place.me] = self
        world.kept[self.machine.place.me] = self.store  # this one may be given a backup's later
        self.notes = []
        self._due: dict[tuple[str, str], int] = {}
        self._live: dict[str, set[int]] = {}
        self._fenced = self._lived = False
        self._taken = self.machine.taken
        self._timer: int | None = None
        self._bus = world.network.coordinator()
        self._core = CoordinatorCore(
            self.machine,
            self,
            self,
            self.clock.now_ms,
            soon=self._soon,
            follow=self._replicate,
            look=self._look,
            ended=self._exit,
            shutdown=lambda: None,
            behind_ms=None,
            fed=self._fed,
            broken=self._broke,
            watched=_Watched(self),
        )
        self.programs = self._core.experiments = SimPrograms(
            self, lambda ms, work: world.after(ms, self._alive(partial(self._awake, work)))
        )
        self._commands = Commands(self._core.api, look=_unasked, told=_unasked)
        self._bus.receive(self._hear, lambda frame, reply: None)
        self._mirror = Mirror()
        self._mirror.take([self._core.api.view_page(AskView()).result])
        self._core.hub.subscribe(self._mirror.hear)
        world.tell((self.name,), "{} starts, epoch after {}", self.name, self.machine.epoch)
        self.check_fold()
        self._set_timer()

    def crash(self, *, power: bool = False) -> None:
        """End the process at once, and with `power` lose what need not last."""
        if self.machine is not None:
            self._leave()
        if self.replica is not None:
            self.replica.die(self.world.random)
            self.replica = None
        self._life += 1
        if power:
            lost = self.store.lose_power(self.world.random)
            self.world.tell((self.name,), "{} loses power and {} batches", self.name, lost)
            self.world.tally.counts["batches lost"] += lost

    def restore(self, store: SimStore, orphans: Orphans) -> None:
        """End the process; the next one finds that store and is told what to do with what it hears."""
        self.crash()
        self.store, self.orphans, self.restored = store, orphans, True

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
        assert self.machine is not None
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
        self.world.tell((self.name,), "{} crashes in the middle", self.name)
        self.world.tally.counts["crashes in the middle"] += 1
        self.crash(power=power)
        self.world.after(self.world.random.randint(100, 8_000), self.start)

    # --- the shell --------------------------------------------------------------------------------------------------

    def ask(self, frame: bytes) -> bytes | None:
        """Return the answer to a client's request, None if there is none."""
        if not self.up:
            return None
        try:
            return at_once(answer(self._commands, frame))
        except Crash:
            self._die()
            return None

    def submit(self, frame: bytes, parent: str) -> None:
        """Answer a request of an experiment's program."""
        at_once(answer(self._commands, frame, parent))

    def feed(self, event: Event) -> None:
        """Let something happen to the process."""
        self._core.feed(event)

    def _hear(self, frame: bytes) -> None:
        if self.cut_off:
            self.world.tally.counts["frames cut off"] += 1
        else:
            self._awake(lambda: self._take_in(frame))

    def _take_in(self, frame: bytes) -> None:
        """Hear a beat, and see that it is taken in, whatever is in it."""
        self._core.hear(frame)
        beat = msgspec.json.decode(frame)
        if beat["v"] == VERSION:
            who = beat["node"], beat["journal"]
            self._due[who] = max(beat["counter"], self._due.get(who, 0))
        self.world.at(self.world.now, self._alive(lambda: self._awake(lambda: self._check_taken(beat))))

    def _check_taken(self, beat: Any) -> None:
        """Check that what was heard was taken in, or that the node says why it is refused."""
        assert self.machine is not None
        node, where = beat["node"], (self.name, beat["node"])
        if beat["v"] == VERSION:
            if (node, beat["journal"]) in self._due:
                self.world.fail(where, f"{self.name} takes in no beat of {node}: {beat}")
            return
        self.world.tally.counts["beats of version 1"] += 1
        known = self.machine.fleet.nodes.get(node)
        if known is not None and not known.row.alive and "version 1" not in known.row.note:
            self.world.fail(where, f"{self.name} refuses the beats of {node}, and says only {known.row.note!r}")

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
                except HostError:
                    assert self.machine is None  # its store has refused, so it has ended

        return in_this_life

    def told(self, event: Event, now_ms: int) -> Sequence[Effect]:
        """Give an event to the machine, check what comes of it, and return its effects."""
        if self.machine is None:
            return ()  # it has ended at one of the beats that came in together
        if self.world.telling:
            self.world.tell_coordinator(self.name, event)
        if isinstance(event, BeatHeard) and event.beat.counter >= self._due.get((who := _who(event.beat)), 0):
            self._due.pop(who, None)
        listened, fenced, before = self.machine.listening, self._fenced, dict(self.machine.view.tasks)
        strange = self._strange(event.beat) if isinstance(event, BeatHeard) else []
        try:
            effects = self.machine.handle(event, now_ms)
        except UnforeseenError as error:
            self.world.fail((self.name,), f"the machine of {self.name}: {error}: {error.__cause__}")
        if self.world.poisons(self.machine.view.tasks) and isinstance(event, BeatHeard | Ticked):
            raise PlantedError(self.world.poisoned)  # the machine has changed, and nobody is told how
        if self.fuse.said():
            self._check_idle(before, effects)
        if isinstance(event, BeatHeard):
            self._check_heard(event.beat, strange, listened=listened)
        elif listened and not self.machine.listening:
            self._check_lead()
        if fenced and any(isinstance(effect, Publish) for effect in effects):
            self.world.fail((self.name,), f"{self.name} publishes though it is fenced")
        return effects

    def _check_idle(self, before: Mapping[str, TaskRow], effects: Sequence[Effect]) -> None:
        """Check that a process that goes on without what failed begins nothing."""
        for change in effects:
            if isinstance(change, PutTask) and change.task.state in (TaskState.PENDING, TaskState.RUNNING):
                known = before.get(change.task.id)
                if known is None or (known.state is TaskState.PENDING and change.task.state is TaskState.RUNNING):
                    self.world.fail((change.task.id,), f"{self.name} begins {change.task.id}, and its fuse is blown")

    def commit(self, changes: Sequence[Change], *, durable: bool) -> None:
        """Store, unless this is where the process ends; as a `Store`."""
        self._may_crash("commit")
        if self.store.refuses:
            raise HostError("disk I/O error")
        self.store.commit(changes, durable=durable)
        for change in changes:
            if isinstance(change, AppendEvent):
                if isinstance(change.event, Noted):
                    self.notes.append(change.event.text)
                if self.world.telling and change.event.text:
                    self.world.tell((self.name,), "  {}: {}", self.name, change.event.text)
            elif isinstance(change, PutTask) and change.task.state is TaskState.RUNNING:
                self.store.meant_ends.setdefault(change.task.id, self.clock.when(change.task.end_ms))

    def publish(self, node: str, frame: bytes) -> None:
        """Publish, if the world lets it out; as a bus."""
        self._may_crash("publish")
        if self.cut_off:
            self.world.tally.counts["frames cut off"] += 1
        elif self.world.reaches(COORDINATOR, node) and self.world.network.listening(MemoryAgent, node):
            self.world.lag()
            if self.speech == "newer":
                frame = newer_snapshot(frame, self.world.random)
            self._bus.publish(node, older(frame) if self.speech == "older" else frame)
        self.world.tally.counts["frames"] += 1

    def announce(self, topic: str, frame: bytes) -> None:
        """Nobody listens."""

    def _fed(self) -> None:
        if self.machine is not None:
            self._set_timer()

    def _broke(self, error: Exception) -> None:
        """End the process, as a fuse does, at an error that was planted; any other is ours."""
        world = self.world
        if not isinstance(error, PlantedError):
            world.fail((self.name,), f"the shell of {self.name} broke: {error!r} {error.__cause__!r}")
        world.tally.counts["errors nobody foresaw"] += 1
        world.tally.counts["errors with a blown fuse"] += bool(self.fuse.said())
        world.tell((self.name,), "{} ends at what nobody foresaw", self.name)
        self.fuse.end(world.now, error.about)
        self.crash()
        world.after(world.random.randint(1_000, 3_000), self.start)

    def _look(self, order: LookAtCluster) -> None:
        """Look at the cluster under test, which takes a while."""
        random = self.world.random
        self.world.tally.counts["looks at the cluster"] += 1
        after_ms = order.after_ms + random.choice((0, 50, 500, 10_000))
        seen = ClusterSeen(order.task, order.number, sighting(len(self.world.nodes), random))
        self.world.after(after_ms, self._alive(partial(self._awake, partial(self._core.feed, seen))))

    def _replicate(self, changes: Sequence[Change]) -> None:
        if self.replica is None:
            return
        if self.crash_at == "replicate" and any(isinstance(change, PutWorker) for change in changes):
            self.replica.break_off(changes, self.world.random)
            self.retired = True
            raise Crash("replicate")
        self.replica.follow(changes)

    def _may_crash(self, moment: str) -> None:
        if self.crash_at == moment:
            raise Crash(moment)

    def _exit(self, reason: str, fenced: bool) -> None:
        world = self.world
        if self.store.refuses and not fenced:
            world.tally.counts["stores that refused"] += 1
        elif fenced:
            world.tally.counts["coordinators fenced"] += 1
            if len(world.coordinators) == 1 and world.stores == 1:
                world.fail((self.name,), f"{self.name} is fenced by nobody: {reason}")
        else:
            world.tally.counts["coordinators that refused to adopt"] += 1
            if self.orphans != "refuse" or not self._lived:
                world.fail((self.name,), f"{self.name} ends by itself: {reason}")
            self.orphans = world.random.choice(("adopt", "abort"))  # somebody reads what it said
        self.crash()
        world.after(1_000, self._again)

    def _take_over(self) -> None:
        """Start as one that takes over, if no other coordinator runs: somebody has read why it did not start."""
        if all(other.machine is None for other in self.world.coordinators):
            self.takes_over = True
            self.start()

    def _again(self) -> None:
        """Start again if no other coordinator runs, as somebody would who finds none."""
        if all(other.machine is None for other in self.world.coordinators):
            self.start()

    def _set_timer(self) -> None:
        assert self.machine is not None
        at = max(self.world.now, self.clock.when(self._core.shell.due()))
        if at != self._timer:
            self._timer = at
            self.world.at(at, self._alive(lambda: self._timed(at)))

    def _timed(self, at: int) -> None:
        if at == self._timer:
            self._timer = None
            self._awake(self._tick)

    def _tick(self) -> None:
        assert self.machine is not None
        if self.clock.now_ms() >= self._core.shell.due():
            self._core.tick()
        else:
            self._set_timer()
        if self.leads and self.replica is not None:
            assert self.machine is not None
            if reason := self.replica.keep_up(self.store):
                self._exit(reason, fenced=True)

    def _new_clock(self) -> DriftingClock:
        world = self.world
        self.started_wrong_ms = self.wrong_ms
        shown_ms = EPOCH_MS + world.now + self.wrong_ms + world.random.randint(-300, 300)
        return DriftingClock(lambda: world.now, shown_ms, world.random.randint(995, 1005))

    # --- what is promised -------------------------------------------------------------------------------------------

    def _strange(self, beat: Beat) -> list[WorkerRow]:
        """Return the workers in a beat that were given to another journal than the one that speaks."""
        assert self.machine is not None
        tasks = self.machine.view.workers
        rows = [tasks.get(report.task, {}).get(report.worker) for report in beat.reports]
        return [row for row in rows if row is not None and row.journal != beat.journal]

    def _check_heard(self, beat: Beat, strange: list[WorkerRow], *, listened: bool) -> None:
        """Note who else leads and what is alive, and check that a journal speaks for its own workers only."""
        assert self.machine is not None
        node = self.machine.fleet.nodes.get(beat.node)
        if node is not None and node.row.journal == beat.journal and node.counter == beat.counter and beat.stamp:
            if listened:
                self._live[beat.journal] = {one.worker for one in beat.reports if one.state is not WorkerState.DONE}
                self._lived |= bool(self._live[beat.journal])
            else:
                self._fenced |= beat.stamp.epoch > self.machine.epoch
        before = {(row.id, row.state, row.outcome) for row in strange}  # its error may say that this journal has come
        now = self._strange(beat) if strange else []
        believed = [row for row in now if (row.id, row.state, row.outcome) not in before]
        for row in believed:
            ids = (self.name, beat.node, str(row.id))
            self.world.fail(ids, f"{self.name} believes journal {beat.journal} of a worker of {row.journal}")

    def _check_lead(self) -> None:
        """Check, when the process begins to lead, that it may."""
        if self.store.meta.epoch == 0 and self.orphans == "refuse" and any(self._live.values()):
            self.world.fail((self.name,), f"{self.name} leads with an empty store though it hears {self._live}")

    def check_fold(self) -> None:
        """Check that what the machine believes is what it kept, and what its events say."""
        if self.machine is None:
            return
        view, told = self.machine.view, self.store.told
        workers = {name: dict(rows) for name, rows in view.workers.items()}
        known = {} if self.fuse.bare else self.store.load().workers
        told_tasks = {name: task for name, task in told.tasks.items() if name in known}
        told_workers = {name: rows for name, rows in told.workers.items() if name in known}
        kept_tasks = {name: task for name, task in self.store.tasks.items() if name in known}
        kept = {name: {row.row.id: row.row for row in rows} for name, rows in known.items()}
        if view.tasks != told_tasks or workers != told_workers:
            self.world.fail((self.name,), f"the view of {self.name} is not the fold of its events")
        if unheard(view.nodes) != unheard({name: node.row for name, node in self.machine.fleet.nodes.items()}):
            self.world.fail((self.name,), f"the events of {self.name} do not tell what it knows of its nodes")
        if not self._mirror.beat(self._core.api.pulse()):
            self.world.fail((self.name,), f"a monitor of {self.name} that hears every event has another view")
        if view.tasks != kept_tasks or workers != kept:
            self.world.fail((self.name,), f"the view of {self.name} is not what it stored")
        if self.replica is not None and (difference := self.replica.difference(self.store, self.machine.epoch)):
            self.world.fail((self.name,), f"{self.name} does not replicate what it stored: {difference}")
        for task in view.tasks.values():
            ended = task.state is TaskState.DONE
            if ended != bool(task.outcome) or ended != (task.done_ms >= 0):
                self.world.fail((self.name, task.id), f"task {task.id} is {task.state} with outcome {task.outcome!r}")


def _who(beat: Beat) -> tuple[str, str]:
    return beat.node, beat.journal


async def _unasked(*_: object) -> NoReturn:
    raise AssertionError("no client of the simulation asks for what must be waited for")


class _Watched:
    """The machine of a host, and who looks over its shoulder."""

    def __init__(self, host: SimCoordinator) -> None:
        assert host.machine is not None
        self.handle, self.deadline = host.told, host.machine.deadline
