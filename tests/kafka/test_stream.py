"""The liveness stream on a real cluster: nothing is lost that was acknowledged, and what was silent is measured."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.conftest import SESSION_MS
from tests.experiment.test_stream import Reached
from tests.support import wait_until
from trogdor_bus.errors import HostError
from trogdor_bus.experiment.checker import Findings, audit
from trogdor_bus.experiment.series import Gap, gaps, latencies
from trogdor_bus.experiment.stream import Stream, StreamSettings
from trogdor_bus.lab.kafka import KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

RUN = "run-1"


class Window(NamedTuple):
    start_ms: int
    end_ms: int


def made_topic(bootstrap: str, partitions: int = 3, replicas: int = 3) -> str:
    name = f"test-stream-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})  # it must outlive its answer
    admin.create_topics([NewTopic(name, partitions, replicas)])[name].result(30)
    return name


def leader(bootstrap: str, topic: str, partition: int = 0) -> int:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    return int(admin.list_topics(topic, timeout=30).topics[topic].partitions[partition].leader)


@contextmanager
def running(stream: Stream, timeout_s: float = 30) -> Iterator[Stream]:
    stream.start(timeout_s)
    try:
        yield stream
    finally:
        stream.stop(30)


def wait_acked(stream: Stream, more: int, timeout_s: float = 60) -> None:
    wanted = stream.counts().acked + more
    wait_until(lambda: stream.counts().acked >= wanted, timeout_s, f"{more} acknowledgements more")


def audited(stream: Stream) -> Findings:
    return audit(stream.sent(), stream.reread(60), run=stream.run, idempotent=stream.settings.is_idempotent)


def longest(stream: Stream, partition: int) -> Gap:
    sent = stream.sent()
    found = gaps(stream.delivered(), stream.partitions, sent[0].sent_ms, sent[-1].sent_ms)
    return next(gap for gap in found if gap.partition == partition)


@pytest.mark.core
def test_a_steady_stream_is_acknowledged_delivered_and_found_whole(bootstrap: str) -> None:
    stream = Stream(Reached(bootstrap), made_topic(bootstrap), 3, StreamSettings(rate=100, group=True), RUN)
    with running(stream):
        wait_acked(stream, 1000)
    sent, counts, found = stream.sent(), stream.counts(), audited(stream)
    assert (found.sent, found.acked, found.read) == (len(sent),) * 3
    assert found == Findings(idempotent=True, sent=len(sent), acked=len(sent), read=len(sent))
    assert (counts.delivered, counts.failed, counts.open, counts.trouble) == (len(sent), 0, 0, "")
    assert {one.record.number for one in stream.group_delivered() if one.record} == set(range(len(sent)))
    rate = 1000 * (len(sent) - 1) / (sent[-1].sent_ms - sent[0].sent_ms)
    (before, *_) = latencies(sent, stream.delivered(), ())
    print(f"\nrate {rate:.2f}/s, late {counts.late_ms} ms, longest gap {longest(stream, 0).ms} ms, {before}")
    assert 98 < rate < 102
    assert before.produce.count == before.end_to_end.count == len(sent)
    for seen in (before.produce, before.end_to_end):  # a reader may have it before its ack is heard
        assert 0 <= seen.p50_ms < 1000, "5 ms if the machine is idle"
    assert longest(stream, 0).ms < 6000
    assert (stream.fatal, stream.broken) == ("", "")


HARMS: dict[str, tuple[Callable[[KafkaCluster, str], None], Callable[[KafkaCluster, str], None]]] = {
    "killed": (KafkaCluster.kill, KafkaCluster.start),
    "frozen": (KafkaCluster.pause, KafkaCluster.unpause),
}


@pytest.mark.parametrize("harm", [pytest.param("killed", marks=pytest.mark.core), "frozen"])
def test_a_leader_is_harmed_and_nothing_is_lost_and_the_gap_is_seen(kafka_cluster: KafkaCluster, harm: str) -> None:
    bootstrap = kafka_cluster.bootstrap
    topic = made_topic(bootstrap)
    with running(Stream(Reached(bootstrap), topic, 3, StreamSettings(rate=100), RUN)) as stream:
        wait_acked(stream, 300)
        node = kafka_cluster.brokers[leader(bootstrap, topic)]
        do, undo = HARMS[harm]
        harmed_ms = stream.clock.now_ms()
        do(kafka_cluster, node)
        wait_until(lambda: stream.clock.now_ms() - stream.counts().last_delivery_ms[0] > 1000, 30, "silence")
        wait_until(lambda: stream.clock.now_ms() - stream.counts().last_delivery_ms[0] < 500, 60, "a new leader")
        led_ms = stream.clock.now_ms()
        undo(kafka_cluster, node)
        kafka_cluster.wait_ready()
        wait_acked(stream, 300)
    found, gap, fault = audited(stream), longest(stream, 0), Window(harmed_ms, led_ms)
    print(
        f"\n{found}\n{harm} at 0, {gap.start_ms - harmed_ms} to {gap.end_ms - harmed_ms} ms silent; {stream.counts()}"
    )
    for one in latencies(stream.sent(), stream.delivered(), [fault]):
        print(one)
    assert not found.broken and found.foreign == ()
    assert found.acked == found.sent == found.read, "every send came through, late"
    assert (stream.fatal, stream.broken) == ("", "")
    assert gap.overlaps([fault]) == (fault,)
    assert -3000 < gap.start_ms - harmed_ms < 3000 and gap.end_ms <= led_ms
    assert SESSION_MS - 3000 < gap.ms < 4 * SESSION_MS


def test_with_acks_1_it_works_without_idempotence(bootstrap: str) -> None:
    stream = Stream(Reached(bootstrap), made_topic(bootstrap), 3, StreamSettings(rate=200, acks="1"), RUN)
    with running(stream):
        wait_acked(stream, 600)
    found = audited(stream)
    assert not found.idempotent and found.lost == () and found.acked == found.sent == found.read


def test_with_acks_0_nothing_is_acknowledged_but_found(bootstrap: str) -> None:
    stream = Stream(Reached(bootstrap), made_topic(bootstrap, 1), 1, StreamSettings(rate=200, acks="0"), RUN)
    with running(stream):
        wait_until(lambda: stream.counts().delivered > 200, 30, "deliveries")
        wait_until(lambda: stream.counts().delivered >= stream.counts().sent - 10, 30, "deliveries")
    found = audited(stream)
    assert found.acked == found.failed == 0 and found.indeterminate == found.sent
    assert len(found.indeterminate_found) == found.read > 200


def test_a_topic_with_the_wrong_partitions_or_none_is_refused_in_words(bootstrap: str) -> None:
    topic = made_topic(bootstrap, 2)
    for name, words in ((topic, "has 2 partitions, not 3"), ("test-none", "Unknown topic")):
        with pytest.raises(HostError, match=f"topic {name}.*{words}"):
            Stream(Reached(bootstrap), name, 3, StreamSettings(), RUN).start(1)
    assert "test-none" not in AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=30).topics


def test_a_log_whose_beginning_is_gone_is_not_audited(bootstrap: str) -> None:
    stream = Stream(Reached(bootstrap), made_topic(bootstrap, 2), 2, StreamSettings(rate=200), RUN)
    with running(stream):
        wait_acked(stream, 100)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    places = [TopicPartition(stream.topic, 1, 7)]
    next(iter(admin.delete_records(places).values())).result(30)
    with pytest.raises(HostError, match="partition 1 begins at offset 7"):
        stream.reread(30)


def test_what_others_write_is_told_apart(bootstrap: str) -> None:
    stream = Stream(Reached(bootstrap), made_topic(bootstrap, 1), 1, StreamSettings(rate=200), RUN)
    with running(stream):
        wait_acked(stream, 50)
        stranger = Producer({"bootstrap.servers": bootstrap})
        stranger.produce(stream.topic, b"hello", partition=0)
        assert stranger.flush(30) == 0
        wait_acked(stream, 50)
    found = audited(stream)
    assert len(found.foreign) == 1 and not found.broken and found.read == found.sent + 1


def test_a_partition_without_a_leader_is_named_in_time_and_the_stream_goes_on_when_it_is_back(
    kafka_cluster: KafkaCluster,
) -> None:
    bootstrap = kafka_cluster.bootstrap
    with running(Stream(Reached(bootstrap), made_topic(bootstrap, 1, 1), 1, StreamSettings(rate=50), RUN)) as stream:
        wait_acked(stream, 100)
        node = kafka_cluster.brokers[leader(bootstrap, stream.topic)]
        kafka_cluster.kill(node)
        wait_until(lambda: leader(bootstrap, stream.topic) < 0, 60, "no leader")
        another = Stream(Reached(bootstrap), stream.topic, 1, stream.settings, "run-2")
        for ask in (stream.reread, another.start):
            begun = time.monotonic()
            with pytest.raises(HostError, match=r"within 3 s: topic .* has no leader of partition 0"):
                ask(3)
            assert time.monotonic() - begun < 8
        kafka_cluster.start(node)
        wait_until(lambda: leader(bootstrap, stream.topic) >= 0, 90, "a leader")
        led_ms = stream.clock.now_ms()
        wait_until(lambda: stream.counts().last_delivery_ms[0] > led_ms - 5000, 60, "a delivery")
    found, gap = audited(stream), longest(stream, 0)
    print(f"\n{found}\nsilent for {gap.ms} ms, until {gap.end_ms - led_ms} ms after a leader was seen")
    assert not found.broken and found.acked + found.indeterminate == found.sent
    assert gap.ms > 3000 and gap.end_ms - led_ms < 5000
    assert (stream.fatal, stream.broken) == ("", "")
