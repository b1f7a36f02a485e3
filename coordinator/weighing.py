"""What a worker's news means for its task."""

from __future__ import annotations

from typing import Any

import msgspec

from trogdor_bus.coordinator.ledger import ENDED, Ledger, ending, verdict
from trogdor_bus.coordinator.moves import Move
from trogdor_bus.states import TaskRow, TaskState, WorkerRow, WorkerState


class Weighed(msgspec.Struct, frozen=True):
    """The move that the task makes, with `text` for its event and the fields that change; None: it does not move."""

    move: Move | None
    text: str
    fields: dict[str, Any]


def weigh(ledger: Ledger, task: TaskRow, row: WorkerRow, now_ms: int) -> Weighed | None:
    """Return what follows for the task after this worker of it changed; None if nothing does."""
    rows, total = ledger.view.workers[task.id], len(ledger.view.workers[task.id])
    if row.state not in ENDED:
        running = ledger.count(task.id, WorkerState.RUNNING) == total
        if running and task.state is TaskState.RUNNING and not task.active:
            return Weighed(None, f"is active on {total} node(s)", {"active": True})
        return None
    ended = ledger.count(task.id, *ENDED) == total
    if not ended and (task.state is not TaskState.RUNNING or not row.stops_others):
        return None
    error, outcome = verdict(rows.values(), cancelled=task.cancelled)
    if task.state is TaskState.DONE:
        if (error, outcome) == (task.error, task.outcome) or ledger.has_open(task.id):
            return None
        return Weighed("correct", f"corrected: {outcome}", {"error": error, "outcome": outcome})
    if ended:
        fields = {"error": error, "outcome": outcome, "done_ms": now_ms, "active": False}
        return Weighed("finish", ending(outcome, error), fields)
    return Weighed("error", f"stops: {error}", {"error": error, "stop_ms": now_ms, "active": False})
