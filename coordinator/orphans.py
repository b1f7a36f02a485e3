"""Live workers of another coordinator, heard while this one's store is empty."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from trogdor_bus.coordinator.ledger import UNDESCRIBED
from trogdor_bus.messages import Beat, Report
from trogdor_bus.states import TaskRow, WorkerRow, WorkerState


class Orphan(msgspec.Struct, frozen=True):
    """One live worker that nobody here ordered."""

    node: str
    journal: str
    report: Report

    def row(self, state: WorkerState = WorkerState.RECEIVING, status: str = "receiving") -> WorkerRow:
        """Return the worker as a row of ours, as if we had ordered it."""
        worker = self.report.worker
        return WorkerRow(id=worker, node=self.node, journal=self.journal, state=state, status=status)


class Orphans:
    """What the agents reported while this coordinator listened; of ended workers only if `ended`."""

    def __init__(self, *, ended: bool = False) -> None:
        self._found: dict[int, Orphan] = {}
        self._ended = ended

    def __bool__(self) -> bool:
        return bool(self._found)

    def __iter__(self) -> Iterator[Orphan]:
        return iter([orphan for _, orphan in sorted(self._found.items())])

    def hear(self, beat: Beat) -> None:
        """Remember the workers of a beat, and forget those that have ended, unless they count."""
        for report in beat.reports:
            if report.state is WorkerState.DONE and not self._ended:
                self._found.pop(report.worker, None)
            else:
                self._found[report.worker] = Orphan(beat.node, beat.journal, report)

    def task(self, task_id: str, now_ms: int) -> TaskRow:
        """Return the task of some of them as a row of ours: it ends with the last of its workers."""
        remaining_ms = max(found.report.remaining_ms for found in self._found.values() if found.report.task == task_id)
        spec = msgspec.Raw(UNDESCRIBED)
        return TaskRow(id=task_id, spec=spec, original=spec, start_ms=now_ms, duration_ms=remaining_ms)

    def complaint(self) -> str:
        """Return why a coordinator with an empty store must not start, and what to do."""
        nodes = ", ".join(sorted({orphan.node for orphan in self._found.values()})[:5])
        return (
            f"this coordinator's store is empty, but agents perform {len(self._found)} worker(s) of another one "
            f"({nodes}); start with ‹adopt› to keep them to their deadlines, or with ‹abort-all› to end them"
        )
