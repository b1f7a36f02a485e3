"""Rows as the store and the log have them, perhaps of a newer version: what cannot be read costs its worker or task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from trogdor_bus import late
from trogdor_bus.actions import decode_action, name_of
from trogdor_bus.coordinator.changes import StoredWorker
from trogdor_bus.errors import BusError
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerRow, WorkerState

REMEDY = "a newer trogdor-bus has written it: upgrade the coordinator"
_TASK, _WORKER = msgspec.json.Decoder(TaskRow), msgspec.json.Decoder(WorkerRow)


class StoredTask(msgspec.Struct, frozen=True):
    """A task with its workers, as they are to be gone on with."""

    row: TaskRow
    workers: tuple[StoredWorker, ...] = ()


def task(body: bytes, workers: Iterable[StoredWorker]) -> StoredTask:
    """Return a task; one in a state that is not known has failed, and its workers are to end.

    BusError if it is no task at all.
    """
    try:
        return StoredTask(_TASK.decode(body), tuple(workers))
    except late.UNREADABLE:
        row, readable = late.task_row(body, REMEDY)
    if readable:
        return StoredTask(row, tuple(workers))
    failed = {"state": TaskState.DONE, "outcome": Outcome.FAILED, "active": False}
    done_ms = max(row.start_ms, row.started_ms, row.done_ms, 0)
    return StoredTask(msgspec.structs.replace(row, done_ms=done_ms, **failed), tuple(map(_ending, workers)))


def worker_row(body: bytes | msgspec.Raw) -> WorkerRow:
    """Return a worker's row, in which is told what of it cannot be read; BusError if it is none."""
    try:
        return _WORKER.decode(body)
    except late.UNREADABLE:
        return late.worker_row(body, REMEDY)


def worker(row: WorkerRow, actions: bytes | None) -> StoredWorker:
    """Return a worker with what it was ordered to do; if that is not known it is kept, but never started.

    BusError, or an error of `late.UNREADABLE`, if these are no actions.
    """
    if actions is None or actions == b"null":
        return StoredWorker(row=row, actions=None)
    parts = late.parts(msgspec.Raw(actions))
    try:
        return StoredWorker(row=row, actions=tuple(map(decode_action, parts)))
    except BusError as error:
        if not all(map(name_of, parts)):
            raise
        why = f"cannot be read: {error}; {REMEDY}"
    told: dict[str, Any] = {} if row.state is WorkerState.DONE else {"error": row.error or why}
    return StoredWorker(row=msgspec.structs.replace(row, **told), actions=None)


def _ending(stored: StoredWorker) -> StoredWorker:
    return msgspec.structs.replace(stored, row=msgspec.structs.replace(stored.row, wanted=False))
