"""The border to the cluster under test, on a real one: what is seen while brokers die and freeze, topics, moves."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer
from msgspec.structs import replace

from tests.conftest import SESSION_MS
from tests.kafka.troubles import Trouble, during
from tests.support import wait_until
from trogdor_bus.cluster import NOBODY, ClusterView, Move
from trogdor_bus.errors import ConflictError, HostError, NotFoundError, RefusedError
from trogdor_bus.kafka.access import Access, Place
from trogdor_bus.kafka.answers import metadata, seen
from trogdor_bus.kafka.asking import Peer
from trogdor_bus.kafka.movers import Moved, move_leader, plan_move, restore
from trogdor_bus.kafka.reader import Reader
from trogdor_bus.kafka.topics import FoundTopic, Topics
from trogdor_bus.lab.kafka import CONTROLLER_PORT, KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

FAIL_OVER_S = 20.0  # brokers would wait for a frozen controller for 30 s: controller.socket.timeout.ms
WHOLE_S = 60.0


@pytest.fixture
def access(bootstrap: str) -> Access:
    return Access(bootstrap)


@pytest.fixture
def reader(access: Access) -> Iterator[Reader]:
    with Reader(access) as made:
        yield made


@pytest.fixture
def topic(access: Access) -> str:
    """A new topic of three partitions, on all brokers."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    with Topics(access) as topics:
        topics.create(name, 3, 3, {"min.insync.replicas": "2"})
    return name


def wait_whole(reader: Reader, topic: str) -> None:
    def is_whole() -> bool:
        view = reader.read((topic,))
        return len(view.brokers) == 3 and len(view.partitions) == 3 and not any(view.broken())

    wait_until(is_whole, WHOLE_S, f"all of {topic} is in sync")


@pytest.mark.core
def test_everything_is_seen_as_it_is(reader: Reader, topic: str, kafka_cluster: KafkaCluster) -> None:
    before_ms = time.time() * 1000
    view = reader.read((topic,))
    assert abs(view.at_ms - before_ms) < 5000
    assert view.cluster_id
    assert {one.port for one in view.brokers.values()} == set(kafka_cluster.ports.values())
    assert [one.number for one in view.partitions] == [0, 1, 2]
    for one in view.partitions:
        assert (one.topic, one.is_whole, one.min_in_sync, one.epoch >= 0) == (topic, True, 2, True)
        assert set(one.replicas) == {1, 2, 3}
    assert view.quorum is not None
    assert view.controller == view.quorum.leader == active_controller(kafka_cluster)
    assert [(one.id, one.host, one.port) for one in view.quorum.voters] == [
        (number, kafka_cluster.addresses[node], CONTROLLER_PORT) for number, node in kafka_cluster.controllers.items()
    ]
    assert all(0 <= one.behind_ms < 5000 for one in view.quorum.voters)


def active_controller(cluster: KafkaCluster) -> int:
    """Return the active controller as Kafka's own tool tells."""
    node = next(iter(cluster.brokers.values()))
    told = cluster.run(
        node, "/opt/kafka/bin/kafka-metadata-quorum.sh", "--bootstrap-server", cluster.bootstrap_inside, "describe",
        "--status",
    )  # fmt: skip
    return int(next(line.split()[1] for line in told.splitlines() if line.startswith("LeaderId:")))


def test_effective_min_in_sync_is_the_topics_own_or_the_brokers(access: Access, reader: Reader) -> None:
    own, default = (f"test-{uuid.uuid4().hex[:8]}" for _ in range(2))
    with Topics(access) as topics:
        topics.create(own, 1, 3, {"min.insync.replicas": "3"})
        topics.create(default, 1, 3, {})
    view = reader.read((own, default, "test-none"))
    assert {one.topic: one.min_in_sync for one in view.partitions} == {own: 3, default: 2}
    of_all = reader.read()
    assert {own, default} <= {one.topic for one in of_all.partitions}


def test_coordinators_are_found_and_what_they_need_is_seen(reader: Reader, bootstrap: str) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": "test-tx", "log_level": 0})
    producer.init_transactions(30)
    wanted = ("group:test-group", "transaction:test-tx")
    view = reader.read((), wanted, timeout_s=30)
    assert set(view.coordinators) == set(wanted)
    assert set(view.coordinators.values()) <= {1, 2, 3}
    internal = reader.read(("__consumer_offsets", "__transaction_state"))
    assert {one.topic for one in internal.partitions} == {"__consumer_offsets", "__transaction_state"}
    assert {one.min_in_sync for one in internal.partitions if one.topic == "__transaction_state"} == {2}
    offsets = internal.partition("__consumer_offsets", 0)
    assert offsets is not None
    assert view.coordinators["group:test-group"] == offsets.leader


