"""Keeps tasks, workers and counters in SQLite: one database per state directory, one coordinator at a time.

Of events only the highest number is kept, so that none is given twice: they tell the past, and nobody reads them here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec

from trogdor_bus.coordinator import rows
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
from trogdor_bus.errors import BusError, ConflictError, HostError

SCHEMA_VERSION = 1
SLACK_BYTES = 4 << 20
"""How much of the file may be unused, and how long the write-ahead log may stay; both can be longer for a moment."""
_INCREMENTAL = 2
"""SQLite's `auto_vacuum` of a file that can be shortened step by step; files of 0.1 have 0."""

_SCHEMA = (
    "CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB NOT NULL)",
    "CREATE TABLE tasks (id TEXT PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE workers (id INTEGER PRIMARY KEY, task TEXT NOT NULL REFERENCES tasks ON DELETE CASCADE"
    " DEFERRABLE INITIALLY DEFERRED, row BLOB NOT NULL, actions BLOB NOT NULL)",
    "CREATE INDEX workers_by_task ON workers (task)",
    "CREATE TABLE events (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_PUT_TASK = "INSERT INTO tasks VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body"
_PUT_WORKER = (
    "INSERT INTO workers VALUES (?, ?, ?, ?)"
    " ON CONFLICT (id) DO UPDATE SET row = excluded.row, actions = excluded.actions"
)
_REMEDIES = {
    "SQLITE_FULL": "free space there, or raise the quota",
    "SQLITE_IOERR": "free space there, and look for disk errors in the kernel's log",
    "SQLITE_BUSY": "another program holds the file: close it",
    "SQLITE_LOCKED": "another program holds the file: close it",
    "SQLITE_READONLY": "let this user write to the file and its directory",
    "SQLITE_PERM": "let this user write to the file and its directory",
    "SQLITE_CANTOPEN": "let this user write to the file and its directory",
    "SQLITE_NOTADB": "move the file away to start afresh, or choose another ‹state-dir›",
    "SQLITE_CORRUPT": "move the file away to start afresh, or choose another ‹state-dir›",
}


class Store:
    """The database in `directory`, made if missing, readable by its owner only.

    ConflictError if another coordinator has it open, HostError for everything that disk and file may do wrong. Calls
    may come from any thread, but not two at once.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "coordinator.db"
        with contextlib.ExitStack() as opened:
            with self._host_errors():
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                opened.callback(os.close, _lock(directory / "coordinator.lock"))
                self._path.touch(mode=0o600)
                self._path.chmod(0o600)
                self._db = sqlite3.connect(self._path, timeout=2.0, isolation_level=None, check_same_thread=False)
                opened.callback(self._db.close)
                self._prepare()
            self._opened = opened.pop_all()

    def load(self, *, tasks: bool = True) -> Loaded:
        """Return everything that is kept, or all but the tasks; HostError names a row that cannot be read."""
        where = "" if tasks else " WHERE false"
        with self._host_errors():
            found = self._db.execute("SELECT body FROM meta").fetchone()
            last = self._db.execute("SELECT max(seq) FROM events").fetchone()[0] or 0
            bodies = self._db.execute(f"SELECT id, body FROM tasks{where} ORDER BY id").fetchall()  # noqa: S608
            workers = self._db.execute(
                f"SELECT id, task, row, actions FROM workers{where} ORDER BY id"  # noqa: S608
            ).fetchall()
        meta = self._read(found and found[0], Meta, "the counters")
        if not is_plausible(meta.epoch):
            raise HostError(f"{self._path}: {beyond(meta.epoch)}; {_REMEDIES['SQLITE_CORRUPT']}")
        kept: dict[str, list[StoredWorker]] = {name: [] for name, _ in bodies}
        for worker, task, row, actions in workers:
            what = f"worker {worker}"
            if task not in kept:
                raise HostError(f"{self._path}: {what} is of no task; {_REMEDIES['SQLITE_CORRUPT']}")
            with self._readable(what):
                kept[task].append(rows.worker(rows.worker_row(row or b""), actions or b""))
        found_tasks: dict[str, rows.StoredTask] = {}
        for name, body in bodies:
            with self._readable(f"task {name!r}"):
                found_tasks[name] = rows.task(body or b"", kept[name])
        return Loaded(
            meta=msgspec.structs.replace(meta, next_seq=max(meta.next_seq, last + 1)),
            fresh=meta.epoch == 0,
            tasks=tuple(task.row for task in found_tasks.values()),
            workers={name: task.workers for name, task in found_tasks.items()},
        )

    def commit(self, changes: Collection[Change], *, durable: bool) -> None:
        """Keep all of the changes, or (HostError) none; if `durable`, they survive a loss of power."""
        with self._host_errors():
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with self._transaction():
                for change in changes:
                    self._apply(change)
        if any(isinstance(change, DropTask) for change in changes):
            self._shorten()

    def replace(self, loaded: Loaded) -> None:
        """Keep exactly that, durably, instead of everything that is here; or (HostError) nothing."""
        changes: list[Change] = [PutMeta(loaded.meta), *map(PutTask, loaded.tasks)]
        changes += [PutWorker(task_id, worker) for task_id, rows in loaded.workers.items() for worker in rows]
        with self._host_errors():
            self._db.execute("PRAGMA synchronous = FULL")
            with self._transaction():
                for table in ("workers", "tasks", "events"):
                    self._db.execute(f"DELETE FROM {table}")  # noqa: S608 (a literal)
                for change in changes:
                    self._apply(change)
        self._shorten()

    def close(self) -> None:
        """Close the database and let another coordinator have it; closing twice is harmless."""
        with self._host_errors():
            self._opened.close()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA foreign_keys = ON")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise HostError(
                f"{self._path} was written by a newer trogdor-bus (schema {version}, this one knows {SCHEMA_VERSION}); "
                "upgrade, or choose another ‹state-dir›"
            )
        if version == 0 and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise HostError(f"{self._path} is a database of something else; {_REMEDIES['SQLITE_NOTADB']}")
        if version == 0:
            self._db.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")  # before anything is in the file
        mode = self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise HostError(f"{self._path}: the file system supports no write-ahead log; choose a local ‹state-dir›")
        self._db.execute(f"PRAGMA journal_size_limit = {SLACK_BYTES}")
        if version == 0:
            meta = Meta(cluster=uuid.uuid4().hex, next_worker=secrets.randbelow(2**62))
            with self._transaction():
                for statement in _SCHEMA:
                    self._db.execute(statement)
                self._apply(PutMeta(meta))
        elif self._db.execute("PRAGMA auto_vacuum").fetchone()[0] != _INCREMENTAL:
            self._rewrite()

    def _rewrite(self) -> None:
        """Let a file of 0.1 shrink, and keep no events in it; one that cannot be written anew serves as it is."""
        with contextlib.suppress(sqlite3.Error):
            with self._transaction():
                self._db.execute("DELETE FROM events WHERE seq < (SELECT max(seq) FROM events)")
                self._db.execute("UPDATE events SET body = x''")
            self._db.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _shorten(self) -> None:
        """Give unused room back to the disk; what was committed stands, whatever goes wrong here."""
        with contextlib.suppress(sqlite3.Error):
            free, page = (self._db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("freelist_count", "page_size"))
            if free * page > SLACK_BYTES:
                self._db.executescript("PRAGMA incremental_vacuum")  # execute() would free a single page
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _apply(self, change: Change) -> None:
        run, encode = self._db.execute, msgspec.json.encode
        match change:
            case PutMeta(meta):
                run("INSERT OR REPLACE INTO meta VALUES (1, ?)", (encode(meta),))
            case PutTask(task):
                run(_PUT_TASK, (task.id, encode(task)))
            case PutWorker(task_id, worker):
                run(_PUT_WORKER, (worker.row.id, task_id, encode(worker.row), encode(worker.actions)))
            case PutRow(row):
                run("UPDATE workers SET row = ? WHERE id = ?", (encode(row), row.id))
            case DropTask(task_id):
                run("DELETE FROM tasks WHERE id = ?", (task_id,))
            case AppendEvent(event):
                run("INSERT OR REPLACE INTO events VALUES (?, x'')", (event.seq,))
                run("DELETE FROM events WHERE seq < ?", (event.seq,))

    def _read(self, body: bytes | None, kind: Any, what: str) -> Any:
        with self._readable(what):
            return msgspec.json.decode(body or b"", type=kind)

    @contextlib.contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BusError, msgspec.DecodeError, TypeError, UnicodeDecodeError, RecursionError) as error:
            raise HostError(
                f"{self._path}: {what} cannot be read: {error}; if a newer trogdor-bus has written it, upgrade this "
                f"one; else {_REMEDIES['SQLITE_CORRUPT']}"
            ) from None

    @contextlib.contextmanager
    def _host_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            remedy = next((remedy for prefix, remedy in _REMEDIES.items() if name.startswith(prefix)), "")
            raise HostError(f"{self._path}: {error}" + (f"; {remedy}" if remedy else "")) from None
        except OverflowError as error:
            raise HostError(f"{self._path}: {error}") from None
        except UnicodeDecodeError as error:  # sqlite3 cannot quote the bytes that it complains of
            raise HostError(f"{self._path}: {error}; {_REMEDIES['SQLITE_CORRUPT']}") from None
        except OSError as error:
            text = f"{error.filename or self._path}: {error.strerror}"
            raise HostError(f"{text}; let this user write to the directory, or choose another ‹state-dir›") from None


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise ConflictError(
            f"another coordinator (pid {holder}) uses {path.parent}; stop it, or choose another ‹state-dir›"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
