"""A copy of the coordinator's view, kept by its events, and checked by the digest that comes with each beat.

Frames may be lost, doubled, late or reordered: events are applied in the order of their numbers, each once. What is
lost shows in the next pulse but one, or in a digest, and then the copy asks for a whole view again.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from trogdor_bus.messages import (
    AnyEvent,
    CoordinatorStatus,
    Pulse,
    TaskChanged,
    TaskInfo,
    ViewPage,
    WorldView,
)
from trogdor_bus.states import TaskState
from trogdor_bus.view import View

RECENT_MS = 60_000
"""Ended tasks stay in a monitor's view for this long."""
MOST_WAITING = 100_000
"""So many events wait for one before them, or for a whole view."""


class Mirror:
    """The copy: `view` as of its event `seq`, and what the coordinator said of itself last. Pure.

    `wants` is whether a whole view is to be asked for.
    """

    def __init__(self) -> None:
        self.view = View()
        self.status: CoordinatorStatus | None = None
        self.at_ms = -1
        self.wants = True
        self._newest = (-1, -1)
        self._waiting: dict[int, AnyEvent] = {}
        self._whole = -1
        self._missing = -1

    def hear(self, event: AnyEvent) -> None:
        """Take in an event."""
        if self._whole >= 0 and event.seq <= self.view.seq:
            return
        if self.status is not None and event.at_ms < self.status.server_start_ms:
            return  # of the coordinator before
        self._waiting[event.seq] = event
        if len(self._waiting) > MOST_WAITING:
            self._waiting.clear()
            self.wants = True
        self._go_on()

    def filled(self, event: AnyEvent) -> AnyEvent:
        """Return an event with the specs of its task, if it leaves them out and they are known."""
        if not isinstance(event, TaskChanged) or event.same_specs is not True:
            return event
        known = self.view.tasks.get(event.task.id)
        if known is None:
            return event
        task = msgspec.structs.replace(event.task, original=known.original, spec=known.spec)
        return msgspec.structs.replace(event, task=task, same_specs=msgspec.UNSET)

    def beat(self, pulse: Pulse) -> bool:
        """Take in a pulse; return whether the copy is what the coordinator has. One from a slow link is none."""
        if (pulse.status.epoch, pulse.at_ms) < self._newest:
            return False
        self._newest = (pulse.status.epoch, pulse.at_ms)
        if self._whole < 0 or self.status is None or self.status.coordinator != pulse.status.coordinator:
            self._forget()
            return False
        self.status, self.at_ms = pulse.status, pulse.at_ms
        if pulse.seq < max(self._whole, self.view.seq):
            return False  # events are ahead of it
        if pulse.seq > self.view.seq:
            self.wants = self.wants or self._missing == self.view.seq
            self._missing = self.view.seq
            return False
        self._missing = -1
        if pulse.digest != self.view.versions.digest:
            self.wants = True
        return not self.wants

    def take(self, pages: Sequence[ViewPage]) -> None:
        """Take over a whole view, and go on from there with the events heard since it was asked for."""
        first, last = pages[0], pages[-1]
        if last.status.epoch < self._newest[0] or any(
            page.status.coordinator != last.status.coordinator for page in pages
        ):
            return  # another one has begun since: ask that
        tasks: dict[str, TaskInfo] = {}
        for info in (info for page in pages for info in page.tasks):
            before = tasks.get(info.task.id)
            tasks[info.task.id] = info if before is None else _joined(before, info)
        seqs = {key: seq for page in pages for key, seq in page.seqs.items()}
        nodes = tuple(node for page in pages for node in page.nodes)
        world = WorldView(seq=first.seq, at_ms=last.at_ms, status=last.status, nodes=nodes, tasks=tuple(tasks.values()))
        self._take_over(world)
        self.view.replace(world, seqs)
        self._whole = last.seq
        self._waiting = {seq: event for seq, event in self._waiting.items() if seq > first.seq}
        self._go_on()

    def world(self) -> WorldView | None:
        """Return the whole view as of now, None while there is none.

        `heard_ms` of a node that is alive is that of its last change: no event tells of its beats.
        """
        if self._whole < 0 or self.status is None:
            return None
        view = self.view
        for task in [task for task in view.tasks.values() if task.state is TaskState.DONE]:
            if self.at_ms - task.done_ms >= RECENT_MS:
                view.drop_task(task.id)
        return WorldView(
            seq=view.seq,
            at_ms=self.at_ms,
            status=self.status,
            nodes=tuple(node for _, node in sorted(view.nodes.items())),
            tasks=tuple(view.info(task_id) for task_id in sorted(view.tasks)),
        )

    def _take_over(self, world: WorldView) -> None:
        self.status, self.at_ms = world.status, world.at_ms
        self._newest = max(self._newest, (world.status.epoch, world.at_ms))
        self._missing, self.wants = -1, False

    def _forget(self) -> None:
        """What is known is of no coordinator that leads now."""
        self._whole, self._missing, self.wants = -1, -1, True

    def _go_on(self) -> None:
        while self._whole >= 0 and (event := self._waiting.pop(self.view.seq + 1, None)) is not None:
            self.view.apply(self.filled(event))


def _joined(before: TaskInfo, after: TaskInfo) -> TaskInfo:
    """Return one task of two parts: rows of a later page are newer."""
    return msgspec.structs.replace(after, workers=(*before.workers, *after.workers))
