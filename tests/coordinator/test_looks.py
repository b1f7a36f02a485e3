"""Tasks that need the cluster under test: looked at when they fire, once, and what comes of it."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import msgspec
import pytest

from tests.coordinator.driver import BEAT_MS, NODES, START_MS, Cluster, raw
from trogdor_bus.cluster import NOBODY, ClusterView, Quorum, SeenBroker, SeenController, SeenPartition
from trogdor_bus.coordinator.events import DestroyRequested, LookAtCluster, Sighting
from trogdor_bus.coordinator.fleet import Fleet
from trogdor_bus.coordinator.places import places_of
from trogdor_bus.coordinator.scout import AGAIN_MS, DEADLINE_MS
from trogdor_bus.errors import RefusedError, SpecError
from trogdor_bus.faults.process import ProcessStopFaultSpec
from trogdor_bus.messages import Beat, CreateTask, Plan, Reply, ValidateSpec, encode
from trogdor_bus.roles import Chosen, Wanted
from trogdor_bus.states import Outcome, TaskState, WorkerState
from trogdor_bus.topology import Node

PENDING, RUNNING, STOPPING, DONE = TaskState
LEADER = "leader(orders, 0)"
PARTITION = SeenPartition(
    topic="orders", number=0, leader=2, epoch=5, replicas=(1, 2, 3), in_sync=(1, 2, 3), min_in_sync=2
)
VOTERS = tuple(SeenController(id=one, host=f"10.0.0.{one}", port=9093) for one in (1, 2, 3))
VIEW = ClusterView(
    brokers={one: SeenBroker(id=one, host=f"kafka{one}", port=9092) for one in (1, 2, 3)},
    partitions=(PARTITION,),
    quorum=Quorum(leader=1, epoch=1, voters=VOTERS),
    controller=1,
)
HOSTS = {f"kafka{one}": (f"10.0.0.{one}",) for one in (1, 2, 3)}
SEEN = Sighting(view=VIEW, hosts=HOSTS, seed=42)
LEADERLESS = msgspec.structs.replace(
    SEEN, view=msgspec.structs.replace(VIEW, partitions=(msgspec.structs.replace(PARTITION, leader=NOBODY),))
)
BLIND = Sighting(error="no broker answers")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(under_test="kafka1:9092")


def freeze(cluster: Cluster, role: str = LEADER, task: str = "t", **more: Any) -> list[str]:
    return cluster.create(task, "process-stop", nodes=[role], match="kafka.Kafka", **more)


def test_a_role_is_resolved_when_the_task_fires_and_the_log_says_how(cluster: Cluster) -> None:
    assert freeze(cluster) == []
    assert cluster.task().state is PENDING
    assert cluster.looks == [LookAtCluster("t", 1, Wanted(("orders",)))]
    cluster.pass_(700, *NODES)
    assert cluster.show(SEEN) == ["b"]
    task = cluster.task()
    assert (task.state, task.started_ms, task.start_ms) == (RUNNING, cluster.now, cluster.now)
    assert task.end_ms == cluster.now + 10_000, "its time counts from when it fires"
    assert json.loads(bytes(task.spec))["nodes"] == ["b"]
    assert json.loads(bytes(task.original))["nodes"] == [LEADER]
    line = "leader(orders, 0) is broker 2 on node b (leader epoch 5)"
    holder = Chosen(role=LEADER, id=2, node="b", epoch=5)
    assert (task.why, task.holders, task.seed) == ((line,), (holder,), SEEN.seed)
    assert f"task t: {line}" in cluster.texts
    assert cluster.orders("b") == [("t", True)]
    assert freeze(cluster) == [], "the same again is the same task"
    assert len(cluster.looks) == 1


def test_it_is_looked_once_at_a_time_and_time_goes_on(cluster: Cluster) -> None:
    freeze(cluster)
    freeze(cluster)
    cluster.pass_(8_000, *NODES)
    assert len(cluster.looks) == 1


def test_it_is_looked_when_the_time_has_come(cluster: Cluster) -> None:
    freeze(cluster, startMs=START_MS + 60_000)
    cluster.pass_(START_MS + 59_999 - cluster.now, *NODES)
    assert cluster.looks == []
    cluster.pass_(2, *NODES)
    assert len(cluster.looks) == 1
    cluster.show(SEEN)
    assert cluster.task().state is RUNNING


@pytest.mark.parametrize(
    ("sighting", "why"),
    [
        (BLIND, "the cluster under test cannot be seen: no broker answers"),
        (LEADERLESS, "partition orders-0 has no leader now"),
    ],
)
def test_what_may_mend_is_looked_for_again_until_the_deadline(cluster: Cluster, sighting: Sighting, why: str) -> None:
    freeze(cluster)
    cluster.show(sighting)
    assert cluster.task().state is PENDING
    assert [look.after_ms for look in cluster.looks] == [0, AGAIN_MS]
    assert {look.number for look in cluster.looks} == {1}
    cluster.pass_(DEADLINE_MS - 1, *NODES)
    cluster.show(sighting)
    assert cluster.task().state is PENDING
    cluster.pass_(1, *NODES)
    cluster.show(sighting)
    task = cluster.task()
    assert (task.state, task.outcome) == (DONE, Outcome.FAILED)
    assert task.error == f"Unable to find nodes for task: {why}"
    assert len(cluster.looks) == 3


def test_it_fires_as_soon_as_somebody_holds_the_role(cluster: Cluster) -> None:
    freeze(cluster)
    cluster.show(LEADERLESS)
    cluster.pass_(1_000, *NODES)
    cluster.show(SEEN)
    assert cluster.task().state is RUNNING


@pytest.mark.parametrize(
    ("role", "looks", "why"),
    [
        ("leader(orders, 7)", 1, "topic orders has no partition 7"),
        ("broker(9)", 1, "there is no broker 9"),
        ("leadr(orders, 0)", 0, "there is no role 'leadr'"),
    ],
)
def test_what_will_never_be_fails_at_once(cluster: Cluster, role: str, looks: int, why: str) -> None:
    freeze(cluster, role)
    if looks:
        cluster.show(SEEN)
    assert (cluster.task().state, cluster.task().error) == (DONE, f"Unable to find nodes for task: {why}")
    assert len(cluster.looks) == looks


def test_a_stop_meanwhile_cancels_it(cluster: Cluster) -> None:
    freeze(cluster)
    cluster.stop()
    assert (cluster.task().state, cluster.task().outcome) == (DONE, Outcome.CANCELLED)
    assert cluster.show(SEEN) == []
    assert cluster.task().state is DONE


def test_a_late_answer_is_not_for_the_next_task_of_that_name(cluster: Cluster) -> None:
    freeze(cluster)
    cluster.give(DestroyRequested("t"))
    freeze(cluster)
    first, second = cluster.looks
    assert cluster.show(SEEN, first) == []
    assert cluster.task().state is PENDING
    assert cluster.show(SEEN, second) == ["b"]
    assert cluster.show(SEEN, second) == []


def hear_late(cluster: Cluster, node: str) -> None:
    """Let the task fall due while no coordinator runs, and the next one hear that node only after its first look."""
    cluster.now += 5_000
    cluster.start()
    cluster.pass_(3 * BEAT_MS, *(name for name in NODES if name != node))
    assert cluster.show(SEEN) == []
    assert cluster.task().state is PENDING
    cluster.beat(node)
    cluster.pass_(BEAT_MS, *NODES)
    assert len(cluster.looks) == 2


def test_the_next_coordinator_looks_again_once_a_node_is_heard_that_is_named_beside_a_role(cluster: Cluster) -> None:
    cluster.create("t", "directed-partition", **{"from": ["c"], "to": [LEADER], "startMs": cluster.now + 5_000})
    hear_late(cluster, "c")
    assert "b" in cluster.show(SEEN)
    assert cluster.task().state is RUNNING


def test_a_fault_that_becomes_one_of_another_class_when_it_fires(cluster: Cluster) -> None:
    cluster.create("t", "kafka-kill-leader", topic="orders", partition=0)
    assert cluster.show(SEEN) == ["b"]
    assert json.loads(bytes(cluster.task().spec))["class"] == "trogdor_bus.faults.process.ProcessKillFaultSpec"


@pytest.mark.parametrize("what", [None, 5, (None, ()), (ProcessStopFaultSpec(nodes=("b",)), ("rubbish",))])
def test_a_class_that_resolves_to_rubbish_fails_its_task(
    cluster: Cluster, what: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProcessStopFaultSpec, "resolved", lambda *_: what)
    freeze(cluster)
    cluster.show(SEEN)
    assert cluster.task().outcome is Outcome.FAILED


def test_the_next_coordinator_waits_for_the_node_that_holds_a_role(cluster: Cluster) -> None:
    freeze(cluster, startMs=cluster.now + 5_000)
    hear_late(cluster, "b")
    cluster.show(SEEN)
    assert cluster.task().state is RUNNING


def test_a_class_that_fails_at_the_second_look_fails_its_task(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze(cluster)

    def fails(*_: object) -> NoReturn:
        raise KeyError("again")

    monkeypatch.setattr(ProcessStopFaultSpec, "cluster_wanted", fails)
    cluster.show(LEADERLESS)
    assert cluster.task().outcome is Outcome.FAILED


def test_the_next_coordinator_looks_again(cluster: Cluster) -> None:
    freeze(cluster)
    before = cluster.looks[-1]
    cluster.restart()
    assert [look.task for look in cluster.looks] == ["t"]
    cluster.show(SEEN)
    assert cluster.task().state is RUNNING
    assert cluster.show(SEEN, before) == []


def test_without_a_cluster_a_role_is_refused_with_the_remedy() -> None:
    cluster = Cluster()
    freeze(cluster)
    assert (cluster.task().state, cluster.looks) == (DONE, [])
    assert "start it with `‹cluster› HOST:PORT`" in cluster.task().error
    body = {"class": "process-stop", "durationMs": 1, "nodes": ["controller"], "match": "x"}
    with pytest.raises(RefusedError, match="‹cluster› HOST:PORT"):
        cluster.ask(ValidateSpec(spec=raw(body)))


# --- the guard --------------------------------------------------------------------------------------------------------


def test_a_second_loss_at_the_same_time_is_refused(cluster: Cluster) -> None:
    freeze(cluster)
    cluster.show(SEEN)
    cluster.all_say(WorkerState.RUNNING)
    freeze(cluster, "broker(1)", "u")
    cluster.show(SEEN)
    assert cluster.task("u").state is DONE
    assert "below-min-isr: broker 1 would be gone, and 1 partition would keep" in cluster.task("u").error
    assert "orders-0 (1 of 2)" in cluster.task("u").error
    assert "`‹allow rule=below-min-isr› ‹allow rule=no-quorum›` allows it" in cluster.task("u").error
    freeze(cluster, "broker(1)", "v", allow=("below-min-isr", "no-quorum"))
    cluster.show(SEEN)
    assert cluster.task("v").state is RUNNING
    assert cluster.task("v").allow == ("below-min-isr", "no-quorum")
    assert any(text.startswith("task v started; warning: below-min-isr: broker 1") for text in cluster.texts)


def test_the_topics_of_an_experiment_are_its_own(cluster: Cluster) -> None:
    freeze(cluster, "all", "u", own_topics=("orders",), allow=("no-quorum",))
    cluster.show(SEEN)
    assert cluster.task("u").state is RUNNING
    assert cluster.task("u").own_topics == ("orders",)


def test_a_rule_that_is_none_is_refused_and_nothing_made(cluster: Cluster) -> None:
    with pytest.raises(SpecError) as caught:
        freeze(cluster, allow=("everything",))
    assert (caught.value.path, "t" in cluster.machine.view.tasks) == ("$.allow", False)


# --- parents and children ---------------------------------------------------------------------------------------------


def test_what_belongs_to_a_task_is_guarded_and_ends_with_it(cluster: Cluster) -> None:
    cluster.create("parent", "noop")
    freeze(cluster, "b", "child", parent="parent")
    assert cluster.looks == [LookAtCluster("child", 1, Wanted())], "whatever an experiment does is guarded"
    freeze(cluster, "a", "late", parent="parent", startMs=cluster.now + 60_000)
    cluster.create("other")
    cluster.show(SEEN)
    assert (cluster.task("child").state, cluster.task("child").parent) == (RUNNING, "parent")
    assert cluster.task("child").why == ()
    cluster.all_say(WorkerState.RUNNING, "child")
    cluster.all_say(WorkerState.DONE, "parent", outcome=Outcome.DONE)
    assert cluster.task("parent").state is DONE
    assert (cluster.task("child").state, cluster.task("late").outcome) == (STOPPING, Outcome.CANCELLED)
    assert cluster.task("other").state is RUNNING
    with pytest.raises(RefusedError, match="task parent is over"):
        freeze(cluster, "b", "next", parent="parent")
    with pytest.raises(RefusedError, match="task nobody is over"):
        freeze(cluster, "b", "next", parent="nobody")


def test_what_belongs_to_a_destroyed_task_is_stopped(cluster: Cluster) -> None:
    cluster.create("parent", "noop")
    freeze(cluster, "b", "child", parent="parent")
    cluster.show(SEEN)
    cluster.give(DestroyRequested("parent"))
    assert cluster.task("child").state is STOPPING


def test_what_belongs_to_a_cancelled_task_is_stopped(cluster: Cluster) -> None:
    cluster.create("parent", "noop", startMs=cluster.now + 60_000)
    freeze(cluster, "b", "child", parent="parent")
    cluster.stop("parent")
    assert cluster.task("child").outcome is Outcome.CANCELLED


# --- asking what would be ---------------------------------------------------------------------------------------------


def ask(cluster: Cluster, role: str, sighting: Sighting = SEEN, **more: Any) -> tuple[Wanted | None, Reply]:
    body = raw({"class": "process-stop", "durationMs": 1_000, "nodes": [role], "match": "kafka.Kafka"} | more)
    cluster.sighting = sighting
    cluster.wanted.clear()
    reply = cluster.answer(encode(ValidateSpec(spec=body)))
    return next(iter(cluster.wanted), None), reply


def test_a_dry_run_says_who_it_is_now_and_what_kafka_would_lose(cluster: Cluster) -> None:
    wanted, reply = ask(cluster, LEADER)
    assert wanted == Wanted(("orders",))
    plan = msgspec.json.decode(reply.result, type=Plan)
    assert plan.why == ("leader(orders, 0) is broker 2 on node b (leader epoch 5)",)
    assert (plan.holders, plan.seed) == ((Chosen(role=LEADER, id=2, node="b", epoch=5),), SEEN.seed)
    assert plan.losses == (
        "broker 2 on node b would be gone, which also takes controller 2",
        "1 partition would lose the replica on broker 2, and 1 of them their leader: orders-0",
    )
    assert [node.node for node in plan.nodes] == ["b"]
    assert plan.warnings == ()
    assert cluster.machine.view.tasks == {}


def test_a_dry_run_of_later_warns_of_what_would_be_refused_now(cluster: Cluster) -> None:
    assert ask(cluster, "majority")[1].error == "RefusedError"
    _, reply = ask(cluster, "majority", startMs=cluster.now + 60_000)
    plan = msgspec.json.decode(reply.result, type=Plan)
    assert [warning.split(":")[0] for warning in plan.warnings] == ["below-min-isr", "no-quorum"]


def test_what_needs_no_look_is_answered_without(cluster: Cluster) -> None:
    wanted, reply = ask(cluster, "b")
    assert (wanted, reply.error) == (None, "")
    wanted, reply = ask(cluster, "leadr(x, 0)")
    assert (wanted, reply.path) == (None, "$.nodes[0]")
    assert cluster.answer(b"nonsense").error == "BusError"
    assert cluster.answer(encode(CreateTask(id="t", spec=raw({})))).error == "SpecError"
    assert cluster.wanted == []


def test_what_is_not_seen_is_no_plan(cluster: Cluster) -> None:
    wanted, reply = ask(cluster, LEADER, BLIND)
    assert (wanted, reply.error) == (Wanted(("orders",)), "NotNowError")


def test_a_parent_comes_from_whoever_passes_the_request_on(cluster: Cluster) -> None:
    cluster.create("parent", "noop")
    body = raw({"class": "port-block", "durationMs": 1_000, "nodes": ["b"], "ports": [1]})
    reply = cluster.answer(encode(CreateTask(id="child", spec=body, own_topics=("x",))), parent="parent")
    assert reply.error == ""
    assert (cluster.task("child").parent, cluster.task("child").own_topics) == ("parent", ("x",))


# --- who is where -----------------------------------------------------------------------------------------------------


def fleet(*beats: Beat, **configured: Node) -> Fleet:
    made = Fleet(configured or None, 1_000)
    for beat in beats:
        assert made.hear(beat, 0).accepted
    return made


def beat(name: str, number: int, **more: Any) -> Beat:
    return Beat(node=name, journal=f"j-{name}", counter=1, addresses=(f"10.0.0.{number}",), **more)


def test_a_controller_is_where_the_broker_of_its_id_is() -> None:
    nodes = fleet(*(beat(name, number, broker=number) for number, name in enumerate("abc", 1))).nodes
    found = places_of(nodes, VIEW, {})
    assert (found.brokers, found.controllers) == ({1: "a", 2: "b", 3: "c"}, {1: "a", 2: "b", 3: "c"})


def test_a_controller_apart_by_configuration_agent_or_address() -> None:
    voters = tuple(SeenController(id=100 + one, host=f"10.0.0.{one}", port=9093) for one in (4, 5, 6))
    view = msgspec.structs.replace(VIEW, quorum=Quorum(leader=104, epoch=1, voters=voters))
    nodes = {name: Node(name=name) for name in "abcdef"} | {"d": Node(name="d", controller=104)}
    made = fleet(*(beat(name, number) for number, name in enumerate("abcdf", 1) if name != "f"), **nodes)
    made.hear(beat("e", 9, controller=105), 0)
    made.hear(beat("f", 6), 0)
    found = places_of(made.nodes, view, HOSTS | {"10.0.0.6": ("10.0.0.6",)})
    assert found.controllers == {104: "d", 105: "e", 106: "f"}
    assert {name: state.row.controller for name, state in made.nodes.items() if state.row.controller} == {
        "d": 104,
        "e": 105,
    }
    assert made.topology((), ()).nodes["e"].controller == 105


def test_two_that_could_be_a_controller_are_an_error_that_names_both() -> None:
    made = fleet(beat("a", 1, controller=1), beat("b", 2, controller=1))
    with pytest.raises(SpecError) as caught:
        places_of(made.nodes, msgspec.structs.replace(VIEW, brokers={}), {})
    assert str(caught.value) == (
        "nodes: nodes a and b both claim to be controller 1 (give each of these nodes its own `controller: ID` in the "
        "configuration)"
    )


def test_a_dry_run_says_who_is_asked_to_move_a_leader(cluster: Cluster) -> None:
    body = {"class": "kafka-move-leader", "durationMs": 1_000, "topic": "orders"}
    cluster.sighting = SEEN
    plan: Plan = cluster.ask(ValidateSpec(spec=raw(body)))
    ((do, undo),) = plan.nodes[0].steps
    assert do == "make broker 3 lead orders-0, asking kafka1:9092,kafka2:9092,kafka3:9092"
    assert undo == "restore the order of the replicas of orders-0"
    assert plan.losses == ()


def test_a_leader_is_moved_by_one_task_at_a_time(cluster: Cluster) -> None:
    def move(task: str, partition: int = 0) -> None:
        cluster.create(task, "kafka-move-leader", topic="orders", partition=partition)
        both = (PARTITION, msgspec.structs.replace(PARTITION, number=1))
        cluster.show(msgspec.structs.replace(SEEN, view=msgspec.structs.replace(VIEW, partitions=both)))

    move("t")
    assert cluster.task().state is RUNNING
    assert (cluster.orders("a"), cluster.orders("b"), cluster.orders("c")) == ([("t", True)], [], [])
    spec = json.loads(bytes(cluster.task().spec))
    assert (spec["node"], spec["to"]) == ("a", 3), "neither the old nor the new leader's"
    move("again")
    why = "task t moves the leader of orders-0 already: wait for its end, or `‹stop id=t›`"
    assert cluster.task("again").error == f"Unable to find nodes for task: {why}"
    move("other", 1)
    assert cluster.task("other").state is RUNNING
    cluster.stop()
    move("soon")
    assert cluster.task("soon").state is DONE, "it is not undone yet"
