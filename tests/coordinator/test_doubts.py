"""Who proves an undo is who holds its record: what is owed, by which journal, and what an abort says of it."""

from __future__ import annotations

import msgspec
import pytest

from tests.coordinator.driver import BEAT_MS, LEASE_MS, NODES, Cluster
from trogdor_bus.coordinator import owed
from trogdor_bus.coordinator.changes import Loaded, Meta
from trogdor_bus.coordinator.doubts import PROOF_CHARS, proofs
from trogdor_bus.coordinator.events import AbortRequested, BeatHeard, DestroyRequested, ForgetRequested
from trogdor_bus.coordinator.fleet import GRACE_MS, KEEP_SILENT_MS, Fleet
from trogdor_bus.coordinator.ledger import Ledger
from trogdor_bus.coordinator.turn import Turn
from trogdor_bus.errors import NotFoundError, RefusedError
from trogdor_bus.messages import Beat, NodeProof, Report, Stamp, encode
from trogdor_bus.states import Outcome, TaskState, WorkerRow, WorkerState
from trogdor_bus.topology import Node

W = WorkerState


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def proof(cluster: Cluster, node: str = "c", latch: str = "L1") -> NodeProof:
    (found,) = cluster.api.proof(latch, node).nodes
    return found


def silence(cluster: Cluster, *others: str) -> None:
    cluster.pass_(5 * BEAT_MS, *others)


def replace(cluster: Cluster, node: str = "c") -> None:
    """Let the agent of a node be gone, and another one come with an empty journal."""
    silence(cluster, *(name for name in NODES if name != node))
    cluster.reports[node] = {}
    cluster.beat(node, journal="new")
    cluster.beat(node, journal="new")


