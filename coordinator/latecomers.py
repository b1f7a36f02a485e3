"""Tasks whose time came around a restart: their nodes, known before, may be heard a moment too late. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trogdor_bus.states import TaskRow, TaskState

AGAIN_MS = 500


class Latecomers:
    """The tasks that wait when a coordinator begins to lead; what fails of them is tried again until `until_ms`.

    Times are epoch ms.
    """

    def __init__(self, until_ms: int, unsearch: Callable[[str], None]) -> None:
        self.until_ms, self._unsearch = until_ms, unsearch
        self._tasks, self._again_ms = set[str](), dict[str, int]()

    def lead(self, tasks: Iterable[TaskRow]) -> None:
        """Begin with those that wait now."""
        self._tasks = {task.id for task in tasks if task.state is TaskState.PENDING}

    def start_ms(self, task: TaskRow) -> int:
        """Return when to start a waiting task, epoch ms."""
        return max(task.start_ms, self._again_ms.get(task.id, 0))

    def wait(self, task: TaskRow, now_ms: int) -> bool:
        """Return whether to try again later what was refused: a node that it needs may still be heard."""
        if task.id not in self._tasks or now_ms >= self.until_ms:
            return False
        self._again_ms[task.id] = now_ms + AGAIN_MS
        self._unsearch(task.id)  # it begins anew then
        return True
