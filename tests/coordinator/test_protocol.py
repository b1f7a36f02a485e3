"""The coordinator's half of the protocol: lost agents, words to agents, epochs, restarts, copies."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.coordinator.driver import BEAT_MS, LEASE_MS, NODES, Cluster
from trogdor_bus.coordinator.fleet import GRACE_MS
from trogdor_bus.messages import Echo, Report, Stamp
from trogdor_bus.states import Outcome, TaskState, WorkerState
from trogdor_bus.topology import Node

PENDING, RUNNING, STOPPING, DONE = TaskState
W = WorkerState


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


# --- lost agents ------------------------------------------------------------------------------------------------------


def test_a_lost_agent_shows_at_once_and_its_worker_is_unknown_in_the_end(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    cluster.pass_(4 * BEAT_MS, "a", "b")
    assert "node c is silent" in cluster.texts
    assert cluster.machine.view.nodes["c"].alive is False
    for name in ("a", "b"):
        cluster.say(name, W.DONE, outcome=Outcome.DONE)
    cluster.pass_(6_000 + LEASE_MS + GRACE_MS - BEAT_MS, "a", "b")
    assert cluster.task().state is RUNNING
    cluster.pass_(3 * BEAT_MS, "a", "b")
    task, row = cluster.task(), cluster.row("c")
    assert (task.state, task.outcome, row.outcome) == (DONE, Outcome.UNKNOWN, Outcome.UNKNOWN)
    why = "node c was not heard again; an agent that runs there ends the fault by its own clock"
    assert task.error == f"outcome unknown: {why}"
    cluster.say("c", W.DONE, outcome=Outcome.DONE)
    task = cluster.task()
    assert (task.state, task.outcome, task.error) == (DONE, Outcome.DONE, "")
    assert "task t corrected: done" in cluster.texts
    cluster.say("c", W.DONE, outcome=Outcome.FAILED, error="second thoughts")
    assert cluster.task() == task, "what is known is final"


def test_a_late_report_can_also_tell_of_a_failure(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.pass_(10_000 + LEASE_MS + GRACE_MS + 2 * BEAT_MS)
    assert cluster.task().outcome is Outcome.UNKNOWN
    cluster.say("a", W.RUNNING)
    assert cluster.task().outcome is Outcome.UNKNOWN, "it has not ended yet"
    cluster.say("a", W.DONE, outcome=Outcome.RESTARTED, error="agent restarted, fault undone")
    assert (cluster.task().outcome, cluster.task().error) == (Outcome.RESTARTED, "agent restarted, fault undone")


def test_unknown_is_weaker_than_failed(cluster: Cluster) -> None:
    cluster.create(nodes=["a", "b"])
    cluster.say("a", W.RUNNING)
    cluster.forget("a")
    assert (cluster.task().state, cluster.row("a").outcome) == (STOPPING, Outcome.UNKNOWN)
    assert cluster.row("a").error == "outcome unknown: node a has no record of it"
    cluster.say("b", W.DONE, outcome=Outcome.FAILED, error="no such device")
    assert (cluster.task().outcome, cluster.task().error) == (Outcome.FAILED, "no such device")


def test_an_agent_that_has_not_started_it_yet_is_told_again_not_given_up(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    for _ in range(5):
        assert cluster.beat("a") == ["a"]
        assert cluster.orders("a") == [("t", True)]
    assert cluster.row("a").state is W.RECEIVING


def test_an_agent_that_beats_but_never_hears_is_unknown_after_the_end(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    old = Stamp(0, "c0", 0)
    for _ in range((10_000 + LEASE_MS + GRACE_MS) // BEAT_MS + 2):
        cluster.pass_(BEAT_MS)
        cluster.beat("a", stamp=old)
    assert (cluster.task().state, cluster.task().outcome) == (DONE, Outcome.UNKNOWN)


def test_a_running_worker_of_a_live_agent_is_never_given_up(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.STOPPING)
    cluster.pass_(10 * (LEASE_MS + GRACE_MS), "a")
    assert (cluster.task().state, cluster.row("a").state) == (RUNNING, W.STOPPING)


def test_a_configured_node_without_an_agent_waits_and_fails_at_the_end() -> None:
    nodes = {name: Node(name=name) for name in "ab"}
    cluster = Cluster("a", configured=nodes)
    cluster.create(nodes=["a", "b"])
    assert (cluster.row("b").journal, cluster.row("b").state) == ("", W.RECEIVING)
    cluster.say("a", W.DONE, outcome=Outcome.DONE)
    cluster.pass_(11_000 + BEAT_MS, "a")
    assert cluster.task().error == "no agent of node b was heard before the task's end; nothing was done there"
    assert cluster.task().outcome is Outcome.FAILED


def test_a_configured_node_gets_its_work_when_its_agent_appears() -> None:
    cluster = Cluster("a", configured={name: Node(name=name) for name in "ab"})
    cluster.create(nodes=["a", "b"])
    assert cluster.beat("b") == ["b"]
    assert cluster.row("b").journal == "j-b"
    assert cluster.orders("b") == [("t", True)]


def test_a_stop_ends_the_worker_of_a_node_that_has_no_agent_at_once() -> None:
    cluster = Cluster("a", configured={name: Node(name=name) for name in "ab"})
    cluster.create(nodes=["b"])
    cluster.stop()
    assert (cluster.task().state, cluster.task().outcome) == (DONE, Outcome.CANCELLED)
    cluster.beat("b")
    assert cluster.orders("b") == []


# --- words to agents --------------------------------------------------------------------------------------------------


def test_an_order_says_how_long_from_the_beat_it_answers(cluster: Cluster) -> None:
    cluster.pass_(400, *NODES)
    cluster.create(nodes=["a"])
    ends = cluster.task().end_ms
    cluster.pass_(700)
    heard = cluster.now
    cluster.beat("a")
    snapshot = cluster.published["a"]
    assert snapshot.echo == Echo("j-a", cluster.counters["j-a"])
    assert snapshot.orders[0].remaining_ms == ends - heard
    cluster.pass_(BEAT_MS)
    assert cluster.published["a"].orders[0].remaining_ms == ends - heard, "no new beat, no later moment to count from"


def test_an_order_is_spelled_out_until_the_agent_has_it(cluster: Cluster) -> None:
    cluster.create("t", "partition", partitions=[["a"], ["b"]])
    spelled = cluster.published["a"].orders[0]
    assert [type(action).__name__ for action in spelled.actions or ()] == ["BlockFrom"]
    assert (spelled.duration_ms, spelled.force, spelled.texts.running) == (10_000, False, "created network partition t")
    cluster.say("a", W.STARTING)
    cluster.pass_(BEAT_MS, "a")
    assert cluster.orders("a") == [("t", False)]


def test_revisions_grow_with_changes_only(cluster: Cluster) -> None:
    def revision() -> int:
        return cluster.published["a"].stamp.revision

    cluster.create(nodes=["a"])
    created = revision()
    cluster.say("a", W.RUNNING)
    cluster.pass_(3 * BEAT_MS, "a")
    assert revision() == created
    cluster.create("u", nodes=["b"])
    cluster.pass_(BEAT_MS, "a")
    assert revision() == created, "a change of another node is none of this one"
    cluster.stop()
    assert revision() == created + 1
    cluster.say("a", W.DONE, outcome=Outcome.DONE)
    assert revision() == created + 1, "it was not wanted any more already"
    cluster.create("v", nodes=["a"])
    cluster.say("a", W.DONE, "v", outcome=Outcome.DONE)
    assert cluster.published["a"].stamp == Stamp(1, "c1", created + 3)


def test_an_old_stamp_is_answered_and_a_quiet_node_is_not_bothered(cluster: Cluster) -> None:
    cluster.pass_(BEAT_MS, *NODES)
    assert cluster.beat("a") == []
    assert cluster.beat("a", stamp=Stamp(1, "c1", 0)) == ["a"]
    cluster.pass_(BEAT_MS * 3 // 4)
    assert cluster.beat("a") == ["a"], "it is time to renew the lease"


def test_a_node_that_was_never_heard_is_told_nothing() -> None:
    cluster = Cluster("a", configured={name: Node(name=name) for name in "ab"})
    assert cluster.create(nodes=["a", "b"]) == ["a"]


# --- starting, fencing, clashes ---------------------------------------------------------------------------------------


def test_a_coordinator_listens_for_two_beats_before_it_speaks() -> None:
    cluster = Cluster(lead=False)
    for _ in range(2):
        for name in NODES:
            assert cluster.beat(name) == []
        cluster.pass_(BEAT_MS - 1)
    cluster.create()
    assert (cluster.machine.listening, cluster.published, cluster.task().state) == (True, {}, PENDING)
    cluster.pass_(BEAT_MS)
    assert not cluster.machine.listening
    assert cluster.task().state is RUNNING, "what was asked meanwhile starts now"
    assert set(cluster.published) == set(NODES)
    assert "coordinator c1 leads in epoch 1" in cluster.texts


def test_the_epoch_is_above_the_stored_and_the_heard() -> None:
    cluster = Cluster()
    assert (cluster.machine.epoch, cluster.store.meta.epoch) == (1, 1)
    cluster.restart()
    assert cluster.machine.epoch == 2
    cluster.start()
    cluster.beat("a", stamp=Stamp(41, "other", 3))
    cluster.pass_(2 * BEAT_MS)
    assert (cluster.machine.epoch, cluster.store.meta.epoch) == (42, 42)


def test_a_higher_epoch_fences(cluster: Cluster) -> None:
    cluster.create()
    assert cluster.beat("a", stamp=Stamp(2, "other", 1)) == []
    assert cluster.exit is not None
    assert cluster.exit.fenced
    assert cluster.exit.reason == (
        "fenced: node a obeys coordinator other of epoch 2, ours is 1; this one stops publishing"
    )
    assert cluster.beat("b") == []
    assert cluster.stop() == []
    assert cluster.task().state is RUNNING, "it changes nothing any more"


def test_another_coordinator_of_the_same_epoch_is_a_clash_that_is_noted_once(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.beat("a", stamp=Stamp(1, "other", 1))
        cluster.beat("b", clash=Stamp(1, "other", 1))
        cluster.beat("c", clash=Stamp(0, "older", 1))
    assert [text for text in cluster.texts if "clash" in text] == [
        "clash: node a obeys coordinator other of our own epoch 1",
        "clash: node b also hears coordinator other of our own epoch 1",
    ]
    assert cluster.exit is None


def orphaned(orphans: Any) -> Cluster:
    """Return a coordinator with an empty store that heard workers of another one."""
    cluster = Cluster(lead=False, orphans=orphans)
    for name, worker, remaining_ms in (("a", 7, 20_000), ("b", 8, 25_000)):
        live = Report(worker=worker, task="old", state=W.RUNNING, status="active", remaining_ms=remaining_ms)
        cluster.reports[name] = {worker: live}
        cluster.beat(name, stamp=Stamp(5, "other", 3))
    done = Report(worker=9, task="old", state=W.DONE, outcome=Outcome.DONE)
    cluster.beat("c", stamp=Stamp(5, "other", 3), reports=(done,))
    cluster.pass_(2 * BEAT_MS)
    return cluster


def test_an_empty_store_refuses_to_start_when_it_hears_live_workers() -> None:
    cluster = orphaned("refuse")
    assert cluster.exit is not None
    assert not cluster.exit.fenced
    assert cluster.exit.reason == (
        "this coordinator's store is empty, but agents perform 2 worker(s) of another one (a, b); start with ‹adopt› "
        "to keep them to their deadlines, or with ‹abort-all› to end them"
    )
    assert cluster.published == {}


def test_adopt_keeps_them_to_their_deadlines_and_learns_what_they_are() -> None:
    cluster = orphaned("adopt")
    assert (cluster.exit, cluster.machine.epoch) == (None, 6)
    assert cluster.orders("a") == cluster.orders("b") == [("old", False)]
    task = cluster.task("old")
    assert (task.state, task.end_ms, bytes(task.spec)) == (RUNNING, cluster.now + 25_000, b"{}")
    assert (cluster.row("a", "old").journal, cluster.row("a", "old").state) == ("j-a", W.RUNNING)
    for _ in range(2):  # the first answer may be lost
        cluster.pass_(BEAT_MS, "a", "b")
        assert cluster.published["a"].describe
    told = msgspec.structs.replace(cluster.reports["a"][7], spec=msgspec.Raw(b'{"class":"\xff"}'))
    cluster.beat("a", reports=(told,))
    assert bytes(cluster.task("old").spec) == b"{}", "nobody could read it"
    told = msgspec.structs.replace(told, spec=msgspec.Raw(b'{"class":"x"}'))
    cluster.beat("a", reports=(told,))
    assert bytes(cluster.task("old").spec) == bytes(cluster.task("old").original) == b'{"class":"x"}'
    cluster.pass_(BEAT_MS, "a", "b")
    assert not cluster.published["a"].describe
    for name in "ab":
        cluster.say(name, W.DONE, "old", outcome=Outcome.DONE)
    assert (cluster.task("old").state, cluster.task("old").outcome) == (DONE, Outcome.DONE)


def test_adopting_a_task_that_was_asked_for_here_as_well_lets_it_go_on() -> None:
    cluster = Cluster(lead=False, orphans="adopt")
    cluster.create("old", nodes=["a"])
    live = Report(worker=7, task="old", state=W.RUNNING, status="active", remaining_ms=20_000)
    cluster.reports["a"] = {7: live}
    cluster.beat("a", stamp=Stamp(5, "other", 3))
    cluster.pass_(2 * BEAT_MS)
    assert (cluster.task("old").state, cluster.orders("a")) == (RUNNING, [("old", False)])
    cluster.say("a", W.DONE, "old", outcome=Outcome.DONE)
    assert (cluster.task("old").state, cluster.task("old").outcome) == (DONE, Outcome.DONE)


def test_an_adopted_worker_that_vanished_is_unknown() -> None:
    cluster = orphaned("adopt")
    cluster.forget("a")
    assert cluster.row("a", "old").outcome is Outcome.UNKNOWN


def test_abort_all_ends_them() -> None:
    cluster = orphaned("abort")
    assert (cluster.exit, cluster.machine.view.tasks) == (None, {})
    assert cluster.orders("a") == cluster.orders("b") == []
    assert cluster.published["a"].stamp.epoch == 6


def test_a_store_that_has_led_before_never_asks_about_orphans() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.beat("a", reports=(Report(worker=7, task="old", state=W.RUNNING),), stamp=Stamp(1, "c1", 3))
    cluster.pass_(2 * BEAT_MS)
    assert cluster.exit is None
    assert cluster.orders("a") == []


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_a_restart_resumes_running_tasks_with_the_same_workers(cluster: Cluster) -> None:
    cluster.create("t")
    cluster.all_say(W.RUNNING)
    cluster.create("u", nodes=["a"])
    cluster.create("later", startMs=cluster.now + 8_000)
    ids = {row.node: row.id for row in cluster.machine.view.info("t").workers}
    cluster.restart()
    assert {row.node: row.id for row in cluster.machine.view.info("t").workers} == ids
    assert cluster.orders("a") == [("t", False), ("u", True)]
    assert cluster.orders("b") == [("t", False)]
    assert cluster.published["a"].stamp == Stamp(2, "c2", cluster.published["a"].stamp.revision)
    cluster.all_say(W.DONE, outcome=Outcome.DONE)
    assert (cluster.task().state, cluster.task().outcome) == (DONE, Outcome.DONE)
    cluster.pass_(8_000, *NODES)
    assert cluster.task("later").state is RUNNING
    assert cluster.row("a", "later").id == cluster.machine.place.first_worker(), "no start uses the ids of another"


def test_a_clock_that_was_set_back_while_nobody_ran_does_not_lengthen_a_task(cluster: Cluster) -> None:
    cluster.create("t")
    cluster.all_say(W.RUNNING)
    cluster.create("later", startMs=cluster.now + 60_000)
    cluster.now -= 3_600_000
    cluster.restart()
    assert cluster.task("t").end_ms <= cluster.now + 10_000
    assert cluster.task("later").start_ms > cluster.now + 3_600_000, "who named a time gets that time"


def test_a_restart_ends_what_ended_meanwhile(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.RUNNING)
    cluster.start()
    cluster.say("a", W.DONE, outcome=Outcome.DONE)
    assert cluster.task().state is DONE
    cluster.lead()
    assert cluster.orders("a") == []


def test_a_restart_keeps_stopping_what_was_being_stopped(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.RUNNING)
    cluster.stop()
    cluster.restart()
    assert (cluster.task().state, cluster.orders("a")) == (STOPPING, [])


def test_events_are_numbered_on_over_restarts(cluster: Cluster) -> None:
    cluster.create()
    before = cluster.machine.view.seq
    cluster.restart()
    assert cluster.machine.view.seq > before
    assert cluster.store.told.seq == cluster.machine.view.seq


# --- copies and replacements ------------------------------------------------------------------------------------------


def test_a_copied_name_is_refused_while_the_first_beats(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.RUNNING)
    assert cluster.beat("a", journal="copy", reports=(), addresses=("10.9.9.9",)) == []
    assert cluster.machine.fleet.nodes["a"].row.journal == "j-a"
    assert cluster.machine.fleet.nodes["a"].row.addresses == ("10.0.0.1",)
    assert cluster.texts[-1] == "two agents call themselves a: the one with journal copy is refused"
    texts = len(cluster.texts)
    cluster.beat("a", journal="copy", reports=())
    assert len(cluster.texts) == texts, "said once"
    assert cluster.row("a").state is W.RUNNING


def test_a_replaced_journal_does_not_inherit_work(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.RUNNING)
    cluster.pass_(4 * BEAT_MS, "b", "c")
    cluster.beat("a", journal="j-new", reports=(), stamp=Stamp(0, "c0", 0))
    assert "node a has another state directory than before (journal j-new)" in cluster.texts
    assert cluster.orders("a") == []
    assert cluster.row("a").state is W.RUNNING
    cluster.pass_(10_000 + LEASE_MS + GRACE_MS, "b", "c")
    assert (cluster.task().state, cluster.task().outcome) == (DONE, Outcome.UNKNOWN)


def test_a_node_that_said_goodbye_may_be_replaced_at_once(cluster: Cluster) -> None:
    cluster.beat("a", leaving=True)
    assert cluster.machine.view.nodes["a"].note == "its agent ended"
    cluster.beat("a", journal="j-new")
    assert cluster.machine.view.nodes["a"].journal == "j-new"