def test_a_brokers_settings(reader: Reader) -> None:
    settings = reader.settings(2)
    assert settings["node.id"] == "2"
    assert settings["broker.session.timeout.ms"] == str(SESSION_MS)
    with pytest.raises(NotFoundError, match=r"there is no broker 9 in .*; it has 1, 2, 3"):
        reader.settings(9)


def test_one_broker_to_begin_with_is_enough(bootstrap: str, topic: str) -> None:
    with Reader(Access(bootstrap.split(",", maxsplit=1)[0])) as reader:
        view = reader.read((topic,))
        assert len(view.brokers) == 3
        assert not any(view.broken())


@pytest.mark.core
@pytest.mark.parametrize("how", ["pause", "kill"])
def test_the_controller_is_followed_when_it_fails_over(
    reader: Reader, topic: str, kafka_cluster: KafkaCluster, how: str
) -> None:
    first = reader.read((topic,))
    assert first.quorum is not None
    node = kafka_cluster.brokers[first.controller]
    (kafka_cluster.pause if how == "pause" else kafka_cluster.kill)(node)
    began = time.monotonic()
    views: list[ClusterView] = []

    def moved() -> bool:
        views.append(reader.read((topic,), timeout_s=1.0))
        return views[-1].controller not in (NOBODY, first.controller)

    wait_until(moved, FAIL_OVER_S, "another controller")
    print(f"{how}: another controller after {time.monotonic() - began:.2f} s, {len(views)} readings")
    assert views[-1].quorum is not None
    assert views[-1].quorum.epoch > first.quorum.epoch
    assert {one.controller for one in views} <= {first.controller, NOBODY, views[-1].controller}
    kafka_cluster.mend()
    wait_whole(reader, topic)
    after = reader.read((topic,))
    assert after.quorum is not None
    assert after.quorum.epoch >= views[-1].quorum.epoch


