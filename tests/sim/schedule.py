"""One simulated cluster from its first moment to the verdict: what it is asked to do, and how that is run."""

from __future__ import annotations

import logging
from random import Random

import msgspec

from tests.agents.simdisk import SimDisk
from tests.sim import proofs, verdict
from tests.sim.cluster import ROLES
from tests.sim.coordinator import EPOCH_MS
from tests.sim.tally import Tally
from tests.sim.troubles import TROUBLE_MS, Troubles
from tests.sim.world import Violation, World
from trogdor_bus.messages import (
    Abort,
    CreateTask,
    DestroyTask,
    ForgetNode,
    Reply,
    Request,
    Resume,
    StopTask,
    decode,
    encode,
)

BOUND_MS = 90_000
"""How long after the troubles everything may take to end."""
CLASH_MS = 15_000
"""How long after them two coordinators of one epoch go on, until somebody starts one of them anew."""
RESUME_MS = 22_000
"""How long after them somebody ends the last abort."""
CLEAN_MS = 5_000
"""How long after them somebody cleans the nodes whose former agents may have left something, and how often."""
QUIET_MS = 6_000
TRIAL = "trial"
"""The last task: when all is calm, everything works."""
LAST_DEATH_MS = 30_000
"""How long after the troubles a coordinator may still die that was to die at something which did not happen."""
FOLLOWED = "followed"
FOLLOW_MS = 15_000
TASKS = 10
DAEMONS = ("trogdor_bus.agents", "trogdor_bus.coordinator")
"""Whose logs tell what is meant to happen here."""


