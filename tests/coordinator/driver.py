"""A coordinator's machine with a clock, a store, and agents that say what they are told to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from tests.sim.store import SimStore
from tests.support import at_once
from trogdor_bus.coordinator.api import Api
from trogdor_bus.coordinator.changes import AppendEvent, Change
from trogdor_bus.coordinator.commands import Commands, answer
from trogdor_bus.coordinator.events import (
    BeatHeard,
    ClusterSeen,
    CreateRequested,
    EndExperiment,
    Event,
    Exit,
    LookAtCluster,
    Publish,
    Sighting,
    StartExperiment,
    StopRequested,
    Ticked,
)
from trogdor_bus.coordinator.fleet import Fleet
from trogdor_bus.coordinator.machine import CoordinatorMachine
from trogdor_bus.coordinator.place import Limits, Place
from trogdor_bus.messages import (
    AnyRequest,
    Beat,
    ExperimentInfo,
    GetExperiment,
    NodeRow,
    Reply,
    Report,
    Snapshot,
    Stamp,
    decode,
    encode,
)
from trogdor_bus.registry import registry
from trogdor_bus.roles import Wanted
from trogdor_bus.spec import wire
from trogdor_bus.states import TaskRow, WorkerRow, WorkerState
from trogdor_bus.topology import Node

BEAT_MS, LEASE_MS = 1_000, 30_000
START_MS = 1_700_000_000_000
NODES = ("a", "b", "c")


class Cluster:
    """The machine leads, and each of `nodes` has beaten, unless `lead` is False. Times are epoch ms."""

    def __init__(
        self,
        *nodes: str,
        configured: Mapping[str, Node] | None = None,
        orphans: Literal["refuse", "adopt", "abort"] = "refuse",
        lead: bool = True,
        under_test: str = "",
    ) -> None:
        self.now = START_MS
        self.nodes, self.configured = nodes or NODES, configured
        self.under_test = under_test
        self.wanted: list[Wanted] = []
        self.sighting = Sighting(error="nobody asked")
        self.store = SimStore(100, lambda: self.now)
        self.reports: dict[str, dict[int, Report]] = {name: {} for name in self.nodes}
        self.counters: dict[str, int] = {}
        self.skew: Callable[[Any], None] | None = None
        """What agents of another version write otherwise into the JSON of their beats."""
        self.start(orphans)
        if lead:
            self.lead()

    # --- the coordinator ----------------------------------------------------------------------------------------------

    def start(self, orphans: Literal["refuse", "adopt", "abort"] = "refuse", barred: str = "") -> None:
        """Start a coordinator, or the next one, on what the store kept."""
        self.lives = getattr(self, "lives", 0) + 1
        self.texts: list[str] = []
        self.experiments: list[StartExperiment | EndExperiment] = []
        self.published: dict[str, Snapshot] = {}
        self.looks: list[LookAtCluster] = []
        self.exit: Exit | None = None
        self.machine = CoordinatorMachine(
            self.store.load(),
            Fleet(self.configured, BEAT_MS),
            Place(me=f"c{self.lives}", cluster=self.under_test),
            Limits(beat_ms=BEAT_MS, lease_ms=LEASE_MS),
            self.now,
            orphans=orphans,
            barred=barred,
        )
        self.shut_down = False
        self.api = Api(self.machine, self._give, lambda: self.now, self._shutdown)
        self.commands = Commands(self.api, look=self._look, told=self._told)

    def lead(self) -> None:
        """Let every node beat, and the coordinator listen until it leads."""
        for name in self.nodes:
            self.beat(name)
        self.pass_(2 * BEAT_MS)
        assert not self.machine.listening
        for name in self.nodes:
            self.beat(name)

    def give(self, event: Event) -> list[str]:
        """Give an event; return the nodes that were told something."""
        effects = self.machine.handle(event, self.now)
        changes = [effect for effect in effects if isinstance(effect, Change)]
        last_change = max((i for i, effect in enumerate(effects) if isinstance(effect, Change)), default=-1)
        first_word = next((i for i, effect in enumerate(effects) if isinstance(effect, Publish)), len(effects))
        assert last_change < first_word, "something was published before what it rests on was stored"
        self.store.commit(changes, durable=True)
        self.texts += [change.event.text for change in changes if isinstance(change, AppendEvent)]
        self.experiments += [effect for effect in effects if isinstance(effect, StartExperiment | EndExperiment)]
        told = [effect.snapshot for effect in effects if isinstance(effect, Publish)]
        self.published |= {snapshot.node: decode(encode(snapshot), Snapshot) for snapshot in told}
        self.looks += [effect for effect in effects if isinstance(effect, LookAtCluster)]
        self.exit = next((effect for effect in effects if isinstance(effect, Exit)), self.exit)
        assert self.machine.view.tasks == self.store.told.tasks
        assert self.machine.view.workers == self.store.told.workers
        assert unheard(self.machine.view.nodes) == unheard({n: s.row for n, s in self.machine.fleet.nodes.items()})
        return [snapshot.node for snapshot in told]

    def _give(self, event: Event) -> None:
        self.give(event)

    async def _look(self, wanted: Wanted) -> Sighting:
        self.wanted.append(wanted)
        return self.sighting

    async def _told(self, task: TaskRow, request: GetExperiment) -> ExperimentInfo:
        return ExperimentInfo(task=task)

    def _shutdown(self) -> None:
        self.shut_down = True

    def pass_(self, ms: int, *beating: str) -> None:
        """Let time pass, ticking whenever it is due; the nodes named beat on meanwhile."""
        end = self.now + ms
        while self.now < end:
            self.now = min(end, max(self.now, self.machine.deadline()))
            if self.now >= self.machine.deadline():
                self.give(Ticked())
                for name in beating:
                    self.beat(name)

    def restart(self) -> None:
        """Kill the coordinator and start the next one."""
        self.start()
        self.lead()

    # --- clients ------------------------------------------------------------------------------------------------------

    def answer(self, frame: bytes, parent: str = "") -> Reply:
        """Return the reply to a request's frame; looks at the cluster under test show `sighting`."""
        reply: Reply = decode(at_once(answer(self.commands, frame, parent)), Reply)
        return reply

    def ask(self, request: AnyRequest) -> Any:
        """Return the result of a request; raise the error by which it is refused."""
        return at_once(self.commands.execute(request)).result

    def show(self, sighting: Sighting, look: LookAtCluster | None = None) -> list[str]:
        """Answer a look, by default the latest; return the nodes that were told."""
        look = look or self.looks[-1]
        return self.give(ClusterSeen(look.task, look.number, sighting))

    def create(
        self,
        task: str = "t",
        alias: str = "port-block",
        *,
        force: bool = False,
        parent: str = "",
        allow: tuple[str, ...] = (),
        own_topics: tuple[str, ...] = (),
        **fields: Any,
    ) -> list[str]:
        """Create a task on all nodes, or as the fields say; return the nodes that were told."""
        body: dict[str, Any] = {"class": alias, "durationMs": 10_000, **fields}
        if alias == "port-block":
            body = {"nodes": list(self.nodes), "ports": [9092], **body}
        spec = registry().decode(body, checked=False)
        return self.give(CreateRequested(task, spec, wire(spec), force, allow, own_topics, parent))

    def stop(self, task: str = "t") -> list[str]:
        return self.give(StopRequested(task))

    def task(self, task: str = "t") -> TaskRow:
        return self.machine.view.tasks[task]

    def row(self, node: str, task: str = "t") -> WorkerRow:
        return next(row for row in self.machine.view.info(task).workers if row.node == node)

    # --- agents -------------------------------------------------------------------------------------------------------

    def beat(self, name: str, *, journal: str = "", stamp: Stamp | None = None, **fields: Any) -> list[str]:
        """Let a node beat with all its reports, holding the last word published to it; return the nodes told."""
        journal = journal or f"j-{name}"
        if stamp is None and name in self.published:
            stamp = self.published[name].stamp
        counter = fields.pop("counter", self.counters.get(journal, 0) + 1)
        self.counters[journal] = max(counter, self.counters.get(journal, 0))
        given: dict[str, Any] = {
            "reports": tuple(self.reports.get(name, {}).values()),
            "addresses": (f"10.0.0.{1 + list(self.nodes).index(name)}",) if name in self.nodes else (),
            **fields,
        }
        frame = encode(Beat(node=name, journal=journal, counter=counter, stamp=stamp, **given))
        if self.skew is not None:
            told = msgspec.json.decode(frame)
            self.skew(told)
            frame = msgspec.json.encode(told)
        return self.give(BeatHeard(decode(frame, Beat)))

    def say(self, node: str, state: WorkerState, task: str = "t", **fields: Any) -> list[str]:
        """Let a node report one worker, now and in every later beat."""
        worker = self.row(node, task).id
        self.reports[node][worker] = Report(worker=worker, task=task, state=state, status=state.lower(), **fields)
        return self.beat(node)

    def all_say(self, state: WorkerState, task: str = "t", **fields: Any) -> None:
        """Let every worker of a task be reported so."""
        for row in self.machine.view.info(task).workers:
            self.say(row.node, state, task, **fields)

    def forget(self, node: str) -> list[str]:
        """Let a node know nothing any more, and beat."""
        self.reports[node] = {}
        return self.beat(node)

    def orders(self, node: str) -> list[tuple[str, bool]]:
        """Return the tasks that the last word to a node asks for, and whether it says what to do."""
        return [(order.task, order.actions is not None) for order in self.published[node].orders]


def unheard(rows: Mapping[str, NodeRow]) -> dict[str, NodeRow]:
    """Return rows without the times of the last beats, which no event tells."""
    return {name: msgspec.structs.replace(row, heard_ms=-1) for name, row in rows.items()}


def raw(body: Mapping[str, Any]) -> msgspec.Raw:
    """Return a JSON object as a client sends it."""
    return msgspec.Raw(msgspec.json.encode(body))
