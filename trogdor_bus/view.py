"""The state of everything, folded from events: what a monitor shows, and what the coordinator must agree with."""

from __future__ import annotations

from trogdor_bus.messages import (
    AnyEvent,
    NodeChanged,
    NodeGone,
    NodeRow,
    TaskChanged,
    TaskGone,
    TaskInfo,
    WorkerChanged,
    WorldView,
)
from trogdor_bus.states import TaskRow, WorkerRow


class View:
    """Tasks, workers and nodes as the events told them."""

    def __init__(self) -> None:
        self.seq = 0
        self.tasks: dict[str, TaskRow] = {}
        self.workers: dict[str, dict[int, WorkerRow]] = {}
        self.nodes: dict[str, NodeRow] = {}

    def apply(self, event: AnyEvent) -> None:
        """Fold one event in; an event that is not newer than the view changes nothing."""
        if event.seq <= self.seq:
            return
        self.seq = event.seq
        match event:
            case TaskChanged(task=task):
                self.tasks[task.id] = task
                self.workers.setdefault(task.id, {})
            case TaskGone(id=task_id):
                self.tasks.pop(task_id, None)
                self.workers.pop(task_id, None)
            case WorkerChanged(task_id=task_id, worker=worker):
                if task_id in self.tasks:
                    self.workers[task_id][worker.id] = worker
            case NodeChanged(node=node):
                self.nodes[node.name] = node
            case NodeGone(name=name):
                self.nodes.pop(name, None)

    def replace(self, world: WorldView) -> None:
        """Take over a whole view (a late joiner's first word, and the repair of lost events)."""
        self.seq = world.seq
        self.nodes = {node.name: node for node in world.nodes}
        self.tasks = {info.task.id: info.task for info in world.tasks}
        self.workers = {info.task.id: {worker.id: worker for worker in info.workers} for info in world.tasks}

    def info(self, task_id: str) -> TaskInfo:
        """Return one task with its workers, by node name."""
        workers = sorted(self.workers.get(task_id, {}).values(), key=lambda worker: (worker.node, worker.id))
        return TaskInfo(task=self.tasks[task_id], workers=tuple(workers))
