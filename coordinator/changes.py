"""What the coordinator keeps, and the changes to it: plain data, so that the machine needs no database."""

from __future__ import annotations

from typing import Any

import msgspec

from trogdor_bus.actions import Action
from trogdor_bus.messages import AnyEvent
from trogdor_bus.states import TaskRow, WorkerRow


class StoredWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, and what its node was asked to do (None: no longer known, it may be kept but never started)."""

    row: WorkerRow
    actions: tuple[Action, ...] | None


MOST_LED = 100
"""So many ranges of epochs are remembered."""


class Owes(msgspec.Struct, frozen=True, kw_only=True):
    """What one journal of a node may still hold: worker ids with their tasks, and how many `more` there are."""

    node: str
    workers: dict[int, str] = {}
    more: int = 0


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """The coordinator's own counters. `cluster` names this store for ever; epoch 0 means that none was taken yet.

    `latches` are the aborts in force, by node ("" for all), `resumed` the ids of those that are over, `url` is where
    the last coordinator listened. `copied`: it was taken over from the log, and nobody has led with it yet; `copy` is
    the digest of what was copied, and who leads with that does so above `copy_epoch`. `led` are the epochs of this
    store's history, as ranges; () in a store of a version that did not remember them. `owed`, by journal, is what must
    still be proven; None in one of a version that did not remember that.
    """

    cluster: str
    epoch: int = 0
    next_worker: int
    next_seq: int = 1
    latches: dict[str, str] = {}
    resumed: tuple[str, ...] = ()
    url: str = ""
    copied: bool = False
    copy: str = ""
    copy_epoch: int = 0
    led: tuple[tuple[int, int], ...] = ()
    owed: dict[str, Owes] | None = None


def history(meta: Meta) -> tuple[tuple[int, int], ...]:
    """Return the epochs of a store's history, as ranges: all up to its own, if it remembers none."""
    return meta.led or ((0, meta.epoch),)


def leading(meta: Meta, epoch: int, **fields: Any) -> Meta:
    """Return the counters of who leads in an epoch with a store."""
    *before, (first, last) = history(meta)
    led = (*before, (first, epoch)) if epoch == last + 1 else (*before, (first, last), (epoch, epoch))
    return msgspec.structs.replace(meta, epoch=epoch, led=led[-MOST_LED:], copied=False, **fields)


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was kept: tasks by id, each task's workers by worker id.

    `fresh`: no coordinator ever took an epoch with this store.
    """

    meta: Meta
    fresh: bool
    tasks: tuple[TaskRow, ...] = ()
    workers: dict[str, tuple[StoredWorker, ...]] = {}


class PutMeta(msgspec.Struct, frozen=True):
    """Keep the counters."""

    meta: Meta


class PutTask(msgspec.Struct, frozen=True):
    """Keep a task, new or changed."""

    task: TaskRow


class PutWorker(msgspec.Struct, frozen=True):
    """Keep a new worker of a task."""

    task_id: str
    worker: StoredWorker


class PutRow(msgspec.Struct, frozen=True):
    """Keep the changed row of a worker that is kept already; its actions, which may be large, stay as they are."""

    row: WorkerRow


class DropTask(msgspec.Struct, frozen=True):
    """Forget a task and its workers."""

    id: str


class AppendEvent(msgspec.Struct, frozen=True):
    """Tell an event; of it only the number is kept, so that the next one has another."""

    event: AnyEvent


Change = PutMeta | PutTask | PutWorker | PutRow | DropTask | AppendEvent
