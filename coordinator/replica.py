"""The coordinator's state on a log that outlives its machine: written behind the local store, read by who takes over.

The log is compacted by key, and whoever reads it may find any prefix of what was written: what came last may be lost.
Each start of a coordinator therefore writes a *generation* of its own, `GENERATION/...`, so that what an old one still
had to write cannot mix with what a new one wrote:

    meta, task/ID, worker/ID, actions/ID     the whole rows, as the store has them
    last                                     the rows of the newest commit once more, written before they are

A generation counts once it has `last`, which a new one writes after everything else; and as `last` holds all that its
commit changed, every prefix is the state after some commit. Actions, which may be large, are written before the commit
that needs them. Events are not replicated: they tell the past, and nothing is decided by them. `claim/ID` is written by
a coordinator that is about to take over.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from trogdor_bus import late
from trogdor_bus.bus import MAX_FRAME_BYTES, StateLog
from trogdor_bus.coordinator import rows as stored
from trogdor_bus.coordinator.changes import (
    AppendEvent,
    Change,
    DropTask,
    Loaded,
    Meta,
    PutMeta,
    PutRow,
    PutTask,
    PutWorker,
    StoredWorker,
)
from trogdor_bus.coordinator.epochs import beyond, is_plausible
from trogdor_bus.errors import BusError, HostError
from trogdor_bus.names import shown
from trogdor_bus.states import WorkerRow

VERSION = 1
CLAIM = "claim"
MOST_UNWRITTEN = 20_000
"""Beyond that nothing is written until the log has caught up, and then all of it: an outage must not fill memory."""


class Last(msgspec.Struct, frozen=True, kw_only=True):
    """The newest commit: what it put, and what it removed. `turn` counts the generations of one start."""

    v: int = VERSION
    turn: int
    rows: dict[str, msgspec.Raw] = {}
    gone: tuple[str, ...] = ()


class WorkerOf(msgspec.Struct, frozen=True, kw_only=True):
    """A worker and its task."""

    task: str
    row: WorkerRow


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was in the log: the newest state (None: there is none), by whom, the highest epoch claimed, every key."""

    state: Loaded | None
    generation: str = ""
    claims: dict[str, int] = {}
    keys: tuple[str, ...] = ()

    @property
    def epoch(self) -> int:
        """The epoch of the newest state, 0 if there is none."""
        return self.state.meta.epoch if self.state else 0


class Replica:
    """Writes what the coordinator `me` commits to `log`, from `begin` on."""

    def __init__(self, log: StateLog, me: str) -> None:
        self.log, self.me = log, me
        self.following = False
        self.appended = 0
        self._turn, self._most = 0, MOST_UNWRITTEN
        self._workers: dict[str, list[int]] = defaultdict(list)
        self._task_of: dict[int, str] = {}

    def kept(self) -> int:
        """Return how many of the `appended` values the log is known to keep; they are kept in order."""
        return self.appended - self.log.unwritten()

    def complete(self) -> bool:
        """Return whether the log holds everything that was committed."""
        return self.following and not self.log.unwritten()

    def begin(self, loaded: Loaded, found: Found) -> None:
        """Write everything that the store holds as a new generation, then remove what the log had before."""
        self._turn += 1
        self.following = True
        self._workers.clear()
        self._task_of.clear()
        changes: list[Change] = [PutMeta(loaded.meta)]
        changes += [PutTask(task) for task in loaded.tasks]
        changes += [PutWorker(task_id, worker) for task_id, rows in loaded.workers.items() for worker in rows]
        rows, actions, _ = self._rows(changes)
        for name, body in (actions | rows).items():
            self._append(name, body)
        self._append("last", msgspec.json.encode(Last(turn=self._turn)))
        self._most = MOST_UNWRITTEN + self.log.unwritten()
        for key in found.keys:
            owner, _, name = key.partition("/")
            claimed = found.claims.get(name, 0) if owner == CLAIM else 0
            if owner != self._generation and claimed <= loaded.meta.epoch:
                self._put(key, b"")

    def follow(self, changes: Iterable[Change]) -> None:
        """Write one commit; one that is too far behind, or meets one that is too large, stops, until it begins anew."""
        if not self.following:
            return
        if self.log.unwritten() > self._most:
            self.following = False
            return
        rows, actions, gone = self._rows(changes)
        raws = {name: msgspec.Raw(body) for name, body in rows.items()}
        last = msgspec.json.encode(Last(turn=self._turn, rows=raws, gone=gone))
        if len(last) > MAX_FRAME_BYTES:
            self.following = False
            return
        for name, body in actions.items():
            self._append(name, body)
        if not rows and not gone:
            return
        self._append("last", last)
        for name, body in rows.items():
            self._append(name, body)
        for name in gone:
            self._append(name, b"")

    def _rows(self, changes: Iterable[Change]) -> tuple[dict[str, bytes], dict[str, bytes], tuple[str, ...]]:
        """Return the newest rows of a commit, the actions of its new workers, and what it removes."""
        rows: dict[str, bytes] = {}
        actions: dict[str, bytes] = {}
        gone: dict[str, None] = {}

        def put(name: str, body: Any) -> None:
            gone.pop(name, None)
            rows[name] = msgspec.json.encode(body)

        for change in changes:
            match change:
                case PutMeta(meta):
                    put("meta", meta)
                case PutTask(task):
                    put(_task(task.id), task)
                case PutWorker(task_id, worker):
                    self._workers[task_id].append(worker.row.id)
                    self._task_of[worker.row.id] = task_id
                    put(_worker(worker.row.id), WorkerOf(task=task_id, row=worker.row))
                    if worker.actions is not None:
                        actions[_actions(worker.row.id)] = msgspec.json.encode(worker.actions)
                case PutRow(row):
                    put(_worker(row.id), WorkerOf(task=self._task_of[row.id], row=row))
                case DropTask(task_id):
                    workers = self._workers.pop(task_id, [])
                    names = [_task(task_id), *map(_worker, workers), *map(_actions, workers)]
                    for name in names:
                        rows.pop(name, None)
                        actions.pop(name, None)
                    gone |= dict.fromkeys(names)
                    for worker_id in workers:
                        del self._task_of[worker_id]
                case AppendEvent():
                    pass
        return rows, actions, tuple(gone)

    @property
    def _generation(self) -> str:
        return f"{self.me}-{self._turn}"

    def _append(self, name: str, body: bytes) -> None:
        self._put(f"{self._generation}/{name}", body)

    def _put(self, key: str, value: bytes) -> None:
        self.log.append(key, value)
        self.appended += 1


