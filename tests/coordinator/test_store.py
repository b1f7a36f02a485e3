"""The store: nothing is lost, nothing is half there, and every trouble of disk and file is said in words."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trogdor_bus.actions import Action, Peer, ProcessMatch
from trogdor_bus.actions.kafka import MoveLeader
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.actions.process import Kill, Restart, Suspend
from trogdor_bus.coordinator.changes import (
    AppendEvent,
    DropTask,
    Loaded,
    Meta,
    PutMeta,
    PutTask,
    PutWorker,
    StoredWorker,
)
from trogdor_bus.coordinator.store import Store
from trogdor_bus.errors import ConflictError, HostError
from trogdor_bus.messages import NodeChanged, NodeRow, Noted, TaskChanged, TaskGone, WorkerChanged
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerRow, WorkerState

ACTIONS: tuple[Action, ...] = (
    BlockFrom(peers=(Peer("b", ("10.0.0.2", "fd00::2")),)),
    BlockPorts(ports=(9092, 9093), direction="both"),
    Suspend(match=ProcessMatch(port=9092), required=False),
    Kill(match=ProcessMatch(pid_file="/run/x"), restart=Restart(command=("true", "é"))),
    MoveLeader(topic="t", partition=0, bootstrap="kafka:9092", to=2),
)


def worker(number: int, **fields: Any) -> StoredWorker:
    return StoredWorker(row=WorkerRow(id=number, node=f"node{number}", **fields), actions=ACTIONS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "state")
    yield opened
    opened.close()


def test_a_new_store_is_fresh_until_an_epoch_is_taken(tmp_path: Path) -> None:
    first = Store(tmp_path)
    meta = first.load().meta
    assert first.load() == Loaded(meta=meta, fresh=True)
    assert len(bytes.fromhex(meta.cluster)) == 16
    assert (meta.epoch, meta.next_seq) == (0, 1)
    assert 0 <= meta.next_worker < 2**62
    first.close()

    second = Store(tmp_path)
    assert second.load() == Loaded(meta=meta, fresh=True), "a refused start leaves the store fresh"
    taken = msgspec.structs.replace(meta, epoch=1)
    second.commit([PutMeta(taken)], durable=True)
    second.close()

    third = Store(tmp_path)
    assert third.load() == Loaded(meta=taken, fresh=False)
    third.close()


def test_two_stores_are_two_clusters(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    assert one.load().meta.cluster != two.load().meta.cluster
    assert one.load().meta.next_worker != two.load().meta.next_worker
    one.close()
    two.close()


def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    spec = msgspec.Raw(b'{"class":"x","startMs":1000,"durationMs":30000}')
    task = TaskRow(
        id="ünïcode 'id'; DROP TABLE tasks",
        state=TaskState.RUNNING,
        original=spec,
        spec=spec,
        start_ms=2**63 - 1,
        duration_ms=30000,
        force=True,
        started_ms=5,
        error="first",
        active=True,
    )
    workers = (
        worker(3, state=WorkerState.DONE, outcome=Outcome.UNKNOWN, warnings=("w",), residue=("r",)),
        StoredWorker(row=WorkerRow(id=2**62 + 7, node="b"), actions=None),
    )
    meta = Meta(cluster="c", epoch=7, next_worker=2**62 + 8, next_seq=9)
    before = Store(tmp_path)
    before.commit([PutTask(task), *(PutWorker(task.id, row) for row in workers), PutMeta(meta)], durable=True)
    before.close()

    after = Store(tmp_path)
    assert after.load() == Loaded(meta=meta, fresh=False, tasks=(task,), workers={task.id: workers})
    after.close()


def test_a_commit_is_whole_or_not_at_all(store: Store) -> None:
    store.commit([PutTask(TaskRow(id="kept")), PutWorker("kept", worker(1))], durable=False)
    before = store.load()
    with pytest.raises(HostError, match="FOREIGN KEY"):
        store.commit([PutTask(TaskRow(id="new")), DropTask("kept"), PutWorker("nowhere", worker(2))], durable=True)
    assert store.load() == before
    store.commit([DropTask("kept")], durable=True)
    assert (store.load().tasks, store.load().workers) == ((), {})


def test_only_a_durable_commit_pays_for_the_disk(store: Store) -> None:
    for durable, level in ((True, 2), (False, 1), (True, 2)):
        store.commit([PutTask(TaskRow(id="t"))], durable=durable)
        assert store._db.execute("PRAGMA synchronous").fetchone() == (level,)


def test_a_number_of_an_event_is_never_given_twice(tmp_path: Path) -> None:
    events = [
        TaskChanged(seq=1, at_ms=10, text="created", task=TaskRow(id="t")),
        WorkerChanged(seq=2, at_ms=11, task_id="t", worker=WorkerRow(id=1, node="a")),
        NodeChanged(seq=3, at_ms=12, node=NodeRow(name="a", alive=True)),
        Noted(seq=5, at_ms=13, text="a gap before me"),
        TaskGone(seq=6, at_ms=14, id="t"),
    ]
    before = Store(tmp_path)
    before.commit([AppendEvent(event) for event in events], durable=False)  # type: ignore[arg-type]
    before.close()
    after = Store(tmp_path)
    assert after.load().meta.next_seq == 7
    after.close()


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "here"
    Store(directory).close()
    (directory / "coordinator.db").chmod(0o644)
    opened = Store(directory)
    opened.commit([PutTask(TaskRow(id="t"))], durable=True)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes.keys() >= {"coordinator.db", "coordinator.db-wal", "coordinator.lock"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    opened.close()
    opened.close()


def test_one_coordinator_per_directory(tmp_path: Path) -> None:
    held = Store(tmp_path)
    with pytest.raises(ConflictError, match=rf"another coordinator \(pid {os.getpid()}\) uses {tmp_path}"):
        Store(tmp_path)
    held.close()
    Store(tmp_path).close()


def test_the_lock_is_let_go_when_opening_fails(tmp_path: Path) -> None:
    (tmp_path / "coordinator.db").write_bytes(b"not a database" * 100)
    for _ in range(2):
        with pytest.raises(HostError):
            Store(tmp_path)
    (tmp_path / "coordinator.db").unlink()
    Store(tmp_path).close()


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    path.write_bytes(b"precious" * 1000)
    with pytest.raises(HostError, match=r"file is not a database; move the file away to start afresh"):
        Store(tmp_path)
    assert path.read_bytes() == b"precious" * 1000


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "coordinator.db")
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(HostError, match="a database of something else; move the file away"):
        Store(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    db = sqlite3.connect(tmp_path / "coordinator.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(HostError, match=r"newer trogdor-bus \(schema 99, this one knows 1\); upgrade"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("UPDATE tasks SET body = x'7b'", "task 't' cannot be read"),
        ("UPDATE tasks SET body = '{\"id\": 5}'", "task 't' cannot be read"),
        ("UPDATE workers SET row = x'ff22'", "worker 1 cannot be read"),
        ("UPDATE meta SET body = '[]'", "the counters cannot be read"),
        ("DELETE FROM meta", "the counters cannot be read"),
        ("UPDATE meta SET body = json_set(body, '$.epoch', 4611686018427387904)", "of epoch 4611686018427387904"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, damage: str, named: str) -> None:
    first = Store(tmp_path)
    first.commit([PutTask(TaskRow(id="t")), PutWorker("t", worker(1))], durable=True)
    first.close()
    db = sqlite3.connect(tmp_path / "coordinator.db")
    db.execute(damage)
    db.commit()
    db.close()
    second = Store(tmp_path)
    with pytest.raises(HostError, match=named):
        second.load()
    second.close()


def test_a_damaged_page_is_an_error_in_words(tmp_path: Path) -> None:
    first = Store(tmp_path)
    first.commit([PutTask(TaskRow(id=f"task {n}", error="x" * 500)) for n in range(200)], durable=True)
    first.close()
    path = tmp_path / "coordinator.db"
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\x55" * (len(raw) - 4096)
    path.write_bytes(raw)
    with contextlib.closing(Store(tmp_path)) as second, pytest.raises(HostError, match="malformed; move the file away"):
        second.load()


def test_a_file_that_another_program_holds_is_an_error_in_words(store: Store, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "state" / "coordinator.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(HostError, match="database is locked; another program holds the file"):
        store.commit([PutTask(TaskRow(id="t"))], durable=True)
    other.execute("ROLLBACK")
    other.close()
    store.commit([PutTask(TaskRow(id="t"))], durable=True)
    assert [task.id for task in store.load().tasks] == ["t"]


def test_a_directory_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"file/state: Not a directory; let this user write"):
        Store(tmp_path / "file" / "state")


FULL_DISK = """
import resource, sys
from pathlib import Path
from trogdor_bus.coordinator.changes import PutTask
from trogdor_bus.coordinator.store import Store
from trogdor_bus.errors import HostError
from trogdor_bus.states import TaskRow

