"""Ways to break the system, each of which the simulation must notice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import msgspec

from tests.agents.simdisk import NeverSyncs, NeverSyncsDirectory, SimDisk
from trogdor_bus.agents import machine as agent_machine
from trogdor_bus.agents.events import Heal
from trogdor_bus.agents.machine import AgentMachine
from trogdor_bus.agents.perform import Performer
from trogdor_bus.coordinator.changes import PutRow
from trogdor_bus.coordinator.ledger import Ledger
from trogdor_bus.coordinator.machine import CoordinatorMachine
from trogdor_bus.states import Outcome, WorkerState

Mutant = tuple[str, Callable[[], Any], type[SimDisk]]


def _changed(owner: Any, name: str, wrap: Callable[..., Any]) -> Callable[[], Any]:
    """Return a patch that replaces a method by `wrap(original, self, *arguments)`."""
    original = getattr(owner, name)

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        return wrap(original, self, *arguments, **named)

    return lambda: patch.object(owner, name, method)


def _no_heal_at_the_end(original: Any, machine: AgentMachine, now_ms: int, effects: list[Any]) -> None:
    mine: list[Any] = []
    original(machine, now_ms, mine)
    effects += [effect for effect in mine if not (isinstance(effect, Heal) and effect.outcome is Outcome.DONE)]


def _done_at_once(original: Any, machine: AgentMachine, now_ms: int, *, leaving: bool) -> Any:
    beat = original(machine, now_ms, leaving=leaving)
    for worker in machine.workers.values():
        worker.done_counter = 1 if worker.state is WorkerState.DONE else 0
    return beat


def _ends_late(original: Any, machine: AgentMachine, order: Any, ends_ms: int, now_ms: int, *effects: Any) -> None:
    original(machine, order, now_ms + order.remaining_ms, now_ms, *effects)


def _no_lease(original: Any, machine: AgentMachine, *arguments: Any, **named: Any) -> None:
    original(machine, *arguments, **named)
    machine.limits = msgspec.structs.replace(machine.limits, lease_ms=None)


def _unknown_is_failed(original: Any, machine: CoordinatorMachine, row: Any, outcome: Outcome, error: str) -> None:
    original(machine, row, Outcome.FAILED if outcome is Outcome.UNKNOWN else outcome, error)


def _never_corrected(original: Any, machine: CoordinatorMachine, node: Any, report: Any) -> None:
    task = machine._ledger.task_of(report.worker)
    if task is None or machine._ledger.row(report.worker).state is not WorkerState.DONE:
        original(machine, node, report)


def _rows_are_not_stored(original: Any, ledger: Ledger, row: Any) -> None:
    before = len(ledger.changes)
    original(ledger, row)
    ledger.changes[before:] = [change for change in ledger.changes[before:] if not isinstance(change, PutRow)]


def _recovers_nothing(original: Any, performer: Performer) -> tuple[str, ...]:
    return ()


def _stops_are_ignored(original: Any, machine: AgentMachine, worker: Any, *how: Any) -> None:
    _, _, now_ms, _ = how
    if now_ms >= worker.ends_ms:
        original(machine, worker, *how)


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield


MUTANTS: tuple[Mutant, ...] = (
    ("old words are fresh", lambda: patch.object(agent_machine, "FRESH_MS", 10**9), SimDisk),
    ("files are not synced", _nothing, NeverSyncs),
    ("the directory is not synced", _nothing, NeverSyncsDirectory),
    ("every stamp is accepted", _changed(AgentMachine, "_accept", lambda *_: True), SimDisk),
    ("the undo at the end is forgotten", _changed(AgentMachine, "_tick", _no_heal_at_the_end), SimDisk),
    ("a lease never ends", _changed(AgentMachine, "__init__", _no_lease), SimDisk),
    ("the end is counted from the arrival", _changed(AgentMachine, "_start", _ends_late), SimDisk),
    ("done is forgotten before it was heard", _changed(AgentMachine, "_beat", _done_at_once), SimDisk),
    ("an agent that starts undoes nothing", _changed(Performer, "recover", _recovers_nothing), SimDisk),
    ("unknown is called failed", _changed(CoordinatorMachine, "_end_worker", _unknown_is_failed), SimDisk),
    ("a late report corrects nothing", _changed(CoordinatorMachine, "_report", _never_corrected), SimDisk),
    ("changed rows are not stored", _changed(Ledger, "put_worker", _rows_are_not_stored), SimDisk),
    ("nobody gives up", _changed(CoordinatorMachine, "_give_up", lambda *_: None), SimDisk),
    ("stops are ignored", _changed(AgentMachine, "_stop", _stops_are_ignored), SimDisk),
)
