"""Rows in pages: each about as large as somebody wants it, and the next one begins where it ended.

A page is made of what there is when it is asked for: nothing is kept from one page to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import msgspec

from trogdor_bus import late
from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.errors import BusError, SpecError
from trogdor_bus.messages import CHANGES, AnyRequest, GetExperiment, PagedRequest, Request, TaskInfo, encode
from trogdor_bus.states import TaskRow, WorkerRow
from trogdor_bus.view import View

MOST_RESULT_BYTES = MAX_FRAME_BYTES - (64 << 10)
"""What a result may have, so that its reply fits into a frame."""
MOST_PAGE_BYTES = MAX_FRAME_BYTES // 2
"""No page is meant to be larger, whatever somebody asks for: its last row may be large."""
MOST_MARK_CHARS = 64 << 10
"""No mark is longer: a task and a node have shorter names."""

T = TypeVar("T")


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """The last row of a page: a node by its name, or a worker of a task (node "" for a task without workers)."""

    id: str
    node: str = ""
    worker: int = -1
    is_task: bool = False


class Page(NamedTuple):
    """What a page holds, and where the next one begins, "" if there is none."""

    result: Any
    more: str


class Room:
    """How much still goes into a page: `takes` is True for its first row, whatever that one's size."""

    def __init__(self, most_bytes: int) -> None:
        self._left = min(most_bytes, MOST_PAGE_BYTES) if most_bytes > 0 else None
        self._empty = True

    def takes(self, *rows: Any, more_bytes: int = 0) -> bool:
        """Return whether one more row, of these parts and so many bytes beside, is to go into the page."""
        if self._left is None:
            return True
        if not self._empty and self._left <= 0:
            return False
        self._left -= sum(len(encode(row)) for row in rows) + more_bytes
        self._empty = False
        return True


def mark(request: PagedRequest) -> Mark | None:
    """Return where a page begins, None for the first one; SpecError if nobody has told that."""
    if not request.after:
        return None
    try:
        if len(request.after) <= MOST_MARK_CHARS:
            return msgspec.json.decode(request.after, type=Mark)
    except (UnicodeEncodeError, *late.UNREADABLE):
        pass
    raise SpecError("is no place in a list", path="$.after", remedy="leave it out, and begin anew")


def named(rows: Iterable[T], name: Callable[[T], str], after: Mark | None, room: Room) -> tuple[list[T], str]:
    """Return the next of rows that are sorted by name, and the mark of the last one if there are more."""
    found: list[T] = []
    for row in rows:
        if after is not None and name(row) <= after.id:
            continue
        if not room.takes(row):
            return found, _told(Mark(name(found[-1])) if found else after)
        found.append(row)
    return found, ""


def tasks(rows: Iterable[TaskRow], view: View, after: Mark | None, room: Room) -> tuple[list[TaskInfo], str]:
    """Return the next of tasks that are sorted by id, with their workers, and the mark of the last if there are more.

    The workers of the first and the last one may be on other pages.
    """
    found: list[tuple[TaskRow, list[WorkerRow]]] = []
    last: Mark | None = after or Mark("", is_task=True)
    for task, worker in _pairs(rows, view, after):
        begins = not found or found[-1][0].id != task.id
        if not room.takes(*([task] if begins else []), *([worker] if worker else [])):
            break
        if begins:
            found.append((task, []))
        if worker:
            found[-1][1].append(worker)
        last = Mark(task.id, worker.node if worker else "", worker.id if worker else -1, is_task=True)
    else:
        last = None
    return [TaskInfo(task=task, workers=tuple(workers)) for task, workers in found], _told(last)


def check_fits(result: bytes, request: AnyRequest) -> None:
    """Raise BusError if no reply can carry that result."""
    if len(result) <= MOST_RESULT_BYTES:
        return
    done = "it is done, but " if isinstance(request, CHANGES) else ""
    raise BusError(
        f"{done}the answer has {len(result)} bytes, and the bus carries at most {MOST_RESULT_BYTES}: {_remedy(request)}"
    )


def _pairs(rows: Iterable[TaskRow], view: View, after: Mark | None) -> Iterator[tuple[TaskRow, WorkerRow | None]]:
    for task in rows:
        if after is not None and task.id < after.id:
            continue
        workers = view.info(task.id).workers
        if after is None or task.id != after.id:
            yield from ((task, worker) for worker in workers or (None,))
        else:
            yield from ((task, one) for one in workers if (one.node, one.id) > (after.node, after.worker))


def _told(last: Mark | None) -> str:
    return encode(last).decode() if last else ""


def _remedy(request: Request) -> str:
    if isinstance(request, PagedRequest) and not request.most_bytes:
        return "a client of this version of trogdor-bus reads it in pages"
    if isinstance(request, GetExperiment):
        return f"its result is on the coordinator's machine, in experiments/{request.id}.json of the state directory"
    return "ask for less"
