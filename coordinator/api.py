"""What can be answered at once, as plain methods; `commands` waits for the rest, and is the only one to call these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, assert_never

import msgspec

from trogdor_bus import __version__
from trogdor_bus.coordinator import pages
from trogdor_bus.coordinator.doubts import proofs
from trogdor_bus.coordinator.events import (
    AbortRequested,
    CreateRequested,
    DestroyRequested,
    Event,
    ForgetRequested,
    ResumeRequested,
    Sighting,
    StopRequested,
)
from trogdor_bus.coordinator.guard import check_allowed
from trogdor_bus.coordinator.machine import CoordinatorMachine
from trogdor_bus.coordinator.pages import Page, Room
from trogdor_bus.coordinator.plan import describe
from trogdor_bus.coordinator.planner import Terms
from trogdor_bus.errors import BusError, NotFoundError, SpecError
from trogdor_bus.experiment.destinations import Destinations, parsed
from trogdor_bus.faults.experiment import ExperimentSpec
from trogdor_bus.messages import (
    Abort,
    AskProof,
    AskStatus,
    AskView,
    CoordinatorStatus,
    CreateTask,
    Destroyed,
    DestroyTask,
    ForgetNode,
    Forgotten,
    Latch,
    ListNodes,
    ListTasks,
    NodeRow,
    PagedRequest,
    Plan,
    Proof,
    Pulse,
    Resume,
    ShowTask,
    Shutdown,
    StopTask,
    TaskInfo,
    ViewPage,
)
from trogdor_bus.registry import MAX_SPEC_BYTES, registry
from trogdor_bus.remedies import Remedy
from trogdor_bus.roles import Wanted
from trogdor_bus.spec import TaskSpec, wire
from trogdor_bus.states import TaskRow, TaskState
from trogdor_bus.view import node_key, task_key, worker_key

AtOnce = (
    CreateTask
    | StopTask
    | DestroyTask
    | ShowTask
    | ListTasks
    | ListNodes
    | AskView
    | AskStatus
    | Abort
    | Resume
    | AskProof
    | ForgetNode
    | Shutdown
)
"""The requests for whose answer nothing is waited."""
TERMS = Terms()
RECENT_MS = 60_000
"""Ended tasks stay in the view of monitors for this long."""


class Api:
    """The coordinator as its clients see it. `handle` gives an event to the machine and stores what follows.

    `behind_ms`, None without a log, tells since when the log has not held everything (epoch ms, -1: it does).
    """

    def __init__(
        self,
        machine: CoordinatorMachine,
        handle: Callable[[Event], None],
        now_ms: Callable[[], int],
        shutdown: Callable[[], None],
        behind_ms: Callable[[], int] | None = None,
    ) -> None:
        self._machine, self._handle, self._now_ms, self._shutdown = machine, handle, now_ms, shutdown
        self._behind_ms = behind_ms
        self.destinations: Callable[[], Destinations] | None = None
        """Tells where experiments may connect; set by whoever runs their programs."""

    def perform(self, request: AtOnce, parent: str = "") -> Any:  # noqa: PLR0912 (one case per request)
        """Return the result of a request for whose answer nothing is waited; the errors of the method that has it.

        It is a Page where it may be one of several. What is created belongs to the task `parent`, if given.
        """
        match request:
            case CreateTask(id=task_id, spec=spec, force=force, allow=allow, own_topics=own):
                self.create_task(task_id, spec, Terms(force, allow, own), parent)
                return self._task_page(task_id, ShowTask(id=task_id, most_bytes=pages.MOST_PAGE_BYTES))
            case StopTask(id=task_id):
                return self.stop_task(task_id)
            case DestroyTask(id=task_id):
                return self.destroy_task(task_id)
            case ShowTask(id=task_id):
                self.show_task(task_id)
                return self._task_page(task_id, request)
            case ListTasks():
                return self.tasks(request)
            case ListNodes():
                rows = pages.named(self.nodes(), lambda node: node.name, pages.mark(request), Room(request.most_bytes))
                return Page(*rows)
            case AskView():
                return self.view_page(request)
            case AskStatus():
                return self.status()
            case Abort(latch=latch, node=node):
                return self.abort(latch, node)
            case Resume(node=node):
                return self.resume(node)
            case AskProof():
                return self._proof_page(request)
            case ForgetNode(node=node, force=force):
                return self.forget_node(node, force)
            case Shutdown():
                return self._shutdown()
        assert_never(request)

    def create_task(self, task_id: str, spec: msgspec.Raw, terms: Terms = TERMS, parent: str = "") -> TaskInfo:
        """Create a task and return it; the same id and spec again return the same task, ConflictError for another."""
        decoded = decode_spec(spec, checked=False)
        force, allow, own_topics = terms.force, terms.allow, terms.own_topics
        self._handle(CreateRequested(task_id, decoded, wire(decoded), force, allow, own_topics, parent))
        return self._machine.view.info(task_id)

    def wanted(self, spec: TaskSpec, terms: Terms = TERMS) -> Wanted | None:
        """Return what must be seen of the cluster under test before `validate`, None for nothing; errors as there."""
        check_allowed(terms.allow)
        return None if spec.is_experiment else self._machine.planner.look(spec)

    def validate(self, spec: TaskSpec, terms: Terms = TERMS, sighting: Sighting | None = None) -> Plan:
        """Return what a spec would do, seeing what was `wanted`; SpecError or RefusedError says why it cannot."""
        if spec.is_experiment:
            self._check_destinations(spec.performed())
            return Plan(spec=msgspec.Raw(wire(spec.performed())))
        planned = self._machine.plan(spec, terms, sighting)
        alive = {name for name, node in self._machine.fleet.nodes.items() if node.row.alive}
        plan = describe(planned.spec, planned.topology, alive=alive, force=terms.force)
        warnings = (*plan.warnings, *planned.warnings)
        return msgspec.structs.replace(
            plan, warnings=warnings, holders=planned.holders, seed=planned.seed, losses=planned.losses
        )

    def _check_destinations(self, spec: TaskSpec) -> None:
        """Raise RefusedError for an address in an experiment that may not be reached; names are looked up later."""
        if self.destinations is None or not isinstance(spec, ExperimentSpec):
            return
        found = self.destinations()
        for place in spec.places():
            found.check_literal(*parsed(place))

    def stop_task(self, task_id: str) -> None:
        """Stop a task; an unknown or ended one is no error (as in Trogdor)."""
        self._handle(StopRequested(task_id))

    def destroy_task(self, task_id: str) -> Destroyed:
        """Stop a task on its agents, forget it, and return what is proven; an unknown one is no error (as in Trogdor).

        Asked again, it tells what is still not proven.
        """
        known = task_id in self._machine.view.tasks
        self._handle(DestroyRequested(task_id))
        waiting, unheard = self._machine.owing(task_id)
        return Destroyed(known=known, waiting=waiting, unheard=unheard)

    def abort(self, latch: str, node: str = "") -> Latch:
        """End everything on a node, or ("") on all, and let nothing start; NotFoundError for an unknown node."""
        self._handle(AbortRequested(latch, node))
        return Latch(id=self._machine.latch(node), node=node, lease_ms=self._machine.limits.lease_ms)

    def resume(self, node: str = "") -> list[str]:
        """Let faults start again, and return the nodes that were latched; RefusedError for one while all are."""
        before = {name for name, state in self._machine.fleet.nodes.items() if state.row.latch}
        before |= {name for name in self._machine.fleet.nodes if self._machine.latch(name)}
        self._handle(ResumeRequested(node))
        return sorted(before & {node} if node else before)

    def proof(self, latch: str, node: str = "") -> Proof:
        """Return what is proven under an abort of one node, or ("") of all, in few words of each."""
        nodes = [state for name, state in sorted(self._machine.fleet.nodes.items()) if node in ("", name)]
        return Proof(nodes=proofs(nodes, latch, node), listening=self._machine.listening)

    def _proof_page(self, request: AskProof) -> Page:
        whole, mark = self.proof(request.latch, request.node), pages.mark(request)
        found, more = pages.named(whole.nodes, lambda one: one.node, mark, Room(request.most_bytes))
        return Page(msgspec.structs.replace(whole, nodes=tuple(found)), more)

    def forget_node(self, node: str, force: bool = False) -> Forgotten:
        """Forget a node; RefusedError if its agent is alive, or if it may hold something, unless `force`."""
        state = self._machine.fleet.nodes.get(node)
        given_up = state.row.unproven if state else ()
        alive = state is not None and state.row.alive
        self._handle(ForgetRequested(node, force))
        return Forgotten(node=node, given_up=given_up, gone=not alive)

    def show_task(self, task_id: str) -> TaskInfo:
        """Return one task; NotFoundError if there is none of that id."""
        if task_id not in self._machine.view.tasks:
            raise NotFoundError(f'No task with ID "{task_id}" exists.')  # in Trogdor's words
        return self._machine.view.info(task_id)

    def experiment(self, task_id: str) -> TaskRow:
        """Return the task of an experiment; NotFoundError if there is none of that id."""
        task = self.show_task(task_id).task
        if not task.experiment:
            raise NotFoundError(f"task {task_id} is no experiment; `{Remedy('show', {'id': task_id})}` shows it")
        return task

    def tasks(self, query: ListTasks) -> Page:
        """Return the next tasks that pass every filter, sorted by id; SpecError for a state that does not exist."""
        if query.state and query.state not in TaskState.__members__:
            states = ", ".join(TaskState)
            raise SpecError(f"State {query.state} is invalid. Must be one of [{states}]", path="$.state")
        rows = [task for task in _sorted(self._machine.view.tasks.values()) if _passes(task, query)]
        return Page(*pages.tasks(rows, self._machine.view, pages.mark(query), Room(query.most_bytes)))

    def nodes(self) -> list[NodeRow]:
        """Return the nodes, sorted by name."""
        return [node.row for _, node in sorted(self._machine.fleet.nodes.items())]

    def _task_page(self, task_id: str, request: PagedRequest) -> Page:
        """Return a task with the next of its workers."""
        view = self._machine.view
        found, more = pages.tasks([view.tasks[task_id]], view, pages.mark(request), Room(request.most_bytes))
        return Page(found[0] if found else TaskInfo(task=view.tasks[task_id]), more)

    def status(self) -> CoordinatorStatus:
        """Return when this coordinator started, who it is, and whether the log holds everything."""
        behind_ms = self._behind_ms() if self._behind_ms else msgspec.UNSET
        return CoordinatorStatus(
            server_start_ms=self._machine.started_ms,
            now_ms=self._now_ms(),
            epoch=self._machine.epoch,
            coordinator=self._machine.place.me,
            version=__version__,
            listening=self._machine.listening,
            replicated=behind_ms if behind_ms is msgspec.UNSET else behind_ms < 0,
            behind_ms=behind_ms,
            trouble=self._machine.barred or msgspec.UNSET,
        )

    def pulse(self) -> Pulse:
        """Return what monitors compare their views with."""
        view = self._machine.view
        return Pulse(seq=view.seq, at_ms=self._now_ms(), status=self.status(), digest=view.versions.digest)

    def view_page(self, request: AskView) -> Page:
        """Return the next rows of what a monitor shows: nodes, open tasks, and those that ended within a minute."""
        view, versions, now_ms = self._machine.view, self._machine.view.versions, self._now_ms()
        room, after = Room(request.most_bytes), pages.mark(request)
        nodes, tasks, more = list[NodeRow](), list[TaskInfo](), ""
        if after is None or not after.is_task:
            nodes, more = pages.named(self.nodes(), lambda node: node.name, after, room)
            after = None
        if not more:
            recent = [t for t in view.tasks.values() if t.done_ms < 0 or now_ms - t.done_ms < RECENT_MS]
            tasks, more = pages.tasks(_sorted(recent), view, after, room)
        keys = [node_key(node.name) for node in nodes]
        for info in tasks:
            keys += [task_key(info.task.id), *(worker_key(worker.id) for worker in info.workers)]
        seqs = {key: seq for key in keys if (seq := versions.get(key)) is not None}
        page = ViewPage(
            seq=view.seq, at_ms=now_ms, status=self.status(), nodes=tuple(nodes), tasks=tuple(tasks), seqs=seqs
        )
        return Page(page, more)


def decode_spec(spec: msgspec.Raw, *, checked: bool = True) -> TaskSpec:
    """Return a spec that a client sent; SpecError names the field, `checked` as in `Registry.decode`."""
    if len(bytes(spec)) > MAX_SPEC_BYTES:
        raise SpecError(f"the spec has {len(bytes(spec))} bytes", remedy=f"keep it under {MAX_SPEC_BYTES}")
    try:
        data = msgspec.json.decode(spec)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BusError(f"the spec is not JSON: {error}") from None
    return registry().decode(data, checked=checked)


def _sorted(tasks: Iterable[TaskRow]) -> list[TaskRow]:
    return sorted(tasks, key=lambda task: task.id)


def _passes(task: TaskRow, query: ListTasks) -> bool:
    """Return whether a task passes Trogdor's filters (never started or not ended counts as -1)."""
    return (
        (not query.ids or task.id in query.ids)
        and (not query.state or task.state == query.state)
        and (query.first_start_ms <= 0 or task.started_ms >= query.first_start_ms)
        and (query.last_start_ms <= 0 or 0 <= task.started_ms <= query.last_start_ms)
        and (query.first_end_ms <= 0 or task.done_ms >= query.first_end_ms)
        and (query.last_end_ms <= 0 or 0 <= task.done_ms <= query.last_end_ms)
    )
