"""What a journal may still hold though no row tells of it: destroyed or given up unheard, or never known here.

Kept among the counters, by journal, until that journal proves it: it holds our latest word without it, or says that it
has ended. Pure: each function returns the counters as they are from then on, the same ones if nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from trogdor_bus.coordinator.changes import Meta, Owes
from trogdor_bus.messages import Beat
from trogdor_bus.states import Outcome, TaskRow, WorkerRow, WorkerState

MOST_WORKERS = 1_000
"""So many are told apart of one journal; the others are counted, and proven with them."""
MOST_JOURNALS = 10_000
"""Beyond that, nothing is noted of journals that only say of themselves that they hold something."""


def of(meta: Meta) -> Mapping[str, Owes]:
    """Return what is owed, by journal."""
    return meta.owed or {}


def nodes(meta: Meta) -> set[str]:
    """Return the nodes of which something is owed."""
    return {owes.node for owes in of(meta).values()}


def owe(meta: Meta, task_id: str, rows: Iterable[WorkerRow]) -> Meta:
    """Remember the workers of a task; those that were addressed to no journal were never sent."""
    kept = dict(of(meta))
    for row in rows:
        if row.journal:
            kept[row.journal] = _with(kept.get(row.journal) or Owes(node=row.node), {row.id: task_id})
    return _changed(meta, kept)


def heard(meta: Meta, beat: Beat, *, latest: bool, told: Iterable[int]) -> Meta:
    """Take in what a journal says of itself; `latest`: it holds our latest word, or has ended everything.

    `told` are the workers of which a row tells; whatever else it holds, it owes.
    """
    live = {report.worker: report.task for report in beat.reports if report.state is not WorkerState.DONE}
    ended = {report.worker for report in beat.reports if report.state is WorkerState.DONE}
    before = of(meta).get(beat.journal)
    strange = {worker: task[:100] for worker, task in live.items() if worker not in set(told)}
    if before is None and (not strange or len(of(meta)) >= MOST_JOURNALS):
        return meta
    owes = before or Owes(node=beat.node)
    if latest:
        owes = Owes(node=owes.node, workers={one: task for one, task in owes.workers.items() if one in live})
    elif ended:
        left = {one: task for one, task in owes.workers.items() if one not in ended}
        owes = msgspec.structs.replace(owes, workers=left)
    owes = _with(owes, strange)
    kept = {journal: other for journal, other in of(meta).items() if journal != beat.journal}
    if owes.workers or owes.more:
        kept = {**of(meta), beat.journal: owes}
    return _changed(meta, kept)


def closed(meta: Meta, node: str, heard: str, row: Callable[[int], WorkerRow | None]) -> Iterator[WorkerRow]:
    """Yield the workers that ended as unknown and are owed by a journal of the node that is not the one heard."""
    for journal, owes in of(meta).items():
        if owes.node == node and journal != heard:
            for one in filter(None, map(row, owes.workers)):
                if one.state is WorkerState.DONE and one.outcome is Outcome.UNKNOWN:
                    yield one


def give_up(meta: Meta, node: str, *, but: str = "") -> Meta:
    """Ask no journal of a node any more, but one."""
    return _changed(meta, {name: owes for name, owes in of(meta).items() if owes.node != node or name == but})


def from_rows(meta: Meta, tasks: Iterable[TaskRow], workers: Mapping[str, Mapping[int, WorkerRow]]) -> Meta:
    """Begin to remember, on a store that never did: of each worker that ended as unknown its journal owes the proof."""
    if meta.owed is not None:
        return meta
    meta = msgspec.structs.replace(meta, owed={})
    for task in tasks:
        rows = [row for row in workers[task.id].values() if row.state is WorkerState.DONE and row.outcome == "unknown"]
        meta = owe(meta, task.id, [row for row in rows if "has no record" not in row.error])
    return meta


def _with(owes: Owes, workers: Mapping[int, str]) -> Owes:
    new = {worker: task for worker, task in workers.items() if worker not in owes.workers}
    room = max(0, MOST_WORKERS - len(owes.workers))
    fit = dict(list(new.items())[:room])
    if not new:
        return owes
    return msgspec.structs.replace(owes, workers=owes.workers | fit, more=owes.more + len(new) - len(fit))


def _changed(meta: Meta, kept: dict[str, Owes]) -> Meta:
    return meta if kept == of(meta) else msgspec.structs.replace(meta, owed=kept)
