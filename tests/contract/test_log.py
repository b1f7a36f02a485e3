"""What every log promises that keeps a coordinator's state on other machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.buses import make_bus
from tests.support import wait_until
from trogdor_bus.bus import StateLog
from trogdor_bus.coordinator.changes import Meta, PutMeta, PutTask
from trogdor_bus.coordinator.replica import Replica, read
from trogdor_bus.coordinator.store import Store
from trogdor_bus.states import TaskRow
from trogdor_bus.transports import open_log

READ_S = 20.0
KINDS = (
    "memory",
    "fan",
    pytest.param("kafka", marks=pytest.mark.kafka),
    pytest.param("kafka-sealed", marks=[pytest.mark.kafka, pytest.mark.core]),
    pytest.param("kafka+zmq", marks=pytest.mark.kafka),
)


class Logs:
    """Opens ends of one log, and closes them."""

    def __init__(self, kind: str, directory: Path, bootstrap: str) -> None:
        self._bus = make_bus(kind, directory, bootstrap)
        self._ends: list[StateLog] = []

    def open(self) -> StateLog:
        log = open_log(self._bus.url, self._bus.keys)
        assert log is not None
        self._ends.append(log)
        return log

    def close(self) -> None:
        for log in self._ends:
            log.close()


@pytest.fixture(params=KINDS)
def logs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Logs]:
    bootstrap = request.getfixturevalue("bootstrap") if request.param.startswith("kafka") else ""
    made = Logs(request.param, tmp_path, bootstrap)
    yield made
    made.close()


def written(log: StateLog) -> None:
    wait_until(lambda: not log.unwritten(), 60, "the log to acknowledge everything")


def test_the_newest_value_of_each_key_is_read_at_another_end(logs: Logs) -> None:
    log = logs.open()
    assert log.read(READ_S) == {}
    for number in range(1_000):
        log.append(f"key{number % 7}", b"%d" % number)
    log.append("key3", b"")
    log.append("größe/x", b"\x00\xff")
    written(log)
    newest = {f"key{number % 7}": b"%d" % number for number in range(993, 1_000) if number % 7 != 3}
    assert logs.open().read(READ_S) == newest | {"größe/x": b"\x00\xff"}


def test_two_ends_write_one_log(logs: Logs) -> None:
    one, two = logs.open(), logs.open()
    one.append("a", b"1")
    written(one)
    two.append("a", b"2")
    two.append("b", b"2")
    written(two)
    assert one.read(READ_S) == two.read(READ_S) == {"a": b"2", "b": b"2"}


def test_what_was_queued_is_written_when_it_is_closed(logs: Logs) -> None:
    log = logs.open()
    log.append("a", b"1")
    written(log)
    for number in range(200):
        log.append(f"key{number}", b"x" * 100)
    log.close()
    log.close()
    assert len(logs.open().read(READ_S)) == 201


def test_every_commit_counts_as_one_and_they_are_acknowledged_in_their_order(logs: Logs, tmp_path: Path) -> None:
    log, store = logs.open(), Store(tmp_path / "state")
    replica = Replica(log, "a")
    store.commit([PutMeta(Meta(cluster="c", epoch=1, next_worker=0))], durable=True)
    replica.begin(store.load(), read(log, READ_S))
    kept = 0
    for number in range(300):
        commit = [PutTask(TaskRow(id=f"t{which}", start_ms=number)) for which in range(5)]
        store.commit(commit, durable=False)
        replica.follow(commit)
        assert kept <= replica.kept() <= replica.appended
        kept = replica.kept()
        if number % 100 == 50:
            found = read(logs.open(), READ_S).state
            assert found is None or len({task.start_ms for task in found.tasks}) <= 1, "a commit is half there"
    written(log)
    assert replica.kept() == replica.appended
    found, loaded = read(logs.open(), READ_S).state, store.load()
    store.close()
    assert found is not None
    assert (found.tasks, found.workers) == (loaded.tasks, loaded.workers)
