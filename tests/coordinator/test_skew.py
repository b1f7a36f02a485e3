"""Agents of another version: what a coordinator cannot read of one report costs that worker alone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.coordinator.driver import LEASE_MS, Cluster
from trogdor_bus.coordinator.events import Ticked
from trogdor_bus.coordinator.fleet import GRACE_MS
from trogdor_bus.states import Outcome, TaskState, WorkerState


def skewed(cluster: Cluster, **fields: Any) -> None:
    """Let every report of node a have these fields from now on."""

    def skew(frame: Any) -> None:
        if frame["node"] == "a":
            for report in frame.get("reports", ()):
                report.update(fields)

    cluster.skew = skew


def running(*tasks: str) -> Cluster:
    cluster = Cluster("a", "b")
    for task in tasks or ("t",):
        cluster.create(task)
        cluster.all_say(WorkerState.RUNNING, task)
    return cluster


def note(cluster: Cluster) -> str:
    return cluster.machine.fleet.nodes["a"].row.note


@pytest.mark.parametrize("fields", [{"state": "PAUSED"}, {"outcome": "weird"}, {"warnings": 7}, {"progress_ms": []}])
def test_a_beat_with_a_report_that_cannot_be_read_is_heard(fields: dict[str, Any]) -> None:
    cluster = running("t", "other")
    skewed(cluster, **fields)
    cluster.pass_(60_000, "a", "b")
    assert cluster.machine.fleet.nodes["a"].row.alive
    cluster.skew = lambda frame: frame.get("reports", [{}])[0].update(fields) if frame["node"] == "a" else None
    cluster.say("a", WorkerState.DONE, "other", outcome=Outcome.DONE)
    assert cluster.row("a", "other").outcome is Outcome.DONE, "the other worker goes on"


def test_a_worker_in_a_state_that_is_not_known_stays_as_it_was_and_the_node_says_so() -> None:
    cluster = running()
    before = cluster.row("a")
    skewed(cluster, state="PAUSED")
    cluster.beat("a")
    assert cluster.row("a") == before
    assert "task t" in note(cluster) and "'PAUSED'" in note(cluster) and "upgrade the coordinator" in note(cluster)
    assert any("'PAUSED'" in text for text in cluster.texts), "an event says so"
    cluster.skew = None
    cluster.beat("a")
    assert note(cluster) == ""


def test_a_worker_that_is_never_readable_again_ends_as_unknown_and_is_owed() -> None:
    cluster = running()
    skewed(cluster, state="PAUSED")
    cluster.say("b", WorkerState.DONE, outcome=Outcome.DONE)
    cluster.pass_(10_000 + LEASE_MS + GRACE_MS + 2_000, "a", "b")
    assert (cluster.task().state, cluster.task().outcome) == (TaskState.DONE, Outcome.UNKNOWN)
    assert "upgrade the coordinator" in cluster.row("a").error
    assert cluster.machine.owing("t") == (("a",), ())
    cluster.skew = None
    cluster.say("a", WorkerState.DONE, outcome=Outcome.DONE)
    assert cluster.task().outcome is Outcome.DONE, "a later report corrects it"
    assert cluster.machine.owing("t") == ((), ())


def test_an_agent_that_forgets_what_was_never_readable_proves_no_success() -> None:
    cluster = running()
    skewed(cluster, state="PAUSED")
    cluster.beat("a")
    cluster.stop()
    cluster.beat("a")
    cluster.forget("a")
    assert cluster.row("a").outcome is Outcome.UNKNOWN


def test_an_end_whose_outcome_is_not_known_is_an_end_of_unknown_outcome() -> None:
    cluster = running()
    skewed(cluster, outcome="weird")
    cluster.say("a", WorkerState.DONE)
    row = cluster.row("a")
    assert (row.state, row.outcome, row.wanted) == (WorkerState.DONE, Outcome.UNKNOWN, False)
    assert "'weird'" in row.error and row.error.endswith("upgrade the coordinator")
    done_ms = row.done_ms
    cluster.pass_(3_000, "a", "b")
    assert cluster.row("a").done_ms == done_ms
    cluster.say("b", WorkerState.DONE, outcome=Outcome.DONE)
    assert (cluster.task().state, cluster.task().outcome) == (TaskState.DONE, Outcome.UNKNOWN)


@pytest.mark.parametrize("field", ["disturbed", "error", "warnings", "residue"])
def test_no_success_is_taken_from_a_report_of_which_a_part_cannot_be_read(field: str) -> None:
    cluster = running()
    skewed(cluster, **{field: 7})
    cluster.say("a", WorkerState.DONE, outcome=Outcome.DONE)
    assert cluster.row("a").outcome is Outcome.UNKNOWN
    assert field in cluster.row("a").error


def test_a_failure_of_which_a_part_cannot_be_read_is_a_failure() -> None:
    cluster = running()
    skewed(cluster, warnings=7)
    cluster.say("a", WorkerState.DONE, outcome=Outcome.FAILED, error="it broke")
    assert (cluster.row("a").outcome, cluster.row("a").error) == (Outcome.FAILED, "it broke")
    assert any("warnings" in line for line in cluster.row("a").warnings)


def test_what_is_stuck_is_loud_though_a_part_of_it_cannot_be_read() -> None:
    cluster = running()
    skewed(cluster, by_hand=7)
    cluster.say("a", WorkerState.STUCK, outcome=Outcome.FAILED, error="it stays")
    assert cluster.row("a").state is WorkerState.STUCK
    assert cluster.machine.fleet.nodes["a"].row.dirty == ("the undo of task t is stuck",)


def test_a_node_is_not_at_rest_with_a_worker_in_a_state_that_is_not_known() -> None:
    cluster = running()
    cluster.reports["b"] = {}
    skewed(cluster, state="PAUSED")
    cluster.beat("a", latch="l")
    assert not cluster.machine.fleet.nodes["a"].row.at_rest


@pytest.mark.parametrize("broken", [7, {}, {"worker": "x"}, {"task": "t", "state": "DONE"}])
def test_a_report_of_which_not_even_the_worker_can_be_read_costs_nothing_else(broken: object) -> None:
    cluster = running()
    cluster.skew = lambda frame: frame["reports"].append(broken) if frame["node"] == "a" else None
    cluster.say("a", WorkerState.DONE, outcome=Outcome.DONE)
    assert cluster.row("a").outcome is Outcome.DONE
    assert "upgrade the coordinator" in note(cluster)
    cluster.beat("a", latch="l")
    assert not cluster.machine.fleet.nodes["a"].row.at_rest


@pytest.mark.parametrize("field", ["worker", "task"])
def test_who_is_absent_beside_a_report_of_nobody_knows_whom_has_not_ended(field: str) -> None:
    cluster = running()
    cluster.stop()
    cluster.say("b", WorkerState.DONE, outcome=Outcome.DONE)
    skewed(cluster, **{field: []})
    cluster.pass_(1_500, "a", "b")
    assert cluster.row("a").state is WorkerState.RUNNING
    cluster.pass_(LEASE_MS + GRACE_MS + 2_000, "a", "b")
    assert (cluster.task().state, cluster.task().outcome) == (TaskState.DONE, Outcome.UNKNOWN)
    assert f"{field}: " in cluster.row("a").error and cluster.row("a").error.endswith("upgrade the coordinator")
    assert cluster.machine.owing("t") == (("a",), ())
    cluster.skew = None
    cluster.say("a", WorkerState.DONE, outcome=Outcome.DONE)
    assert (cluster.task().outcome, cluster.machine.owing("t")) == (Outcome.CANCELLED, ((), ()))


def test_who_vanishes_with_a_report_of_nobody_knows_whom_proves_no_success() -> None:
    cluster = running()
    cluster.stop()
    skewed(cluster, worker="x")
    cluster.beat("a")
    cluster.forget("a")
    assert cluster.row("a").outcome is Outcome.UNKNOWN


def test_a_destroyed_task_is_owed_while_a_report_of_nobody_knows_whom_is_heard() -> None:
    cluster = running()
    skewed(cluster, worker="x")
    for leaving in (False, True):
        cluster.api.destroy_task("t")
        cluster.reports["b"] = {}
        cluster.pass_(1_500, "a", "b")
        cluster.beat("a", leaving=leaving)
        assert "a" in {*sum(cluster.machine.owing("t"), ())}
    cluster.skew = None
    cluster.forget("a")
    assert cluster.machine.owing("t") == ((), ())


def test_an_empty_store_that_hears_a_worker_it_cannot_read_does_not_lead() -> None:
    cluster = Cluster("a", lead=False)
    skew = {
        "reports": [{"worker": 5, "task": "old", "state": "PAUSED"}],
        "stamp": {"epoch": 3, "coordinator": "x", "revision": 1},
    }
    cluster.skew = lambda frame: frame.update(skew)
    cluster.beat("a")
    cluster.now += 2_500
    cluster.give(Ticked())
    assert cluster.exit is not None and "store is empty" in cluster.exit.reason


def test_fields_of_another_version_are_ignored() -> None:
    cluster = running()

    def more(frame: Any) -> None:
        frame["news"] = {"deep": [1]}
        frame["stamp"]["news"] = 1
        frame["reports"][0]["news"] = [1]

    cluster.skew = more
    cluster.say("a", WorkerState.DONE, outcome=Outcome.DONE)
    assert cluster.row("a").outcome is Outcome.DONE
    assert note(cluster) == ""