store = Store(Path(sys.argv[1]))
store.commit([PutTask(TaskRow(id="before"))], durable=True)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
try:
    store.commit([PutTask(TaskRow(id=f"{n}", error="x" * 1000)) for n in range(5000)], durable=True)
except HostError as error:
    print(error)
print([task.id for task in store.load().tasks])
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
store.commit([PutTask(TaskRow(id="after"))], durable=True)
print([task.id for task in store.load().tasks])
store.close()
"""


def test_a_full_disk_fails_the_commit_whole_and_the_store_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    error, full, freed = done.stdout.splitlines()
    assert "coordinator.db: " in error
    assert "; free space there" in error
    assert (full, freed) == ("['before']", "['after', 'before']")


KILLED = """
import sys
from pathlib import Path
from trogdor_bus.coordinator.changes import AppendEvent, DropTask, Meta, PutMeta, PutTask, PutWorker, StoredWorker
from trogdor_bus.coordinator.store import Store
from trogdor_bus.messages import Noted
from trogdor_bus.states import TaskRow, WorkerRow

store = Store(Path(sys.argv[1]))
n = 0
while True:
    n += 1
    task = TaskRow(id=f"{n:06}", error="x" * 5000)
    store.commit(
        [
            PutTask(task),
            *(PutWorker(task.id, StoredWorker(row=WorkerRow(id=3 * n + i, node="n"), actions=())) for i in range(3)),
            DropTask(f"{n - 100:06}"),
            PutMeta(Meta(cluster="c", epoch=n, next_worker=0, next_seq=n + 1)),
            AppendEvent(Noted(seq=n, at_ms=0)),
        ],
        durable=n % 10 == 0,
    )
    print(n, flush=True)
"""


@pytest.mark.parametrize("rounds", [7, 150])
def test_kill_9_loses_nothing_that_was_acknowledged_and_leaves_nothing_half(tmp_path: Path, rounds: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    acknowledged, until_s = 0, time.monotonic() + 30  # a disk that others use may take a second for each sync
    while acknowledged < rounds and (not acknowledged or time.monotonic() < until_s):
        line = child.stdout.readline()
        assert line, child.stderr and child.stderr.read()
        acknowledged = int(line)
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read()  # not communicate(): it would skip what readline() has buffered
    child.communicate(timeout=30)
    acknowledged = int(rest.split()[-1]) if rest.split() else acknowledged

    survivor = Store(tmp_path)
    loaded = survivor.load()
    last = loaded.meta.epoch
    assert acknowledged <= last <= acknowledged + 1, "the commit in flight may be there, whole"
    assert [task.id for task in loaded.tasks] == [f"{n:06}" for n in range(max(1, last - 99), last + 1)]
    assert all(len(workers) == 3 for workers in loaded.workers.values())
    assert loaded.meta.next_seq == last + 1
    survivor.close()
