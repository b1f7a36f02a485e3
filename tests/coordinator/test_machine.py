"""The coordinator's task table: Trogdor's transitions one by one, with its texts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.coordinator.driver import BEAT_MS, LEASE_MS, NODES, START_MS, Cluster
from trogdor_bus.coordinator.events import DestroyRequested, HostsResolved
from trogdor_bus.coordinator.fleet import GRACE_MS
from trogdor_bus.coordinator.ledger import KEEP_DONE, KEEP_DONE_MS
from trogdor_bus.coordinator.moves import TABLE, Move
from trogdor_bus.errors import ConflictError, InvalidTransitionError, SpecError
from trogdor_bus.messages import Report, Stamp
from trogdor_bus.states import Disturbance, Outcome, TaskState, WorkerState
from trogdor_bus.topology import Node

PENDING, RUNNING, STOPPING, DONE = TaskState
W = WorkerState


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


# --- the table --------------------------------------------------------------------------------------------------------


def in_state(state: TaskState) -> Cluster:
    cluster = Cluster()
    cluster.create(startMs=START_MS + 60_000 if state is PENDING else 0)
    if state is STOPPING:
        cluster.stop()
    if state is DONE:
        cluster.all_say(W.DONE, outcome=Outcome.DONE)
    assert cluster.task().state is state
    cluster.machine.taken.clear()
    return cluster


def act(cluster: Cluster, state: TaskState, move: Move) -> None:
    """Let happen, from outside, what makes that move."""
    match move:
        case "run":
            cluster.pass_(60_000, *NODES)
        case "fail":
            cluster.create("u", nodes=["nowhere"])
        case "stop":
            cluster.stop()
        case "error":
            cluster.say("a", W.DONE, outcome=Outcome.FAILED, error="no such device")
        case "finish":
            cluster.all_say(W.DONE, outcome=Outcome.DONE)
        case "correct":
            late = Cluster()
            late.create()
            late.pass_(10_000 + LEASE_MS + GRACE_MS + 2 * BEAT_MS)
            assert late.task().outcome is Outcome.UNKNOWN
            late.all_say(W.DONE, outcome=Outcome.DONE)
            cluster.machine.taken |= late.machine.taken


@pytest.mark.parametrize(("state", "move"), TABLE)
def test_every_move_of_the_table_happens(state: TaskState, move: Move) -> None:
    cluster = in_state(state)
    act(cluster, state, move)
    assert (state, move) in cluster.machine.taken
    if move not in ("fail", "correct"):
        assert cluster.task().state is TABLE[state, move]


@pytest.mark.parametrize(
    ("state", "move"),
    [
        pair
        for pair in itertools.product(TaskState, ("run", "fail", "stop", "error", "finish", "correct"))
        if pair not in TABLE
    ],
)
def test_every_other_move_is_refused_and_changes_nothing(state: TaskState, move: Move) -> None:
    cluster = in_state(state)
    before = cluster.task()
    with pytest.raises(InvalidTransitionError, match=rf"task t: {move} is not allowed in state {state}"):
        cluster.machine._move(before, move, "never", error="never")
    assert cluster.task() == before
    assert cluster.machine.taken == set()


# --- create -----------------------------------------------------------------------------------------------------------


def test_a_task_from_creation_to_done(cluster: Cluster) -> None:
    assert cluster.create() == ["a", "b", "c"]
    task = cluster.task()
    assert (task.state, task.started_ms, task.start_ms, task.done_ms) == (RUNNING, cluster.now, cluster.now, -1)
    rows = cluster.machine.view.info("t").workers
    first = cluster.machine.place.first_worker()
    assert [(row.id, row.node, row.journal) for row in rows] == [
        (first, "a", "j-a"),
        (first + 1, "b", "j-b"),
        (first + 2, "c", "j-c"),
    ]
    assert {(row.state, row.status) for row in rows} == {(W.RECEIVING, "receiving")}
    assert cluster.orders("a") == [("t", True)]
    cluster.all_say(W.RUNNING)
    assert cluster.task().active
    assert cluster.row("a").running_ms == cluster.now
    cluster.pass_(10_000, *NODES)
    assert cluster.task().state is RUNNING, "only agents end work"
    cluster.all_say(W.DONE, outcome=Outcome.DONE)
    task = cluster.task()
    assert (task.state, task.outcome, task.error, task.cancelled) == (DONE, Outcome.DONE, "", False)
    assert (task.done_ms, task.active) == (cluster.now, False)
    assert cluster.orders("a") == []


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda cluster: cluster.create(""), "Invalid empty ID in createTask request."),
        (lambda cluster: cluster.stop(""), "Invalid empty ID in stopTask request."),
        (lambda cluster: cluster.give(DestroyRequested("")), "Invalid empty ID in destroyTask request."),
    ],
)
def test_an_empty_id_is_refused(cluster: Cluster, ask: Any, text: str) -> None:
    with pytest.raises(SpecError) as raised:
        ask(cluster)
    assert raised.value.message == text


def test_a_control_character_in_an_id_is_refused(cluster: Cluster) -> None:
    with pytest.raises(SpecError, match="control character"):
        cluster.create("a\nb")
    assert cluster.machine.view.tasks == {}


def test_the_same_create_again_is_the_same_task_in_any_state(cluster: Cluster) -> None:
    cluster.create()
    for step in (lambda: None, lambda: cluster.all_say(W.RUNNING), cluster.stop, lambda: cluster.all_say(W.DONE)):
        step()
        before = (cluster.task(), cluster.machine.view.seq)
        assert cluster.create() == []
        assert (cluster.task(), cluster.machine.view.seq) == before
    assert cluster.task().state is DONE


def test_the_spec_as_submitted_is_the_identity_not_the_raised_start(cluster: Cluster) -> None:
    cluster.create(startMs=1_000)
    assert cluster.task().start_ms == cluster.now
    assert b'"startMs":1000' in bytes(cluster.task().original)
    assert f'"startMs":{cluster.now}'.encode() in bytes(cluster.task().spec)
    cluster.pass_(500)
    cluster.create(startMs=1_000)
    with pytest.raises(ConflictError, match=r"task t exists with another spec: .*startMs"):
        cluster.create(startMs=2_000)


def test_another_spec_under_the_same_id_is_a_conflict(cluster: Cluster) -> None:
    cluster.create()
    before = cluster.task()
    with pytest.raises(ConflictError, match=r'task t exists with another spec: \{"class":"trogdor_bus.faults'):
        cluster.create(durationMs=9)
    assert cluster.task() == before


def test_a_spec_that_cannot_be_made_is_done_at_once(cluster: Cluster) -> None:
    cluster.create("t", "partition", partitions=[["a"], ["a", "b"]])
    task = cluster.task()
    assert (task.state, task.started_ms, task.outcome, task.cancelled) == (DONE, -1, Outcome.FAILED, False)
    assert task.error == "Failed to create TaskController: Node a appears in more than one partition."
    assert task.done_ms == cluster.now


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"nodes": ["z", "a", "y"]}, "Unable to find nodes for task: Unknown node names: y, z"),
        ({"alias": "partition", "partitions": []}, "Unable to find nodes for task: No node names specified."),
    ],
)
def test_trogdors_texts_for_nodes(cluster: Cluster, fields: dict[str, Any], error: str) -> None:
    cluster.create("t", **fields)
    task = cluster.task()
    assert (task.state, task.started_ms, task.done_ms, task.error) == (DONE, -1, cluster.now, error)
    assert cluster.machine.view.info("t").workers == ()


def test_a_task_of_the_future_waits_and_starts_on_time(cluster: Cluster) -> None:
    cluster.create(startMs=cluster.now + 5_300)
    assert (cluster.task().state, cluster.task().started_ms) == (PENDING, -1)
    cluster.pass_(5_299, *NODES)
    assert cluster.task().state is PENDING
    cluster.pass_(1, *NODES)
    assert (cluster.task().state, cluster.task().started_ms) == (RUNNING, cluster.now)
    assert cluster.published["a"].orders[0].remaining_ms > 10_000 - BEAT_MS


def test_bad_nodes_of_a_future_task_are_found_when_it_starts(cluster: Cluster) -> None:
    cluster.create(startMs=cluster.now + 5_000, nodes=["z"])
    assert cluster.task().state is PENDING
    cluster.pass_(5_000, *NODES)
    assert cluster.task().error == "Unable to find nodes for task: Unknown node names: z"


# --- workers report ---------------------------------------------------------------------------------------------------


def test_the_first_error_wins_and_stops_the_siblings(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    told = cluster.say("b", W.DONE, outcome=Outcome.FAILED, error="no such device")
    assert told == ["a", "b", "c"]
    task = cluster.task()
    assert (task.state, task.error, task.cancelled) == (STOPPING, "no such device", False)
    assert [cluster.orders(name) for name in NODES] == [[], [], []]
    cluster.pass_(100)
    cluster.say("a", W.DONE, outcome=Outcome.FAILED, error="also broken")
    cluster.say("c", W.DONE, outcome=Outcome.DONE)
    task = cluster.task()
    assert (task.state, task.error, task.outcome) == (DONE, "no such device", Outcome.FAILED)
    assert task.cancelled is False


def test_a_worker_that_ends_well_does_not_stop_its_siblings(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    cluster.say("b", W.DONE, outcome=Outcome.DONE)
    cluster.pass_(BEAT_MS, "a")
    assert (cluster.task().state, cluster.orders("a")) == (RUNNING, [("t", False)])
    cluster.say("a", W.DONE, outcome=Outcome.DONE)
    cluster.say("c", W.DONE, outcome=Outcome.DONE)
    assert (cluster.task().state, cluster.task().outcome) == (DONE, Outcome.DONE)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Outcome.EXPIRED, "worker expired"),
        (Outcome.RESTARTED, "agent restarted, fault undone"),
        (Outcome.LEASE, "lease expired"),
    ],
)
def test_the_outcome_of_the_task_is_that_of_the_worker_that_failed(
    cluster: Cluster, outcome: Outcome, error: str
) -> None:
    cluster.create()
    cluster.say("a", W.DONE, outcome=outcome, error=error)
    for name in ("b", "c"):
        cluster.say(name, W.DONE, outcome=Outcome.DONE)
    assert (cluster.task().outcome, cluster.task().error) == (outcome, error)


def test_a_stuck_worker_ends_its_task_and_stays_loud(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.STUCK, outcome=Outcome.FAILED, error="device busy", residue=("a rule",))
    assert (cluster.task().state, cluster.task().error) == (DONE, "device busy")
    cluster.pass_(10_000 + LEASE_MS + GRACE_MS + 5 * BEAT_MS)
    row = cluster.row("a")
    assert (row.state, row.residue, row.wanted) == (W.STUCK, ("a rule",), False)
    late = "undone late, and nothing is left; at first its undo failed: device busy"
    cluster.say("a", W.DONE, outcome=Outcome.FAILED, error=late)
    assert (cluster.row("a").state, cluster.row("a").residue) == (W.DONE, ())
    assert (cluster.task().outcome, cluster.task().error) == (Outcome.FAILED, late), "the error tells what is true now"


def test_what_agents_warn_of_is_kept(cluster: Cluster) -> None:
    moved = Disturbance(1_200, "jump is not first")
    cluster.create(nodes=["a"])
    cluster.say("a", W.RUNNING, warnings=("no match",), disturbed=(moved,))
    assert (cluster.row("a").warnings, cluster.row("a").disturbed) == (("no match",), (moved,))


def test_an_older_beat_changes_nothing(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.RUNNING)
    seq, counter = cluster.machine.view.seq, cluster.counters["j-a"]
    starting = Report(worker=cluster.row("a").id, task="t", state=W.STARTING)
    assert cluster.beat("a", counter=counter, reports=(starting,)) == []
    assert cluster.beat("a", counter=counter - 1, reports=(starting,)) == []
    assert (cluster.row("a").state, cluster.machine.view.seq) == (W.RUNNING, seq)


def test_a_report_of_an_unknown_worker_is_answered_by_a_word_without_it(cluster: Cluster) -> None:
    seq = cluster.machine.view.seq
    cluster.pass_(BEAT_MS)
    told = cluster.beat("a", reports=(Report(worker=7, task="ghost", state=W.RUNNING),))
    assert told == ["a"]
    assert cluster.orders("a") == []
    assert cluster.machine.view.seq == seq


def test_a_report_under_another_journal_is_not_believed(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    worker = cluster.row("a").id
    cluster.pass_(4 * BEAT_MS)
    cluster.beat("a", journal="j-other", reports=(Report(worker=worker, task="t", state=W.RUNNING),))
    assert cluster.row("a").state is W.RECEIVING


# --- stop and destroy -------------------------------------------------------------------------------------------------


def test_stop_of_a_running_task(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    assert cluster.stop() == ["a", "b", "c"]
    task = cluster.task()
    assert (task.state, task.cancelled, task.stop_ms) == (STOPPING, True, cluster.now)
    assert cluster.orders("b") == []
    assert cluster.stop() == []
    cluster.all_say(W.STOPPING)
    cluster.all_say(W.DONE, outcome=Outcome.DONE)
    task = cluster.task()
    assert (task.state, task.outcome, task.cancelled, task.error) == (DONE, Outcome.CANCELLED, True, "")
    assert cluster.stop() == []
    assert cluster.task() == task


def test_stop_of_a_pending_task_is_done_and_never_started(cluster: Cluster) -> None:
    cluster.create(startMs=cluster.now + 5_000)
    assert cluster.stop() == []
    task = cluster.task()
    assert (task.state, task.cancelled, task.started_ms, task.outcome) == (DONE, True, -1, Outcome.CANCELLED)
    cluster.pass_(10_000, *NODES)
    assert cluster.task() == task


def test_stop_and_destroy_of_an_unknown_task_are_no_error(cluster: Cluster) -> None:
    assert cluster.stop("nothing") == []
    assert cluster.give(DestroyRequested("nothing")) == []


def test_stop_of_a_done_task_does_not_call_it_cancelled(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.DONE, outcome=Outcome.DONE)
    cluster.stop()
    assert (cluster.task().cancelled, cluster.task().outcome) == (False, Outcome.DONE)


def test_a_worker_stopped_before_it_was_delivered_ends_when_its_agent_holds_the_stop(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    undelivered = cluster.machine._stamp(cluster.machine.fleet.nodes["a"])
    cluster.stop()
    cluster.beat("a", stamp=undelivered)
    assert cluster.task().state is STOPPING, "that agent may still start it"
    cluster.beat("a")
    assert (cluster.task().state, cluster.task().outcome) == (DONE, Outcome.CANCELLED)
    assert (cluster.row("a").state, cluster.row("a").status) == (W.DONE, "never started")


def test_a_silent_agent_does_not_hold_a_task_in_stopping(cluster: Cluster) -> None:
    cluster.create(durationMs=86_400_000)
    cluster.all_say(W.RUNNING)
    cluster.stop()
    cluster.say("a", W.DONE, outcome=Outcome.DONE)
    cluster.say("b", W.DONE, outcome=Outcome.DONE)
    cluster.pass_(LEASE_MS + GRACE_MS, "a", "b")
    assert cluster.task().state is STOPPING
    cluster.pass_(2 * BEAT_MS, "a", "b")
    assert (cluster.task().state, cluster.task().outcome) == (DONE, Outcome.UNKNOWN)


@pytest.mark.parametrize("journal", ["j-a", "j-new"], ids=["never delivered", "replaced journal"])
def test_an_agent_that_beats_on_without_it_does_not_hold_a_task_in_stopping(cluster: Cluster, journal: str) -> None:
    cluster.create(nodes=["a"], durationMs=86_400_000)
    cluster.pass_(5 * BEAT_MS)
    old = Stamp(0, "c0", 0)
    cluster.beat("a", journal=journal, stamp=old)
    cluster.stop()
    for _ in range((LEASE_MS + GRACE_MS) // BEAT_MS):
        assert cluster.task().state is STOPPING
        cluster.pass_(BEAT_MS)
        cluster.beat("a", journal=journal, stamp=old)
    cluster.pass_(BEAT_MS)
    assert (cluster.task().state, cluster.task().outcome) == (DONE, Outcome.UNKNOWN)


@pytest.mark.parametrize("state", [W.RECEIVING, W.STARTING, W.RUNNING, W.STOPPING])
def test_destroy_reaches_the_agents(cluster: Cluster, state: WorkerState) -> None:
    cluster.create()
    if state is not W.RECEIVING:
        cluster.all_say(state)
    assert cluster.give(DestroyRequested("t")) == ["a", "b", "c"]
    assert cluster.machine.view.tasks == {}
    assert [cluster.orders(name) for name in NODES] == [[], [], []]
    assert cluster.store.tasks == {}
    cluster.beat("a")
    assert cluster.machine.view.tasks == {}


def test_an_id_can_be_used_again_after_destroy_with_new_workers(cluster: Cluster) -> None:
    cluster.create()
    before = cluster.row("a").id
    cluster.give(DestroyRequested("t"))
    cluster.create(durationMs=9)
    assert cluster.row("a").id > before + 2


# --- time and memory --------------------------------------------------------------------------------------------------


def test_done_tasks_do_not_pile_up(cluster: Cluster) -> None:
    for number in range(KEEP_DONE + 5):
        cluster.create(f"t{number:04}", nodes=["nowhere"])
        cluster.now += 1
    cluster.create("live", durationMs=10**9)
    cluster.pass_(BEAT_MS, *NODES)
    tasks = sorted(cluster.machine.view.tasks)
    assert len(tasks) == KEEP_DONE + 1
    assert tasks[:2] == ["live", "t0005"]
    cluster.now += KEEP_DONE_MS
    cluster.pass_(BEAT_MS, *NODES)
    assert list(cluster.machine.view.tasks) == ["live"] == list(cluster.store.tasks)


def test_a_task_with_a_stuck_worker_is_not_forgotten(cluster: Cluster) -> None:
    cluster.create(nodes=["a"])
    cluster.say("a", W.STUCK, outcome=Outcome.FAILED, error="device busy")
    cluster.now += KEEP_DONE_MS
    cluster.pass_(BEAT_MS, *NODES)
    assert cluster.task().state is DONE


def test_resolved_host_names_count_beside_what_agents_announce() -> None:
    cluster = Cluster("a", configured={"a": Node(name="a", hostname="a.example")})
    assert cluster.machine.planner.topology().nodes["a"].addresses == ("10.0.0.1",)
    cluster.give(HostsResolved({"a": ("192.0.2.7",), "unknown": ("192.0.2.8",)}))
    assert cluster.machine.planner.topology().nodes["a"].addresses == ("192.0.2.7", "10.0.0.1")
    assert cluster.machine.view.nodes["a"].addresses == ("192.0.2.7", "10.0.0.1")


def test_bad_input_changes_nothing(cluster: Cluster) -> None:
    cluster.create()
    before = (cluster.machine.view.seq, dict(cluster.machine.view.tasks), cluster.machine.deadline())
    with pytest.raises(ConflictError):
        cluster.create(durationMs=1)
    with pytest.raises(SpecError):
        cluster.create("")
    with pytest.raises(SpecError):
        cluster.stop("")
    assert (cluster.machine.view.seq, dict(cluster.machine.view.tasks), cluster.machine.deadline()) == before


def test_a_task_that_began_after_what_the_store_knows_is_not_begun_again() -> None:
    cluster = Cluster("a", "b")
    cluster.create("t", startMs=cluster.now + 3_000)
    cluster.create("u", startMs=cluster.now + 3_000)
    before = cluster.store.load()
    cluster.pass_(4_000, "a", "b")
    cluster.say("a", WorkerState.RUNNING)
    cluster.say("b", WorkerState.DONE, outcome=Outcome.FAILED, error="no")
    workers = {row.id for row in cluster.machine.view.info("t").workers}
    stamp = cluster.published["a"].stamp
    cluster.store.replace(before)
    cluster.start()
    for name in ("a", "b"):
        cluster.beat(name, stamp=stamp)
    cluster.lead()
    assert {row.id for row in cluster.machine.view.info("t").workers} == workers
    assert cluster.row("b").outcome is Outcome.FAILED
    assert cluster.task().state is TaskState.STOPPING, "as one node failed, the other stops"
    assert ("t", True) not in cluster.orders("a")
    cluster.pass_(1_000, "a", "b")
    assert cluster.task("u").state is TaskState.RUNNING, "nobody was heard to have begun it"
    cluster.say("a", WorkerState.DONE, outcome=Outcome.CANCELLED)
    assert (cluster.task().state, cluster.task().outcome) == (TaskState.DONE, Outcome.FAILED)
