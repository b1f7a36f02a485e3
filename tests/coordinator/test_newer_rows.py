"""A store and a log of a newer version: what cannot be read costs its worker, or its task, and nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.coordinator.driver import Cluster
from trogdor_bus.coordinator.changes import Loaded
from trogdor_bus.coordinator.replica import Replica, read
from trogdor_bus.coordinator.store import Store
from trogdor_bus.errors import HostError
from trogdor_bus.messages import Report
from trogdor_bus.states import Outcome, TaskState, WorkerState
from trogdor_bus.transports.memory_log import MemoryKeeper

Skew = Callable[[str, Any], None]
"""Changes what is written under a kind of row ("task", "worker", "actions"), as a newer version would have."""


def in_store(loaded: Loaded, skew: Skew, folder: Path) -> Loaded:
    """Return what a real store gives that a newer version has written."""
    store = Store(folder / "state")
    store.replace(loaded)
    store.close()
    with sqlite3.connect(folder / "state" / "coordinator.db") as database:
        for table, column, kind in (
            ("tasks", "body", "task"),
            ("workers", "row", "worker"),
            ("workers", "actions", "actions"),
        ):
            for row_id, body in database.execute(f"SELECT id, {column} FROM {table}").fetchall():
                found = msgspec.json.decode(body)
                skew(kind, found)
                database.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", (msgspec.json.encode(found), row_id))
    database.close()
    store = Store(folder / "state")
    try:
        return store.load()
    finally:
        store.close()


def in_log(loaded: Loaded, skew: Skew, folder: Path) -> Loaded:
    """Return what a real replica of it gives that a newer version has written."""
    keeper = MemoryKeeper()
    log = keeper.open()
    Replica(log, "c1").begin(loaded, read(log, 1.0))
    for key, value in log.read(1.0).items():
        kind = key.split("/")[1]
        if kind in ("task", "worker", "actions"):
            found = msgspec.json.decode(value)
            skew(kind, found["row"] if kind == "worker" else found)
            log.append(key, msgspec.json.encode(found))
    state = read(log, 1.0).state
    assert state is not None
    return state


@pytest.fixture(params=[in_store, in_log])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Cluster, Skew], Cluster]:
    """Return what gives a cluster a coordinator that starts on what a newer one has kept."""

    def again(cluster: Cluster, skew: Skew) -> Cluster:
        loaded = request.param(cluster.store.load(), skew, tmp_path)
        cluster.store.replace(loaded)
        cluster.restart()
        return cluster

    return again


def two() -> Cluster:
    """Return a cluster with two tasks: "t" runs on a and b, "other" on all."""
    cluster = Cluster("a", "b")
    for task in ("t", "other"):
        cluster.create(task, durationMs=60_000)
        cluster.all_say(WorkerState.RUNNING, task)
    return cluster


GONE = {"class": "of.a.plugin.Gone", "durationMs": 1}


def of(kind: str, task: str, **fields: Any) -> Skew:
    """Return what changes the fields of one task, or of the workers that are in that state."""

    def skew(found: str, body: Any) -> None:
        if found == kind and task in (body["id"], body["state"]):
            body.update(fields)

    return skew


def test_a_task_in_a_state_that_is_not_known_fails_alone_and_its_faults_end(kept: Any) -> None:
    cluster = kept(two(), of("task", "t", state="PAUSED"))
    task = cluster.task("t")
    assert (task.state, task.outcome) == (TaskState.DONE, Outcome.FAILED)
    assert "'PAUSED'" in task.error and task.error.endswith("upgrade the coordinator")
    assert {name for name, _ in cluster.orders("a")} == {"other"}, "the other one goes on"
    cluster.all_say(WorkerState.DONE, "t", outcome=Outcome.DONE)
    assert cluster.row("a", "t").state is WorkerState.DONE
    cluster.all_say(WorkerState.DONE, "other", outcome=Outcome.DONE)
    assert cluster.task("other").outcome is Outcome.DONE


def test_an_outcome_that_is_not_known_is_unknown(kept: Any) -> None:
    cluster = two()
    cluster.all_say(WorkerState.DONE, "t", outcome=Outcome.DONE)

    def skew(kind: str, body: Any) -> None:
        if kind != "actions" and body["outcome"] == "done":
            body["outcome"] = "weird"

    cluster.reports["a"].clear()  # else they would say it again
    cluster.reports["b"].clear()
    kept(cluster, skew)
    assert (cluster.task("t").state, cluster.task("t").outcome) == (TaskState.DONE, Outcome.UNKNOWN)
    assert (cluster.row("a", "t").state, cluster.row("a", "t").outcome) == (WorkerState.DONE, Outcome.UNKNOWN)
    assert "'weird'" in cluster.row("a", "t").error


def test_a_worker_in_a_state_that_is_not_known_goes_on_until_its_agent_speaks(kept: Any) -> None:
    cluster = kept(two(), of("worker", "RUNNING", state="PAUSED"))
    assert {name for name, _ in cluster.orders("a")} == {"t", "other"}
    cluster.all_say(WorkerState.DONE, "t", outcome=Outcome.DONE)
    assert (cluster.task("t").outcome, cluster.row("a", "t").error) == (Outcome.DONE, "")


def unknown_action(kind: str, body: Any) -> None:
    if kind == "actions":
        body[0]["action"] = "cut-cable"


def test_a_worker_whose_action_is_not_known_is_kept_where_it_runs(kept: Any) -> None:
    cluster = kept(two(), unknown_action)
    assert set(cluster.orders("a")) == {("t", False), ("other", False)}
    cluster.all_say(WorkerState.DONE, "t", outcome=Outcome.DONE)
    assert cluster.task("t").outcome is Outcome.DONE


def test_a_worker_whose_action_is_not_known_never_starts_and_says_why(kept: Any) -> None:
    cluster = Cluster("a", "b")
    cluster.create("t", durationMs=60_000)
    kept(cluster, unknown_action)
    cluster.beat("a")
    row = cluster.row("a", "t")
    assert (row.state, row.outcome) == (WorkerState.DONE, Outcome.UNKNOWN)
    assert "the action 'cut-cable'" in row.error and "upgrade the coordinator" in row.error


def test_a_worker_whose_fault_is_not_known_never_starts_and_says_why(kept: Any) -> None:
    cluster = Cluster("a", "b")
    cluster.create("t", durationMs=60_000)
    cluster.say("a", WorkerState.RUNNING)
    cluster.nodes = ("a",)
    kept(cluster, of("task", "t", spec=GONE))
    cluster.beat("b")
    assert cluster.orders("b") == [("t", False)]
    assert "unknown class 'of.a.plugin.Gone'" in cluster.row("b").error
    cluster.beat("b")
    row = cluster.row("b")
    assert (row.state, row.outcome) == (WorkerState.DONE, Outcome.FAILED)
    assert row.error.startswith("not started: its spec") and "upgrade the coordinator, or install" in row.error
    assert (cluster.task().state, cluster.orders("a")) == (TaskState.STOPPING, []), "where it runs it is ended"
    cluster.say("a", WorkerState.DONE, outcome=Outcome.DONE)
    assert (cluster.task().outcome, cluster.task().error) == (Outcome.FAILED, row.error)


def test_a_worker_whose_fault_is_not_known_any_more_and_that_began_unheard_goes_on(kept: Any) -> None:
    cluster = Cluster("a")
    cluster.create("t", durationMs=60_000)
    worker = cluster.row("a").id
    cluster.reports["a"][worker] = Report(worker=worker, task="t", state=WorkerState.RUNNING)
    kept(cluster, of("task", "t", spec=GONE))
    assert (cluster.row("a").error, cluster.task().active, cluster.orders("a")) == ("", True, [("t", False)])
    cluster.stop()
    assert cluster.orders("a") == []
    cluster.say("a", WorkerState.DONE, outcome=Outcome.DONE)
    assert cluster.task().outcome is Outcome.CANCELLED


@pytest.mark.parametrize("spec", [GONE, {"class": "noop", "news": 1}, {"class": "noop", "durationMs": "soon"}])
def test_a_node_with_a_task_of_an_unknown_fault_hears_and_is_heard(kept: Any, spec: Any) -> None:
    cluster = two()
    cluster.create("late", durationMs=60_000)
    kept(cluster, of("task", "late", spec=spec))
    cluster.pass_(3_000, "a", "b")
    assert (cluster.row("a", "late").state, cluster.machine.fleet.nodes["a"].row.alive) == (WorkerState.DONE, True)
    cluster.create("new", nodes=["a"])
    assert ("new", True) in cluster.orders("a")
    cluster.stop("t")
    assert {name for name, _ in cluster.orders("a")} == {"other", "new"}


def test_a_fault_that_is_known_again_is_started_after_all(kept: Any) -> None:
    cluster = Cluster("a", "b")
    cluster.create("t", durationMs=60_000)
    known = msgspec.json.decode(cluster.task().spec)
    cluster.nodes = ()
    kept(cluster, of("task", "t", spec=GONE))
    cluster.beat("a")
    assert cluster.orders("a") == [("t", False)]
    kept(cluster, of("task", "t", spec=known))
    cluster.beat("a")
    assert cluster.orders("a") == [("t", True)]
    cluster.all_say(WorkerState.RUNNING)
    assert (cluster.row("a").error, cluster.task().active) == ("", True)


def test_fields_of_a_newer_version_are_ignored(kept: Any) -> None:
    cluster = two()
    before = dict(cluster.machine.view.tasks)

    def skew(kind: str, body: Any) -> None:
        if kind != "actions":
            body["news"] = {"deep": [1]}

    kept(cluster, skew)
    assert cluster.machine.view.tasks == before


def test_what_is_no_row_at_all_is_named_with_both_remedies(kept: Any) -> None:
    with pytest.raises(
        HostError, match=r"cannot be read: .*upgrade this one; .*choose another ‹(state-dir|topic-prefix)›"
    ):
        kept(two(), of("task", "t", start_ms=[], startMs=[]))
