"""The coordinator's database after something wrote into it: it is read, or a HostError says what to do."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from tests.fuzz.judge import decoded, keeps_nothing
from tests.fuzz.mutants import DEEP, TOPOLOGY, mangled
from trogdor_bus.coordinator.changes import AppendEvent, Loaded, PutTask, PutWorker, StoredWorker
from trogdor_bus.coordinator.store import Store
from trogdor_bus.errors import HostError
from trogdor_bus.messages import TaskChanged
from trogdor_bus.registry import registry
from trogdor_bus.states import TaskRow, WorkerRow, WorkerState

SPEC = msgspec.Raw(b'{"class":"noop"}')
NAME = "coordinator.db"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with tasks, workers and events."""
    directory = tmp_path_factory.mktemp("good")
    store = Store(directory)
    task = TaskRow(id="t", original=SPEC, spec=SPEC)
    actions = registry().decode({"class": "partition", "partitions": [["node1"], ["node2"]]}).actions("node1", TOPOLOGY)
    changes: list[Any] = [PutTask(task), PutTask(TaskRow(id="u", original=SPEC, spec=SPEC))]
    for number in range(1, 9):
        row = WorkerRow(id=number, node=f"node{number}", state=WorkerState.RUNNING, warnings=("w" * 50,))
        changes.append(PutWorker("t", StoredWorker(row=row, actions=actions)))
        changes.append(AppendEvent(TaskChanged(seq=number, at_ms=number, text="x", task=task)))
    store.commit(changes, durable=True)
    store.close()
    return (directory / NAME).read_bytes()


@contextlib.contextmanager
def database(directory: Path, content: bytes) -> Iterator[sqlite3.Connection]:
    for name in (NAME, f"{NAME}-wal", f"{NAME}-shm"):
        (directory / name).unlink(missing_ok=True)
    (directory / NAME).write_bytes(content)
    with contextlib.closing(sqlite3.connect(directory / NAME, isolation_level=None)) as connection:
        yield connection


def judge(directory: Path) -> None:
    store = decoded(lambda: Store(directory), readable=False)
    if not isinstance(store, Store):
        assert isinstance(store, HostError)
        return
    with contextlib.closing(store):
        assert isinstance(decoded(store.load, readable=False), Loaded | HostError)


def test_the_database_that_is_damaged_is_real(tmp_path: Path, good: bytes) -> None:
    with database(tmp_path, good):
        pass
    with contextlib.closing(Store(tmp_path)) as store:
        assert len(store.load().workers["t"]) == 8


@examples(60)
@given(st.data())
def test_damaged_pages(tmp_path: Path, good: bytes, data: st.DataObject) -> None:
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        # Headers are hit as often as all the rest.
        place = data.draw(st.integers(0, 120) | st.integers(0, len(content) - 1))
        piece = data.draw(st.sampled_from([b"\0" * 8, b"\xff" * 8]) | st.binary(min_size=1, max_size=4))
        content[place : place + len(piece)] = piece
    cut = data.draw(st.sampled_from([None, None, 0, 1, 50, 100, 4096, 5000, 8192]))
    with database(tmp_path, bytes(content[:cut])):
        pass
    judge(tmp_path)


def test_an_error_of_sqlite_that_is_no_text(tmp_path: Path, good: bytes) -> None:
    damaged = re.sub(rb"tablemeta(?=meta.CREATE)", lambda _: b"table\xff\xff\xff\xff", good, flags=re.S)
    assert damaged != good
    with database(tmp_path, damaged):
        pass
    with pytest.raises(HostError, match="move the file away"):
        Store(tmp_path)


COLUMNS = [("meta", "body"), ("tasks", "body"), ("workers", "row"), ("workers", "actions"), ("events", "body")]


@examples(60)
@given(st.data())
def test_damaged_rows(tmp_path: Path, good: bytes, data: st.DataObject) -> None:
    table, column = data.draw(st.sampled_from(COLUMNS))
    with database(tmp_path, good) as connection:
        (body,) = connection.execute(f"SELECT {column} FROM {table}").fetchone()
        connection.execute(f"UPDATE {table} SET {column} = ?", (data.draw(mangled(body)),))
    judge(tmp_path)


ODD = {"an integer": 5, "a real": 1.5, "text": "{}", "a deep one": b"[" * DEEP, "bytes": b"\xff", "nothing": b""}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_columns_of_another_kind(tmp_path: Path, good: bytes, table: str, column: str, odd: str) -> None:
    with database(tmp_path, good) as connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", (ODD[odd],))
    judge(tmp_path)


def test_workers_without_their_task(tmp_path: Path, good: bytes) -> None:
    with database(tmp_path, good) as connection:
        connection.execute("DELETE FROM tasks WHERE id = 't'")
    judge(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM meta",
        "DROP TABLE meta",
        "DROP TABLE events",
        "PRAGMA user_version = -1",
        "PRAGMA user_version = 99",
        "PRAGMA user_version = 0",
        "UPDATE tasks SET id = x'ff' WHERE id = 't'",
        "ALTER TABLE workers RENAME COLUMN row TO line",
    ],
)
def test_a_database_of_somebody_else(tmp_path: Path, good: bytes, statement: str) -> None:
    with database(tmp_path, good) as connection:
        connection.execute(statement)
    judge(tmp_path)


def test_a_worker_whose_number_sqlite_cannot_hold_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path)) as store:
        stored = StoredWorker(row=WorkerRow(id=2**63, node="n"), actions=None)
        changes: list[Any] = [PutTask(TaskRow(id="t")), PutWorker("t", stored)]
        assert isinstance(decoded(lambda: store.commit(changes, durable=True)), HostError)
        assert store.load().tasks == ()


def test_a_damaged_database_keeps_no_memory(tmp_path: Path, good: bytes) -> None:
    with database(tmp_path, good) as connection:
        connection.execute("UPDATE tasks SET body = '{'")
    with contextlib.closing(Store(tmp_path)) as store:
        keeps_nothing(store.load)
