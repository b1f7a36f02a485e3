"""Every move that a task can make."""

from __future__ import annotations

from typing import Literal

from trogdor_bus.states import TaskState

Move = Literal["run", "fail", "stop", "error", "finish", "correct"]

TABLE: dict[tuple[TaskState, Move], TaskState] = {
    (TaskState.PENDING, "run"): TaskState.RUNNING,
    (TaskState.PENDING, "fail"): TaskState.DONE,
    (TaskState.PENDING, "stop"): TaskState.DONE,
    (TaskState.RUNNING, "stop"): TaskState.STOPPING,
    (TaskState.RUNNING, "error"): TaskState.STOPPING,
    (TaskState.RUNNING, "finish"): TaskState.DONE,
    (TaskState.STOPPING, "finish"): TaskState.DONE,
    (TaskState.DONE, "correct"): TaskState.DONE,
}
"""Every move that a task can make; a stop in STOPPING or DONE is no move at all (as in Trogdor)."""
OVER = (TaskState.STOPPING, TaskState.DONE)
"""The states of a task for which nothing may begin any more."""