def test_a_worker_of_another_journal_is_not_proven_by_this_one(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    replace(cluster)
    row = cluster.machine.view.nodes["c"]
    assert row.alive
    assert row.unproven == (
        "its former agent (journal j-c), whose state directory the present one lacks, may hold task t",
    )
    cluster.give(AbortRequested("L1"))
    for name in ("a", "b"):
        cluster.reports[name] = {}
        cluster.beat(name, latch="L1")
    cluster.beat("c", journal="new", latch="L1")
    assert [one.state for one in cluster.api.proof("L1").nodes] == ["ended", "ended", "unproven"]
    assert proof(cluster).unproven == row.unproven


def test_it_stays_so_when_its_worker_is_given_up_its_task_destroyed_and_the_coordinator_started_anew(
    cluster: Cluster,
) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    replace(cluster)
    cluster.stop()
    for name in ("a", "b"):
        cluster.say(name, W.DONE, outcome=Outcome.DONE)
    left = LEASE_MS + GRACE_MS + 12_000
    while left > 0:
        cluster.pass_(BEAT_MS, "a", "b")
        cluster.beat("c", journal="new")
        left -= BEAT_MS
    assert (cluster.task().state, cluster.task().outcome) == (TaskState.DONE, Outcome.UNKNOWN)
    assert "nobody tells what became of the fault" in cluster.row("c").error
    assert "its own clock" not in cluster.row("c").error
    assert proof(cluster).doubtful
    cluster.give(DestroyRequested("t"))
    assert proof(cluster).doubtful
    cluster.start()
    cluster.beat("c", journal="new")
    cluster.pass_(2 * BEAT_MS)
    cluster.beat("c", journal="new")
    assert cluster.machine.view.nodes["c"].unproven and proof(cluster).doubtful


def test_what_was_closed_before_another_agent_came_is_not_said_to_end_by_a_clock_that_is_gone(cluster: Cluster) -> None:
    cluster.create(nodes=["c"])
    cluster.say("c", W.RUNNING)
    cluster.stop()
    cluster.pass_(LEASE_MS + GRACE_MS + 12_000, "a", "b")
    assert cluster.row("c").outcome is Outcome.UNKNOWN
    assert "its own clock" in cluster.row("c").error
    cluster.reports["c"] = {}
    cluster.beat("c", journal="new")
    for error in (cluster.row("c").error, cluster.task().error):
        assert "came back with another state directory, and nobody tells what became of the fault" in error
        assert "its own clock" not in error
    assert (cluster.task().outcome, proof(cluster).doubtful) == (Outcome.UNKNOWN, True)
    cluster.api.forget_node("c", force=True)
    assert cluster.task().error == "outcome unknown: node c was forgotten, and what it held was given up"
    assert not proof(cluster).doubtful


def test_a_dirty_node_refuses_faults_unless_they_are_forced(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    replace(cluster)
    cluster.create("refused", nodes=["c"])
    assert (cluster.task("refused").outcome, "node c is dirty" in cluster.task("refused").error) == ("failed", True)
    assert "‹forget node=c›" in cluster.task("refused").error
    cluster.create("elsewhere", nodes=["a"])
    cluster.create("forced", nodes=["c"], force=True)
    assert [cluster.task(name).state for name in ("elsewhere", "forced")] == [TaskState.RUNNING, TaskState.RUNNING]


def test_what_is_destroyed_unheard_is_owed_until_the_journal_holds_our_latest_word(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    worker = cluster.row("c").id
    silence(cluster, "a", "b")
    old = cluster.published["c"].stamp
    known = cluster.api.destroy_task("t")
    assert (known.known, known.waiting, known.unheard) == (True, ("a", "b"), ("c",))
    for name in ("a", "b"):
        cluster.forget(name)
    again = cluster.api.destroy_task("t")
    assert (again.known, again.waiting, again.unheard) == (False, (), ("c",))
    assert proof(cluster).unproven == ("its agent (journal j-c) is silent and may hold task t",)
    assert proof(cluster).state == "silent"
    cluster.restart()  # in which it is heard, and tells what it has
    cluster.reports["c"] = {worker: Report(worker=worker, task="t", state=W.STUCK, by_hand=("kill -CONT 7",))}
    cluster.beat("c")
    assert owed.of(cluster.machine._meta)["j-c"].workers == {worker: "t"}
    cluster.reports["c"] = {}
    cluster.beat("c", stamp=old)
    assert owed.of(cluster.machine._meta), "it does not hold our latest word yet"
    cluster.beat("c")
    assert not owed.of(cluster.machine._meta)
    assert not proof(cluster).doubtful


def test_what_a_silent_node_owes_is_told_by_the_next_coordinator_which_has_no_row_of_it(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    silence(cluster, "a", "b")
    cluster.api.destroy_task("t")
    for name in ("a", "b"):
        cluster.forget(name)
    cluster.start()
    cluster.pass_(60_000, "a", "b")
    assert not cluster.machine.listening
    told = "its agent (journal j-c) was not heard since this coordinator started, and may hold task t"
    assert cluster.machine.view.nodes["c"].unproven == (told,)
    cluster.give(AbortRequested("L1"))
    assert (proof(cluster).state, proof(cluster).doubtful) == ("silent", True)


def test_what_an_unknown_worker_holds_is_owed_when_the_journal_says_so_itself(cluster: Cluster) -> None:
    cluster.reports["c"] = {7: Report(worker=7, task="of another coordinator", state=W.RUNNING)}
    cluster.beat("c")
    silence(cluster, "a", "b")
    assert proof(cluster).unproven == ("its agent (journal j-c) is silent and may hold task of another coordinator",)
    cluster.reports["c"] = {}
    cluster.beat("c")
    assert not proof(cluster).doubtful


def test_an_agent_that_is_not_heard_as_its_node_still_tells_how_its_own_workers_ended(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    cluster.create("gone", nodes=["c"])
    cluster.say("c", W.RUNNING, "gone")
    held = dict(cluster.reports["c"])
    replace(cluster)
    cluster.give(DestroyRequested("gone"))
    assert set(owed.of(cluster.machine._meta)["j-c"].workers.values()) == {"gone"}
    cluster.reports["c"] = held
    cluster.beat("c", journal="j-c")  # it is refused, and holds them
    assert len(proof(cluster).unproven) == 1
    ended = [msgspec.structs.replace(one, state=W.DONE, outcome=Outcome.RESTARTED) for one in held.values()]
    cluster.reports["c"] = {report.worker: report for report in ended}
    cluster.beat("c", journal="j-c")
    assert cluster.machine.view.nodes["c"].journal == "new"
    assert not proof(cluster).doubtful
    assert cluster.row("c").outcome is Outcome.RESTARTED


def test_an_agent_that_ends_on_purpose_proves_that_nothing_is_left(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    cluster.give(DestroyRequested("t"))
    cluster.reports["c"] = {}
    cluster.beat("c", leaving=True, stamp=Stamp(0, "older", 1))
    assert proof(cluster) == NodeProof(node="c", state="ended")


def test_chains_of_nobody_are_no_proof(cluster: Cluster) -> None:
    stray = "chain TB-0123456789abcdef in iptables cuts traffic and is in no journal that can be read; by hand: ..."
    cluster.give(AbortRequested("L1"))
    cluster.beat("c", latch="L1", strays=(stray,))
    assert (proof(cluster).state, proof(cluster).strays) == ("unproven", (stray,))
    cluster.beat("c", latch="L1")
    assert proof(cluster) == NodeProof(node="c", state="ended")


def test_a_store_that_never_remembered_begins_with_what_is_unknown() -> None:
    cluster = Cluster()
    cluster.create()
    cluster.all_say(W.RUNNING)
    silence(cluster, "a", "b")
    cluster.stop()
    cluster.pass_(LEASE_MS + GRACE_MS + 3 * BEAT_MS, "a", "b")
    assert cluster.row("c").outcome is Outcome.UNKNOWN
    meta = cluster.machine._meta
    rows, tasks = cluster.machine.view.workers, list(cluster.machine.view.tasks.values())
    older = owed.from_rows(msgspec.structs.replace(meta, owed=None), tasks, rows)
    assert older.owed == meta.owed == {"j-c": meta.owed["j-c"]}  # type: ignore[index]
    assert owed.from_rows(msgspec.structs.replace(meta, owed={}), tasks, rows).owed == {}


def test_what_is_owed_is_bounded_and_a_worker_that_is_only_counted_is_proven_with_the_others() -> None:
    rows = [WorkerRow(id=number, node="a", journal="j") for number in range(owed.MOST_WORKERS + 5)]
    meta = owed.owe(Meta(cluster="x", next_worker=1), "t", rows)
    owes = owed.of(meta)["j"]
    assert (len(owes.workers), owes.more) == (owed.MOST_WORKERS, 5)
    ended = tuple(Report(worker=number, task="t", state=W.DONE) for number in owes.workers)
    beat = Beat(node="a", journal="j", counter=1, reports=ended)
    assert owed.of(owed.heard(meta, beat, latest=False, told=()))["j"].more == 5
    assert not owed.of(owed.heard(meta, beat, latest=True, told=()))
    live = (Report(worker=1, task="t", state=W.RUNNING),)
    full = Meta(cluster="x", next_worker=1, owed={f"j{number}": owes for number in range(owed.MOST_JOURNALS)})
    assert owed.heard(full, Beat(node="a", journal="z", counter=1, reports=live), latest=True, told=()) is full


# --- the proof of an abort is small -----------------------------------------------------------------------------------


def test_a_proof_is_small_whatever_the_number_of_tasks_and_of_what_is_stuck(cluster: Cluster) -> None:
    for number in range(200):
        cluster.create(f"task{number}", nodes=["c"])
    stuck = {
        worker: Report(worker=worker, task=f"task{worker}", state=W.STUCK, by_hand=("iptables " * 300,))
        for worker in cluster.machine.fleet.nodes["c"].open
    }
    cluster.reports["c"] = stuck
    cluster.beat("c")
    silence(cluster, "a", "b")
    assert len(encode(cluster.api.proof("L1"))) < 20_000
    assert "and 195 more" in proof(cluster).unproven[0] and len(proof(cluster).dirty) == 6
    many = [cluster.machine.fleet.nodes["c"]] * 2_000
    assert len(encode(proofs(many, "L1"))) < 2 * PROOF_CHARS


# --- nodes that are gone ----------------------------------------------------------------------------------------------


def test_a_node_that_is_gone_is_forgotten_and_stays_so(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.DONE, outcome=Outcome.DONE)
    with pytest.raises(RefusedError, match="alive"):
        cluster.give(ForgetRequested("c"))
    silence(cluster, "a", "b")
    revision = cluster.machine.fleet.nodes["c"].revision
    cluster.give(ForgetRequested("c"))
    assert "c" not in cluster.machine.view.nodes and "c" not in {row.name for row in cluster.api.nodes()}
    assert "c" not in cluster.store.told.nodes
    with pytest.raises(NotFoundError):
        cluster.give(ForgetRequested("c"))
    cluster.give(BeatHeard(Beat(node="c", journal="j-c", counter=1)))  # an old frame, late by minutes
    assert cluster.machine.fleet.nodes["c"].row.alive is False
    cluster.give(ForgetRequested("c"))
    cluster.give(DestroyRequested("t"))
    assert "c" not in cluster.machine.fleet.nodes
    cluster.nodes = ("a", "b")
    cluster.restart()
    assert sorted(cluster.machine.fleet.nodes) == ["a", "b"]
    cluster.start()
    cluster.nodes = NODES
    cluster.lead()
    assert cluster.machine.view.nodes["c"].alive, "it may come back"
    assert revision > 0


def test_a_node_that_comes_back_is_told_what_is_newer_than_what_it_was_told(cluster: Cluster) -> None:
    for number in range(5):
        cluster.create(f"t{number}", nodes=["c"], durationMs=1)
    before = cluster.published["c"].stamp
    cluster.all_say(W.DONE, "t0")
    silence(cluster, "a", "b")
    cluster.give(ForgetRequested("c", force=True))
    cluster.beat("c")
    assert cluster.published["c"].stamp.revision >= before.revision


def test_a_node_that_may_hold_something_is_forgotten_only_by_force_which_says_what_it_gives_up(
    cluster: Cluster,
) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    silence(cluster, "a", "b")
    with pytest.raises(RefusedError, match="may hold task t"):
        cluster.api.forget_node("c")
    given_up = cluster.api.forget_node("c", force=True)
    assert given_up.gone and given_up.given_up == ("its agent (journal j-c) is silent and may hold task t",)
    assert (cluster.row("c").outcome, "given up" in cluster.row("c").error) == (Outcome.UNKNOWN, True)
    assert cluster.task().state is TaskState.STOPPING
    cluster.beat("c")  # and here it is, with its fault
    assert cluster.row("c").state is W.RUNNING


def test_what_a_former_agent_holds_is_given_up_while_the_present_one_is_alive(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    replace(cluster)
    with pytest.raises(RefusedError):
        cluster.api.forget_node("c")
    found = cluster.api.forget_node("c", force=True)
    assert (found.gone, len(found.given_up)) == (False, 1)
    row = cluster.machine.view.nodes["c"]
    assert (row.alive, row.journal, row.unproven) == (True, "new", ())
    with pytest.raises(RefusedError, match="alive"):
        cluster.api.forget_node("c", force=True)


def test_a_configured_node_goes_on_as_one_that_was_never_heard() -> None:
    cluster = Cluster(configured={name: Node(name=name) for name in NODES})
    silence(cluster, "a", "b")
    cluster.give(ForgetRequested("c"))
    row = cluster.machine.view.nodes["c"]
    assert (row.configured, row.heard_ms, row.journal, row.addresses) == (True, -1, "", ())
    assert cluster.store.told.nodes["c"] == row


def test_a_node_that_is_silent_for_days_and_holds_nothing_is_forgotten_by_itself(cluster: Cluster) -> None:
    silence(cluster, "a", "b")
    cluster.now += KEEP_SILENT_MS - 10 * BEAT_MS
    for name in ("a", "b"):
        cluster.beat(name)
    cluster.pass_(2 * BEAT_MS, "a", "b")
    assert "c" in cluster.machine.view.nodes
    cluster.pass_(12 * BEAT_MS, "a", "b")
    assert sorted(cluster.machine.view.nodes) == ["a", "b"]
    assert "node c is forgotten" in cluster.texts


# --- epochs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [2**62, 2**53, 2**32 + 5, -1])
def test_an_epoch_that_nobody_can_have_reached_is_not_believed(epoch: int) -> None:
    cluster = Cluster(lead=False)
    cluster.beat("a")
    cluster.beat("c", stamp=Stamp(epoch, "liar", 1))
    cluster.pass_(3 * BEAT_MS)
    assert not cluster.machine.listening
    assert cluster.machine.epoch == 1
    cluster.beat("c", stamp=Stamp(epoch, "liar", 1))
    assert cluster.exit is None
    told = [text for text in cluster.texts if f"epoch {epoch}" in text]
    assert len(told) == 1 and "restart that agent" in told[0]
    assert "c" not in cluster.machine.view.nodes


def test_a_high_but_plausible_epoch_is_believed() -> None:
    cluster = Cluster(lead=False)
    cluster.beat("c", stamp=Stamp(5_000_000, "other", 1))
    cluster.pass_(3 * BEAT_MS)
    assert cluster.machine.epoch == 5_000_001


def test_a_ledger_makes_no_node_for_workers_that_have_ended(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.DONE, outcome=Outcome.DONE)
    loaded: Loaded = cluster.store.load()
    fleet = Fleet(None, BEAT_MS)
    Ledger(loaded, fleet, Turn(0))
    assert not fleet.nodes
