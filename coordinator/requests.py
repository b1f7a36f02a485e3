"""Whether a request may be granted, looked at before anything is changed. Pure."""

from __future__ import annotations

import contextlib

import msgspec

from trogdor_bus.coordinator import forgetting, guard, latches
from trogdor_bus.coordinator.changes import Meta
from trogdor_bus.coordinator.events import (
    AbortRequested,
    CreateRequested,
    DestroyRequested,
    Event,
    ForgetRequested,
    ResumeRequested,
    StopRequested,
)
from trogdor_bus.coordinator.fleet import Fleet
from trogdor_bus.coordinator.ledger import Ledger, new_task
from trogdor_bus.errors import ConflictError, NotFoundError, RefusedError, SpecError
from trogdor_bus.names import check_name
from trogdor_bus.spec import guarded
from trogdor_bus.states import TaskRow


def check(event: Event, meta: Meta, fleet: Fleet, ledger: Ledger, barred: str) -> None:
    """Raise the TrogdorBusError by which a request is refused; whatever else happens cannot be.

    `barred` is why no new task is taken, "" if they are.
    """
    match event:
        case CreateRequested():
            _check_create(event, meta, ledger, barred)
        case StopRequested(id=task_id):
            _require_id(task_id, "stopTask")
        case DestroyRequested(id=task_id):
            _require_id(task_id, "destroyTask")
        case AbortRequested(node=node):
            _require_node(node, fleet)
        case ResumeRequested(node=node):
            _require_node(node, fleet)
            latches.check_resume(meta, node)
        case ForgetRequested(node=node, force=force):
            if node not in fleet.nodes:
                raise _unknown(node)
            forgetting.check(fleet.nodes[node], force)


def _check_create(event: CreateRequested, meta: Meta, ledger: Ledger, barred: str) -> None:
    _require_id(event.id, "createTask")
    known = ledger.view.tasks.get(event.id)
    if known is not None:
        if bytes(known.original) != event.wire:
            raise ConflictError(f"task {event.id} exists with another spec: {bytes(known.original).decode()}")
        return
    if barred:
        raise RefusedError(f"this coordinator takes no task until it is ended and started anew: {barred}")
    check_name(event.id, "task id", "$.id")
    latches.check_everywhere(meta)
    guard.check_allowed(event.allow)
    ledger.check_parent(event.parent)
    _check_spec(event)


def _check_spec(event: CreateRequested) -> None:
    """Raise SpecError if a spec cannot say what it asks for, so that its row can be stored and read again.

    What its `check` finds fails the task, as Trogdor's.
    """
    with guarded(type(event.spec)):
        task, spec = new_task(event, 0)
        msgspec.json.decode(msgspec.json.encode(task), type=TaskRow)
        msgspec.json.encode(spec.texts(task.id))
        with contextlib.suppress(SpecError):
            event.spec.check()


def _require_id(task_id: str, request: str) -> None:
    """Raise SpecError, in Trogdor's words, for an empty id."""
    if not task_id:
        raise SpecError(f"Invalid empty ID in {request} request.", path="$.id", remedy="give it one")


def _require_node(name: str, fleet: Fleet) -> None:
    """Raise NotFoundError for a node that nobody knows; "" are all of them."""
    if name and name not in fleet.nodes:
        raise _unknown(name)


def _unknown(name: str) -> NotFoundError:
    return NotFoundError(f"no node is called {name or repr(name)}; `‹nodes›` lists the nodes")
