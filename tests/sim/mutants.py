"""Ways to break the system, each of which the simulation must notice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import msgspec

from tests.agents.simdisk import NeverSyncs, NeverSyncsDirectory, SimDisk
from tests.sim.agent import SimAgent
from tests.sim.coordinator import SimCoordinator
from tests.sim.model import Machine
from trogdor_bus.agents import core as agent_core
from trogdor_bus.agents import looks
from trogdor_bus.agents import machine as agent_machine
from trogdor_bus.agents.events import Heal
from trogdor_bus.agents.hands import Hands
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.agents.machine import AgentMachine
from trogdor_bus.agents.perform import Performer
from trogdor_bus.coordinator import core as coordinator_core
from trogdor_bus.coordinator import ledger as coordinator_ledger
from trogdor_bus.coordinator import owed, service, takeover
from trogdor_bus.coordinator.changes import PutRow
from trogdor_bus.coordinator.drift import Drift
from trogdor_bus.coordinator.ledger import Ledger
from trogdor_bus.coordinator.machine import CoordinatorMachine
from trogdor_bus.coordinator.place import Place
from trogdor_bus.coordinator.replica import Replica
from trogdor_bus.errors import BusError
from trogdor_bus.messages import Beat, Snapshot, Stamp, UnreadOrder, UnreadReport, decode
from trogdor_bus.states import Outcome, WorkerState


class Mutant(msgspec.Struct, frozen=True):
    """One way: patches that are in force while a seed runs, and the disk of every agent."""

    name: str
    patches: tuple[Callable[[], Any], ...] = ()
    disk: type[SimDisk] = SimDisk

    @contextlib.contextmanager
    def broken(self) -> Any:
        """Break the system for as long as the context lasts."""
        with contextlib.ExitStack() as stack:
            for patched in self.patches:
                stack.enter_context(patched())
            yield


def _changed(owner: Any, name: str, wrap: Callable[..., Any]) -> Callable[[], Any]:
    """Return a patch that replaces a method by `wrap(original, self, *arguments)`."""
    original = getattr(owner, name)

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        return wrap(original, self, *arguments, **named)

    return lambda: patch.object(owner, name, method)


def _constant(owner: Any, name: str, value: Any) -> Callable[[], Any]:
    return lambda: patch.object(owner, name, value)


def _nothing(*arguments: Any, **named: Any) -> None:
    return None


# --- the agent's machine ----------------------------------------------------------------------------------------------


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


def _ends_by_the_wall_clock(original: Any, machine: AgentMachine, order: Any, ends_ms: int, *rest: Any) -> None:
    original(machine, order, max(ends_ms, rest[0] - 2_000 + order.remaining_ms), *rest)


def _no_lease(original: Any, machine: AgentMachine, *arguments: Any, **named: Any) -> None:
    original(machine, *arguments, **named)
    machine.limits = msgspec.structs.replace(machine.limits, lease_ms=None)


def _counters_from_zero(original: Any, machine: AgentMachine, *arguments: Any, **named: Any) -> None:
    original(machine, *arguments, **named)
    machine._counter = 0


def _no_latch_at_the_start(original: Any, machine: AgentMachine, *arguments: Any, **named: Any) -> None:
    original(machine, *arguments, **{**named, "latch": ""})


def _ended_workers_are_unknown(original: Any, machine: AgentMachine, *arguments: Any, **named: Any) -> None:
    original(machine, *arguments, **named)
    machine.workers = {key: worker for key, worker in machine.workers.items() if worker.state is not WorkerState.DONE}


def _no_end_is_seen(original: Any, *arguments: Any) -> Any:
    return msgspec.structs.replace(original(*arguments), ended=None)


def _stops_are_ignored(original: Any, machine: AgentMachine, worker: Any, *how: Any, **named: Any) -> None:
    if how[2] >= worker.ends_ms:
        original(machine, worker, *how, **named)


def _stops_while_starting_are_ignored(
    original: Any, machine: AgentMachine, worker: Any, *how: Any, **named: Any
) -> None:
    if worker.state is not WorkerState.STARTING:
        original(machine, worker, *how, **named)


def _epochs_are_ignored(original: Any, machine: AgentMachine, stamp: Stamp) -> bool:
    held = machine.stamp
    return held is None or stamp.coordinator != held.coordinator or stamp.revision >= held.revision


def _revisions_are_ignored(original: Any, machine: AgentMachine, stamp: Stamp) -> bool:
    return original(machine, msgspec.structs.replace(stamp, revision=2**60)) is True


def _clash_is_obeyed(original: Any, machine: AgentMachine, stamp: Stamp) -> bool:
    held = machine.stamp
    return original(machine, stamp) is True or (held is not None and stamp.epoch == held.epoch)


def _residue_is_kept_quiet(original: Any, machine: AgentMachine, worker: Any, now_ms: int) -> Any:
    return msgspec.structs.replace(original(machine, worker, now_ms), residue=())


def _any_resume_releases(original: Any, machine: AgentMachine, snapshot: Snapshot, *rest: Any) -> None:
    if machine.latch and not snapshot.abort:
        snapshot = msgspec.structs.replace(snapshot, resume=machine.latch)
    original(machine, snapshot, *rest)


def _late_intent(original: Any, journal: Journal, entry: Entry) -> Entry:
    return entry if entry.state is JournalState.INTENDED else original(journal, entry)  # type: ignore[no-any-return]


def _early_undone(original: Any, performer: Performer, worker: int, *how: Any, **more: Any) -> Any:
    entry = performer.journal.entries[worker]
    if entry.state is not JournalState.UNDONE:
        with contextlib.suppress(Exception):
            performer.journal.put(msgspec.structs.replace(entry, state=JournalState.UNDONE))
    performer.journal.entries[worker] = entry
    return original(performer, worker, *how, **more)


async def _does_nothing(*_: Any, **__: Any) -> tuple[()]:
    return ()


def _lives_are_not_counted(original: Any, journal: Journal, name: str, data: bytes) -> None:
    if name != "journal.json" or journal.life == 1:
        original(journal, name, data)


def _forward(original: Any, performer: Performer, entry: Entry, *rest: Any) -> Any:
    return original(performer, msgspec.structs.replace(entry, steps=tuple(reversed(entry.steps))), *rest)


# --- the coordinator --------------------------------------------------------------------------------------------------


def _unknown_is_failed(original: Any, machine: CoordinatorMachine, row: Any, outcome: Outcome, error: str) -> None:
    original(machine, row, Outcome.FAILED if outcome is Outcome.UNKNOWN else outcome, error)


def _never_corrected(original: Any, machine: CoordinatorMachine, journal: Any, report: Any, *more: Any) -> None:
    task = machine._ledger.task_of(report.worker)
    if task is None or machine._ledger.row(report.worker).state is not WorkerState.DONE:
        original(machine, journal, report, *more)


def _rows_are_not_stored(original: Any, ledger: Ledger, row: Any) -> None:
    before = len(ledger.changes)
    original(ledger, row)
    ledger.changes[before:] = [change for change in ledger.changes[before:] if not isinstance(change, PutRow)]


def _tasks_are_pruned_at_once(original: Any, ledger: Ledger) -> None:
    with patch.object(coordinator_ledger, "KEEP_DONE", 0):
        original(ledger)


def _never_fenced(original: Any, machine: CoordinatorMachine, beat: Beat) -> None:
    if beat.stamp is None or beat.stamp.epoch <= machine.epoch or machine.listening:
        original(machine, beat)


# --- the log ----------------------------------------------------------------------------------------------------------


def _rows_are_not_replicated(original: Any, replica: Replica, changes: Any) -> None:
    original(replica, [change for change in changes if not isinstance(change, PutRow)])


def _dropped_tasks_stay(original: Any, replica: Replica, changes: Any) -> Any:
    rows, actions, _ = original(replica, changes)
    return rows, actions, ()


# --- frames of another version ----------------------------------------------------------------------------------------


def _read_whole_or_not(frame: bytes, kind: Any) -> Any:
    message = decode(frame, kind)
    for part in (*getattr(message, "reports", ()), *getattr(message, "orders", ())):
        if isinstance(part, UnreadOrder | UnreadReport):
            raise BusError(part.why)
    return message


def _what_is_strange_is_left_out(frame: bytes, kind: Any) -> Any:
    message = decode(frame, kind)
    if isinstance(message, Snapshot):
        known = tuple(order for order in message.orders if not isinstance(order, UnreadOrder))
        return msgspec.structs.replace(message, orders=known)
    return message


def _not_barred(init: Callable[..., None], machine: Any, *arguments: Any, **named: Any) -> None:
    init(machine, *arguments, **{**named, "barred": ""})


A, C = AgentMachine, CoordinatorMachine
MUTANTS: tuple[Mutant, ...] = (
    Mutant("old words are fresh", (_constant(agent_machine, "FRESH_MS", 10**9),)),
    Mutant("every stamp is accepted", (_changed(A, "_accept", lambda *_: True),)),
    Mutant("epochs are ignored", (_changed(A, "_accept", _epochs_are_ignored),)),
    Mutant("revisions are ignored", (_changed(A, "_accept", _revisions_are_ignored),)),
    Mutant("a clash is obeyed", (_changed(A, "_accept", _clash_is_obeyed),)),
    Mutant("the undo at the end is forgotten", (_changed(A, "_tick", _no_heal_at_the_end),)),
    Mutant("a lease never ends", (_changed(A, "__init__", _no_lease),)),
    Mutant("the end is counted from the arrival", (_changed(A, "_start", _ends_late),)),
    Mutant(
        "a wall clock can lengthen a fault",
        (_changed(A, "_start", _ends_by_the_wall_clock), _constant(Ledger, "turn_back", _nothing)),
    ),
    Mutant("done is forgotten before it was heard", (_changed(A, "_beat", _done_at_once),)),
    Mutant("nobody sees that a program failed", (_changed(Machine, "look", _no_end_is_seen),)),
    Mutant("stops are ignored", (_changed(A, "_stop", _stops_are_ignored),)),
    Mutant("stops while starting are ignored", (_changed(A, "_stop", _stops_while_starting_are_ignored),)),
    Mutant("what is stuck is not tried again", (_constant(agent_machine, "STUCK_RETRY_MS", 10**9),)),
    Mutant("counters do not outlive a restart", (_changed(A, "__init__", _counters_from_zero),)),
    Mutant(
        "performed again after a restart",
        (_changed(A, "__init__", _ended_workers_are_unknown), _changed(Journal, "knows", lambda *_: False)),
    ),
    Mutant("residue is kept quiet", (_changed(A, "_report", _residue_is_kept_quiet),)),
    Mutant("a latch is forgotten at a restart", (_changed(A, "__init__", _no_latch_at_the_start),)),
    Mutant("a latch is not written down", (_constant(Journal, "write_latch", _nothing),)),
    Mutant("the resume of another latch releases", (_changed(A, "_heed_latch", _any_resume_releases),)),
    Mutant("the intent is written after the do", (_changed(Journal, "write", _late_intent),)),
    Mutant("undone is written before the undo", (_changed(Performer, "heal", _early_undone),)),
    Mutant("files are not synced", disk=NeverSyncs),
    Mutant("the directory is not synced", disk=NeverSyncsDirectory),
    Mutant("lives are not counted on disk", (_changed(Journal, "_replace", _lives_are_not_counted),)),
    Mutant("steps are undone in forward order", (_changed(Performer, "_undo_all", _forward),)),
    Mutant("an undo waits behind what touches something else", (_constant(Hands, "lane", lambda *_: "rules"),)),
    Mutant("an undo waits for the search of its last look", (_constant(looks, "LAST_S", 10**6),)),
    Mutant("nobody looks for residue", (_constant(Machine, "residue", lambda *_: ()),)),
    Mutant("an agent that starts undoes nothing", (_constant(Performer, "recover", _does_nothing),)),
    Mutant("new addresses are not followed", (_constant(Performer, "_follow", _does_nothing),)),
    Mutant("new addresses are not told", (_changed(Drift, "of", lambda *_: ()),)),
    Mutant("what is destroyed or given up unheard is forgotten", (_constant(owed, "owe", lambda meta, *_: meta),)),
    Mutant("unknown is called failed", (_changed(C, "_end_worker", _unknown_is_failed),)),
    Mutant("a late report corrects nothing", (_changed(C, "_report", _never_corrected),)),
    Mutant("changed rows are not stored", (_changed(Ledger, "put_worker", _rows_are_not_stored),)),
    Mutant("a coordinator with a blown fuse goes on as any other", (_changed(C, "__init__", _not_barred),)),
    Mutant("an agent with a blown fuse goes on as any other", (_changed(A, "__init__", _not_barred),)),
    Mutant("what is set aside is not stored", (_constant(service, "set_aside", lambda loaded, *_: (loaded, ())),)),
    Mutant("a coordinator outlives what nobody foresaw", (_constant(SimCoordinator, "_broke", lambda *_: None),)),
    Mutant("an agent outlives what nobody foresaw", (_constant(SimAgent, "broke", lambda *_: None),)),
    Mutant("nothing has to last", (_constant(coordinator_core, "must_last", lambda _: False),)),
    Mutant("ended tasks are pruned at once", (_changed(Ledger, "prune", _tasks_are_pruned_at_once),)),
    Mutant("nobody gives up", (_changed(C, "_give_up", _nothing),)),
    Mutant("an old coordinator does not fence itself", (_changed(C, "_heed_stamp", _never_fenced),)),
    Mutant("every start counts workers on", (_constant(Place, "first_worker", lambda self: 1),)),
    Mutant("all coordinators write under the same keys", (_constant(Replica, "_generation", "coordinator"),)),
    Mutant("changed rows are not replicated", (_changed(Replica, "follow", _rows_are_not_replicated),)),
    Mutant("what is dropped stays in the log", (_changed(Replica, "_rows", _dropped_tasks_stay),)),
    Mutant("a take-over leaves out no epoch", (_constant(takeover, "STEP", 0),)),
    Mutant("an unknown outcome costs the beat", (_constant(coordinator_core, "decode", _read_whole_or_not),)),
    Mutant("an unknown action costs the word", (_constant(agent_core, "decode", _read_whole_or_not),)),
    Mutant("an order that is not known is a stop", (_constant(agent_core, "decode", _what_is_strange_is_left_out),)),
    Mutant("a store that the log has overtaken may lead", (_constant(takeover, "_is_newer", lambda *_: False),)),
)
