"""The store is bounded in bytes, however large the specs are; a file of 0.1 is read, and shrinks."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from pathlib import Path

import msgspec
import pytest

from tests.coordinator.driver import Cluster
from trogdor_bus.coordinator import ledger
from trogdor_bus.coordinator.changes import Change, DropTask, Meta, PutTask
from trogdor_bus.coordinator.store import SLACK_BYTES, Store
from trogdor_bus.states import TaskRow, WorkerState

LARGE = "x" * 960_000
COPIES = 3
"""A task has its spec as it was sent, as it is performed, and what its node was told."""
SCHEMA_OF_0_1 = """
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB NOT NULL);
CREATE TABLE tasks (id TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE workers (id INTEGER PRIMARY KEY, task TEXT NOT NULL REFERENCES tasks ON DELETE CASCADE
  DEFERRABLE INITIALLY DEFERRED, row BLOB NOT NULL, actions BLOB NOT NULL);
CREATE INDEX workers_by_task ON workers (task);
CREATE TABLE events (seq INTEGER PRIMARY KEY, body BLOB NOT NULL);
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def ended_tasks(cluster: Cluster, count: int) -> None:
    for number in range(count):
        cluster.create(f"t{number}", "process-stop", nodes=["a"], match=LARGE)
        cluster.all_say(WorkerState.RUNNING, f"t{number}")
        cluster.all_say(WorkerState.DONE, f"t{number}")


def test_ten_large_tasks_make_no_larger_store_than_what_is_kept_of_them(tmp_path: Path) -> None:
    cluster, store = Cluster(), Store(tmp_path)
    in_memory = cluster.store.commit

    def commit(changes: Collection[Change], *, durable: bool) -> None:
        store.commit(changes, durable=durable)
        in_memory(changes, durable=durable)

    cluster.store.commit = commit  # type: ignore[method-assign]
    ended_tasks(cluster, 10)
    assert len(store.load().tasks) == 10
    assert size(tmp_path) < 10 * COPIES * len(LARGE) * 1.1 + 2 * SLACK_BYTES
    store.close()


def test_ended_tasks_are_forgotten_beyond_so_many_bytes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    monkeypatch.setattr(ledger, "KEEP_DONE_BYTES", 4 * COPIES * len(LARGE) + 100_000)
    cluster.create("small", nodes=["a"])
    cluster.all_say(WorkerState.DONE, "small")
    ended_tasks(cluster, 7)
    cluster.create("running", "process-stop", nodes=["a"], match=LARGE)
    cluster.pass_(2_000, *cluster.nodes)
    assert set(cluster.machine.view.tasks) == {"t3", "t4", "t5", "t6", "running"}, "the oldest of the ended go first"
    monkeypatch.setattr(ledger, "KEEP_DONE_BYTES", 10)
    cluster.pass_(2_000, *cluster.nodes)
    assert set(cluster.machine.view.tasks) == {"t6", "running"}, "who has just waited for it still finds it"


def test_room_of_what_is_forgotten_goes_back_to_the_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit([PutTask(TaskRow(id=f"{n}", error=LARGE)) for n in range(30)], durable=True)
    assert size(tmp_path) > 30 * len(LARGE)
    store.commit([DropTask(f"{n}") for n in range(1, 30)], durable=True)
    assert size(tmp_path) < 2 * len(LARGE) + 2 * SLACK_BYTES
    assert [task.id for task in store.load().tasks] == ["0"]
    store.close()


def test_a_store_of_0_1_is_read_and_shrinks(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "coordinator.db", isolation_level=None)
    old.executescript(SCHEMA_OF_0_1)
    meta, task = Meta(cluster="c", epoch=3, next_worker=5), TaskRow(id="t", error="why")
    old.execute("INSERT INTO meta VALUES (1, ?)", (msgspec.json.encode(meta),))
    old.execute("INSERT INTO tasks VALUES ('t', ?)", (msgspec.json.encode(task),))
    old.executemany("INSERT INTO events VALUES (?, ?)", ((seq, LARGE.encode()) for seq in range(11, 51)))
    assert size(tmp_path) > 40 * len(LARGE)
    # Its coordinator was killed: the connection stays open, and the write-ahead log is there.

    store = Store(tmp_path)
    loaded = store.load()
    assert (loaded.tasks, loaded.meta) == ((task,), msgspec.structs.replace(meta, next_seq=51))
    assert size(tmp_path) < 2 * SLACK_BYTES
    old.close()
    store.close()
    again = Store(tmp_path)
    assert again.load() == loaded
    again.close()


def test_a_store_of_0_1_that_cannot_be_written_anew_serves_as_it_is(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "coordinator.db", isolation_level=None)
    old.executescript(SCHEMA_OF_0_1)
    old.execute("INSERT INTO meta VALUES (1, ?)", (msgspec.json.encode(Meta(cluster="c", next_worker=5)),))
    old.execute("INSERT INTO events VALUES (7, ?)", (LARGE.encode(),))
    old.execute("BEGIN")
    old.execute("SELECT * FROM events").fetchone()  # somebody reads, so that nothing can be rewritten
    store = Store(tmp_path)
    assert store.load().meta.next_seq == 8
    store.commit([PutTask(TaskRow(id="t"))], durable=True)
    old.close()
    store.close()
