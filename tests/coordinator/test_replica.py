"""The state in the log: whatever part of the newest is lost, what is found is what some commit left."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.coordinator.driver import BEAT_MS, Cluster
from tests.effort import examples
from tests.sim.store import SimStore
from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.coordinator import replica as replica_module
from trogdor_bus.coordinator.changes import Change, DropTask, Loaded, Meta, PutMeta, PutRow, PutTask, PutWorker
from trogdor_bus.coordinator.changes import StoredWorker as Stored
from trogdor_bus.coordinator.replica import Found, Replica, read
from trogdor_bus.errors import HostError
from trogdor_bus.states import TaskRow, TaskState, WorkerRow, WorkerState
from trogdor_bus.transports.memory_log import MemoryKeeper

from .test_store_model import ACTIONS

EMPTY = Found(state=None)


def state(keeper: MemoryKeeper) -> Loaded | None:
    return read(keeper.open(), 1.0).state


def of(store: SimStore) -> Loaded:
    """Return what a store holds as the log tells it: its own counters of events are not replicated."""
    loaded = store.load()
    meta = msgspec.structs.replace(loaded.meta, next_seq=1)
    return msgspec.structs.replace(loaded, meta=meta, fresh=False)


class Leader:
    """A store and its replica, which commit what they are told."""

    def __init__(self, keeper: MemoryKeeper, me: str, epoch: int) -> None:
        self.keeper, self.store, self.log = keeper, SimStore(1, lambda: 0), keeper.open()
        self.replica = Replica(self.log, me)
        self.store.commit([PutMeta(Meta(cluster="c", epoch=epoch, next_worker=1))], durable=True)

    def begin(self) -> None:
        self.replica.begin(self.store.load(), read(self.log, 1.0))

    def commit(self, *changes: Change) -> None:
        self.store.commit(changes, durable=True)
        self.replica.follow(changes)


def task(name: str, **fields: object) -> PutTask:
    return PutTask(TaskRow(id=name, **fields))  # type: ignore[arg-type]


def worker(task_id: str, number: int) -> PutWorker:
    return PutWorker(task_id, Stored(row=WorkerRow(id=number, node=f"n{number}"), actions=ACTIONS))


def test_what_is_committed_is_what_is_found() -> None:
    leader = Leader(MemoryKeeper(), "a", 3)
    leader.commit(task("before"), worker("before", 1))
    assert state(leader.keeper) is None
    leader.begin()
    assert state(leader.keeper) == of(leader.store)
    leader.commit(task("t"), worker("t", 7), PutRow(WorkerRow(id=7, node="n7", state=WorkerState.RUNNING)))
    assert state(leader.keeper) == of(leader.store)
    leader.commit(DropTask("before"))
    assert state(leader.keeper) == of(leader.store)
    leader.commit(DropTask("t"), task("t"), worker("t", 8))
    assert state(leader.keeper) == of(leader.store)
    assert {row.row.id for row in of(leader.store).workers["t"]} == {8}
    assert not [key for key in leader.log.read(1.0) if key.endswith(("/7", "/1", "before"))]


def test_a_commit_that_no_frame_carries_is_followed_by_a_new_generation_and_never_by_a_part_of_it() -> None:
    leader = Leader(MemoryKeeper(), "a", 3)
    large = msgspec.Raw(b'"' + b"x" * 2_000_000 + b'"')
    for number in range(5):
        leader.commit(task(f"t{number}", spec=large))
    leader.begin()
    before = of(leader.store)
    leader.commit(*(task(f"t{number}", spec=large, state=TaskState.STOPPING) for number in range(5)))
    leader.commit(task("after"))
    assert state(leader.keeper) == before and not leader.replica.complete()
    leader.begin()
    assert state(leader.keeper) == of(leader.store) and leader.replica.complete()
    assert max(len(value) for _, value in leader.keeper.records) < MAX_FRAME_BYTES


def test_a_new_leader_replaces_what_the_log_had_and_an_old_one_that_writes_on_changes_nothing() -> None:
    keeper = MemoryKeeper()
    old, new = Leader(keeper, "old", 3), Leader(keeper, "new", 1005)
    old.begin()
    old.commit(task("t"), worker("t", 1))
    new.commit(task("u"))
    new.begin()
    assert {key.partition("/")[0] for key in new.log.read(1.0)} == {"new-1"}
    for change in (task("t", state=TaskState.DONE), PutMeta(Meta(cluster="c", epoch=3, next_worker=9))):
        old.commit(change)
        assert state(keeper) == of(new.store)


def test_a_log_that_is_too_far_behind_is_written_anew_when_it_has_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "MOST_UNWRITTEN", 20)
    leader = Leader(MemoryKeeper(), "a", 3)
    leader.begin()
    leader.keeper.reachable = False
    for number in range(50):
        leader.commit(task(f"t{number}"))
    assert not leader.replica.following
    assert leader.log.unwritten() <= 20 + 3
    assert not leader.replica.complete()
    leader.keeper.reachable = True
    leader.keeper.settle()
    found = state(leader.keeper)
    assert found is not None
    assert 0 < len(found.tasks) < 50
    leader.begin()
    assert state(leader.keeper) == of(leader.store)
    assert {key.partition("/")[0] for key in leader.log.read(1.0)} == {"a-2"}


def test_values_are_known_to_be_kept_in_order() -> None:
    leader = Leader(MemoryKeeper(), "a", 3)
    assert not leader.replica.complete()
    leader.begin()
    assert leader.replica.complete()
    leader.keeper.acknowledging = False
    leader.commit(task("t"))
    assert leader.replica.kept() == leader.replica.appended - 2
    assert not leader.replica.complete()
    leader.keeper.acknowledging = True
    leader.keeper.settle()
    assert leader.replica.complete()
    assert leader.replica.kept() == leader.replica.appended


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("a-1/meta", b"{}"),
        ("a-1/last", b"nonsense"),
        ("a-1/task/t", b'{"id":7}'),
        ("a-1/worker/1", b"[]"),
        ("a-1/worker/2", b'{"task":"nobody","row":{"id":2,"node":"n"}}'),
        ("a-1/actions/1", b'[{"type":"unheard-of"}]'),
        ("a-1/task/t", b"\xff\xfe"),
        ("claim/b", b'"soon"'),
        ("claim/b", b"4611686018427387904"),
        ("a-1/meta", b'{"cluster":"c","epoch":4611686018427387904,"next_worker":1}'),
    ],
)
def test_a_row_that_makes_no_sense_is_named(key: str, value: bytes) -> None:
    leader = Leader(MemoryKeeper(), "a", 3)
    leader.commit(task("t"), worker("t", 1))
    leader.begin()
    leader.log.append(key, value)
    with pytest.raises(HostError, match=f"{key}: .* remove that key, or choose another ‹topic-prefix›"):
        read(leader.log, 1.0)


def test_a_state_of_a_newer_version_is_not_read_by_halves() -> None:
    leader = Leader(MemoryKeeper(), "a", 3)
    leader.begin()
    leader.log.append("a-1/last", b'{"v":2,"turn":1}')
    with pytest.raises(HostError, match="newer trogdor-bus \\(version 2\\): upgrade"):
        read(leader.log, 1.0)


# --- any part of the newest may be lost -------------------------------------------------------------------------------

Batch = list[tuple[str, int, int]]
batches: st.SearchStrategy[list[Batch]] = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(["meta", "task", "worker", "row", "drop", "begin"]), st.integers(0, 3), st.integers(0, 9)
        ),
        min_size=1,
        max_size=6,
    ),
    max_size=12,
)


def changes_of(batch: Batch, store: SimStore, numbers: list[int]) -> list[Change]:
    """Return a commit that the store can take: workers have new numbers, and belong to tasks that are there."""
    tasks = {name: {row.row.id for row in rows.values()} for name, rows in store.workers.items()}
    made: list[Change] = []
    for kind, which, value in batch:
        name = f"t{which}"
        if kind == "meta":
            made.append(PutMeta(Meta(cluster="c", epoch=3, next_worker=value, resumed=(f"r{value}",))))
        elif kind == "task":
            tasks.setdefault(name, set())
            made.append(task(name, start_ms=value))
        elif kind == "worker" and name in tasks:
            numbers.append(len(numbers))
            tasks[name].add(numbers[-1])
            made.append(worker(name, numbers[-1]))
        elif kind == "row" and tasks.get(name):
            number = sorted(tasks[name])[value % len(tasks[name])]
            made.append(PutRow(WorkerRow(id=number, node=f"n{number}", status=f"s{value}")))
        elif kind == "drop" and name in tasks:
            del tasks[name]
            made.append(DropTask(name))
    return made


def compacted(records: Sequence[tuple[str, bytes]], random: Random) -> list[tuple[str, bytes]]:
    """Return the records without some of those that newer ones replace, as a compaction leaves them."""
    newest = {key: index for index, (key, _) in enumerate(records)}
    kept = enumerate(records)
    return [record for index, record in kept if newest[record[0]] == index or random.random() < 0.5]


@given(batches, batches, st.randoms(use_true_random=False))
@examples(100)
def test_every_prefix_is_the_state_after_some_commit(first: list[Batch], second: list[Batch], random: Random) -> None:
    keeper = MemoryKeeper()
    old = Leader(keeper, "old", 3)
    numbers: list[int] = []
    seen: list[tuple[int, Loaded | None]] = [(0, None)]

    def lead(leader: Leader, asked: list[Batch]) -> None:
        leader.begin()
        seen.append((len(keeper.records), of(leader.store)))
        for batch in asked:
            leader.commit(*changes_of(batch, leader.store, numbers))
            if ("begin", 0, 0) in batch:
                leader.begin()
            seen.append((len(keeper.records), of(leader.store)))

    lead(old, first)
    taken = state(keeper)
    assert taken is not None
    new = Leader(keeper, "new", 0)
    new.store.replace(msgspec.structs.replace(taken, meta=msgspec.structs.replace(taken.meta, epoch=1003)))
    lead(new, second)
    states, at = [known for _, known in seen], 0
    for length in range(len(keeper.records) + 1):
        part = MemoryKeeper()
        part.records = compacted(keeper.records[:length], random)
        found = state(part)
        acknowledged = max(index for index, (size, _) in enumerate(seen) if size <= length)
        at = next((index for index in range(at, len(states)) if states[index] == found), -1)
        assert at >= 0, "a state that no commit left, or an older one than a shorter prefix has"
        assert found == states[acknowledged] or at > acknowledged
    assert state(keeper) == of(new.store)


@given(st.integers(0, 2**32))
@examples(30)
def test_a_coordinator_goes_on_from_any_prefix_repeats_nothing_and_ends_everything(seed: int) -> None:
    random = Random(seed)
    cluster = Cluster("a", "b")
    keeper = MemoryKeeper()
    replica = Replica(keeper.open(), "first")
    replica.begin(cluster.store.load(), EMPTY)
    commit = cluster.store.commit

    def committed(changes: Sequence[Change], *, durable: bool) -> None:
        commit(changes, durable=durable)
        replica.follow(changes)

    cluster.store.commit = committed  # type: ignore[method-assign]
    begun = len(keeper.records)
    for number in range(3):
        cluster.create(f"t{number}", startMs=cluster.now + random.choice((0, 0, 8_000)) if number else 0)
        for _ in range(2):
            which = f"t{random.randint(0, number)}"
            rows = cluster.machine.view.info(which).workers
            luck = random.random()
            if luck < 0.5 and rows:
                row = random.choice(rows)
                if row.state is not WorkerState.DONE:
                    cluster.say(row.node, random.choice((WorkerState.STARTING, WorkerState.RUNNING)), which)
            elif luck < 0.7:
                cluster.stop(which)
        cluster.pass_(random.randint(0, 2_000), "a", "b")
    performed = {order.worker for snapshot in cluster.published.values() for order in snapshot.orders}
    lost = MemoryKeeper()
    lost.records = keeper.records[: random.randint(begun, len(keeper.records))]
    found = read(lost.open(), 1.0)
    assert found.state is not None

    epoch, reports = cluster.machine.epoch, cluster.reports
    cluster.store = SimStore(1, lambda: cluster.now)
    cluster.store.replace(found.state)
    known = {row.row.id for rows in found.state.workers.values() for row in rows}
    cluster.restart()
    assert cluster.machine.epoch > epoch
    for node, snapshot in cluster.published.items():
        begins = {order.worker for order in snapshot.orders if order.actions is not None}
        assert begins & performed <= known, f"{node} is told to begin what it had before, which nobody could know"
    cluster.reports = {name: {w: r for w, r in rows.items() if w in known} for name, rows in reports.items()}
    cluster.pass_(60_000 + BEAT_MS)
    assert {task.state for task in cluster.machine.view.tasks.values()} <= {TaskState.DONE}