class Schedule:
    """One seed: run it with `run`, which raises Violation."""

    def __init__(self, seed: int, *, disk: type[SimDisk] = SimDisk, telling: bool = False) -> None:
        self.world = World(seed, disk=disk, telling=telling)
        self.random: Random = self.world.random
        self.names = list(self.world.nodes)
        self._awaited = self._first = 0
        self._acknowledged: set[str] = set()
        self._replicated: set[str] = set()
        self._destroyed: set[str] = set()

    def run(self) -> Tally:
        """Let everything happen and check every promise; return what was seen."""
        before = {name: logging.getLogger(name).level for name in DAEMONS}
        for name in DAEMONS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            return self._run()
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)

    def _run(self) -> Tally:
        world = self.world
        for agent in world.agents:
            world.at(self.random.randint(0, 2_000), agent.start)
        world.coordinators[0].start()
        self._plan_tasks()
        self._plan_aborts()
        Troubles(world).plan()
        self._probe()
        world.run(TROUBLE_MS)
        world.calm()
        world.after(CLASH_MS, world.settle_clash)
        world.after(RESUME_MS, self._resume_all)
        world.after(CLEAN_MS, self._clean_all)
        self._await(TROUBLE_MS + BOUND_MS)
        world.run(world.now + QUIET_MS)
        world.run(world.now + BOUND_MS, self._led)  # whoever takes over listens first
        self._await(world.now + BOUND_MS)  # and may doubt a node anew
        self._ask(world.now, CreateTask(id=TRIAL, spec=self._on_all(1_500, 9095)))
        self._await(world.now + BOUND_MS)
        self._follow()
        verdict.check(world, self._acknowledged - self._destroyed, self._replicated - self._destroyed, TRIAL)
        for agent in world.agents:
            agent.crash()
        for coordinator in world.running():
            coordinator.crash()
        world.tally.counts["schedules"] = 1
        world.tally.counts["simulated minutes"] += world.now // 60_000
        world.tally.counts["nodes"] += len(world.nodes)
        return world.tally

    def _follow(self) -> None:
        """Let a node get another address while a partition lasts: it is blocked, and told, on each other side."""
        world, (first, *others) = self.world, self.names
        world.run(TROUBLE_MS + LAST_DEATH_MS)
        self._await(world.now + BOUND_MS)
        spec = {
            "class": "partition",
            "durationMs": FOLLOW_MS,
            "partitions": [[first], others],
            "onDisturbed": "reapply",
        }
        self._ask(world.now, CreateTask(id=FOLLOWED, spec=msgspec.Raw(msgspec.json.encode(spec))))
        world.after(FOLLOW_MS // 3, lambda: world.nodes[first].announce(verdict.NEW_ADDRESS))
        self._await(world.now + BOUND_MS)
        verdict.check_followed(world, FOLLOWED, first, others)

    def _await(self, until: int) -> None:
        self.world.run(until, self._settled)
        if not self._settled():
            verdict.complain(self.world)

    def _led(self) -> bool:
        return any(one.machine and not one.machine.listening for one in self.world.running())

    def _settled(self) -> bool:
        return not self._awaited and verdict.settled(self.world) and not proofs.dirty(self.world)

    def _probe(self) -> None:
        for agent in self.world.agents:
            agent.promises.check()
        for coordinator in self.world.coordinators:
            proofs.check(self.world, coordinator)
            proofs.check_given_up(self.world, coordinator)
        if self.world.now % 10_000 == 0:
            for coordinator in self.world.coordinators:
                coordinator.check_fold()
        self.world.after(1_000, self._probe)

    # --- tasks ------------------------------------------------------------------------------------------------------

    def _plan_tasks(self) -> None:
        random = self.random
        kinds = ["partition", "directed-partition", "port-block", "java-process-stop", "noop", "command"]
        kinds += [random.choice((*kinds, "experiment")) for _ in range(TASKS - len(kinds))]
        for number, kind in enumerate(kinds, 1):
            task = f"task{number}"
            first = random.randint(3_000, 230_000)
            if number == 2:  # two that surely overlap
                first = self._first + random.randint(0, 2_000)
            self._first = first
            spec = self._spec(kind, first)
            if number <= 2:
                spec = msgspec.json.decode(self._on_all(20_000, 9090 + number))
            self.world.tally.counts["tasks"] += 1
            create = CreateTask(id=task, spec=msgspec.Raw(msgspec.json.encode(spec)), force=random.random() < 0.3)
            self._ask(first, create)
            if random.random() < 0.3:
                self._ask(first + random.randint(0, 4_000), create)
            if random.random() < 0.15:
                other = msgspec.Raw(msgspec.json.encode({**spec, "durationMs": 77}))
                self._ask(first + 5_000, CreateTask(id=task, spec=other))
            luck = random.random()
            if luck < 0.25:
                self._ask(first + random.randint(0, 30_000), StopTask(id=task))
            elif luck < 0.35:
                self._ask(first + random.randint(7_000, 40_000), DestroyTask(id=task))

    def _spec(self, kind: str, first: int) -> dict[str, object]:
        random = self.random
        if kind == "experiment":
            fault = {"class": "process-stop", "durationMs": 1_000, "nodes": self.names[:1], "match": "kafka"}
            return {"class": kind, "chaosMs": 2_000, "baselineMs": 1_000, "recoveryMs": 5_000, "fault": fault}
        spec: dict[str, object] = {"class": kind, "durationMs": random.choice((1_500, 8_000, 20_000, 40_000))}
        if random.random() < 0.3:
            spec["startMs"] = EPOCH_MS + first + random.randint(500, 30_000)
        names = random.sample(self.names, random.randint(2, len(self.names)))
        cut = random.randint(1, len(names) - 1)
        match kind:
            case "partition":
                spec["partitions"] = [names[:cut], names[cut:]]
                spec["onDisturbed"] = random.choice(("", "reapply"))
            case "directed-partition":
                spec |= {"from": names[:cut], "to": names[cut:]}
            case "port-block":
                spec |= {"nodes": names, "ports": [random.choice((9092, 9093))]}
                spec["onDisturbed"] = random.choice(("", "reapply"))
            case "command":
                spec |= {"nodes": names, "command": ["run"]}
            case "java-process-stop":
                spec |= {"nodeNames": names, "javaProcessName": random.choice(("kafka", "zookeeper"))}
        if kind in ROLES and random.random() < 0.3:
            spec |= ROLES[kind]
            self.world.tally.counts["tasks with roles"] += 1
        return spec

    def _on_all(self, duration_ms: int, port: int) -> msgspec.Raw:
        spec = {"class": "port-block", "durationMs": duration_ms, "nodes": self.names, "ports": [port]}
        return msgspec.Raw(msgspec.json.encode(spec))

    def _plan_aborts(self) -> None:
        """Let somebody abort one node or all, and resume it later, twice in some schedules."""
        random = self.random
        for number in range(random.choice((0, 0, 0, 0, 1, 1, 2))):
            at, node = random.randint(10_000, 240_000), random.choice(("", "", *self.names))
            self._ask(at, Abort(latch=f"latch{number}-{random.getrandbits(32):x}", node=node), {"NotFoundError"})
            self._ask(at + random.randint(2_000, 50_000), Resume(node=node), {"NotFoundError"})

    def _resume_all(self) -> None:
        """Resume, as long as an agent keeps a latch."""
        if any(agent.machine and agent.machine.latch for agent in self.world.nodes.values()):
            self._ask(self.world.now, Resume())
            self.world.after(5_000, self._resume_all)

    def _clean_all(self) -> None:
        """Do what somebody does where a former agent may have left something: look, undo it by hand, and say so."""
        for agent in proofs.dirty(self.world):
            agent.platform.undo_by_hand()
            self.world.tally.counts["nodes cleaned by hand"] += 1
            self._ask(self.world.now, ForgetNode(node=agent.node, force=True), {"NotFoundError"})
        self.world.after(CLEAN_MS, self._clean_all)

    def _ask(self, at: int, request: Request, allowed: set[str] | None = None) -> None:
        """Send a request until it is answered; its frames may be lost both ways."""
        frame, allowed = encode(request), allowed or set()
        self._awaited += 1
        name = getattr(request, "id", "")
        if isinstance(request, DestroyTask):
            self._destroyed.add(name)

        def attempt() -> None:
            world = self.world
            lost = self.random.random()
            running = world.running()
            asked = self.random.choice(running) if running else None
            answer = asked.ask(frame) if asked and lost > 0.1 else None
            reply: Reply | None = decode(answer, Reply) if answer is not None and lost <= 0.9 else None
            if reply is None or reply.error == "HostError":
                world.after(1_000, attempt)
                return
            self._awaited -= 1
            world.tally.counts["requests answered"] += 1
            if isinstance(request, CreateTask) and not reply.error:
                self._acknowledged.add(name)
                if asked and asked.machine and asked.replica and asked.replica.holds_all(asked.machine.epoch):
                    self._replicated.add(name)
            world.tell((name,), "client: {} {} {}", type(request).__name__, name, reply.error or "accepted")
            ends = isinstance(request, StopTask | DestroyTask | Abort)  # whoever wants an end is never refused
            refusable = allowed | (set() if ends else {"ConflictError", "RefusedError"})
            if reply.error and reply.error not in refusable:
                world.fail((name,), f"{type(request).__name__} of {name} is answered {reply.error}: {reply.message}")

        self.world.at(at, attempt)


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
