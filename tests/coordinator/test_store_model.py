"""Any sequence of changes: what was committed is what is loaded."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from trogdor_bus.actions import Action, Peer, ProcessMatch
from trogdor_bus.actions.kafka import MoveLeader
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.actions.process import Kill, Restart, Suspend
from trogdor_bus.coordinator import epochs
from trogdor_bus.coordinator.changes import (
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
from trogdor_bus.coordinator.store import Store
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerRow, WorkerState

ACTIONS: tuple[Action, ...] = (
    BlockFrom(peers=(Peer("b", ("10.0.0.2", "fd00::2")),)),
    BlockPorts(ports=(9092, 9093), direction="both"),
    Suspend(match=ProcessMatch(port=9092), required=False),
    Kill(match=ProcessMatch(pid_file="/run/x"), restart=Restart(command=("true", "é"))),
    MoveLeader(topic="t", partition=0, bootstrap="kafka:9092", to=2),
)

names = st.sampled_from(["a", "b", "ü", "''", "%", "a\nb"])
# JSON carries no lone surrogates; people's ids are checked before they come here.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
raws = st.sampled_from([b"null", b"{}", b'{"class":"x","a":[1,2.5,"\\u00fc"]}']).map(msgspec.Raw)
ints = st.integers(-1, 2**62)
tasks = st.builds(
    TaskRow,
    id=names,
    state=st.sampled_from(TaskState),
    original=raws,
    spec=raws,
    start_ms=ints,
    done_ms=ints,
    error=text,
    outcome=st.sampled_from(Outcome),
    active=st.booleans(),
)
texts = st.lists(text, max_size=2).map(tuple)
workers = st.builds(
    StoredWorker,
    row=st.builds(
        WorkerRow,
        id=st.integers(0, 3),
        node=names,
        state=st.sampled_from(WorkerState),
        status=text,
        warnings=texts,
        residue=texts,
        wanted=st.booleans(),
        done_ms=ints,
    ),
    actions=st.none() | st.lists(st.sampled_from(ACTIONS), max_size=2).map(tuple),
)
metas = st.builds(
    Meta, cluster=text, epoch=st.integers(0, epochs.MOST), next_worker=ints, next_seq=st.integers(1, 2**62)
)
changes = st.one_of(
    st.builds(PutMeta, metas),
    st.builds(PutTask, tasks),
    st.builds(PutWorker, names, workers),
    st.builds(PutRow, workers.map(lambda stored: stored.row)),
    st.builds(DropTask, names),
)


class Model:
    """What the store should hold, in dictionaries."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.tasks: dict[str, TaskRow] = {}
        self.workers: dict[int, tuple[str, StoredWorker]] = {}

    def accepts(self, change: Change) -> bool:
        match change:
            case PutWorker(task_id, stored):
                owner = self.workers.get(stored.row.id, (task_id,))[0]
                return task_id in self.tasks and owner == task_id
        return True

    def apply(self, change: Change) -> None:
        match change:
            case PutMeta(meta):
                self.meta = meta
            case PutTask(task):
                self.tasks[task.id] = task
            case PutWorker(task_id, stored):
                self.workers[stored.row.id] = (task_id, stored)
            case PutRow(row) if row.id in self.workers:
                task_id, stored = self.workers[row.id]
                self.workers[row.id] = (task_id, msgspec.structs.replace(stored, row=row))
            case DropTask(task_id):
                self.tasks.pop(task_id, None)
                self.workers = {key: pair for key, pair in self.workers.items() if pair[0] != task_id}

    def loaded(self) -> Loaded:
        rows = {name: tuple(w for _, (task, w) in sorted(self.workers.items()) if task == name) for name in self.tasks}
        return Loaded(
            meta=self.meta,
            fresh=self.meta.epoch == 0,
            tasks=tuple(self.tasks[name] for name in sorted(self.tasks)),
            workers=rows,
        )


@settings(max_examples=60, deadline=None)
@given(commits=st.lists(st.tuples(st.lists(changes, max_size=6), st.booleans(), st.booleans()), max_size=6))
def test_what_was_committed_is_what_is_loaded(commits: list[tuple[list[Change], bool, bool]]) -> None:
    directory = Path(tempfile.mkdtemp(prefix="trogdor-bus-store-"))
    try:
        opened = Store(directory)
        model = Model(opened.load().meta)
        for batch, durable, reopen in commits:
            accepted = []
            for change in batch:
                if model.accepts(change):
                    model.apply(change)
                    accepted.append(change)
            opened.commit(accepted, durable=durable)
            if reopen:
                opened.close()
                opened = Store(directory)
            assert opened.load() == model.loaded()
        opened.close()
    finally:
        shutil.rmtree(directory)
