"""Whether a node may be forgotten, and what becomes of its workers. Pure."""

from __future__ import annotations

from collections.abc import Callable

from trogdor_bus.coordinator import latches, owed
from trogdor_bus.coordinator.changes import Meta
from trogdor_bus.coordinator.fleet import Fleet, NodeState
from trogdor_bus.coordinator.ledger import Ledger
from trogdor_bus.errors import RefusedError
from trogdor_bus.states import Outcome, WorkerRow


def check(node: NodeState, force: bool) -> None:
    """Raise RefusedError if a node must be kept, or all that it may hold."""
    row = node.row
    if row.alive and not row.unproven:
        raise RefusedError(f"the agent of node {row.name} is alive: end it first")
    if row.unproven and not force:
        raise RefusedError(
            f"node {row.name} may hold something: {'; '.join(row.unproven)}. Look there and undo it by hand, or start "
            "the agent again with its former state directory; `‹force›` gives it up"
        )


def forget(
    meta: Meta,
    node: NodeState,
    fleet: Fleet,
    ledger: Ledger,
    end: Callable[[WorkerRow, Outcome, str], None],
) -> Meta:
    """End the workers of a node, forget it unless it has a live agent, and return the counters without its debts.

    With a node that is there no more an abort of it alone ends, too.
    """
    name, alive = node.row.name, node.row.alive
    closed = owed.closed(meta, name, node.row.journal if alive else "", ledger.known)
    for row in [*rows(node, ledger), *closed]:
        end(row, *ending(row))
    if not alive:
        aborted = ", and the abort of it alone ends" if name in latches.nodes(meta) else ""
        ledger.node_gone(name, f"node {name} is forgotten{aborted}")
        if kept := fleet.forget(name):
            ledger.put_node(kept)
        else:
            meta = latches.drop(meta, name)
    return owed.give_up(meta, name, but=node.row.journal if alive else "")


def rows(node: NodeState, ledger: Ledger) -> list[WorkerRow]:
    """Return the workers that end with the node: all, or those of its former agents if it has a live one."""
    open_ = [ledger.row(worker_id) for worker_id in node.open]
    return [row for row in open_ if not (node.row.alive and row.journal in ("", node.row.journal))]


def ending(row: WorkerRow) -> tuple[Outcome, str]:
    """Return how a worker of a forgotten node ends."""
    if not row.journal:
        return Outcome.FAILED, f"node {row.node} was forgotten before its agent was heard; nothing was done there"
    return Outcome.UNKNOWN, f"outcome unknown: node {row.node} was forgotten, and what it held was given up"
