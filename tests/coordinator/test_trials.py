"""Experiments in the task table: from creation to the end, whoever ends them, with the tasks that belong to them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.coordinator.driver import NODES, Cluster
from trogdor_bus.cluster import ClusterView
from trogdor_bus.coordinator.events import (
    AbortRequested,
    DestroyRequested,
    EndExperiment,
    ExperimentEnded,
    OtherCluster,
    ResumeRequested,
    Sighting,
    StartExperiment,
)
from trogdor_bus.coordinator.trials import RESTARTED
from trogdor_bus.errors import RefusedError
from trogdor_bus.faults.experiment import ExperimentSpec
from trogdor_bus.registry import registry
from trogdor_bus.states import Outcome, TaskState, WorkerState

PENDING, RUNNING, STOPPING, DONE = TaskState
FAULT = {"class": "port-block", "durationMs": 5_000, "nodes": ["a"], "ports": [9092]}
EXPERIMENT: dict[str, Any] = {"fault": FAULT, "chaosMs": 20_000, "intervalMs": 10_000, "durationMs": 0}
LONGEST_MS = registry().decode({"class": "experiment", **EXPERIMENT}).longest_ms()


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(under_test="kafka:9092")


def create(cluster: Cluster, task: str = "x", **fields: Any) -> None:
    cluster.create(task, "experiment", **{**EXPERIMENT, **fields})


def fault(cluster: Cluster, task: str, **fields: Any) -> None:
    """Have a fault of an experiment that runs: the cluster was looked at for it."""
    cluster.create(task, parent="x", **fields)
    cluster.show(Sighting(view=ClusterView()))
    assert cluster.task(task).state is RUNNING


def running(cluster: Cluster) -> None:
    """Have an experiment that runs, and one fault of it."""
    create(cluster)
    fault(cluster, "x-f1")
    cluster.experiments.clear()


def ends(cluster: Cluster) -> list[tuple[str, str]]:
    """Return who was to be ended, and why."""
    return [(effect.id, effect.why) for effect in cluster.experiments if isinstance(effect, EndExperiment)]


def test_an_experiment_runs_without_workers_and_ends_as_its_program_says(cluster: Cluster) -> None:
    create(cluster)
    task = cluster.task("x")
    assert (task.state, task.experiment, task.duration_ms) == (RUNNING, True, LONGEST_MS)
    assert (task.started_ms, cluster.machine.view.info("x").workers) == (cluster.now, ())
    [order] = cluster.experiments
    assert isinstance(order, StartExperiment) and isinstance(order.spec, ExperimentSpec) and order.id == "x"
    cluster.pass_(10_000, *NODES)
    cluster.give(ExperimentEnded("x", Outcome.FAILED, "Fail: 3 records are lost"))
    task = cluster.task("x")
    assert (task.state, task.outcome, task.error) == (DONE, Outcome.FAILED, "Fail: 3 records are lost")
    assert (task.done_ms, task.cancelled, len(cluster.experiments)) == (cluster.now, False, 1)
    assert cluster.texts[-1] == "task x ended: failed (Fail: 3 records are lost)"


def test_it_starts_when_it_is_due(cluster: Cluster) -> None:
    create(cluster, startMs=cluster.now + 5_000)
    assert (cluster.task("x").state, cluster.experiments) == (PENDING, [])
    cluster.pass_(4_999, *NODES)
    assert cluster.experiments == []
    cluster.pass_(1, *NODES)
    assert [type(effect) for effect in cluster.experiments] == [StartExperiment]


def test_a_coordinator_that_listens_starts_none_before_it_leads() -> None:
    cluster = Cluster(lead=False)
    create(cluster)
    assert cluster.experiments == []
    cluster.lead()
    assert [type(effect) for effect in cluster.experiments] == [StartExperiment]


def test_one_that_is_wrong_never_starts(cluster: Cluster) -> None:
    create(cluster, intervalMs=0)
    task = cluster.task("x")
    assert (task.state, task.outcome, cluster.experiments) == (DONE, Outcome.FAILED, [])
    assert "leaves" in task.error or "is not a time" in task.error


def test_the_same_again_is_the_same(cluster: Cluster) -> None:
    create(cluster)
    create(cluster)
    assert len(cluster.experiments) == 1


# --- who ends it ------------------------------------------------------------------------------------------------------


def test_a_stop_ends_its_faults_at_once_and_waits_for_its_program(cluster: Cluster) -> None:
    running(cluster)
    cluster.stop("x")
    assert cluster.task("x").state is STOPPING
    assert ends(cluster) == [("x", "somebody stopped it")]
    assert cluster.task("x-f1").state is STOPPING
    cluster.stop("x")
    assert len(ends(cluster)) == 1
    cluster.give(ExperimentEnded("x", Outcome.CANCELLED, ""))
    task = cluster.task("x")
    assert (task.state, task.outcome, task.cancelled) == (DONE, Outcome.CANCELLED, True)


def test_a_stop_before_it_started_is_its_end(cluster: Cluster) -> None:
    create(cluster, startMs=cluster.now + 5_000)
    cluster.stop("x")
    assert (cluster.task("x").outcome, cluster.experiments) == (Outcome.CANCELLED, [])


def test_one_that_lasts_too_long_is_ended_and_has_failed(cluster: Cluster) -> None:
    running(cluster)
    cluster.pass_(LONGEST_MS - 1, *NODES)
    assert cluster.experiments == []
    cluster.pass_(1, *NODES)
    error = f"it did not end within {LONGEST_MS} ms, the longest that it may take"
    assert ends(cluster) == [("x", error)]
    assert cluster.task("x-f1").state is not RUNNING
    cluster.pass_(60_000, *NODES)
    assert len(ends(cluster)) == 1
    cluster.give(ExperimentEnded("x", Outcome.DONE, ""))
    task = cluster.task("x")
    assert (task.state, task.outcome, task.error, task.cancelled) == (DONE, Outcome.FAILED, error, False)


def test_one_that_is_destroyed_is_ended_with_its_faults(cluster: Cluster) -> None:
    running(cluster)
    cluster.give(DestroyRequested("x"))
    assert ends(cluster) == [("x", "somebody destroyed it")]
    assert "x" not in cluster.machine.view.tasks
    assert cluster.task("x-f1").state is STOPPING
    cluster.give(ExperimentEnded("x", Outcome.CANCELLED, ""))
    assert "x" not in cluster.machine.view.tasks


def test_an_abort_of_everything_ends_it_and_none_starts_until_it_is_over(cluster: Cluster) -> None:
    running(cluster)
    cluster.give(AbortRequested("latch"))
    assert ends(cluster) == [("x", "every node was aborted")]
    assert (cluster.task("x").state, cluster.task("x-f1").state) == (STOPPING, STOPPING)
    with pytest.raises(RefusedError, match="aborted"):
        create(cluster, "y")
    cluster.give(ResumeRequested())
    create(cluster, "y")
    assert cluster.task("y").state is RUNNING


@pytest.mark.parametrize(("node", "ended"), [("a", [("x", "a was aborted")]), ("b", [])])
def test_an_abort_of_a_node_ends_the_experiments_that_have_a_fault_there(
    cluster: Cluster, node: str, ended: list[tuple[str, str]]
) -> None:
    create(cluster)
    fault(cluster, "x-f1", nodes=["a"])
    create(cluster, "y")
    cluster.give(AbortRequested("latch", node))
    assert ends(cluster) == ended


# --- the tasks that belong to it --------------------------------------------------------------------------------------


def test_faults_end_with_their_experiment(cluster: Cluster) -> None:
    running(cluster)
    cluster.create("x-f2", parent="x", startMs=cluster.now + 5_000)
    cluster.create("other")
    cluster.give(ExperimentEnded("x", Outcome.FAILED, "its program was killed by SIGKILL"))
    assert [cluster.task(name).state for name in ("x-f1", "x-f2", "other")] == [STOPPING, DONE, RUNNING]
    assert cluster.task("x-f1").parent == "x"


def test_one_that_ended_gets_no_further_fault(cluster: Cluster) -> None:
    running(cluster)
    cluster.stop("x")
    with pytest.raises(RefusedError, match=r"task x is over"):
        cluster.create("x-f2", parent="x")
    cluster.give(ExperimentEnded("x", Outcome.CANCELLED, ""))
    with pytest.raises(RefusedError):
        cluster.create("x-f2", parent="x")
    with pytest.raises(RefusedError):
        cluster.create("z-f1", parent="z")
    assert "x-f2" not in cluster.machine.view.tasks


def test_its_faults_are_looked_up_in_the_cluster_that_it_names() -> None:
    cluster = Cluster()
    create(cluster, bootstrap="other:9092", config="/etc/other.properties")
    cluster.create("x-f1", parent="x")
    assert cluster.looks[-1].other == OtherCluster("other:9092", "/etc/other.properties")
    cluster.show(Sighting(error="nobody is there"))
    assert cluster.looks[-1].other == OtherCluster("other:9092", "/etc/other.properties")
    cluster.show(Sighting(view=ClusterView()))
    assert cluster.task("x-f1").state is RUNNING
    create(cluster, "y")
    cluster.create("y-f1", parent="y")
    assert "the coordinator knows none" in cluster.task("y-f1").error


def test_the_end_is_heard_once(cluster: Cluster) -> None:
    running(cluster)
    cluster.give(ExperimentEnded("x", Outcome.DONE, ""))
    before = cluster.task("x")
    cluster.give(ExperimentEnded("x", Outcome.FAILED, "again"))
    cluster.give(ExperimentEnded("nothing", Outcome.FAILED, "never heard of"))
    cluster.give(ExperimentEnded("x-f1", Outcome.FAILED, "no experiment"))
    assert cluster.task("x") == before
    assert cluster.task("x-f1").error == ""


# --- another coordinator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped", [False, True])
def test_the_next_coordinator_ends_it_with_its_faults(cluster: Cluster, stopped: bool) -> None:
    running(cluster)
    if stopped:
        cluster.stop("x")
    cluster.say("a", WorkerState.RUNNING, "x-f1")
    cluster.restart()
    task = cluster.task("x")
    assert (task.state, task.outcome, task.error) == (DONE, Outcome.FAILED, RESTARTED)
    assert cluster.experiments == []
    assert cluster.task("x-f1").state is STOPPING
    assert cluster.orders("a") == []
    with pytest.raises(RefusedError):
        cluster.create("x-f2", parent="x")


def test_the_next_coordinator_starts_one_that_waits(cluster: Cluster) -> None:
    create(cluster, startMs=cluster.now + 60_000)
    cluster.restart()
    cluster.pass_(60_000, *NODES)
    assert [type(effect) for effect in cluster.experiments] == [StartExperiment]


def test_what_is_performed_as_an_experiment_runs_as_one_and_keeps_its_name(cluster: Cluster) -> None:
    cluster.create("r", "kafka-rolling-restart", durationMs=600_000)
    [order] = cluster.experiments
    assert isinstance(order, StartExperiment) and isinstance(order.spec, ExperimentSpec)
    assert (order.spec.each_of, order.spec.start_ms, order.spec.chaos_ms) == (("all",), cluster.now, 600_000)
    task = cluster.task("r")
    assert (task.state, task.experiment, task.duration_ms) == (RUNNING, True, order.spec.longest_ms())
    assert b"KafkaRollingRestartSpec" in bytes(task.original) and b"ExperimentSpec" in bytes(task.spec)
    cluster.create("r", "kafka-rolling-restart", durationMs=600_000)
    assert len(cluster.experiments) == 1, "the same again is the same task"
