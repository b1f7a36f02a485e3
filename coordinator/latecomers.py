"""Tasks whose time came around a restart: their nodes, known before, may be heard a moment too late. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trogdor_bus.errors import SpecError, TrogdorBusError
from trogdor_bus.states import TaskRow, TaskState

AGAIN_MS = 500


class Latecomers:
    """The waiting tasks of the life before: they start once their nodes are heard, or fail at `until_ms`, epoch ms."""

    def __init__(self, tasks: Iterable[TaskRow], until_ms: int, unsearch: Callable[[str], None]) -> None:
        self._tasks = {task.id for task in tasks if task.state is TaskState.PENDING}
        self.until_ms, self._again_ms, self._unsearch = until_ms, dict[str, int](), unsearch

    def start_ms(self, task: TaskRow) -> int:
        """Return when to start a waiting task, epoch ms."""
        return max(task.start_ms, self._again_ms.get(task.id, 0))

    def wait(self, task: TaskRow, error: TrogdorBusError, now_ms: int) -> bool:
        """Return whether to try again later what ended in that error: a node that it needs may still be heard."""
        if task.id not in self._tasks or not isinstance(error, SpecError) or now_ms >= self.until_ms:
            return False
        self._again_ms[task.id] = now_ms + AGAIN_MS
        self._unsearch(task.id)  # it begins anew then
        return True
