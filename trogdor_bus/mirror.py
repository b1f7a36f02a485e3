"""A copy of the coordinator's view, kept by its events, and checked by the digest that comes with each beat.

Frames may be lost, doubled, late or reordered: events are applied in the order of their numbers, each once. What is
lost shows in the next pulse but one, or in a digest, and then the copy asks for a whole view again.

Of several coordinators that speak, the copy is of the one of the highest epoch, and of another one only when that one
has fallen silent: then the other does not go on with its state.
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
SILENT_BEATS, SILENT_MS = 3, 3_000
"""Whoever says nothing while another one beats so often, and for so long, leads no more."""
MIXED_BEATS = 2
"""So many beats after a coordinator was last heard, nothing of what it told is under way."""
MOST_WAITING = 100_000
"""So many events wait for one before them, or for a whole view."""


class Mirror:
    """The copy: `view` as of its event `seq`, and what the coordinator said of itself last. Pure.

    `wants` is whether a whole view is to be asked for, `strangers` how often one that fell silent was given up for one
    that does not go on with its state.
    """

    def __init__(self) -> None:
        self.view = View()
        self.status: CoordinatorStatus | None = None
        self.at_ms = -1
        self.wants = True
        self.strangers = 0
        self._leader: CoordinatorStatus | None = None
        self._told_ms = self._heard_ms = -1
        self._rivals: dict[str, tuple[int, int]] = {}
        """Of those who spoke since the leader did: the time of the newest beat, and how many there were."""
        self._mixed = 0
        self._waiting: dict[int, AnyEvent] = {}
        self._whole = -1
        self._missing = -1

    @property
    def leader(self) -> str:
        """Return the coordinator of which it is a copy, or becomes one; "" for none."""
        return self._leader.coordinator if self._leader else ""

    def hear(self, event: AnyEvent) -> None:
        """Take in an event."""
        if self._whole >= 0 and event.seq <= self.view.seq:
            return
        if self._leader is not None and event.at_ms < self._leader.server_start_ms:
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

    def beat(self, pulse: Pulse, now_ms: int = 0) -> bool:
        """Take in a pulse; return whether the copy is what the coordinator has. One from a slow link is none.

        `now_ms` is the time at which it is heard, by any clock that does not jump.
        """
        if not self._heeds(pulse, now_ms):
            return False
        self._told_ms, self._heard_ms = pulse.at_ms, now_ms
        self._rivals.clear()
        if self._mixed:
            self._mixed -= 1
            self.wants = self.wants or not self._mixed
        if self._whole < 0:
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
        if any(page.status.coordinator != last.status.coordinator for page in pages):
            return  # another one has begun since: ask that
        if self._leader is None:
            self._leader = last.status
        elif last.status.coordinator != self.leader:
            if _rank(last.status) <= _rank(self._leader):
                return
            self._turn_to(last.status)
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
        start_ms = last.status.server_start_ms
        self._waiting = {n: one for n, one in self._waiting.items() if n > first.seq and one.at_ms >= start_ms}
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
        self._told_ms = max(self._told_ms, world.at_ms)
        self._missing, self.wants = -1, False

    def _heeds(self, pulse: Pulse, now_ms: int) -> bool:
        """Return whether a pulse is news of the coordinator that leads; it may be the one by which another one does."""
        told, leader = pulse.status, self._leader
        if leader is None:
            self._leader = told
        elif told.coordinator == leader.coordinator:
            if pulse.at_ms < self._told_ms:
                return False
            self._leader = told
        elif _rank(told) > _rank(leader):
            self._turn_to(told)
        else:
            self._mixed = MIXED_BEATS if pulse.at_ms >= leader.server_start_ms else self._mixed
            if not self._outlasts(pulse, leader, now_ms):
                return False
            self._turn_to(told)
            self.view, self.status = View(), None
            self.strangers += 1
        return True

    def _outlasts(self, pulse: Pulse, leader: CoordinatorStatus, now_ms: int) -> bool:
        """Return whether a rival speaks on while the one that leads is silent; late pulses of one before it do not."""
        told = pulse.status
        newest_ms, beats = self._rivals.get(told.coordinator, (-1, 0))
        if pulse.at_ms > newest_ms:
            beats += 1
            self._rivals[told.coordinator] = pulse.at_ms, beats
        later = told.server_start_ms > leader.server_start_ms or now_ms - self._heard_ms >= SILENT_MS
        return later and beats >= SILENT_BEATS

    def _turn_to(self, told: CoordinatorStatus) -> None:
        """Be a copy of another coordinator: what is known is not of that one, and what is under way may not be."""
        self._leader, self._told_ms, self._mixed = told, -1, MIXED_BEATS + 1
        self._waiting.clear()
        self._whole, self._missing, self.wants = -1, -1, True

    def _go_on(self) -> None:
        while self._whole >= 0 and (event := self._waiting.pop(self.view.seq + 1, None)) is not None:
            self.view.apply(self.filled(event))


def _rank(told: CoordinatorStatus) -> tuple[int, int]:
    return told.epoch, told.server_start_ms


def _joined(before: TaskInfo, after: TaskInfo) -> TaskInfo:
    """Return one task of two parts: rows of a later page are newer."""
    return msgspec.structs.replace(after, workers=(*before.workers, *after.workers))
