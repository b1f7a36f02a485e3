"""Aborts: everything ends, nothing starts, and only a resume that names the latch opens a node again."""

from __future__ import annotations

import pytest

from tests.coordinator.driver import NODES, Cluster
from trogdor_bus.coordinator.events import AbortRequested, ResumeRequested
from trogdor_bus.coordinator.planner import Terms
from trogdor_bus.errors import NotFoundError, RefusedError
from trogdor_bus.messages import Report
from trogdor_bus.registry import registry
from trogdor_bus.states import Outcome, TaskState, WorkerState

W = WorkerState


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def told(cluster: Cluster) -> dict[str, tuple[str, str]]:
    return {name: (snapshot.abort, snapshot.resume) for name, snapshot in cluster.published.items()}


def test_an_abort_stops_every_task_and_tells_every_node(cluster: Cluster) -> None:
    cluster.create("now")
    cluster.create("later", startMs=cluster.now + 60_000)
    cluster.all_say(W.RUNNING, "now")
    assert sorted(cluster.give(AbortRequested("L1"))) == list(NODES)
    assert told(cluster) == dict.fromkeys(NODES, ("L1", ""))
    assert (cluster.task("now").state, cluster.task("now").cancelled) == (TaskState.STOPPING, True)
    assert (cluster.task("later").state, cluster.task("later").outcome) == (TaskState.DONE, Outcome.CANCELLED)
    cluster.all_say(W.DONE, "now", outcome=Outcome.ABORTED, error="aborted")
    assert (cluster.task("now").outcome, cluster.task("now").error) == (Outcome.ABORTED, "aborted")
    with pytest.raises(RefusedError, match="resume"):
        cluster.create("new")
    cluster.give(AbortRequested("L2"))  # asked again: the first latch stays
    assert told(cluster) == dict.fromkeys(NODES, ("L1", ""))


def test_a_node_that_joins_later_is_told_too(cluster: Cluster) -> None:
    cluster.give(AbortRequested("L1"))
    cluster.nodes = (*cluster.nodes, "d")
    cluster.beat("d")
    assert cluster.published["d"].abort == "L1"


def test_an_abort_outlives_the_coordinator(cluster: Cluster) -> None:
    cluster.give(AbortRequested("L1"))
    cluster.restart()
    assert told(cluster) == dict.fromkeys(NODES, ("L1", ""))
    with pytest.raises(RefusedError):
        cluster.create()


def test_the_proof_is_a_latch_that_is_kept_and_no_fault_that_is_held(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    cluster.give(AbortRequested("L1"))

    def proof() -> tuple[str, bool, tuple[str, ...]]:
        row = cluster.machine.view.nodes["a"]
        return row.latch, row.at_rest, row.dirty

    assert proof() == ("", False, ())
    cluster.beat("a", latch="L1")
    assert proof() == ("L1", False, ())
    cluster.reports["a"] = {7: Report(worker=7, task="old", state=W.STUCK, by_hand=("kill -CONT 7",))}
    cluster.beat("a", latch="L1")
    assert proof() == ("L1", True, ("the undo of task old is stuck; by hand: kill -CONT 7",))
    cluster.reports["a"] = {}
    cluster.beat("a", latch="L1")
    assert proof() == ("L1", True, ())


def test_a_resume_names_the_latches_that_agents_keep_even_those_of_another_coordinator(cluster: Cluster) -> None:
    cluster.beat("a", latch="from elsewhere")
    with pytest.raises(RefusedError, match="a until"):
        cluster.machine.plan(registry().decode({"class": "noop", "durationMs": 1}), Terms())
    cluster.give(AbortRequested("L1"))
    cluster.beat("b", latch="L1")
    cluster.give(ResumeRequested())
    assert told(cluster) == {"a": ("", "from elsewhere"), "b": ("", "L1"), "c": ("", "")}
    assert cluster.machine.plan(registry().decode({"class": "noop", "durationMs": 1}), Terms())
    cluster.beat("c", latch="L1")  # it was silent until now
    assert told(cluster)["c"] == ("", "L1")
    cluster.beat("a", latch="")
    cluster.create()
    assert (cluster.task().state, told(cluster)["a"]) == (TaskState.RUNNING, ("", ""))


def test_one_node_is_aborted_with_the_tasks_that_use_it(cluster: Cluster) -> None:
    cluster.create("here", nodes=["a", "b"])
    cluster.create("there", nodes=["c"])
    cluster.create("later", nodes=["a"], startMs=cluster.now + 5_000)
    assert "a" in cluster.give(AbortRequested("L1", "a"))
    assert (cluster.task("here").state, cluster.task("there").state) == (TaskState.STOPPING, TaskState.RUNNING)
    assert (cluster.published["a"].abort, cluster.published["b"].abort) == ("L1", "")
    cluster.pass_(6_000, *NODES)
    assert (cluster.task("later").outcome, "resume" in cluster.task("later").error) == (Outcome.FAILED, True)
    cluster.create("elsewhere", nodes=["b"])
    assert cluster.task("elsewhere").state is TaskState.RUNNING
    cluster.give(ResumeRequested("a"))
    cluster.create("again", nodes=["a"])
    assert cluster.task("again").state is TaskState.RUNNING


def test_one_node_cannot_be_resumed_while_all_are_aborted(cluster: Cluster) -> None:
    cluster.give(AbortRequested("L0", "a"))
    cluster.give(AbortRequested("L1"))
    assert told(cluster)["a"] == ("L1", "")
    with pytest.raises(RefusedError, match="without ‹node›"):
        cluster.give(ResumeRequested("a"))
    for request in (AbortRequested("L2", "nobody"), ResumeRequested("nobody")):
        with pytest.raises(NotFoundError, match="nobody"):
            cluster.give(request)
    cluster.give(ResumeRequested())
    assert told(cluster)["a"] == ("", "")


def test_clients_are_told_the_latch_in_force_and_the_nodes_that_were_latched(cluster: Cluster) -> None:
    assert cluster.api.abort("L1", "a").id == "L1"
    assert cluster.api.abort("L2").id == "L2"
    assert cluster.api.abort("L3", "a").id == "L2"
    assert cluster.api.resume() == list(NODES)
    assert cluster.api.resume() == []
