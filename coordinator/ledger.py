"""The coordinator's rows: tasks, workers and events, and the changes to be stored.

The state is `view`, the fold of the events recorded here; there is no second copy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import msgspec

from trogdor_bus.actions import Action
from trogdor_bus.coordinator import latches, owed, unread
from trogdor_bus.coordinator.changes import (
    AppendEvent,
    DropTask,
    Loaded,
    PutRow,
    PutTask,
    PutWorker,
    StoredWorker,
)
from trogdor_bus.coordinator.drift import Drift
from trogdor_bus.coordinator.events import CreateRequested
from trogdor_bus.coordinator.fleet import Fleet, NodeState
from trogdor_bus.coordinator.moves import OVER
from trogdor_bus.coordinator.plan import WorkerPlan
from trogdor_bus.coordinator.turn import Turn
from trogdor_bus.errors import RefusedError, SpecError
from trogdor_bus.messages import (
    UNTOLD,
    AnyEvent,
    NodeChanged,
    NodeGone,
    Noted,
    Report,
    TaskChanged,
    TaskGone,
    UnreadReport,
    WorkerChanged,
    is_readable,
)
from trogdor_bus.printable import cut, cut_lines
from trogdor_bus.registry import registry
from trogdor_bus.spec import MAX_DURATION_MS, TaskSpec, wire
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerRow, WorkerState, ended
from trogdor_bus.topology import Topology
from trogdor_bus.view import View

if TYPE_CHECKING:
    from trogdor_bus.coordinator.planner import Planned

ENDED = (WorkerState.DONE, WorkerState.STUCK)
"""The states of a worker that its task no longer waits for."""
UNDESCRIBED = b"{}"
"""The spec of an adopted task until an agent has told it."""
MOST_PROGRESS = 64 << 10
"""So many bytes of what a worker says of itself are kept."""
MOST_CHARS = 256 << 10
"""And so many characters of each text of its row, and of each list of them: one row must fit into a frame."""
INSTALL = "upgrade the coordinator, or install the package that brings it"
KEEP_DONE = 1_000
KEEP_DONE_MS = 7 * 86_400_000
KEEP_DONE_BYTES = 64 << 20
"""Ended tasks beyond this many, older than this, or beyond so many bytes of theirs are forgotten, the oldest first."""


class Ledger:
    """Rows by id, each change recorded in the turn."""

    def __init__(self, loaded: Loaded, fleet: Fleet, turn: Turn) -> None:
        self.view, self._turn = View(), turn
        self.drift = Drift(fleet)
        self._fleet = fleet
        self._actions: dict[int, tuple[Action, ...] | None] = {}
        self._stranded: dict[int, str] = {}
        self._task_of: dict[int, str] = {}
        self._counts: dict[str, Counter[WorkerState]] = defaultdict(Counter)
        self._sizes: dict[str, int] = {}
        self.view.seq = loaded.meta.next_seq - 1
        for task in loaded.tasks:
            self.view.add_task(task, [stored.row for stored in loaded.workers.get(task.id, ())])
            for stored in loaded.workers.get(task.id, ()):
                self._counts[task.id][stored.row.state] += 1
                self._index(task.id, stored.row, stored.actions)
        for name in {*owed.nodes(loaded.meta), *latches.nodes(loaded.meta)}:
            fleet.ensure(name)
        for node in fleet.nodes.values():
            self.view.add_node(node.row)

    @property
    def now_ms(self) -> int:
        """The time of this turn, epoch ms."""
        return self._turn.now_ms

    def task_of(self, worker_id: int) -> str | None:
        """Return the id of a worker's task, None for a worker that nobody here knows."""
        return self._task_of.get(worker_id)

    def row(self, worker_id: int) -> WorkerRow:
        """Return a known worker."""
        return self.view.workers[self._task_of[worker_id]][worker_id]

    def known(self, worker_id: int) -> WorkerRow | None:
        """Return a worker, None if nobody here knows it."""
        return self.row(worker_id) if worker_id in self._task_of else None

    def actions(self, worker_id: int) -> tuple[Action, ...] | None:
        """Return what a worker was ordered to do, None if that is no longer known (it was adopted)."""
        return self._actions.get(worker_id)

    def startable(self, row: WorkerRow) -> tuple[Action, ...] | None:
        """Return what a worker is to be started with, None if it has begun, or cannot begin any more."""
        waits = row.state is WorkerState.RECEIVING and row.id not in self._stranded
        return self.actions(row.id) if waits else None

    def count(self, task_id: str, *states: WorkerState) -> int:
        """Return how many workers of a task are in one of the states."""
        return sum(self._counts[task_id][state] for state in states)

    def has_open(self, task_id: str) -> bool:
        """Return whether some worker of the task is not DONE."""
        return self.count(task_id, WorkerState.DONE) < len(self.view.workers[task_id])

    def tasks_on(self, node: str) -> list[str]:
        """Return the tasks that have an open worker on a node; ("") all tasks."""
        every = self.view.workers.items()
        return [
            task for task, rows in every if not node or any(row.node == node and _is_open(row) for row in rows.values())
        ]

    def check_parent(self, task_id: str) -> None:
        """Raise RefusedError if nothing may begin any more for that task; "" is none."""
        parent = self.view.tasks.get(task_id)
        if task_id and (parent is None or parent.state in OVER):
            raise RefusedError(f"task {task_id} is over, and nothing may begin for it")

    def put(self, task: TaskRow, text: str) -> None:
        """Keep a task, new or changed."""
        self._turn.changes.append(PutTask(task))
        self.record(TaskChanged(seq=0, at_ms=0, task=task, text=text))

    def resolve(self, task_id: str, planned: Planned) -> None:
        """Keep, and tell, whom the spec of a task that fires now turned out to mean; its time counts from now."""
        for one in planned.holders:
            self.note(f"task {task_id}: {one.why}")
        spec = msgspec.structs.replace(planned.spec, start_ms=self._turn.now_ms)
        task = msgspec.structs.replace(
            self.view.tasks[task_id],
            spec=msgspec.Raw(wire(spec)),
            start_ms=self._turn.now_ms,
            holders=planned.holders,
            seed=planned.seed,
        )
        self.put(task, "")

    def add_worker(self, task_id: str, row: WorkerRow, actions: tuple[Action, ...] | None) -> None:
        """Keep a new worker of a task."""
        self._turn.changes.append(PutWorker(task_id, StoredWorker(row=row, actions=actions)))
        self._counts[task_id][row.state] += 1
        self._index(task_id, row, actions)
        self._record_row(task_id, row)

    def address(self, task_id: str, first: int, plans: Iterable[WorkerPlan]) -> list[str]:
        """Keep a worker for each plan, numbered from `first`; return their nodes."""
        nodes = []
        for worker_id, plan in enumerate(plans, first):
            journal = self._fleet.ensure(plan.node).row.journal
            row = WorkerRow(id=worker_id, node=plan.node, journal=journal, left_out=plan.left_out)
            self.add_worker(task_id, row, plan.actions)
            nodes.append(plan.node)
        return nodes

    def forgotten(self, row: WorkerRow, blind: str) -> tuple[Outcome, str] | None:
        """Return how a worker ended of which its agent, with our latest word, knows nothing; None if it may start.

        `blind` is why what its agent said last of it could not be read, "" if it could.
        """
        if row.state is WorkerState.STUCK:
            return row.outcome, f"undone late, and nothing is left: node {row.node} has no record of it any more"
        if blind:
            return Outcome.UNKNOWN, unread.unknown(row.node, blind)
        if not row.wanted:
            return Outcome.DONE, ""
        if row.state is WorkerState.RECEIVING and row.id in self._stranded:
            return Outcome.FAILED, self._stranded[row.id]
        if self.startable(row) is None:
            return Outcome.UNKNOWN, f"outcome unknown: {row.error or f'node {row.node} has no record of it'}"
        return None

    def describe(self, task_id: str, report: Report) -> None:
        """Keep the spec of a task that was adopted without one, once an agent tells it."""
        task = self.view.tasks[task_id]
        if bytes(task.original) == UNDESCRIBED and report.spec != UNTOLD and is_readable(report.spec):
            self.put(msgspec.structs.replace(task, spec=report.spec, original=report.spec), "")

    def put_worker(self, row: WorkerRow) -> None:
        """Keep a changed worker."""
        task_id = self._task_of[row.id]
        self._turn.changes.append(PutRow(row))
        self._counts[task_id][self.row(row.id).state] -= 1
        self._counts[task_id][row.state] += 1
        self._index(task_id, row, self._actions[row.id])
        self._record_row(task_id, row)

    def close_worker(self, row: WorkerRow, outcome: Outcome, error: str) -> WorkerRow:
        """Keep how a worker ended that no agent tells of, and return it; what was left of one is told no more."""
        new = msgspec.structs.replace(
            row,
            state=WorkerState.DONE,
            wanted=False,
            status=(error or "never started") if row.status == "receiving" else row.status,
            outcome=outcome,
            error=error,
            residue=(),
            by_hand=(),
            done_ms=self._turn.now_ms,
        )
        self.put_worker(new)
        return new

    def drop(self, task_id: str, text: str) -> list[NodeState]:
        """Forget a task and its workers; return the nodes that had an open one."""
        touched = []
        for row in self.view.workers[task_id].values():
            del self._task_of[row.id], self._actions[row.id]
            self._stranded.pop(row.id, None)
            self.drift.forget(row.id)
            node = self._fleet.nodes.get(row.node)
            if node and node.open.pop(row.id, None) is not None:
                self._fleet.touched.add(row.node)
                touched.append(node)
        self._counts.pop(task_id, None)
        self._sizes.pop(task_id, None)
        self._turn.changes.append(DropTask(task_id))
        self.record(TaskGone(seq=0, at_ms=0, id=task_id, text=text))
        return touched

    def strand(self, at: Callable[[str], AbstractContextManager[None]]) -> None:
        """Let no worker start of a task whose spec cannot be read any more, and say so; where one runs, it goes on.

        Each task is looked at inside `at` it.
        """
        for task in tuple(self.view.tasks.values()):
            rows = self.view.workers[task.id].values()
            if waiting := [row for row in rows if self.startable(row) is not None and row.wanted]:
                with at(task.id):
                    self._strand(task, waiting)

    def _strand(self, task: TaskRow, waiting: Iterable[WorkerRow]) -> None:
        try:
            decoded(task)
        except SpecError as error:
            why = f"not started: its spec cannot be read here: {error}; {INSTALL}"
            for row in waiting:
                self._stranded[row.id] = why
                self.put_worker(msgspec.structs.replace(row, error=why))

    def turn_back(self) -> None:
        """Let no task have begun in the future: the wall clock went back while no coordinator ran."""
        for task in [task for task in self.view.tasks.values() if task.start_ms > self._turn.now_ms]:
            asked_ms = msgspec.json.decode(task.original).get("startMs", 0) if task.state is TaskState.PENDING else 0
            start_ms = max(self._turn.now_ms, asked_ms)
            if task.state is not TaskState.DONE and start_ms != task.start_ms:
                stop_ms = min(task.stop_ms, start_ms)
                self.put(
                    msgspec.structs.replace(task, start_ms=start_ms, stop_ms=stop_ms),
                    f"task {task.id} counts from now: the clock went back",
                )

    def keep_up(self, topology: Callable[[], Topology], since_start_ms: int) -> set[str]:
        """Forget what is old, and follow the addresses of nodes; return the nodes that must be told of theirs."""
        self.prune()
        return self.drift.follow(self, topology, since_start_ms)

    def prune(self) -> None:
        """Forget ended tasks that are too many or too old."""
        done = [task for task in self.view.tasks.values() if task.state is TaskState.DONE]
        settled = [task for task in done if not self.has_open(task.id)]
        settled.sort(key=lambda task: task.done_ms)
        sizes = [self._size(task) for task in settled]
        total = sum(sizes)
        for index, task in enumerate(settled):
            left = len(settled) - index
            fits = total <= KEEP_DONE_BYTES or left == 1  # the newest is kept, whatever its size
            if fits and left <= KEEP_DONE and self._turn.now_ms - task.done_ms < KEEP_DONE_MS:
                break
            total -= sizes[index]
            self.drop(task.id, f"task {task.id} ended long ago and is forgotten")

    def put_node(self, node: NodeState, text: str = "") -> None:
        """Record a node, new or changed."""
        self.record(NodeChanged(seq=0, at_ms=0, node=node.row, text=text))

    def tell(self, node: NodeState | None, text: str) -> None:
        """Record a node, new or changed, or (None) only what people should know."""
        if node is not None:
            self.put_node(node, text)
        else:
            self.note(text)

    def node_gone(self, name: str, text: str) -> None:
        """Record that a node was forgotten."""
        self.record(NodeGone(seq=0, at_ms=0, name=name, text=text))

    def note(self, text: str) -> None:
        """Record something that people should know."""
        self.record(Noted(seq=0, at_ms=0, text=text))

    def record(self, event: AnyEvent) -> None:
        """Number the event, fold it into the view, and keep it."""
        event = msgspec.structs.replace(event, seq=self.view.seq + 1, at_ms=self._turn.now_ms)
        self.view.apply(event)
        self._turn.changes.append(AppendEvent(event))

    def _size(self, task: TaskRow) -> int:
        """Return about how many bytes a settled task takes in the store; it is asked at each beat."""
        if task.id not in self._sizes:
            workers = (self._actions[worker_id] for worker_id in self.view.workers[task.id])
            actions = sum(len(msgspec.json.encode(actions)) for actions in workers)
            self._sizes[task.id] = len(bytes(task.original)) + len(bytes(task.spec)) + actions
        return self._sizes[task.id]

    def _record_row(self, task_id: str, row: WorkerRow) -> None:
        by_hand = f"; by hand: {'; '.join(row.by_hand)}" if row.by_hand else ""
        text = f"task {task_id} on {row.node}: {row.error or row.status}{by_hand}"
        self.record(WorkerChanged(seq=0, at_ms=0, task_id=task_id, worker=row, text=text))

    def _index(self, task_id: str, row: WorkerRow, actions: tuple[Action, ...] | None) -> None:
        self._task_of[row.id] = task_id
        self._actions[row.id] = actions
        self._fleet.touched.add(row.node)
        if row.state is not WorkerState.DONE:
            self._fleet.ensure(row.node).open[row.id] = task_id
        else:
            self.drift.forget(row.id)
            if node := self._fleet.nodes.get(row.node):  # else it was forgotten
                node.open.pop(row.id, None)


