"""What a node is told: the coordinator's rows as one snapshot."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import msgspec

from trogdor_bus.actions import Action
from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.coordinator.changes import Meta
from trogdor_bus.coordinator.fleet import NodeState
from trogdor_bus.coordinator.latches import ordered, resumable
from trogdor_bus.coordinator.ledger import UNDESCRIBED, Ledger
from trogdor_bus.coordinator.plan import WorkerPlan
from trogdor_bus.errors import RefusedError, SpecError
from trogdor_bus.messages import Order, Snapshot, Stamp, encode
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.registry import registry
from trogdor_bus.spec import FaultSpec, TaskSpec, Texts, guarded, wire
from trogdor_bus.states import TaskRow, WorkerRow

MOST_NEW_BYTES = MAX_FRAME_BYTES // 4
"""Once what a snapshot says of new workers is so large, the next ones wait until the agent has these."""


MOST_ORDER_BYTES = MAX_FRAME_BYTES // 2
LARGE_SPEC_BYTES = 100_000
"""What nodes are to do for a smaller spec is not measured: addresses of nodes are not that many times their names."""


def check_fits(spec: TaskSpec, plans: Iterable[WorkerPlan]) -> None:
    """Raise RefusedError if no snapshot can tell a node what it is to do."""
    body = len(wire(spec))
    for plan in plans if body > LARGE_SPEC_BYTES else ():
        size = body + len(encode(plan.actions))
        if size > MOST_ORDER_BYTES:
            raise RefusedError(
                f"what node {plan.node} is to do has {size} bytes, and at most {MOST_ORDER_BYTES} can be told at once: "
                "make several tasks of it"
            )


def snapshot_of(
    node: NodeState,
    ledger: Ledger,
    stamp: Stamp,
    process: ProcessIdentity | None,
    meta: Meta,
    *,
    at: Callable[[str], AbstractContextManager[None]],
) -> Snapshot:
    """Return the whole desired state of a node: every wanted worker that is addressed to its present journal.

    Each order is made inside `at` its task.
    """
    orders: list[Order] = []
    room = MOST_NEW_BYTES
    for worker_id, task_id in node.open.items():
        row = ledger.row(worker_id)
        if row.wanted and row.journal == node.row.journal:
            with at(task_id):
                task, actions = ledger.view.tasks[task_id], ledger.startable(row)
                order = _kept(ledger, task, row, node.heard_ms)
                if actions is not None and room > 0:
                    order = _whole(order, task, actions)
                    room -= len(bytes(task.spec)) + (len(encode(actions)) if len(node.open) > 1 else 0)
                orders.append(order)
    return Snapshot(
        node=node.row.name,
        stamp=stamp,
        echo=node.echo(),
        orders=tuple(orders),
        coordinator=process,
        abort=ordered(meta, node.row.name),
        resume=resumable(meta, node.row.name, node.row.latch),
        refused=tuple(node.refused),
        describe=any(bytes(ledger.view.tasks[task_id].original) == UNDESCRIBED for task_id in node.open.values()),
    )


def _kept(ledger: Ledger, task: TaskRow, row: WorkerRow, heard_ms: int) -> Order:
    """Return the short form, which keeps what the agent has, and starts nothing."""
    return Order(
        worker=row.id,
        task=task.id,
        journal=row.journal,
        remaining_ms=task.end_ms - heard_ms,
        force=task.force,
        drift=ledger.drift.of(row.id),
    )


def _whole(order: Order, task: TaskRow, actions: tuple[Action, ...]) -> Order:
    texts, reapply = _manner(bytes(task.spec), task.id)
    return msgspec.structs.replace(
        order, spec=task.spec, actions=actions, texts=texts, duration_ms=task.duration_ms, reapply=reapply
    )


@functools.lru_cache(maxsize=1024)
def _manner(spec: bytes, task_id: str) -> tuple[Texts, bool]:
    found = registry().decode(msgspec.json.decode(spec), checked=False)
    reapply = isinstance(found, FaultSpec) and found.on_disturbed == "reapply"
    with contextlib.suppress(SpecError), guarded(type(found)):
        return msgspec.json.decode(msgspec.json.encode(found.texts(task_id)), type=Texts), reapply
    return TaskSpec().texts(task_id), reapply
