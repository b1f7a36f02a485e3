"""The bus on Kafka as the coordinator minds it: brokers in the rows, and refusals where a client meets them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.coordinator.driver import BEAT_MS, LEASE_MS, NODES, Cluster, raw
from trogdor_bus.bus import BusBroker, BusBrokers
from trogdor_bus.coordinator.events import BrokersSeen
from trogdor_bus.coordinator.place import Place
from trogdor_bus.errors import RefusedError
from trogdor_bus.messages import NodeRow, Plan, ValidateSpec, encode
from trogdor_bus.states import Outcome, TaskState, WorkerState
from trogdor_bus.topology import Node

BROKERS = tuple(BusBroker(id=i, host=f"kafka{i}", port=9092, addresses=(f"10.0.0.{i}",)) for i in (1, 2, 3))
KAFKA = BusBrokers(brokers=BROKERS, replicas=((1, 2, 3),), min_in_sync=2)
STOP_TWO = {"class": "process-stop", "durationMs": 60_000, "nodes": ["a", "b"], "match": "kafka.Kafka"}
STOP_ONE = {**STOP_TWO, "nodes": ["c"]}
CUT_ONE = {"class": "partition", "durationMs": 60_000, "partitions": [["a"], ["b", "c"]]}
SILENCED = (
    "the bus runs on Kafka alone, and this fault would silence it for 60 s (the lease, after which agents undo "
    "everything, is 30 s): brokers 1 and 2 (nodes a and b) would be gone, and broker 3 (node c) is too few (the bus "
    "needs 2 replicas in sync)"
)


@pytest.fixture
def cluster() -> Cluster:
    return on_kafka(Cluster())


def on_kafka(cluster: Cluster, bus: BusBrokers = KAFKA, *, attached: bool = True) -> Cluster:
    cluster.give(BrokersSeen(bus))
    for node in cluster.nodes:
        cluster.beat(node, attached=attached)
    beat_on(cluster, attached=attached)
    return cluster


def beat_on(cluster: Cluster, **fields: Any) -> None:
    """Let a beat pass in which every agent speaks."""
    cluster.pass_(BEAT_MS)
    for node in cluster.nodes:
        cluster.beat(node, **fields)


def rows(cluster: Cluster) -> dict[str, int | None]:
    return {row.name: row.broker for row in cluster.api.nodes()}


def validate(cluster: Cluster, body: dict[str, Any], *, force: bool = False) -> Plan:
    plan: Plan = cluster.ask(ValidateSpec(spec=raw(body), force=force))
    return plan


# --- who is who -------------------------------------------------------------------------------------------------------


def test_the_rows_say_which_broker_by_address(cluster: Cluster) -> None:
    assert rows(cluster) == {"a": 1, "b": 2, "c": 3}
    assert {name: node.broker for name, node in cluster.machine.planner.topology().nodes.items()} == rows(cluster)
    assert cluster.machine.view.nodes["a"].broker == 1


def test_without_kafka_what_configuration_and_agents_say_counts() -> None:
    cluster = Cluster(configured={"a": Node(name="a", broker=7), "b": Node(name="b"), "c": Node(name="c")})
    cluster.beat("b", broker=8)
    cluster.beat("c", broker=-3)
    assert rows(cluster) == {"a": 7, "b": 8, "c": None}
    cluster.beat("b")
    cluster.pass_(BEAT_MS)
    assert rows(cluster)["b"] is None


def test_an_unclear_map_is_said_once_and_only_claims_stay(cluster: Cluster) -> None:
    cluster.beat("b", broker=1)
    cluster.beat("c", broker=1)
    for _ in range(3):
        beat_on(cluster, broker=1)
    said = [text for text in cluster.texts if "not clear" in text]
    assert said == [
        "which node is which broker is not clear: nodes: nodes b and c both claim to be broker 1 (give each of these "
        "nodes its own `broker: ID` in the configuration)",
        "which node is which broker is not clear: nodes: nodes a and b both claim to be broker 1 (give each of these "
        "nodes its own `broker: ID` in the configuration)",
    ]
    assert rows(cluster) == {"a": 1, "b": 1, "c": 1}


def test_a_broker_of_no_node_is_reported_once() -> None:
    cluster = on_kafka(Cluster("a", "b"))
    beat_on(cluster)
    assert not [text for text in cluster.texts if "no node" in text], "more agents may come"
    cluster.pass_(LEASE_MS, "a", "b")
    assert [text for text in cluster.texts if "no node" in text] == ["broker 3 (kafka3:9092) is on no node"]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_silences_the_bus_is_refused_with_what_to_do(cluster: Cluster) -> None:
    reply = cluster.answer(encode(ValidateSpec(spec=raw(STOP_TWO))))
    assert (reply.error, reply.message) == (
        "RefusedError",
        f"{SILENCED}; run coordinator, agents and clients with `‹transport kind=kafka+zmq›`, or keep it shorter "
        "than the lease; `‹force›` allows it",
    )
    cluster.create("t", "process-stop", **{k: v for k, v in STOP_TWO.items() if k != "class"})
    task = cluster.task()
    assert (task.state, task.outcome) == (TaskState.DONE, Outcome.FAILED)
    assert SILENCED in task.error


def test_force_lets_it_pass_with_a_warning(cluster: Cluster) -> None:
    assert validate(cluster, STOP_TWO, force=True).warnings == (SILENCED,)
    told = cluster.create("t", "process-stop", force=True, **{k: v for k, v in STOP_TWO.items() if k != "class"})
    assert told == ["a", "b"]
    assert f"task t started; warning: {SILENCED}" in cluster.texts


@pytest.mark.parametrize("body", [STOP_ONE, CUT_ONE, {**STOP_TWO, "durationMs": LEASE_MS}])
def test_what_leaves_a_majority_or_is_short_passes_without_a_word(cluster: Cluster, body: dict[str, Any]) -> None:
    assert validate(cluster, body).warnings == ()


def test_on_another_bus_everything_passes() -> None:
    for cluster in (Cluster(), on_kafka(Cluster())):
        cluster.give(BrokersSeen(None))
        assert validate(cluster, STOP_TWO).warnings == ()


def test_with_what_runs_already(cluster: Cluster) -> None:
    cluster.create("first", "process-stop", nodes=["a"], match="kafka.Kafka", durationMs=100_000)
    with pytest.raises(RefusedError, match="this fault, together with task first, would silence it for 60 s"):
        validate(cluster, STOP_ONE)
    for node in ("a",):
        cluster.say(node, WorkerState.DONE, "first", outcome=Outcome.DONE)
    assert validate(cluster, STOP_ONE).warnings == ()


def test_what_is_stuck_has_no_end(cluster: Cluster) -> None:
    cluster.create("first", "process-stop", nodes=["a"], match="kafka.Kafka", durationMs=100)
    cluster.say("a", WorkerState.STUCK, "first", error="it stays")
    with pytest.raises(RefusedError, match="together with task first"):
        validate(cluster, STOP_ONE)


def test_a_pending_task_is_weighed_when_it_starts(cluster: Cluster) -> None:
    fields = {k: v for k, v in STOP_ONE.items() if k != "class"}
    cluster.create("later", "process-stop", startMs=cluster.now + 5_000, **fields)
    cluster.create("now", "process-stop", nodes=["a"], match="kafka.Kafka", durationMs=60_000)
    cluster.pass_(6_000, *NODES)
    assert cluster.task("now").state is TaskState.RUNNING
    assert "together with task now" in cluster.task("later").error


def test_an_agent_on_its_node_is_cut_with_it_and_an_attached_one_is_not() -> None:
    with pytest.raises(RefusedError, match=r"the agent of node a could not reach brokers 2 and 3 \(nodes b and c\)"):
        validate(on_kafka(Cluster(), attached=False), CUT_ONE)


def test_the_coordinators_own_machine_counts() -> None:
    cluster = Cluster()
    cluster.machine.place = Place(me="c1", machine=("127.0.0.1", "10.0.0.1"))
    cluster.machine._carrier._place = cluster.machine.place
    with pytest.raises(RefusedError, match="the coordinator could not reach brokers 2 and 3"):
        validate(on_kafka(cluster), CUT_ONE)


def test_a_broker_that_went_down_is_remembered_where_it_was(cluster: Cluster) -> None:
    cluster.give(BrokersSeen(BusBrokers(brokers=BROKERS[:2], replicas=KAFKA.replicas, min_in_sync=2)))
    beat_on(cluster, attached=True)
    assert rows(cluster)["c"] == 3
    with pytest.raises(RefusedError, match=r"brokers 1 and 3 \(nodes a and c\) would be gone"):
        validate(cluster, {**STOP_TWO, "nodes": ["a"]})


def test_a_broker_that_no_topic_needs_any_more_is_forgotten(cluster: Cluster) -> None:
    new = BusBroker(id=4, host="kafka1", port=9092, addresses=("10.0.0.1",))
    cluster.give(BrokersSeen(BusBrokers(brokers=(*BROKERS[1:], new), replicas=((2, 3, 4),), min_in_sync=2)))
    beat_on(cluster, attached=True)
    assert rows(cluster) == {"a": 4, "b": 2, "c": 3}
    assert not [text for text in cluster.texts if "not clear" in text]


def test_brokers_are_not_known_yet() -> None:
    assert validate(on_kafka(Cluster(), BusBrokers()), STOP_TWO).warnings == ()


def test_old_rows_and_beats_have_no_broker() -> None:
    row = NodeRow(name="a")
    assert (row.broker, b"broker" in encode(row)) == (None, True)
