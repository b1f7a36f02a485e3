"""Setting tasks aside: they have failed for good, what their agents may hold is owed, and nothing else is touched."""

from __future__ import annotations

import msgspec
import pytest

from tests.coordinator.driver import Cluster
from trogdor_bus.coordinator import owed
from trogdor_bus.coordinator.aside import set_aside
from trogdor_bus.coordinator.events import ForgetRequested
from trogdor_bus.errors import NotFoundError, RefusedError
from trogdor_bus.states import Outcome, TaskState, WorkerState


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.create("good")
    made.create("bad")
    made.create("later", startMs=made.now + 60_000)
    return made


def test_a_running_and_a_waiting_task_have_failed_and_their_workers_owe_the_proof(cluster: Cluster) -> None:
    before = cluster.store.load()
    after, changes = set_aside(before, ["bad", "later"], "in x.py: boom", cluster.now)
    tasks = {task.id: task for task in after.tasks}
    assert tasks["good"] == next(task for task in before.tasks if task.id == "good")
    for name in ("bad", "later"):
        assert (tasks[name].state, tasks[name].outcome, tasks[name].active) == (TaskState.DONE, Outcome.FAILED, False)
        assert "in x.py: boom" in tasks[name].error
    rows = [stored.row for stored in after.workers["bad"]]
    assert rows
    assert {(row.state, row.outcome, row.wanted) for row in rows} == {(WorkerState.DONE, Outcome.FAILED, False)}
    assert owed.nodes(after.meta) >= {row.node for row in rows}
    cluster.store.commit(changes, durable=True)
    assert cluster.store.load().tasks == after.tasks
    assert cluster.store.load().meta == after.meta
    assert set_aside(after, ["bad", "later"], "again", cluster.now) == (after, ())


def test_what_belongs_to_a_task_is_set_aside_with_it(cluster: Cluster) -> None:
    loaded = cluster.store.load()
    tasks = tuple(msgspec.structs.replace(task, parent="bad") if task.id == "good" else task for task in loaded.tasks)
    after, _ = set_aside(msgspec.structs.replace(loaded, tasks=tasks), ["bad"], "boom", cluster.now)
    assert {task.id for task in after.tasks if task.state is TaskState.DONE} == {"good", "bad"}


def test_a_coordinator_that_is_barred_takes_and_starts_nothing_and_can_be_told_to_stop(
    cluster: Cluster,
) -> None:
    cluster.start(barred="it crashed")
    cluster.lead()
    with pytest.raises(RefusedError, match="takes no task until it is ended and started anew: it crashed"):
        cluster.create("new")
    cluster.pass_(120_000)
    assert cluster.task("later").state is TaskState.PENDING
    cluster.stop("later")
    assert cluster.task("later").state is TaskState.DONE


def test_a_stored_task_of_a_class_that_is_not_there_any_more_fails_alone(cluster: Cluster) -> None:
    task = cluster.store.tasks["later"]
    gone = msgspec.structs.replace(task, spec=msgspec.Raw(b'{"class": "of.a.plugin.Gone", "durationMs": 1}'))
    cluster.store.tasks["later"] = cluster.store.told.tasks["later"] = gone
    cluster.start()
    cluster.lead()
    cluster.pass_(120_000)
    assert cluster.task("later").state is TaskState.DONE
    assert "Failed to create TaskController" in cluster.task("later").error
    assert cluster.task("good").state is not TaskState.PENDING


def test_nobody_is_no_node_that_could_be_forgotten(cluster: Cluster) -> None:
    with pytest.raises(NotFoundError, match="no node is called ''"):
        cluster.machine.handle(ForgetRequested("", force=False), cluster.now)