def test_a_paused_broker_neither_slows_nor_misleads(reader: Reader, topic: str, kafka_cluster: KafkaCluster) -> None:
    first = reader.read((topic,))
    led = first.partition(topic, 0)
    assert led is not None
    kafka_cluster.pause(kafka_cluster.brokers[led.leader])
    lasted: list[float] = []

    def has_new_leader() -> bool:
        began = time.monotonic()
        view = reader.read((topic,), quorum=False)
        lasted.append(time.monotonic() - began)
        now = view.partition(topic, 0)
        assert now is not None
        assert now.epoch > led.epoch or now.leader == led.leader
        return now.leader not in (NOBODY, led.leader) and led.leader not in view.brokers

    wait_until(has_new_leader, FAIL_OVER_S, "another leader")
    print(
        f"{len(lasted)} readings, the longest {sorted(lasted)[-3:]}, in the middle {sorted(lasted)[len(lasted) // 2]}"
    )
    assert max(lasted) < 2.5
    assert sorted(lasted)[len(lasted) // 2] < 0.2
    with pytest.raises((HostError, NotFoundError)):
        reader.settings(led.leader, timeout_s=1.5)
    kafka_cluster.mend()
    wait_whole(reader, topic)
    assert reader.settings(led.leader)["node.id"] == str(led.leader)


def test_a_broker_that_is_cut_off_answers_from_the_past_and_is_outvoted(
    reader: Reader, topic: str, kafka_cluster: KafkaCluster
) -> None:
    first = reader.read((topic,))
    led = next(one for one in first.partitions if one.leader != first.controller)
    node = kafka_cluster.brokers[led.leader]
    with during(cut_off(kafka_cluster, node)):

        def has_new_leader() -> bool:
            now = reader.read((topic,)).partition(topic, led.number)
            return now is not None and now.leader not in (NOBODY, led.leader)

        wait_until(has_new_leader, FAIL_OVER_S, "another leader")
        peer = Peer(Place("127.0.0.1", kafka_cluster.ports[node]))
        told = seen(reader.brokers.ask({peer: lambda: metadata((topic,))}).answers[peer])
        assert told.partition(topic, led.number) == replace(led, min_in_sync=1)
        view = reader.read((topic,))
        now = view.partition(topic, led.number)
        assert now is not None
        assert now.epoch > led.epoch
        assert led.leader not in (now.leader, *view.brokers)
    wait_whole(reader, topic)


def cut_off(cluster: KafkaCluster, node: str) -> Trouble:
    """No packet goes between a node and the others, while this machine still reaches it."""

    def change(*commands: str) -> None:
        for command in commands:
            argv = ["nsenter", f"--net=/proc/{cluster.pid(node)}/ns/net", "iptables", "-w", *command.split()]
            subprocess.run(argv, check=True)

    others = [cluster.addresses[other] for other in cluster.nodes if other != node]
    drops = [f"-A CUT -{way} {address} -j DROP" for address in others for way in "sd"]
    ends = ("-D INPUT -j CUT", "-D OUTPUT -j CUT", "-F CUT", "-X CUT")
    return Trouble(
        lambda: change("-N CUT", *drops, "-I INPUT -j CUT", "-I OUTPUT -j CUT"),
        lambda: change(*ends),
    )


def test_brokers_that_are_all_paused_are_an_error_in_words(
    reader: Reader, topic: str, kafka_cluster: KafkaCluster
) -> None:
    reader.read((topic,))
    for node in kafka_cluster.nodes:
        kafka_cluster.pause(node)
    began = time.monotonic()
    with pytest.raises(HostError, match=r"no broker of the cluster at .* answers: 127.0.0.1:"):
        reader.read((topic,), timeout_s=2.5)
    assert time.monotonic() - began < 4.0
    kafka_cluster.mend()
    wait_whole(reader, topic)


def test_topics_are_made_found_and_deleted(access: Access, reader: Reader) -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    with Topics(access) as topics:
        topics.create(name, 4, 1, {"retention.ms": "60000"})
        with pytest.raises(ConflictError, match="there is a topic"):
            topics.create(name, 4, 1, {})
        assert topics.named(name) == [FoundTopic(name=name, partitions=4, replicas=1)]
        assert topics.delete(name) is True
        assert topics.delete(name) is False
        assert topics.named(name) == []
        with pytest.raises(HostError, match=r"does not make the topic .*[Rr]eplication"):
            topics.create(name, 1, 9, {})
        with pytest.raises(HostError, match=r"does not make the topic .*retention"):
            topics.create(name, 1, 1, {"retention.ms": "nonsense"})
    assert not reader.read((name,)).partitions


@pytest.mark.core
def test_a_leader_is_moved_and_the_order_found_is_restored(access: Access, reader: Reader, topic: str) -> None:
    move = plan_move(access, topic, 1)
    assert move.to not in (move.leader, NOBODY)
    moved = move_leader(access, move)
    assert (moved.leader, moved.changed) == (move.to, True)
    again = move_leader(access, move)
    assert (again.leader, again.epoch, again.changed) == (move.to, moved.epoch, False)
    now = reader.read((topic,)).partition(topic, 1)
    assert now is not None
    assert (now.leader, now.replicas) == (move.to, move.order)
    restored = restore(access, move)
    assert (restored.leader, restored.changed) == (move.found[0], True)
    assert restored.epoch > moved.epoch
    assert restore(access, move).changed is False
    now = reader.read((topic,)).partition(topic, 1)
    assert now is not None
    assert (now.leader, now.replicas) == (move.found[0], move.found)
    with pytest.raises(RefusedError, match="leads it already"):
        plan_move(access, topic, 1, now.leader)
    with pytest.raises(NotFoundError, match=f"no partition {topic}-7"):
        plan_move(access, topic, 7)


def test_who_cannot_take_over_is_refused_and_what_is_gone_is_not_restored(access: Access) -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    with Topics(access) as topics:
        topics.create(name, 1, 1, {})
        with pytest.raises(RefusedError, match="nobody can take over"):
            plan_move(access, name, 0)
        topics.delete(name)
    gone = restore(access, Move(topic=name, partition=0, found=(1, 2), leader=1, to=2))
    assert (gone.changed, "nothing is to be restored" in gone.why) == (False, True)


def test_the_command_moves_and_restores(bootstrap: str, topic: str) -> None:
    def told(verb: str, **order: object) -> dict[str, object]:
        argv = [sys.executable, "-m", "trogdor_bus.kafka.movers", verb]
        text = json.dumps({"bootstrap": bootstrap, **order})
        ran = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stderr
        found: dict[str, object] = json.loads(ran.stdout)
        return found

    move = told("plan", topic=topic, partition=2)
    assert told("move", move=move)["leader"] == move["to"]
    assert told("restore", move=move)["changed"] is True
    assert set(told("restore", move=move)) == set(Moved.__struct_fields__)
