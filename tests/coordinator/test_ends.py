"""How tasks end: which outcome of their workers counts, and what is said of it."""

from __future__ import annotations

import msgspec
import pytest

from tests.coordinator.driver import BEAT_MS, LEASE_MS, Cluster
from trogdor_bus.coordinator.fleet import GRACE_MS
from trogdor_bus.states import Disturbance, Outcome, TaskState, trogdor_json
from trogdor_bus.states import WorkerState as W

RUNNING, DONE = TaskState.RUNNING, TaskState.DONE


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_a_stuck_worker_that_its_agent_has_no_more_is_undone(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    left = {"residue": ("a rule",), "by_hand": ("iptables -F",)}
    cluster.say("a", W.STUCK, outcome=Outcome.FAILED, error="the fault may still be there", **left)
    cluster.reports["a"].clear()
    cluster.pass_(BEAT_MS, "a")
    cluster.beat("a")
    row = cluster.row("a")
    assert (row.state, row.residue, row.by_hand) == (W.DONE, (), ())
    late = "undone late, and nothing is left: node a has no record of it any more"
    assert (cluster.task().outcome, cluster.task().error) == (Outcome.FAILED, late)


GONE = "it did not hold to its end: chain gone (1.2 s in)"


def test_a_disturbed_worker_makes_its_task_disturbed_and_stops_nobody(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    cluster.say("b", W.DONE, outcome=Outcome.DISTURBED, error=GONE)
    cluster.pass_(BEAT_MS, "a")
    assert (cluster.task().state, cluster.orders("a")) == (RUNNING, [("t", False)])
    for name in ("a", "c"):
        cluster.say(name, W.DONE, outcome=Outcome.DONE)
    assert (cluster.task().outcome, cluster.task().error) == (Outcome.DISTURBED, GONE)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [(Outcome.FAILED, "no such device"), (Outcome.UNKNOWN, "outcome unknown: lost"), (Outcome.ABORTED, "aborted")],
)
def test_what_is_worse_than_disturbed_is_the_outcome(cluster: Cluster, outcome: Outcome, error: str) -> None:
    cluster.create()
    cluster.say("b", W.DONE, outcome=Outcome.DISTURBED, error=GONE)
    cluster.say("a", W.DONE, outcome=outcome, error=error)
    cluster.say("c", W.DONE, outcome=Outcome.DONE)
    assert (cluster.task().outcome, cluster.task().error) == (outcome, error)
    assert cluster.row("b").error == GONE, "the note is kept"


def test_a_stopped_task_is_cancelled_though_it_was_disturbed(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.all_say(W.RUNNING)
    cluster.stop()
    cluster.say("a", W.DONE, outcome=Outcome.DISTURBED, error=GONE)
    assert (cluster.task().outcome, cluster.task().error) == (Outcome.CANCELLED, "")
    assert (cluster.row("a").outcome, cluster.row("a").error) == (Outcome.DISTURBED, GONE)


@pytest.mark.parametrize("mended", [False, True])
def test_what_an_agent_of_an_older_version_calls_done_is_not_if_it_did_not_hold(cluster: Cluster, mended: bool) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.DONE, outcome=Outcome.DONE, disturbed=(Disturbance(1_200, "chain gone", mended),))
    told = (Outcome.DONE, "") if mended else (Outcome.DISTURBED, GONE)
    assert (cluster.task().outcome, cluster.task().error) == told


def test_what_is_not_known_to_have_ended_is_not_said_to_have(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.RUNNING)
    cluster.pass_(10_000 + LEASE_MS + GRACE_MS + 5 * BEAT_MS)
    assert cluster.task().outcome is Outcome.UNKNOWN
    told = " ".join(cluster.texts)
    assert "task t is closed: outcome unknown: node a was not heard again" in told
    assert "fail" not in told.lower() and "ended: unknown" not in told


# --- what ends by itself, and says how it goes ------------------------------------------------------------------------


def said(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


def test_a_task_whose_only_worker_ended_before_its_time_is_done_with_what_it_said(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.RUNNING)
    cluster.say("a", W.RUNNING, progress=said('{"sent":7}'))
    assert trogdor_json(cluster.task(), [cluster.row("a")])["status"] == {"sent": 7}
    cluster.say("a", W.DONE, outcome=Outcome.DONE, progress=said('{"sent":9}'))
    assert (cluster.task().state, cluster.task().outcome, cluster.task().cancelled) == (DONE, Outcome.DONE, False)
    assert trogdor_json(cluster.task(), [cluster.row("a")])["status"] == {"sent": 9}


def test_one_that_ends_well_stops_nobody_and_one_that_fails_stops_the_others(cluster: Cluster) -> None:
    cluster.create(nodes=["a", "b", "c"])
    cluster.all_say(W.RUNNING)
    cluster.say("a", W.DONE, outcome=Outcome.DONE, progress=said("1"))
    assert (cluster.task().state, cluster.orders("b")) == (RUNNING, [("t", True)])
    cluster.say("b", W.DONE, outcome=Outcome.FAILED, error="exited with return code 3", progress=said('"x"'))
    assert (cluster.task().state, cluster.orders("c")) == (TaskState.STOPPING, [])
    cluster.say("c", W.DONE, outcome=Outcome.DONE)
    assert (cluster.task().outcome, cluster.task().error) == (Outcome.FAILED, "exited with return code 3")
    rows = [cluster.row(node) for node in "abc"]
    assert trogdor_json(cluster.task(), rows)["status"] == {"a": 1, "b": "x", "c": "done"}


@pytest.mark.parametrize(
    "bad", ["1e999", '"' + "x" * (64 << 10) + '"', "[" * 101 + "0" + "]" * 101, str(2**64), '"\udcff"']
)
def test_what_nobody_could_read_or_keep_changes_no_progress(cluster: Cluster, bad: str) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.RUNNING, progress=said("[1]"))
    cluster.say("a", W.RUNNING, progress=msgspec.Raw(bad.encode(errors="surrogateescape")))
    assert bytes(cluster.row("a").progress) == b"[1]"
    cluster.say("a", W.DONE, outcome=Outcome.RESTARTED, error="agent restarted, fault undone")
    assert bytes(cluster.row("a").progress) == b"[1]"