def new_task(event: CreateRequested, now_ms: int) -> tuple[TaskRow, TaskSpec]:
    """Return the task that a client wants, and its spec, which starts now at the earliest."""
    spec = msgspec.structs.replace(event.spec.performed(), start_ms=max(now_ms, event.spec.start_ms))
    task = TaskRow(
        id=event.id,
        original=msgspec.Raw(event.wire),
        spec=msgspec.Raw(wire(spec)),
        start_ms=spec.start_ms,
        duration_ms=max(0, min(spec.longest_ms(), MAX_DURATION_MS)),
        force=event.force,
        allow=event.allow,
        own_topics=event.own_topics,
        parent=event.parent,
        experiment=spec.is_experiment,
    )
    return task, spec


def _is_open(row: WorkerRow) -> bool:
    return row.state is not WorkerState.DONE


def ending(outcome: Outcome, error: str) -> str:
    """Return how a task ended, for people; what is not known to have ended is not said to have."""
    if outcome is Outcome.UNKNOWN:
        return f"is closed: {error}"
    return f"ended: {outcome}" + (f" ({error})" if error else "")


def decoded(task: TaskRow) -> TaskSpec:
    """Return the spec of a task."""
    return registry().decode(msgspec.json.decode(task.spec), checked=False)


def reported(row: WorkerRow, report: Report, now_ms: int) -> WorkerRow:
    """Return the row of a worker as its agent reports it."""
    error = cut(report.error, MOST_CHARS) if report.state in ENDED else ""
    outcome = report.outcome
    if isinstance(report, UnreadReport) and report.state in ENDED:
        outcome, error = unread.ended(row.node, report)
    elif outcome is Outcome.DONE:  # so says an agent of an older version, whatever it saw
        outcome, error = ended(outcome, error, report.disturbed)
    return msgspec.structs.replace(
        row,
        state=report.state,
        status=cut(report.status, MOST_CHARS),
        progress=_sound(report.progress, row.progress),
        error=error,
        outcome=outcome,
        warnings=cut_lines(unread.warned(row.node, report), MOST_CHARS),
        disturbed=report.disturbed,
        residue=cut_lines(report.residue, MOST_CHARS),
        by_hand=cut_lines(report.by_hand, MOST_CHARS),
        dropped=report.dropped,
        late_ms=report.late_ms,
        wanted=row.wanted and report.state not in ENDED,
        running_ms=now_ms if report.state is WorkerState.RUNNING and row.running_ms < 0 else row.running_ms,
        done_ms=now_ms if report.state is WorkerState.DONE else -1,
    )


def _sound(told: msgspec.Raw, before: msgspec.Raw) -> msgspec.Raw:
    """Return what a worker says of itself, if it says something that everybody can read, else what it said before."""
    return told if told != UNTOLD and len(bytes(told)) <= MOST_PROGRESS and is_readable(told) else before


def verdict(rows: Iterable[WorkerRow], *, cancelled: bool) -> tuple[str, Outcome]:
    """Return error text and outcome of a task from its workers.

    The first known failure wins, then the unknown, then that it was cancelled, then that it was disturbed, then that it
    was late. "First" is by the time when the coordinator heard of it (done_ms), then by worker id.
    """
    ordered = sorted((row for row in rows if row.state in ENDED), key=lambda row: (row.done_ms, row.id))
    soft = [
        [row for row in ordered if row.outcome is outcome]
        for outcome in (Outcome.UNKNOWN, Outcome.DISTURBED, Outcome.LATE)
    ]
    failed = [row for row in ordered if row.error and not any(row in rows for rows in soft)]
    unknown, disturbed, late = soft
    for row in failed + unknown + ([] if cancelled else disturbed + late):
        return row.error, row.outcome
    return "", Outcome.CANCELLED if cancelled else Outcome.DONE
