"""Task and worker states, as Trogdor names and writes them (reference: Trogdor's TaskState and WorkerState)."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from trogdor_bus.roles import Chosen


class TaskState(enum.StrEnum):
    """Where a task is. RUNNING means that its workers were addressed; see `TaskRow.active` for "in force"."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    DONE = "DONE"


class WorkerState(enum.StrEnum):
    """Where a worker is. RECEIVING: not yet reported by its agent. CANCELLING shows as STOPPING on Trogdor's wire."""

    RECEIVING = "RECEIVING"
    STARTING = "STARTING"
    CANCELLING = "CANCELLING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STUCK = "STUCK"
    DONE = "DONE"


class Outcome(enum.StrEnum):
    """How a worker or a task ended; NONE while it has not.

    DISTURBED: it met nothing, or did not hold to its end. LATE: it was all that it should be, but was undone late.
    """

    NONE = ""
    DONE = "done"
    DISTURBED = "disturbed"
    LATE = "late"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    RESTARTED = "agent-restarted"
    LEASE = "lease-expired"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


EXIT_CODES: dict[Outcome, int] = {
    Outcome.DONE: 0,
    Outcome.DISTURBED: 1,
    Outcome.LATE: 1,
    Outcome.FAILED: 1,
    Outcome.CANCELLED: 1,
    Outcome.EXPIRED: 1,
    Outcome.RESTARTED: 1,
    Outcome.LEASE: 1,
    Outcome.ABORTED: 1,
    Outcome.UNKNOWN: 3,
}
"""The exit code of whoever waits for the end of a task, for each outcome."""


class Disturbance(msgspec.Struct, frozen=True, rename="camel"):
    """What somebody changed of a fault: seen `after_ms` after it took hold; `mended`: it was put back since.

    `unseen`: nobody could look whether it held; `mended`: a later look found that it did.
    """

    after_ms: Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
    text: str
    mended: bool = False
    unseen: bool = False

    def __str__(self) -> str:
        since = ", held when looked at again" if self.unseen else ", put back"
        return f"{self.text} ({self.after_ms / 1000:.1f} s in{since if self.mended else ''})"


def ended(outcome: Outcome, error: str, disturbed: Iterable[Disturbance], met_nothing: str = "") -> tuple[Outcome, str]:
    """Return how a worker ended of which this was seen, and why: DONE is what met something and held to its end.

    Every other outcome stays what it is.
    """
    if outcome not in (Outcome.DONE, Outcome.DISTURBED):
        return outcome, error
    if met_nothing:
        return Outcome.DISTURBED, f"it met nothing: {met_nothing}"
    left = sorted((one for one in disturbed if not one.mended), key=lambda one: one.unseen)
    if not left:
        return Outcome.DONE, ""
    what = "it is not known whether it held to its end" if left[0].unseen else "it did not hold to its end"
    return Outcome.DISTURBED, f"{what}: {left[0]}"


def undone_late(outcome: Outcome, error: str, late_ms: int, bound_ms: int) -> tuple[Outcome, str]:
    """Return how a worker ended whose undo was so late: beyond the bound, what would be DONE is LATE."""
    if outcome is not Outcome.DONE or late_ms <= bound_ms:
        return outcome, error
    return Outcome.LATE, how_late(late_ms)


def how_late(late_ms: int) -> str:
    """Return in words how late an undo was."""
    return f"it was undone {late_ms / 1000:.1f} s late"


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the coordinator knows of one worker. Times are epoch ms on the coordinator's clock, -1 for never.

    `progress` is what the worker says of itself (JSON), null for nothing.
    `by_hand` are the commands that a person would type to undo what is stuck. `dropped`: packets that its rules
    dropped, 0 until the first is seen, then as many as were seen at that moment, and at the end all that were counted:
    what was dropped between the last look and somebody's change of the rules is not among them. `late_ms`: how long
    after it was due it was seen to be undone, by its agent.
    """

    id: int
    node: str
    journal: str = ""
    state: WorkerState = WorkerState.RECEIVING
    status: str = "receiving"
    progress: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    outcome: Outcome = Outcome.NONE
    warnings: tuple[str, ...] = ()
    disturbed: tuple[Disturbance, ...] = ()
    residue: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    dropped: int = 0
    late_ms: int = 0
    left_out: tuple[str, ...] = ()
    wanted: bool = True
    running_ms: int = -1
    done_ms: int = -1

    @property
    def said(self) -> Any:
        """Return what it says of itself, else its status."""
        return self.status if bytes(self.progress) == b"null" else msgspec.json.decode(self.progress)

    @property
    def stops_others(self) -> bool:
        """Return whether its end is a reason to end the task on the other nodes; one that had its time is none."""
        return bool(self.error) and self.outcome not in (Outcome.DISTURBED, Outcome.LATE)


class TaskRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the coordinator knows of one task.

    `original` is the spec as submitted, `spec` with startMs raised and, once it has fired, nodes in place of roles:
    `holders` are those who held them, and `seed` is the number by which choices among several were made; the same one
    makes the same choices. `chosen` are lines that say so, of a version that kept no `holders`. `parent` is the task
    that it belongs to and ends with, `allow` and `own_topics` as in CreateTask. `experiment`: it is one, and has no
    workers.
    """

    id: str
    state: TaskState = TaskState.PENDING
    original: msgspec.Raw = msgspec.Raw(b"null")
    spec: msgspec.Raw = msgspec.Raw(b"null")
    start_ms: int = 0
    duration_ms: int = 0
    force: bool = False
    started_ms: int = -1
    stop_ms: int = -1
    done_ms: int = -1
    cancelled: bool = False
    error: str = ""
    outcome: Outcome = Outcome.NONE
    active: bool = False
    parent: str = ""
    allow: tuple[str, ...] = ()
    own_topics: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    holders: tuple[Chosen, ...] = ()
    seed: int | None = None
    experiment: bool = False

    @property
    def end_ms(self) -> int:
        """Return when the task ends by itself, epoch ms."""
        return self.start_ms + self.duration_ms

    @property
    def why(self) -> tuple[str, ...]:
        """Return who was chosen, a line each for people."""
        return tuple(one.why for one in self.holders) or self.chosen


def combined_status(workers: list[WorkerRow]) -> Any:
    """Return Trogdor's combined status: one worker's own, several as {node: status}.

    That is what the worker says of itself, else our text.
    """
    if len(workers) == 1:
        return workers[0].said
    return {worker.node: worker.said for worker in sorted(workers, key=lambda w: w.node)}


def trogdor_json(task: TaskRow, workers: list[WorkerRow]) -> dict[str, Any]:
    """Return the task as Trogdor's REST interface writes it (key order included)."""
    out: dict[str, Any] = {"state": task.state.value, "spec": msgspec.json.decode(task.spec)}
    if task.state is not TaskState.PENDING:
        out["startedMs"] = task.started_ms
    if task.state is TaskState.DONE:
        out["doneMs"] = task.done_ms
        if task.error:
            out["error"] = task.error
        out["cancelled"] = task.cancelled
    status: Any = combined_status(workers) if task.state is not TaskState.PENDING else None
    if status not in ({}, []):
        out["status"] = status
    return out
