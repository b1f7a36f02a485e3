"""Setting tasks aside: what a coordinator crashed at again and again is ended for good, unhandled. Pure."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from trogdor_bus.coordinator import owed
from trogdor_bus.coordinator.changes import Change, Loaded, PutMeta, PutRow, PutTask, StoredWorker
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerState

WHY = "set aside, and its faults ended early: the coordinator crashed at it again and again ({})"


def set_aside(loaded: Loaded, names: Collection[str], error: str, now_ms: int) -> tuple[Loaded, tuple[Change, ...]]:
    """Return what was stored with these tasks, and what belongs to them, failed; and the changes to store.

    Their agents are no longer told of them, so they end the faults; until they prove it, they owe it. `error` is at
    what the coordinator crashed.
    """
    hit = [task for task in loaded.tasks if {task.id, task.parent} & set(names)]
    meta, workers, changes = loaded.meta, dict(loaded.workers), list[Change]()
    tasks = {task.id: task for task in loaded.tasks}
    for task in hit:
        open_rows = [stored for stored in workers.get(task.id, ()) if stored.row.state is not WorkerState.DONE]
        meta = owed.owe(meta, task.id, [stored.row for stored in open_rows])
        closed = {stored.row.id: _closed(stored, WHY.format(error), now_ms) for stored in open_rows}
        workers[task.id] = tuple(closed.get(stored.row.id, stored) for stored in workers.get(task.id, ()))
        changes += [PutRow(stored.row) for stored in closed.values()]
        if task.state is not TaskState.DONE:
            tasks[task.id] = _failed(task, WHY.format(error), now_ms)
            changes.append(PutTask(tasks[task.id]))
    if meta is not loaded.meta:
        changes.append(PutMeta(meta))
    return msgspec.structs.replace(loaded, meta=meta, tasks=tuple(tasks.values()), workers=workers), tuple(changes)


def _closed(stored: StoredWorker, why: str, now_ms: int) -> StoredWorker:
    row = msgspec.structs.replace(
        stored.row, state=WorkerState.DONE, wanted=False, outcome=Outcome.FAILED, error=why, done_ms=now_ms
    )
    return msgspec.structs.replace(stored, row=row)


def _failed(task: TaskRow, why: str, now_ms: int) -> TaskRow:
    return msgspec.structs.replace(
        task, state=TaskState.DONE, outcome=Outcome.FAILED, error=why, done_ms=now_ms, active=False
    )
