"""What befalls one simulated cluster: its tasks, its troubles, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

import msgspec

from tests.agents.simdisk import SimDisk
from tests.sim.agent import SimAgent
from tests.sim.coordinator import EPOCH_MS
from tests.sim.tally import Tally
from tests.sim.world import Violation, World
from trogdor_bus.messages import CreateTask, DestroyTask, Reply, Request, StopTask, decode, encode
from trogdor_bus.states import Outcome, TaskState, WorkerState
from trogdor_bus.transports.memory import COORDINATOR

TROUBLE_MS = 300_000
"""How long the troubles last: five simulated minutes."""
BOUND_MS = 90_000
"""How long after that everything may take to end."""
QUIET_MS = 4_000
TASKS, TROUBLES = 10, 5


class Schedule:
    """One seed: run it with `run`, which raises Violation."""

    def __init__(self, seed: int, *, disk: type[SimDisk] = SimDisk, telling: bool = False) -> None:
        self.world = World(seed, disk=disk, telling=telling)
        self.random: Random = self.world.random
        self.names = list(self.world.nodes)
        self._awaited = self._first = 0

    def run(self) -> Tally:
        """Let everything happen and check every promise; return what was seen."""
        world = self.world
        for agent in world.agents:
            world.at(self.random.randint(0, 2_000), agent.start)
        world.coordinator.start()
        self._plan_tasks()
        self._plan_troubles()
        self._probe()
        world.run(TROUBLE_MS)
        world.calm()
        world.run(TROUBLE_MS + BOUND_MS, self._settled)
        if not self._settled():
            self._complain()
        world.run(world.now + QUIET_MS)
        self._check_end()
        for agent in world.agents:
            agent.crash()
        world.coordinator.crash()
        world.tally.counts["schedules"] = 1
        world.tally.counts["simulated minutes"] += world.now // 60_000
        world.tally.counts["nodes"] += len(world.nodes)
        return world.tally

    # --- tasks ------------------------------------------------------------------------------------------------------

    def _plan_tasks(self) -> None:
        random = self.random
        kinds = ["partition", "directed-partition", "port-block", "java-process-stop", "noop"]
        kinds += [random.choice(kinds) for _ in range(TASKS - len(kinds))]
        for number, kind in enumerate(kinds, 1):
            task = f"task{number}"
            first = random.randint(3_000, 230_000)
            if number == 2:  # two that surely overlap
                first = self._first + random.randint(0, 2_000)
            self._first = first
            spec = self._spec(kind, first)
            if number <= 2:
                spec = {"class": "port-block", "durationMs": 20_000, "nodes": self.names, "ports": [9090 + number]}
            self.world.tally.counts["tasks"] += 1
            create = CreateTask(id=task, spec=msgspec.Raw(json.dumps(spec).encode()), force=random.random() < 0.3)
            self._ask(first, create)
            if random.random() < 0.3:
                self._ask(first + random.randint(0, 4_000), create)
            if random.random() < 0.15:
                other = json.dumps({**spec, "durationMs": 77})
                self._ask(first + 5_000, CreateTask(id=task, spec=msgspec.Raw(other.encode())), {"ConflictError"})
            luck = random.random()
            if luck < 0.25:
                self._ask(first + random.randint(0, 30_000), StopTask(id=task))
            elif luck < 0.35:
                self._ask(first + random.randint(7_000, 40_000), DestroyTask(id=task))

    def _spec(self, kind: str, first: int) -> dict[str, object]:
        random = self.random
        spec: dict[str, object] = {"class": kind, "durationMs": random.choice((1_500, 8_000, 20_000, 40_000))}
        if random.random() < 0.3:
            spec["startMs"] = EPOCH_MS + first + random.randint(500, 30_000)
        names = random.sample(self.names, random.randint(2, len(self.names)))
        cut = random.randint(1, len(names) - 1)
        match kind:
            case "partition":
                spec["partitions"] = [names[:cut], names[cut:]]
            case "directed-partition":
                spec |= {"from": names[:cut], "to": names[cut:]}
            case "port-block":
                spec |= {"nodes": names, "ports": [random.choice((9092, 9093))]}
            case "java-process-stop":
                spec |= {"nodeNames": names, "javaProcessName": random.choice(("kafka", "zookeeper"))}
        return spec

    def _ask(self, at: int, request: Request, allowed: set[str] | None = None) -> None:
        """Send a request until it is answered; its frames may be lost both ways."""
        frame, allowed = encode(request), allowed or set()
        self._awaited += 1
        name = getattr(request, "id", "")

        def attempt() -> None:
            world = self.world
            lost = self.random.random()
            answer = world.coordinator.ask(frame) if lost > 0.1 else None
            if answer is None or lost > 0.9:
                world.after(1_000, attempt)
                return
            self._awaited -= 1
            world.tally.counts["requests answered"] += 1
            reply: Reply = decode(answer, Reply)
            world.tell((name,), "client: {} {} {}", type(request).__name__, name, reply.error or "accepted")
            if reply.error and reply.error not in allowed | {"ConflictError"}:
                world.fail((name,), f"{type(request).__name__} of {name} is answered {reply.error}: {reply.message}")

        self.world.at(at, attempt)

    # --- troubles ---------------------------------------------------------------------------------------------------

    def _plan_troubles(self) -> None:
        random = self.random
        kinds: list[Callable[[int], None]] = [
            self._crash_agent,
            self._reboot,
            self._freeze_agent,
            self._cut,
            self._cut,
            self._crash_coordinator,
            self._crash_coordinator,
            self._freeze_coordinator,
        ]
        chosen = random.sample(kinds, random.randint(TROUBLES, len(kinds)))
        self.world.tally.counts["crashes, freezes and cuts"] += len(chosen)
        for trouble in chosen:
            trouble(random.randint(4_000, TROUBLE_MS - 40_000))
        rare: list[tuple[float, Callable[[int], None]]] = [
            (0.5, self._end_agent),
            (0.2, self._fill_disk),
            (0.3, self._stick),
            (0.2, self._flush),
            (0.15, self._copy),
            (0.06, self._lose_store),
        ]
        for chance, trouble in rare:
            if random.random() < chance:
                trouble(random.randint(4_000, TROUBLE_MS - 40_000))
        for agent in self.world.agents:
            agent.platform.flaky = random.choice((0.0, 0.0, 0.03))

    def _at(self, when: int, what: Callable[[], None], ids: tuple[str, ...], text: str) -> None:
        def happen() -> None:
            self.world.tell(ids, "--- {}", text)
            self.world.tally.counts[text] += 1
            what()

        self.world.at(when, happen)

    def _agent(self) -> SimAgent:
        return self.world.nodes[self.random.choice(self.names)]

    def _crash_agent(self, at: int) -> None:
        agent = self._agent()
        self._at(at, agent.crash, (agent.node,), "agent crashes")
        self.world.at(at + self.random.randint(100, 25_000), agent.start)

    def _reboot(self, at: int) -> None:
        agent, wipe = self._agent(), self.random.random() < 0.2
        text = "reboot with an empty disk" if wipe else "reboot"
        self._at(at, lambda: agent.crash(power=True, wipe=wipe), (agent.node,), text)
        self.world.at(at + self.random.randint(3_000, 30_000), agent.start)

    def _end_agent(self, at: int) -> None:
        agent = self._agent()
        self._at(at, agent.end, (agent.node,), "agent is told to end")
        self.world.at(at + self.random.randint(5_000, 20_000), agent.start)

    def _freeze_agent(self, at: int) -> None:
        agent = self._agent()
        self._at(at, agent.freeze, (agent.node,), "agent freezes")
        self.world.at(at + self.random.randint(500, 40_000), agent.thaw)

    def _cut(self, at: int) -> None:
        names = self.random.sample(self.names, self.random.randint(1, len(self.names)))
        way = self.random.choice(("to the agents", "to the coordinator", "both ways"))
        ways = [(COORDINATOR, name) for name in names if way != "to the coordinator"]
        ways += [(name, COORDINATOR) for name in names if way != "to the agents"]

        def cut() -> None:
            for src, dst in ways:
                self.world.cut(src, dst)

        def mend() -> None:
            for src, dst in ways:
                self.world.mend(src, dst)

        self._at(at, cut, tuple(names), f"bus cut {way}")
        self.world.at(at + self.random.randint(1_000, 40_000), mend)

    def _crash_coordinator(self, at: int) -> None:
        coordinator = self.world.coordinator
        back = at + self.random.randint(100, 20_000)
        match self.random.choice(("process", "power", "commit", "publish")):
            case "process":
                self._at(at, coordinator.crash, ("coordinator",), "coordinator crashes")
            case "power":
                self._at(at, lambda: coordinator.crash(power=True), ("coordinator",), "coordinator loses power")
            case moment:

                def arm() -> None:
                    coordinator.crash_at = "commit" if moment == "commit" else "publish"

                self._at(at, arm, ("coordinator",), "coordinator is about to crash")
        self.world.at(back, coordinator.start)

    def _freeze_coordinator(self, at: int) -> None:
        coordinator = self.world.coordinator
        self._at(at, coordinator.freeze, ("coordinator",), "coordinator freezes")
        self.world.at(at + self.random.randint(500, 20_000), coordinator.thaw)

    def _fill_disk(self, at: int) -> None:
        agent = self._agent()

        def fill(full: bool) -> None:
            agent.disk.full = full

        self._at(at, lambda: fill(True), (agent.node,), "disk fills up")
        self.world.at(at + self.random.randint(2_000, 30_000), lambda: fill(False))

    def _stick(self, at: int) -> None:
        agent = self._agent()

        def stick(sticky: bool) -> None:
            agent.platform.sticky = sticky

        self._at(at, lambda: stick(True), (agent.node,), "undo sticks")
        self.world.at(at + self.random.randint(5_000, 60_000), lambda: stick(False))

    def _flush(self, at: int) -> None:
        agent = self._agent()
        self._at(at, agent.platform.flush, (agent.node,), "somebody flushes the rules")

    def _copy(self, at: int) -> None:
        node = self._agent().node
        copy = SimAgent(self.world, node, "10.0.9.9", self.world.nodes[node].limits)
        self.world.agents.append(copy)
        self._at(at, copy.start, (node,), "copied name appears")
        self.world.at(at + self.random.randint(5_000, 40_000), copy.end)

    def _lose_store(self, at: int) -> None:
        coordinator = self.world.coordinator
        self._at(at, lambda: coordinator.lose_store(self.random.choice(("adopt", "abort"))), (), "store is lost")
        self.world.at(at + self.random.randint(500, 5_000), coordinator.start)

    # --- the verdict ------------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        for agent in self.world.agents:
            agent.check()
        if self.world.now % 10_000 == 0:
            self.world.coordinator.check_fold()
        self.world.after(1_000, self._probe)

    def _settled(self) -> bool:
        world = self.world
        if self._awaited or world.coordinator.machine is None or world.coordinator.machine.listening:
            return False
        if any(agent.machine is None or agent.machine.workers for agent in world.nodes.values()):
            return False
        return all(task.state is TaskState.DONE for task in world.coordinator.machine.view.tasks.values())

    def _complain(self) -> None:
        world, machine = self.world, self.world.coordinator.machine
        if machine is None or machine.listening:
            world.fail(("coordinator",), "the coordinator is not back")
        for task in machine.view.tasks.values():
            if task.state is not TaskState.DONE:
                rows = ", ".join(f"{row.node}: {row.state}" for row in machine.view.info(task.id).workers)
                world.fail((task.id,), f"task {task.id} is still {task.state} ({rows})")
        for agent in world.nodes.values():
            for worker in agent.machine.workers.values() if agent.machine else ():
                ids = (agent.node, worker.task, str(worker.id))
                world.fail(ids, f"{agent.node} still has worker {worker.id} ({worker.state})")
        world.fail((), "not everything settled")

    def _check_end(self) -> None:
        world = self.world
        world.coordinator.check_fold()
        machine = world.coordinator.machine
        assert machine is not None
        for name, node in machine.fleet.nodes.items():
            row = world.coordinator.store.told.nodes.get(name)
            if row is None or msgspec.structs.replace(row, heard_ms=0) != msgspec.structs.replace(node.row, heard_ms=0):
                world.fail((name,), f"node {name} is {node.row}, its events say {row}")
            if not node.row.alive:
                world.fail((name,), f"node {name} is not alive at the end")
        for agent in world.nodes.values():
            agent.check()
            held = [effect for worker, effect in agent.platform.applied if effect in agent.platform.effects]
            if held or (agent.journal and agent.journal.entries):
                world.fail(
                    (agent.node,), f"{agent.node} is not clean: {held}, {agent.journal and agent.journal.entries}"
                )
        for task_id in machine.view.tasks:
            self._check_task(task_id)

    def _check_task(self, task_id: str) -> None:
        world, machine = self.world, self.world.coordinator.machine
        assert machine is not None
        info = machine.view.info(task_id)
        outcomes = set()
        for row in info.workers:
            outcomes.add(row.outcome)
            ids = (task_id, row.node, str(row.id))
            truth = world.truth.get(row.id, set())
            there = row.journal in world.journals and world.journals[row.journal] in world.nodes.values()
            if row.state is not WorkerState.DONE:
                if there:
                    world.fail(ids, f"worker {row.id} is {row.state} at the end")
            elif row.outcome in (Outcome.UNKNOWN, Outcome.DONE) and row.id not in world.ordered:
                pass  # never performed: refused or expired, and the agent that knew it ended before it could say so
            elif truth and there and (row.outcome, row.error) not in truth:
                world.fail(ids, f"worker {row.id} ended {truth}, but the coordinator says {row.outcome}: {row.error}")
            elif not truth and row.outcome not in (Outcome.UNKNOWN, Outcome.DONE) and row.journal:
                world.fail(ids, f"worker {row.id} never ended, but the coordinator says {row.outcome}: {row.error}")
        outcome = info.task.outcome
        world.tally.counts[f"tasks {outcome}"] += 1
        if info.workers and outcome not in outcomes | {Outcome.CANCELLED}:
            world.fail((task_id,), f"task {task_id} ended {outcome}, its workers {outcomes}")
        if outcome is Outcome.DONE and outcomes != {Outcome.DONE}:
            world.fail((task_id,), f"task {task_id} is called done, its workers {outcomes}")


def run(seed: int, *, disk: type[SimDisk] = SimDisk) -> Tally:
    """Run one schedule; Violation tells which promise it breaks."""
    return Schedule(seed, disk=disk).run()


def story(seed: int, *, whole: bool = False) -> str:
    """Run one schedule again and return its time line: all of it, or what concerns the ids of its violation."""
    schedule = Schedule(seed, telling=True)
    ids: set[str] = set()
    end = "no promise was broken"
    try:
        schedule.run()
        whole = True
    except Violation as violation:
        ids, end = set(violation.ids), f"seed {seed}: {violation}"
    lines = [
        f"{at:>7} {text}"
        for at, tags, text in schedule.world.story
        if whole or not tags or ids & set(tags) or any(name in text for name in ids if name)
    ]
    return "\n".join([*lines, end, f"replay: python -m tests.sim --seed {seed} --story"])
