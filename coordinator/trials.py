"""Experiments in the task table: tasks without workers, each performed by a program that the shell starts and ends."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from trogdor_bus.coordinator.events import EndExperiment, OtherCluster, StartExperiment
from trogdor_bus.coordinator.turn import Turn
from trogdor_bus.spec import TaskSpec
from trogdor_bus.states import TaskRow, TaskState
from trogdor_bus.view import View

OPEN = (TaskState.RUNNING, TaskState.STOPPING)
RESTARTED = "the coordinator was restarted, and experiments end with it"


class Trials:
    """What the table knows of experiments."""

    def __init__(self, view: View, turn: Turn) -> None:
        self._view, self._turn = view, turn

    def start(self, task: TaskRow, spec: TaskSpec) -> None:
        """Order the shell to start the program of an experiment."""
        self._turn.orders.append(StartExperiment(task.id, spec))

    def end(self, task: TaskRow, why: str) -> None:
        """Order the shell to end the program of a task, if that is an experiment that may have one."""
        if task.experiment and task.state in OPEN:
            self._turn.orders.append(EndExperiment(task.id, why))

    def open(self) -> list[TaskRow]:
        """Return the experiments that have begun and not ended."""
        return [task for task in self._view.tasks.values() if task.experiment and task.state in OPEN]

    def overdue(self, now_ms: int) -> list[TaskRow]:
        """Return the experiments whose duration is over, and which nobody has asked to stop."""
        return [task for task in self._running() if task.end_ms <= now_ms]

    def deadlines(self) -> Iterator[int]:
        """Yield when each running experiment is overdue, epoch ms."""
        return (task.end_ms for task in self._running())

    def parents(self, task_ids: list[str]) -> list[str]:
        """Return the ids of the experiments to which some of the tasks belong."""
        tasks = self._view.tasks
        return sorted({tasks[one].parent for one in task_ids if one in tasks and tasks[one].parent in tasks})

    def cluster(self, parent: str) -> OtherCluster | None:
        """Return the cluster that an experiment names itself, None if it names none, or there is none of that id."""
        task = self._view.tasks.get(parent)
        spec = msgspec.json.decode(task.spec) if task is not None and task.experiment else {}
        return OtherCluster(spec["bootstrap"], spec.get("config", "")) if spec.get("bootstrap") else None

    def _running(self) -> Iterator[TaskRow]:
        return (task for task in self._view.tasks.values() if task.experiment and task.state is TaskState.RUNNING)