def read(log: StateLog, timeout_s: float) -> Found:
    """Return what is in the log; BusError if it cannot be read, HostError naming a key that makes no sense."""
    values = log.read(timeout_s)
    generations: dict[str, dict[str, bytes]] = defaultdict(dict)
    for key, value in values.items():
        owner, _, name = key.partition("/")
        generations[owner][name] = value
    claims = {name: _decoded(f"{CLAIM}/{name}", body, int) for name, body in generations.pop(CLAIM, {}).items()}
    for name, epoch in claims.items():
        _check_epoch(f"{CLAIM}/{name}", epoch)
    newest: tuple[int, int] = (0, 0)
    chosen = ""
    for owner, rows in generations.items():
        if "last" not in rows:
            continue  # it was never whole
        last: Last = _decoded(f"{owner}/last", rows["last"], Last)
        if last.v > VERSION:
            raise HostError(f"the state in the log was written by a newer trogdor-bus (version {last.v}): upgrade")
        rows |= {name: bytes(body) for name, body in last.rows.items()}
        for name in last.gone:
            rows.pop(name, None)
        if "meta" in rows:  # else an old coordinator wrote on after it had been removed
            meta: Meta = _decoded(f"{owner}/meta", rows["meta"], Meta)
            _check_epoch(f"{owner}/meta", meta.epoch)
            if (meta.epoch, last.turn) > newest:
                newest, chosen = (meta.epoch, last.turn), owner
    state = _loaded(chosen, generations[chosen]) if chosen else None
    return Found(state=state, generation=chosen, claims=claims, keys=tuple(values))


def _loaded(owner: str, rows: Mapping[str, bytes]) -> Loaded:
    names = {name.removeprefix("task/") for name in rows if name.startswith("task/")}
    workers: dict[str, list[StoredWorker]] = {task_id: [] for task_id in names}
    for name, body in rows.items():
        if name.startswith("worker/"):
            with _readable(f"{owner}/{name}"):
                found = _worker_of(body)
            if found.task not in names:
                raise _unreadable(f"{owner}/{name}", f"it is of task {shown(found.task)}, which is not there")
            told = _actions(found.row.id)
            with _readable(f"{owner}/{told}"):
                workers[found.task].append(stored.worker(found.row, rows.get(told)))
    tasks: dict[str, stored.StoredTask] = {}
    for task_id in sorted(names):
        with _readable(f"{owner}/{_task(task_id)}"):
            ordered = sorted(workers[task_id], key=lambda kept: kept.row.id)
            tasks[task_id] = stored.task(rows[_task(task_id)], ordered)
            if tasks[task_id].row.id != task_id:
                raise BusError(f"it is of task {shown(tasks[task_id].row.id)}")
    return Loaded(
        meta=_decoded(f"{owner}/meta", rows["meta"], Meta),
        fresh=False,
        tasks=tuple(task.row for task in tasks.values()),
        workers={task_id: task.workers for task_id, task in tasks.items()},
    )


def _worker_of(body: bytes) -> WorkerOf:
    return WorkerOf(**late.read(body, WorkerOf, (), {"row": stored.worker_row}).known)


def _decoded(key: str, body: bytes, kind: Any) -> Any:
    with _readable(key):
        return msgspec.json.decode(body, type=kind)


@contextlib.contextmanager
def _readable(key: str) -> Iterator[None]:
    try:
        yield
    except (BusError, *late.UNREADABLE) as error:
        raise _unreadable(key, str(error)) from None


def _check_epoch(key: str, epoch: int) -> None:
    if not is_plausible(epoch):
        raise _unreadable(key, beyond(epoch))


def _unreadable(key: str, why: str) -> HostError:
    return HostError(
        f"the state in the log cannot be read: {shown(key)}: {why}; if a newer trogdor-bus has written it, upgrade "
        "this one; else remove that key, or choose another ‹topic-prefix›"
    )


def _task(task_id: str) -> str:
    return f"task/{task_id}"


def _worker(worker_id: int) -> str:
    return f"worker/{worker_id}"


def _actions(worker_id: int) -> str:
    return f"actions/{worker_id}"
