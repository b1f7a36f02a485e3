"""What may be left on a node of which nobody who speaks can tell, and what is proven under an abort. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from trogdor_bus.coordinator import owed
from trogdor_bus.coordinator.changes import Meta
from trogdor_bus.coordinator.fleet import Fleet, NodeState
from trogdor_bus.coordinator.ledger import Ledger
from trogdor_bus.errors import RefusedError
from trogdor_bus.messages import NodeProof, NodeRow
from trogdor_bus.remedies import Remedy

FEW = 5
"""So many tasks are named in one line, and so many lines told of one node in a proof."""
LINE_CHARS = 2_000
PROOF_CHARS = 1 << 20
"""All the lines of one proof together: its frame stays small, however much is stuck."""


def debts(node: NodeState, ledger: Ledger, meta: Meta) -> dict[str, list[str]]:
    """Return by journal the tasks of which it may hold something: every open worker, and what is owed."""
    found: dict[str, dict[str, None]] = {}
    for worker_id, task_id in node.open.items():
        if journal := ledger.row(worker_id).journal:
            found.setdefault(journal, {})[task_id] = None
    for journal, owes in owed.of(meta).items():
        if owes.node == node.row.name:
            more = [f"{owes.more} more"] if owes.more else []
            found.setdefault(journal, {}).update(dict.fromkeys([*owes.workers.values(), *more]))
    return {journal: sorted(tasks) for journal, tasks in found.items()}


def unproven(node: NodeState, ledger: Ledger, meta: Meta) -> tuple[str, ...]:
    """Return what may be left of journals that are not heard, a line each; the one that is heard speaks for itself."""
    row, lines = node.row, []
    for journal, tasks in debts(node, ledger, meta).items():
        held = f"may hold {_few(tasks)}"
        if journal == row.journal:
            if not (row.alive or row.left):
                lines.append(f"its agent (journal {journal[:8]}) is silent and {held}")
        elif row.journal:
            lines.append(
                f"its former agent (journal {journal[:8]}), whose state directory the present one lacks, {held}"
            )
        else:
            lines.append(f"its agent (journal {journal[:8]}) was not heard since this coordinator started, and {held}")
    return tuple(lines)


def owing(fleet: Fleet, meta: Meta, task_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the nodes that owe the proof of a task that is forgotten: those whose journal is heard, and the others."""
    found = {True: set[str](), False: set[str]()}
    for journal, owes in owed.of(meta).items():
        if task_id in owes.workers.values():
            row = fleet.ensure(owes.node).row
            found[row.alive and row.journal == journal].add(owes.node)
    return tuple(sorted(found[True])), tuple(sorted(found[False]))


def begin(fleet: Fleet, ledger: Ledger, meta: Meta) -> None:
    """Let the rows of all nodes say what may be left there, by what was stored: before anything is asked or heard."""
    fleet.touched = set()
    for node in fleet.nodes.values():
        node.row = msgspec.structs.replace(node.row, unproven=unproven(node, ledger, meta))
        ledger.view.add_node(node.row)


def refresh(fleet: Fleet, ledger: Ledger, meta: Meta) -> None:
    """Let the rows of the nodes that were touched say what may be left there, and record those that changed."""
    touched, fleet.touched = fleet.touched, set()
    for name in sorted(touched & fleet.nodes.keys()):
        node = fleet.nodes[name]
        before, lines = node.row.unproven, unproven(node, ledger, meta)
        if lines != before:
            node.row = msgspec.structs.replace(node.row, unproven=lines)
            ledger.put_node(node, "" if before else "; ".join(f"node {name}: {line}" for line in lines))


def check_clean(rows: Iterable[NodeRow]) -> None:
    """Raise RefusedError if on a live node something of a former agent may be left; a silent one may prove it yet."""
    for row in rows:
        if row.alive and row.unproven:
            raise RefusedError(
                f"node {row.name} is dirty: {'; '.join(row.unproven)}. Once nothing is left there: "
                f"`{Remedy('forget', {'node': row.name})}`; or submit with ‹force›"
            )


def proof(node: NodeState, latch: str) -> NodeProof:
    """Return what is proven of a node under that abort, as its row has it."""
    row = node.row
    if row.left or (row.latch == latch and row.at_rest):
        state = "stuck" if row.dirty else "unproven" if row.unproven or row.strays else "ended"
    else:
        state = "waiting" if row.alive else "silent"
    return NodeProof(node=row.name, state=state, dirty=row.dirty, unproven=row.unproven, strays=row.strays)


def proofs(nodes: Iterable[NodeState], latch: str, asked: str = "") -> tuple[NodeProof, ...]:
    """Return what is proven of the nodes that were heard, may hold something, or were `asked` for, in few words."""
    left = PROOF_CHARS

    def cut(lines: tuple[str, ...]) -> tuple[str, ...]:
        nonlocal left
        told = [line if len(line) <= LINE_CHARS else f"{line[:LINE_CHARS]}..." for line in lines[:FEW]]
        if len(lines) > FEW:
            told.append(f"and {len(lines) - FEW} more: `‹nodes›`")
        if left < sum(map(len, told)):
            told = [f"{len(lines)} line(s): `‹nodes›`"]
        left -= sum(map(len, told))
        return tuple(told)

    def each() -> Iterator[NodeProof]:
        for node in nodes:
            if node.heard_ms >= 0 or node.stranger_ms >= 0 or node.row.unproven or node.row.name == asked:
                one = proof(node, latch)
                yield NodeProof(
                    node=one.node,
                    state=one.state,
                    dirty=cut(one.dirty),
                    unproven=cut(one.unproven),
                    strays=cut(one.strays),
                )

    return tuple(each())


def _few(tasks: list[str]) -> str:
    named = ", ".join(tasks[:FEW])
    more = f" and {len(tasks) - FEW} more" if len(tasks) > FEW else ""
    return f"{'task' if len(tasks) == 1 else 'tasks'} {named}{more}"
