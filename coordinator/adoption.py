"""What a coordinator that begins to lead makes of workers that agents were heard to perform. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from trogdor_bus.coordinator.ledger import Ledger, reported
from trogdor_bus.coordinator.moves import Move
from trogdor_bus.coordinator.orphans import Orphans
from trogdor_bus.states import TaskRow, TaskState, WorkerRow


class Mover(Protocol):
    """Moves a task on, as the machine does."""

    def __call__(self, task: TaskRow, move: Move, text: str, **fields: object) -> None:
        """Make the move, with these fields changed."""
        ...


def adopt(heard: Orphans, ledger: Ledger, move: Mover) -> None:
    """Take over the live workers of another coordinator, with their tasks."""
    tasks = ledger.view.tasks
    for orphan in heard:
        report = orphan.report
        if report.task not in tasks:
            ledger.put(heard.task(report.task, ledger.now_ms), f"task {report.task} adopted")
        if (task := tasks[report.task]).state is TaskState.PENDING:  # or it was asked for here as well
            move(task, "run", "goes on", started_ms=ledger.now_ms)
        if task.state is not TaskState.DONE:
            ledger.add_worker(report.task, orphan.row(report.state, report.status), None)


def go_on(begun: Orphans, ledger: Ledger, move: Mover) -> Iterator[WorkerRow]:
    """Start no task that this store does not know to have begun, if agents perform it; yield what they say of it."""
    tasks = ledger.view.tasks
    pending = {task.id for task in tasks.values() if task.state is TaskState.PENDING}
    found = [orphan for orphan in begun if orphan.report.task in pending]
    for task_id in sorted({orphan.report.task for orphan in found}):
        move(tasks[task_id], "run", "had begun already", started_ms=ledger.now_ms)
    for orphan in found:
        ledger.add_worker(orphan.report.task, orphan.row(), None)
    for orphan in found:
        new = reported(ledger.row(orphan.report.worker), orphan.report, ledger.now_ms)
        ledger.put_worker(new)
        yield new
