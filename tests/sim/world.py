"""One simulated cluster: one seed, one clock, one heap of things to come."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import NoReturn

from tests.agents.simdisk import SimDisk
from tests.sim.agent import SimAgent
from tests.sim.coordinator import SimCoordinator
from tests.sim.model import Fuse
from tests.sim.store import SimStore
from tests.sim.tally import Tally
from trogdor_bus.agents import events as agent_events
from trogdor_bus.agents.machine import Limits as AgentLimits
from trogdor_bus.bus import OnFrame
from trogdor_bus.coordinator import events as coordinator_events
from trogdor_bus.coordinator.place import Limits
from trogdor_bus.messages import Beat, Order, Snapshot
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerState
from trogdor_bus.topology import Node
from trogdor_bus.transports.memory import MemoryEnd, MemoryNetwork
from trogdor_bus.transports.memory_log import MemoryKeeper

MAX_STEPS = 100_000
"""A schedule takes about 8,000."""
RAW = re.compile("<msgspec.Raw object at 0x[0-9a-f]+>")
"""How bytes that are not decoded look; it is another text in each run."""


class Violation(BaseException):
    """A promise was broken; `ids` are the tasks, workers and nodes concerned. What catches errors lets it pass."""

    def __init__(self, ids: tuple[str, ...], text: str) -> None:
        self.ids = ids
        super().__init__(text)


class _Network(MemoryNetwork):
    """A memory network that counts what it does to frames."""

    def __init__(self, counts: Counter[str], random: Random, *, loss: float, duplication: float) -> None:
        super().__init__(random, loss=loss, duplication=duplication)
        self._counts = counts

    def send(self, src: MemoryEnd, dst: MemoryEnd, frame: bytes, deliver: OnFrame) -> None:
        before = self._order
        super().send(src, dst, frame, deliver)
        queued = self._order - before
        if queued != 1:
            self._counts["frames doubled" if queued else "frames lost"] += 1


class World:
    """The hosts, the network between them, and the true time in ms; `telling` keeps the story."""

    def __init__(self, seed: int, *, disk: type[SimDisk] = SimDisk, telling: bool = False) -> None:
        self.seed, self.telling, self._disk = seed, telling, disk
        self.random = random = Random(seed)
        self.now = 0
        self.grace_ms = 8_000
        self.story: list[tuple[int, tuple[str, ...], str]] = []
        self.tally = Tally()
        self.truth: dict[int, set[tuple[Outcome, str]]] = {}
        self.strange: set[int] = set()
        self.journals: dict[str, SimAgent] = {}
        self.leaders: dict[str, SimCoordinator] = {}
        self.kept: dict[str, SimStore] = {}
        self.stores = 0
        self.keeper: MemoryKeeper | None = None
        self.rivals = False
        self.poisoned, self.poison_stays, self.set_aside = "", False, set[str]()
        self.bare = False
        """Whether a coordinator lived without its tasks: what agents told it of them nobody else heard."""
        self.wrong_clocks = False
        self.ordered: set[int] = set()
        self.acknowledged: dict[int, tuple[SimStore, int]] = {}
        self.crash_chance = 0.02
        self.cut_ways: Counter[tuple[str, str]] = Counter()
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = self._steps = 0
        self._performed: Counter[int] = Counter()
        self._stepped: Counter[tuple[int, str]] = Counter()
        self.is_calm = False
        self.network = _Network(
            self.tally.counts,
            random,
            loss=random.choice((0, 0.02, 0.2, 0.5)),
            duplication=random.choice((0, 0.02, 0.2)),
        )
        beat_ms = random.choice((1_000, 1_500, 2_000, 2_000))
        lease_ms = random.choice((8_000, 12_000))
        names = [f"node{number}" for number in range(1, random.choice((4, 4, 5)) + 1)]
        self.nodes: dict[str, SimAgent] = {}
        for number, name in enumerate(names, 1):
            limits = AgentLimits(
                beat_ms=beat_ms,
                lease_ms=None if random.random() < 0.1 else lease_ms,
                ceiling_ms=25_000 if random.random() < 0.1 else 86_400_000,
            )
            self.nodes[name] = SimAgent(self, name, f"10.0.0.{number}", limits)
        configured = None
        if random.random() < 0.5:
            configured = {name: Node(name=name) for name in names}
        self._coordinator = partial(
            SimCoordinator, self, limits=Limits(beat_ms=beat_ms, lease_ms=lease_ms), configured=configured
        )
        self.coordinators = [self._coordinator("coordinator")]
        self.agents = list(self.nodes.values())

    # --- time -------------------------------------------------------------------------------------------------------

    def at(self, when: int, what: Callable[[], None]) -> None:
        """Do something at a true time."""
        self._order += 1
        heappush(self._heap, (when, self._order, what))

    def after(self, ms: int, what: Callable[[], None]) -> None:
        """Do something some ms from now."""
        self.at(self.now + ms, what)

    def run(self, until: int, over: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until then, or until it is over."""
        heap, network = self._heap, self.network
        while not over():
            self._steps += 1
            if self._steps > MAX_STEPS:
                self.fail((), f"{MAX_STEPS} things happened, somebody turns in circles")
            due = network.next_due_ms()
            first = heap[0][0] if heap else until + 1
            if due is not None and due <= first:
                if due > until:
                    break
                self.now = due
                network.advance(due)
            else:
                if first > until:
                    break
                self.now = first
                network.advance(first)
                heappop(heap)[2]()
        self.now = max(self.now, until) if not over() else self.now
        network.advance(self.now)

    # --- the weather ------------------------------------------------------------------------------------------------

    def lag(self) -> None:
        """Decide how long the next frame will take: mostly ms, sometimes minutes."""
        luck = self.random.random()
        if self.is_calm or luck < 0.85:
            self.network.delay_ms = (1, 30)
        elif luck < 0.985:
            self.network.delay_ms = (30, 4_000)
        else:
            self.network.delay_ms = (4_000, 150_000)
            self.tally.counts["frames late by up to minutes"] += 1

    def work_ms(self, sticky: bool) -> int:
        """Decide how long the next thing takes that an agent does to its machine."""
        return 200 if sticky else self.random.choice((1, 2, 5, 10, 60))

    def cut(self, src: str, dst: str) -> None:
        """Cut one direction of the bus; cuts are counted."""
        self.cut_ways[src, dst] += 1
        self.network.cut(src, dst)

    def mend(self, src: str, dst: str) -> None:
        """Take one cut back."""
        self.cut_ways[src, dst] -= 1
        if self.cut_ways[src, dst] <= 0:
            self.network.heal(src, dst)

    def reaches(self, src: str, dst: str) -> bool:
        """Return whether the bus is whole in that direction."""
        if self.cut_ways[src, dst] > 0:
            self.tally.counts["frames cut off"] += 1
            return False
        return True

    def calm(self) -> None:
        """Heal everything and start everything."""
        self.tell((), "--- everything heals ---")
        self.is_calm, self.crash_chance = True, 0.0
        self.network.loss = self.network.duplication = 0.0
        for src, dst in list(self.cut_ways):
            self.network.heal(src, dst)
        self.cut_ways.clear()
        for agent in self.agents:
            agent.platform.flaky = agent.platform.waits = 0.0
            agent.platform.sticky = agent.platform.slippery = agent.platform.cursed = False
            for lane in tuple(agent.platform.hanging):
                agent.hang(lane, hangs=False)
            agent.disk.full = agent.poisoned = False
            agent.speech = "ours"
            if agent.fuse.mend():
                agent.crash()
            if agent in self.nodes.values():
                agent.thaw()
                agent.start()
            else:
                agent.retired = True
                agent.crash(power=True)
        self.log_out(False)
        self.poisoned = ""
        for coordinator in self.coordinators:
            coordinator.crash_at, coordinator.cut_off, coordinator.wrong_ms = "", False, 0
            coordinator.store.refuses = False
            coordinator.speech = "ours"
            coordinator.thaw()
            if coordinator.fuse.mend() or coordinator.started_wrong_ms:
                coordinator.crash()
        self.start_one()

    def poisons(self, tasks: Mapping[str, TaskRow]) -> bool:
        """Return whether one of the tasks ends every coordinator: as long as it is open, or as long as it is there."""
        task = tasks.get(self.poisoned)
        return task is not None and (self.poison_stays or task.state is not TaskState.DONE)

    # --- coordinators -----------------------------------------------------------------------------------------------

    def new_coordinator(self, store: SimStore) -> SimCoordinator:
        """Return another coordinator's host with that store; its process does not run."""
        self.coordinators.append(self._coordinator(f"coordinator{len(self.coordinators) + 1}"))
        self.coordinators[-1].store = store
        return self.coordinators[-1]

    def running(self) -> list[SimCoordinator]:
        """Return the coordinators whose processes run."""
        return [coordinator for coordinator in self.coordinators if coordinator.machine is not None]

    def start_one(self) -> None:
        """Start some coordinator if none runs."""
        if not self.running():
            self.random.choice([one for one in self.coordinators if not one.retired]).start()

    def log_out(self, out: bool) -> None:
        """Let nobody reach the log, or everybody again."""
        if self.keeper is not None:
            self.keeper.reachable = not out
            self.keeper.settle()

    def settle_clash(self) -> None:
        """Do what somebody does who is told of two coordinators with one epoch: start one of them anew."""
        running = self.running()
        if not running or any(one.machine and one.machine.listening for one in running):
            self.after(1_000, self.settle_clash)
            return
        lead = {one.machine.place.me for one in running if one.machine}
        stamps = [agent.machine.stamp for agent in self.nodes.values() if agent.machine]
        if len(running) > 1 or any(stamp and stamp.coordinator not in lead for stamp in stamps):
            if not any("clash" in text for one in running for text in one.notes):
                self.fail((), f"nobody reports the clash of {sorted(lead)}, {stamps}")
            self.tally.counts["clashes settled by hand"] += 1
            again = self.random.choice(running)
            again.crash()
            again.start()

    # --- what hosts need ----------------------------------------------------------------------------------------------

    def new_disk(self, points: Fuse) -> SimDisk:
        """Return an empty disk."""
        return self._disk(self.random, points)

    def new_store(self) -> SimStore:
        """Return an empty store."""
        self.stores += 1
        return SimStore(self.random.randrange(2**40), lambda: self.now)

    def new_journal(self) -> str:
        """Return a new journal id."""
        return f"{self.random.getrandbits(64):016x}"

    # --- the story --------------------------------------------------------------------------------------------------

    def tell(self, ids: tuple[str, ...], text: str, *values: object) -> None:
        """Add a line to the story."""
        if self.telling:
            self.story.append((self.now, ids, RAW.sub("JSON", text.format(*values))))

    def tell_agent(self, node: str, event: agent_events.Event) -> None:
        """Add what happens to an agent."""
        match event:
            case agent_events.SnapshotHeard(snapshot=snapshot):
                self.tell((node,), "{} hears {}", node, _snapshot(snapshot))
            case agent_events.Ticked() | agent_events.Looked():
                pass
            case _:
                self.tell((node,), "{}: {}", node, event)

    def tell_coordinator(self, name: str, event: coordinator_events.Event) -> None:
        """Add what happens to a coordinator."""
        match event:
            case coordinator_events.BeatHeard(beat=beat):
                self.tell((beat.node, name), "{} hears {}", name, _beat(beat))
            case coordinator_events.Ticked():
                pass
            case _:
                self.tell((name,), "{}: {} {}", name, type(event).__name__, getattr(event, "id", ""))

    def fail(self, ids: tuple[str, ...], text: str) -> NoReturn:
        """Say which promise was broken."""
        self.tell(ids, "VIOLATION: {}", text)
        raise Violation(ids, text)

    # --- what is promised -------------------------------------------------------------------------------------------

    def stepped(self, node: str, worker: int, effect: str) -> None:
        """Note a step that is done: never twice."""
        self._stepped[worker, effect] += 1
        if self._stepped[worker, effect] > 1 and not self._long_over():
            self.fail((node, str(worker)), f"worker {worker} does {effect!r} twice")

    def performed(self, worker: int) -> None:
        """Note a worker that is performed: never twice."""
        self._performed[worker] += 1
        self.tally.counts["workers performed"] += 1
        if self._performed[worker] > 1 and not self._long_over():
            self.fail((str(worker),), f"worker {worker} is performed twice")

    def _long_over(self) -> bool:
        """Whether a coordinator may ask for what is over, and forgotten: its store is old, and so is its clock."""
        return self.rivals and self.wrong_clocks

    def watch(self, agent: SimAgent, effect: agent_events.Inject) -> None:
        """Check the end of a new worker against the coordinator's, and be there when it comes."""
        order = effect.order
        self.ordered.add(order.worker)
        if agent.machine and any(worker.state is WorkerState.RUNNING for worker in agent.machine.workers.values()):
            self.tally.counts["workers that overlap"] += 1
        ends = agent.clock.when(effect.ends_ms)
        assert agent.machine is not None
        assert agent.machine.stamp is not None
        self._check_end(agent.node, order, ends, self.leaders[agent.machine.stamp.coordinator])
        self.at(ends + self.grace_ms, lambda: self._undone(agent, order.worker, order.task, self.now - self.grace_ms))

    def _check_end(self, node: str, order: Order, ends: int, leader: SimCoordinator) -> None:
        """Check when a worker is to end: as its task was meant to, or, if clocks jumped since, within its duration."""
        meant = leader.store.meant_ends.get(order.task)
        if meant is None:
            return
        drift = max(0, meant - self.now) // 15 + self.now // 150 + 700
        late = ends > meant + drift and (not self.wrong_clocks or ends > self.now + order.duration_ms * 16 // 15)
        if late or (ends < meant - 5_000 - drift and not self.wrong_clocks):
            ids = (node, order.task, str(order.worker))
            self.fail(ids, f"worker {order.worker} is to end at {ends}, its task at {meant}")

    def _undone(self, agent: SimAgent, worker: int, task: str, due: int) -> None:
        if not any(who == worker and what in agent.platform.effects for who, what in agent.platform.applied):
            return
        grace_ms = self.grace_ms
        if agent.platform.hanging:  # `Promises` sees to what touches something else
            self.after(1_000, lambda: self._undone(agent, worker, task, due))
            return
        if agent.platform.sticky and agent.platform.waits:
            grace_ms *= 2  # what goes on by itself is asked again behind undos that take seconds and fail
        free = max(due, agent.awake_since, *agent.hung.values())
        if self.now - free < grace_ms and agent.hung:
            self.after(1_000, lambda: self._undone(agent, worker, task, due))
            return
        awake = agent.up and self.now - free >= grace_ms
        known = agent.machine.workers.get(worker) if agent.machine else None
        later = known and agent.clock.when(known.ends_ms) > self.now - grace_ms  # a first attempt left no trace
        if awake and not later and not (known and known.state is WorkerState.STUCK):
            ids = (agent.node, task, str(worker))
            self.fail(ids, f"worker {worker} is in force {grace_ms} ms after its end: {agent.platform.effects}")
        self.after(1_000, lambda: self._undone(agent, worker, task, due))


def _snapshot(snapshot: Snapshot) -> str:
    stamp, echo = snapshot.stamp, snapshot.echo
    orders = ", ".join(
        f"{order.task}#{order.worker}{'' if order.actions is None else '!'} {order.remaining_ms} ms"
        for order in snapshot.orders
    )
    echoed = f"{echo.journal[:4]}/{echo.counter >> 32}.{echo.counter & 0xFFFFFFFF}" if echo else "nothing"
    return f"{stamp.epoch}.{stamp.revision} answering {echoed}: [{orders}]"


def _beat(beat: Beat) -> str:
    stamp = f"{beat.stamp.epoch}.{beat.stamp.revision}" if beat.stamp else "no stamp"
    reports = ", ".join(f"{r.task}#{r.worker} {r.state} {r.outcome} {r.error}".rstrip() for r in beat.reports)
    number = f"{beat.counter >> 32}.{beat.counter & 0xFFFFFFFF}"
    return f"{beat.node} {beat.journal[:4]}/{number} holding {stamp}: [{reports}]{' leaving' if beat.leaving else ''}"
