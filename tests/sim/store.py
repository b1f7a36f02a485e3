"""The coordinator's store in memory: batches are whole, and a loss of power takes those that need not last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import msgspec

from trogdor_bus.coordinator.changes import (
    AppendEvent,
    Change,
    DropTask,
    Loaded,
    Meta,
    PutMeta,
    PutRow,
    PutTask,
    PutWorker,
    StoredWorker,
)
from trogdor_bus.view import View


class SimStore:
    """Everything that was committed, and `told`: the events alone, folded. Times are true.

    While it `refuses`, its disk cannot be written. `replaced` is how often all of it was replaced by another
    coordinator's.
    """

    def __init__(self, first_worker: int, now_ms: Callable[[], int]) -> None:
        self.fresh = Meta(cluster="sim", next_worker=first_worker)
        self._volatile: list[Sequence[Change]] = []
        self._durable: list[Sequence[Change]] = []
        self.unwanted_since: dict[int, int] = {}
        self.meant_ends: dict[str, int] = {}
        self._now_ms, self.refuses, self.replaced = now_ms, False, 0
        self._taken: Loaded | None = None
        self._reset()

    def commit(self, changes: Sequence[Change], *, durable: bool) -> None:
        self._volatile.append(changes)
        if durable:
            self._durable += self._volatile
            self._volatile = []
        self._apply_all(changes)

    def lose_power(self, random: Random) -> int:
        """Lose some of the newest batches, none that had to last; return how many."""
        kept = random.randint(0, len(self._volatile))
        lost = len(self._volatile) - kept
        self._durable += self._volatile[:kept]
        self._volatile = []
        if lost:
            self._replay()
        return lost

    def copy(self) -> SimStore:
        """Return a store of its own with the same content, all of it durable."""
        other = SimStore(self.fresh.next_worker, self._now_ms)
        other._taken, other._durable = self._taken, self._durable + self._volatile
        other._replay()
        other.unwanted_since, other.meant_ends = dict(self.unwanted_since), dict(self.meant_ends)
        return other

    def replace(self, loaded: Loaded) -> None:
        """Hold exactly that, all of it durable; what only this host knew is gone."""
        self._taken, self.replaced = loaded, self.replaced + 1
        self._volatile, self._durable = [], []
        rows = [stored.row for workers in loaded.workers.values() for stored in workers]
        self.unwanted_since = {row.id: self._now_ms() for row in rows if not row.wanted}
        self.meant_ends = {}
        self._replay()

    def load(self, *, tasks: bool = True) -> Loaded:
        return Loaded(
            meta=msgspec.structs.replace(self.meta, next_seq=max(self.meta.next_seq, self.told.seq + 1)),
            fresh=self.meta.epoch == 0,
            tasks=tuple(task for _, task in sorted(self.tasks.items())) if tasks else (),
            workers={name: tuple(row for _, row in sorted(rows.items())) for name, rows in self.workers.items()}
            if tasks
            else {},
        )

    def worker(self, worker_id: int) -> StoredWorker | None:
        """Return a worker of any task, or None if it is not kept (any more)."""
        return self.workers.get(self._task_of.get(worker_id, ""), {}).get(worker_id)

    def _replay(self) -> None:
        self._reset()
        for batch in self._durable:
            self._apply_all(batch)

    def _apply_all(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self._apply(change)
        if not any(isinstance(change, AppendEvent) for change in changes):  # before anybody could be told
            for change in changes:
                if isinstance(change, PutTask):
                    self.told.tasks[change.task.id] = change.task
                elif isinstance(change, PutRow):
                    rows = self.told.workers.setdefault(self._task_of[change.row.id], {})
                    rows[change.row.id] = change.row

    def _reset(self) -> None:
        taken = self._taken
        self.meta = taken.meta if taken else self.fresh
        self.tasks = {task.id: task for task in taken.tasks} if taken else {}
        self.workers: dict[str, dict[int, StoredWorker]] = {name: {} for name in self.tasks}
        self._task_of: dict[int, str] = {}
        self.told = View()
        if taken:
            for name, rows in taken.workers.items():
                self.workers[name] = {stored.row.id: stored for stored in rows}
                self._task_of |= dict.fromkeys(self.workers[name], name)
            self.told.seq = taken.meta.next_seq - 1
            self.told.tasks = dict(self.tasks)
            self.told.workers = {
                name: {worker_id: stored.row for worker_id, stored in rows.items()}
                for name, rows in self.workers.items()
            }

    def _apply(self, change: Change) -> None:
        match change:
            case PutMeta(meta):
                self.meta = meta
            case PutTask(task):
                self.tasks[task.id] = task
                self.workers.setdefault(task.id, {})
            case PutWorker(task_id, worker):
                self.workers[task_id][worker.row.id] = worker
                self._task_of[worker.row.id] = task_id
            case PutRow(row):
                rows = self.workers[self._task_of[row.id]]
                rows[row.id] = StoredWorker(row=row, actions=rows[row.id].actions)
                if not row.wanted:
                    self.unwanted_since.setdefault(row.id, self._now_ms())
            case DropTask(task_id):
                for worker_id in self.workers[task_id]:
                    self.unwanted_since.setdefault(worker_id, self._now_ms())
                del self.tasks[task_id], self.workers[task_id]
                self.meant_ends.pop(task_id, None)
            case AppendEvent(event):
                self.told.apply(event)
            case _:
                raise AssertionError(f"the store does not know {type(change).__name__}")
