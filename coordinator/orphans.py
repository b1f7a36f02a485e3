"""Live workers of another coordinator, heard while this one's store is empty."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from trogdor_bus.messages import Beat, Report
from trogdor_bus.states import WorkerState


class Orphan(msgspec.Struct, frozen=True):
    """One live worker that nobody here ordered."""

    node: str
    journal: str
    report: Report


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

    def remaining_ms(self, task: str) -> int:
        """Return how long the longest worker of a task still has."""
        return max(found.report.remaining_ms for found in self._found.values() if found.report.task == task)

    def complaint(self) -> str:
        """Return why a coordinator with an empty store must not start, and what to do."""
        nodes = ", ".join(sorted({orphan.node for orphan in self._found.values()})[:5])
        return (
            f"this coordinator's store is empty, but agents perform {len(self._found)} worker(s) of another one "
            f"({nodes}); start with --adopt to keep them to their deadlines, or with --abort-all to end them"
        )
