"""Who may lead on which store, and that of several that take over at a time one does at most."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trogdor_bus.coordinator import takeover
from trogdor_bus.coordinator.changes import (
    AppendEvent,
    Change,
    Loaded,
    Meta,
    Owes,
    PutMeta,
    PutTask,
    PutWorker,
    StoredWorker,
    leading,
)
from trogdor_bus.coordinator.replica import Replica, read
from trogdor_bus.coordinator.store import Store
from trogdor_bus.coordinator.takeover import STEP, Taken, check_start, outrun, take_over
from trogdor_bus.errors import RefusedError
from trogdor_bus.messages import Noted
from trogdor_bus.states import TaskRow, WorkerRow
from trogdor_bus.transports.memory_log import MemoryKeeper, MemoryLog

from .test_store_model import ACTIONS

WORKER = PutWorker("t", StoredWorker(row=WorkerRow(id=5, node="n"), actions=ACTIONS))


class Host:
    """A machine with a store of its own, and an end of the log."""

    def __init__(self, directory: Path, keeper: MemoryKeeper) -> None:
        self.name, self.store, self.log = directory.name, Store(directory), keeper.open()

    def lead(self, *changes: Change, above: int = 0) -> None:
        """Lead in the next epoch, and replicate that."""
        self.lead_alone(above, *changes)
        self.replica = Replica(self.log, f"{self.name}{self.epoch}")
        self.replica.begin(self.store.load(), read(self.log, 1.0))

    def lead_alone(self, above: int, *changes: Change) -> None:
        """Lead in the next epoch, without a word of that in the log."""
        loaded = self.store.load()
        meta = leading(loaded.meta, 1 + max(above, loaded.meta.epoch))
        self.store.commit([PutMeta(meta), *changes], durable=True)

    def check_start(self) -> str:
        return check_start(self.store, self.log)

    def take_over(self, *, first: bool = False) -> Taken:
        return take_over(self.store, self.log, self.name, first=first)

    def kept(self) -> tuple[tuple[TaskRow, ...], dict[str, tuple[StoredWorker, ...]]]:
        loaded: Loaded = self.store.load()
        return loaded.tasks, loaded.workers

    @property
    def epoch(self) -> int:
        return self.store.load().meta.epoch


NewHost = Callable[[str], Host]


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> MemoryKeeper:
    monkeypatch.setattr(takeover, "FIRST_READ_S", 0.0)
    return MemoryKeeper()


@pytest.fixture
def new(tmp_path: Path, keeper: MemoryKeeper) -> Iterator[NewHost]:
    hosts: list[Host] = []

    def make(name: str) -> Host:
        hosts.append(Host(tmp_path / name, keeper))
        return hosts[-1]

    yield make
    for host in hosts:
        host.store.close()


def test_an_empty_log_lets_every_store_lead(new: NewHost) -> None:
    a = new("a")
    assert a.check_start() == ""
    a.store.commit([PutTask(TaskRow(id="t"))], durable=True)
    assert a.check_start() == ""


def test_the_last_leader_starts_again_on_its_own_store(new: NewHost) -> None:
    a = new("a")
    a.lead()
    assert a.check_start() == ""
    a.lead()
    assert a.check_start() == ""


def test_an_empty_store_does_not_lead_past_a_state_in_the_log(new: NewHost) -> None:
    new("a").lead()
    with pytest.raises(RefusedError, match=r"epoch 1; start with ‹take-over› .* or with another ‹topic-prefix›"):
        new("b").check_start()


def test_a_store_from_before_a_take_over_does_not_lead(new: NewHost) -> None:
    a, b = new("a"), new("b")
    a.lead()
    b.lead(above=b.take_over().epoch)
    with pytest.raises(RefusedError, match=f"epoch {STEP + 2}, this store is of epoch 1; start with ‹take-over›"):
        a.check_start()
    assert b.check_start() == ""


def test_a_copy_that_never_led_does_not_lead_by_itself(new: NewHost, keeper: MemoryKeeper) -> None:
    a, b = new("a"), new("b")
    a.lead()
    b.take_over()
    a.store.commit([PutTask(TaskRow(id="later"))], durable=True)
    a.replica.follow([PutTask(TaskRow(id="later"))])
    with pytest.raises(RefusedError, match=r"another coordinator has led since: .* start with ‹take-over›"):
        b.check_start()
    keeper.reachable = False
    with pytest.raises(RefusedError, match=r"empty or a copy.*start again when it can be read"):
        b.check_start()
    keeper.reachable = True
    assert a.check_start() == ""
    b.take_over()
    assert b.kept() == a.kept()


def meta_with(**fields: Any) -> Callable[[Host], Change]:
    return lambda host: PutMeta(msgspec.structs.replace(host.store.load().meta, **fields))


@pytest.mark.parametrize(
    "goes_on",
    [
        lambda host: PutTask(TaskRow(id="later")),
        meta_with(latches={"": "an-abort"}),
        meta_with(resumed=("an-abort",)),
        meta_with(owed={"journal": Owes(node="a")}),
        meta_with(next_worker=500),
    ],
)
def test_who_took_over_and_died_before_the_log_had_it_does_not_lead_past_what_the_other_wrote_since(
    new: NewHost, goes_on: Callable[[Host], Change]
) -> None:
    a, b = new("a"), new("b")
    a.lead()
    above = b.take_over().epoch
    b.lead_alone(above)
    assert b.check_start() == ""
    later = goes_on(a)
    a.store.commit([later], durable=True)
    a.replica.follow([later])
    with pytest.raises(RefusedError, match=r"another coordinator has led since: .* start with ‹take-over›"):
        b.check_start()
    b.lead(above=b.take_over().epoch)
    assert b.kept() == a.kept()
    later = PutTask(TaskRow(id="latest"))
    b.store.commit([later], durable=True)
    b.replica.follow([later])
    assert b.check_start() == "", "what is in the log is its own"


def test_who_starts_on_its_own_store_while_another_one_takes_over_forgets_nothing_of_that_one(new: NewHost) -> None:
    a, b = new("a"), new("b")
    a.lead()
    assert a.check_start() == "", "it listens from now on"
    b.lead(PutTask(TaskRow(id="later")), above=b.take_over().epoch)
    a.lead_alone(b.epoch)
    found = read(a.log, 1.0)
    assert "another coordinator has led in epoch 1002 since this one started" in outrun(
        found, a.store.load(), "a-again"
    )
    assert outrun(found, b.store.load(), f"b{b.epoch}") == ""
    with pytest.raises(RefusedError, match=r"another coordinator has led since: .* start with ‹take-over›"):
        a.check_start()
    a.lead(above=a.take_over().epoch)
    assert a.kept() == b.kept() != ((), {})
    assert a.check_start() == ""


def test_the_epochs_of_a_store_are_remembered_as_ranges() -> None:
    meta = Meta(cluster="c", epoch=3, next_worker=0)
    for epoch in (4, 5, 1_006, 1_007, 9_000):
        meta = leading(meta, epoch)
    assert (meta.epoch, meta.led) == (9_000, ((0, 5), (1_006, 1_007), (9_000, 9_000)))


def test_a_log_of_another_cluster_is_refused(new: NewHost) -> None:
    a, b = new("a"), new("b")
    b.store.commit([PutMeta(msgspec.structs.replace(b.store.load().meta, epoch=1))], durable=True)
    a.lead()
    for start in (b.check_start, b.take_over):
        with pytest.raises(RefusedError, match=r"another cluster .*choose another ‹topic-prefix›"):
            start()


def test_an_empty_store_waits_for_brokers_that_have_just_been_started(
    new: NewHost, keeper: MemoryKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("READ_S", 0.1), ("FIRST_READ_S", 10.0), ("AGAIN_S", 0.01)):
        monkeypatch.setattr(takeover, name, value)
    keeper.reachable = False
    a = new("a")
    timer = threading.Timer(0.1, lambda: setattr(keeper, "reachable", True))
    timer.start()
    assert a.check_start() == ""
    timer.join()


def test_while_the_log_is_out_a_store_may_go_on_but_nobody_takes_over(new: NewHost, keeper: MemoryKeeper) -> None:
    a, b = new("a"), new("b")
    a.lead()
    keeper.reachable = False
    assert "cannot be read" in a.check_start()
    with pytest.raises(RefusedError, match="what the log has cannot be known"):
        b.check_start()
    for host in (a, b):
        with pytest.raises(RefusedError, match="nobody may take over while the log is out"):
            host.take_over()
    assert b.store.load().fresh


def test_a_log_that_can_only_be_read_is_no_reason_to_take_over(
    new: NewHost, keeper: MemoryKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "CLAIM_S", 0.1)
    a, b = new("a"), new("b")
    a.lead()
    keeper.acknowledging = False
    with pytest.raises(RefusedError, match="does not acknowledge"):
        b.take_over()
    assert b.store.load().fresh


def test_there_must_be_something_to_take_over(new: NewHost) -> None:
    b = new("b")
    with pytest.raises(RefusedError, match="nothing to take over"):
        b.take_over()
    taken = b.take_over(first=True)
    assert "first coordinator" in taken.said
    assert b.store.load().fresh, "live workers of somebody else must still make it refuse"


def test_a_take_over_holds_all_tasks_and_workers_and_a_higher_epoch(new: NewHost) -> None:
    a, b = new("a"), new("b")
    a.lead(PutTask(TaskRow(id="t")), WORKER, PutTask(TaskRow(id="u")))
    taken = b.take_over()
    assert taken == Taken(1 + STEP, "2 task(s) of epoch 1 are taken over from the log")
    assert b.kept() == a.kept()
    assert b.epoch == 1, "until it leads, the log is newer"
    assert b.store.load().meta.cluster == a.store.load().meta.cluster
    b.lead(above=taken.epoch)
    assert b.epoch > taken.epoch


def test_what_an_older_store_had_is_gone_after_a_take_over(new: NewHost) -> None:
    a, b = new("a"), new("b")
    a.lead(PutTask(TaskRow(id="t")), WORKER)
    b.lead(PutTask(TaskRow(id="u")), above=b.take_over().epoch)
    a.store.commit([PutTask(TaskRow(id="unseen")), AppendEvent(Noted(seq=1, at_ms=0))], durable=True)
    a.take_over()
    assert a.kept() == b.kept()


def test_the_newest_store_takes_over_from_itself(new: NewHost) -> None:
    a = new("a")
    a.lead()
    a.store.commit([PutTask(TaskRow(id="not-replicated"))], durable=True)
    taken = a.take_over()
    assert "newest" in taken.said
    assert taken.epoch > a.epoch
    assert [task.id for task in a.store.load().tasks] == ["not-replicated"]


def test_of_two_that_take_over_at_a_time_one_does_at_most(new: NewHost, keeper: MemoryKeeper) -> None:
    new("a").lead()
    for turn in range(20):
        hosts = [new(f"b{turn}"), new(f"c{turn}")]
        barrier = threading.Barrier(2)
        won: list[int] = []

        def race(host: Host, barrier: threading.Barrier = barrier, won: list[int] = won) -> None:
            barrier.wait()
            try:
                won.append(host.take_over().epoch)
            except RefusedError as error:
                assert "another coordinator takes over" in str(error)

        threads = [threading.Thread(target=race, args=(host,)) for host in hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(won)) == len(won), "two epochs that are one"


def test_whoever_claims_later_gives_way(new: NewHost, monkeypatch: pytest.MonkeyPatch) -> None:
    new("a").lead()
    b, c = new("b"), new("c")
    append: Callable[[MemoryLog, str, bytes], None] = MemoryLog.append

    def c_is_in_between(self: MemoryLog, key: str, value: bytes) -> None:
        monkeypatch.setattr(MemoryLog, "append", append)
        assert c.take_over().epoch == 1 + STEP
        append(self, key, value)

    monkeypatch.setattr(MemoryLog, "append", c_is_in_between)
    with pytest.raises(RefusedError, match="another coordinator takes over at this moment"):
        b.take_over()
    assert b.store.load().fresh
    assert b.take_over().epoch == 1 + 2 * STEP


def test_a_copy_that_another_version_made_is_not_called_outrun_by_its_digest(new: NewHost) -> None:
    a, b = new("a"), new("b")
    a.lead(PutTask(TaskRow(id="t")))
    b.lead_alone(b.take_over().epoch, PutTask(TaskRow(id="mine")))
    meta = msgspec.structs.replace(b.store.load().meta, copy="as another version reckoned it")
    b.store.commit([PutMeta(meta)], durable=True)
    assert b.check_start() == ""
