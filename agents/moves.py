"""Every move that a worker can make."""

from __future__ import annotations

from typing import Final, Literal

from trogdor_bus.states import WorkerState

Move = Literal[
    "stop", "ended", "injected", "not-injected", "half-injected", "healed", "not-healed", "not-yet", "forget"
]
GONE: Final = "GONE"

TABLE: dict[tuple[WorkerState, Move], WorkerState | Literal["GONE"]] = {
    (WorkerState.STARTING, "stop"): WorkerState.CANCELLING,
    (WorkerState.STARTING, "injected"): WorkerState.RUNNING,
    (WorkerState.STARTING, "not-injected"): WorkerState.DONE,
    (WorkerState.STARTING, "half-injected"): WorkerState.STUCK,
    (WorkerState.CANCELLING, "stop"): WorkerState.CANCELLING,
    (WorkerState.CANCELLING, "injected"): WorkerState.STOPPING,
    (WorkerState.CANCELLING, "not-injected"): WorkerState.DONE,
    (WorkerState.CANCELLING, "half-injected"): WorkerState.STUCK,
    (WorkerState.CANCELLING, "healed"): WorkerState.DONE,
    (WorkerState.CANCELLING, "not-healed"): WorkerState.STUCK,
    (WorkerState.RUNNING, "stop"): WorkerState.STOPPING,
    (WorkerState.RUNNING, "ended"): WorkerState.STOPPING,
    (WorkerState.STOPPING, "stop"): WorkerState.STOPPING,
    (WorkerState.STOPPING, "healed"): WorkerState.DONE,
    (WorkerState.STOPPING, "not-healed"): WorkerState.STUCK,
    (WorkerState.STUCK, "stop"): WorkerState.STUCK,
    (WorkerState.STUCK, "healed"): WorkerState.DONE,
    (WorkerState.STUCK, "not-healed"): WorkerState.STUCK,
    (WorkerState.STARTING, "not-yet"): WorkerState.STARTING,
    (WorkerState.CANCELLING, "not-yet"): WorkerState.CANCELLING,
    (WorkerState.STOPPING, "not-yet"): WorkerState.STOPPING,
    (WorkerState.STUCK, "not-yet"): WorkerState.STUCK,
    (WorkerState.DONE, "stop"): WorkerState.DONE,
    (WorkerState.DONE, "forget"): GONE,
}
"""Every move that a worker can make."""

ASKED = (WorkerState.STARTING, WorkerState.CANCELLING, WorkerState.STOPPING, WorkerState.STUCK)
"""Where a do or an undo may have to be asked for again."""
LIVE = (WorkerState.STARTING, WorkerState.CANCELLING, WorkerState.RUNNING, WorkerState.STOPPING, WorkerState.STUCK)
