"""The state of everything, folded from events: what a monitor shows, and what the coordinator must agree with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

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
from trogdor_bus.states import TaskRow, TaskState, WorkerRow

WHOLE = 2**64


class Versions:
    """The number of the event that changed each row last, by the row's key, and a digest of all of them.

    Two views that have the same digest have the same versions of the same rows.
    """

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self._sum = 0

    @property
    def digest(self) -> str:
        """Return the digest, 16 hexadecimal digits: the sum of a hash of each row's key and version, modulo 2^64."""
        return f"{self._sum:016x}"

    def __contains__(self, key: str) -> bool:
        return key in self._of

    def get(self, key: str) -> int | None:
        """Return the version of a row, None if it is not counted."""
        return self._of.get(key)

    def put(self, key: str, seq: int) -> None:
        """Count a row in that version, in place of the one before."""
        self.drop(key)
        self._of[key] = seq
        self._sum = (self._sum + _hash(key, seq)) % WHOLE

    def drop(self, key: str) -> None:
        """Count a row no more."""
        before = self._of.pop(key, None)
        if before is not None:
            self._sum = (self._sum - _hash(key, before)) % WHOLE


class View:
    """Tasks, workers and nodes as the events told them.

    `versions` counts the nodes, and the tasks that are not DONE with their workers: what ended is told for a while, and
    forgotten by each at its own time.
    """

    def __init__(self) -> None:
        self.seq = 0
        self.tasks: dict[str, TaskRow] = {}
        self.workers: dict[str, dict[int, WorkerRow]] = {}
        self.nodes: dict[str, NodeRow] = {}
        self.versions = Versions()

    def apply(self, event: AnyEvent) -> None:
        """Fold one event in; an event that is not newer than the view changes nothing."""
        if event.seq <= self.seq:
            return
        self.seq = event.seq
        match event:
            case TaskChanged(task=task):
                self._put_task(task)
            case TaskGone(id=task_id):
                self.drop_task(task_id)
            case WorkerChanged(task_id=task_id, worker=worker):
                if task_id in self.tasks:
                    self.workers[task_id][worker.id] = worker
                    if task_key(task_id) in self.versions:
                        self.versions.put(worker_key(worker.id), self.seq)
            case NodeChanged(node=node):
                self.add_node(node)
            case NodeGone(name=name):
                self.nodes.pop(name, None)
                self.versions.drop(node_key(name))

    def add_task(self, task: TaskRow, workers: Iterable[WorkerRow]) -> None:
        """Take in a task that no event told, with its workers."""
        self._put_task(task)
        for worker in workers:
            self.workers[task.id][worker.id] = worker
            if task.state is not TaskState.DONE:
                self.versions.put(worker_key(worker.id), self.seq)

    def add_node(self, node: NodeRow) -> None:
        """Take in a node that no event told."""
        self.nodes[node.name] = node
        self.versions.put(node_key(node.name), self.seq)

    def drop_task(self, task_id: str) -> None:
        """Forget a task, if it is there, and its workers."""
        self.tasks.pop(task_id, None)
        self._uncount(task_id)
        self.workers.pop(task_id, None)

    def replace(self, world: WorldView, seqs: Mapping[str, int] | None = None) -> None:
        """Take over a whole view (a late joiner's first word, and the repair of lost events).

        `seqs` are the versions of the rows that count, by key; without them no digest is to be compared.
        """
        self.seq = world.seq
        self.nodes = {node.name: node for node in world.nodes}
        self.tasks = {info.task.id: info.task for info in world.tasks}
        self.workers = {info.task.id: {worker.id: worker for worker in info.workers} for info in world.tasks}
        self.versions = Versions()
        for key, seq in (seqs or {}).items():
            self.versions.put(key, seq)

    def info(self, task_id: str) -> TaskInfo:
        """Return one task with its workers, by node name."""
        workers = sorted(self.workers.get(task_id, {}).values(), key=lambda worker: (worker.node, worker.id))
        return TaskInfo(task=self.tasks[task_id], workers=tuple(workers))

    def _put_task(self, task: TaskRow) -> None:
        self.tasks[task.id] = task
        self.workers.setdefault(task.id, {})
        if task.state is TaskState.DONE:
            self._uncount(task.id)
        else:
            self.versions.put(task_key(task.id), self.seq)

    def _uncount(self, task_id: str) -> None:
        self.versions.drop(task_key(task_id))
        for worker_id in self.workers.get(task_id, ()):
            self.versions.drop(worker_key(worker_id))


def task_key(task_id: str) -> str:
    """Return the key of a task's version."""
    return f"task/{task_id}"


def worker_key(worker_id: int) -> str:
    """Return the key of a worker's version."""
    return f"worker/{worker_id}"


def node_key(name: str) -> str:
    """Return the key of a node's version."""
    return f"node/{name}"


def _hash(key: str, seq: int) -> int:
    return int.from_bytes(blake2b(f"{key} {seq}".encode(errors="surrogatepass"), digest_size=8).digest(), "big")
