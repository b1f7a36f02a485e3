"""The stream without a broker: what it tells librdkafka, how it counts what goes wrong, how soon it gives up."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest
from confluent_kafka import KafkaError, Message

from tests.support import wait_until
from trogdor_bus.clock import ManualClock, SteadyWallClock
from trogdor_bus.errors import HostError, SpecError
from trogdor_bus.experiment.ledger import Sent
from trogdor_bus.experiment.stream import Acks, Stream, StreamSettings
from trogdor_bus.experiment.stream.writer import Writer

NOBODY_THERE = "127.0.0.1:1"


@dataclass
class Reached:
    bootstrap: str = NOBODY_THERE
    properties: dict[str, str] = field(default_factory=dict)

    def librdkafka(self) -> dict[str, str]:
        return {**self.properties, "bootstrap.servers": self.bootstrap}


@pytest.mark.parametrize(
    ("acks", "idempotent", "expected"),
    [("all", True, True), ("all", False, False), ("1", True, False), ("0", True, False)],
)
def test_idempotence_is_off_without_acks_of_all(acks: Acks, idempotent: bool, expected: bool) -> None:
    settings = StreamSettings(acks=acks, idempotent=idempotent)
    told = settings.producer(Reached())
    assert (told["acks"], told["enable.idempotence"], settings.is_idempotent) == (acks, expected, expected)


def test_the_queue_holds_all_that_can_be_undecided() -> None:
    settings = StreamSettings(rate=500, record_bytes=1000, delivery_timeout_ms=60_000)
    told = settings.producer(Reached())
    assert told["queue.buffering.max.messages"] > 500 * 60
    assert told["queue.buffering.max.kbytes"] * 1024 > told["queue.buffering.max.messages"] * 1000


def test_the_properties_of_the_access_reach_every_client() -> None:
    reached = Reached(properties={"client.id": "mine", "socket.timeout.ms": "1234"})
    settings = StreamSettings()
    for told in (settings.producer(reached), settings.consumer(reached, "g")):
        assert told["client.id"] == "mine" and told["socket.timeout.ms"] == "1234"


def test_settings_that_librdkafka_refuses_are_refused_in_its_words() -> None:
    with pytest.raises(SpecError, match=r"librdkafka cannot start.*no\.such\.thing"):
        Stream(Reached(properties={"no.such.thing": "1"}), "test-none", 1, StreamSettings(), "run")


def test_without_a_broker_it_says_so_in_time() -> None:
    stream = Stream(Reached(), "test-none", 1, StreamSettings(), "run")
    for ask in (stream.start, stream.reread):
        begun = time.monotonic()
        with pytest.raises(HostError, match=r"within 1 s.*refused"):
            ask(1.0)
        assert time.monotonic() - begun < 3
    stream.stop(1.0)
    assert stream.sent() == [] and stream.broken == ""


def test_it_can_be_stopped_before_it_was_started() -> None:
    stream = Stream(Reached(), "test-none", 2, StreamSettings(group=True), "run")
    stream.stop(0.1)
    stream.stop(0.1)
    assert stream.counts().last_delivery_ms == (-1, -1)


def a_writer(settings: StreamSettings | None = None, partitions: int = 1) -> Writer:
    return Writer(Reached(), "test-none", partitions, settings or StreamSettings(), "run", clock=SteadyWallClock())


def test_the_rate_is_held_without_brokers_and_what_finds_no_room_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamSettings, "queue_records", property(lambda settings: 50))
    writer = a_writer(StreamSettings(rate=500), 3)
    writer.start()
    begun = time.monotonic()
    wait_until(lambda: len(writer.ledger) >= 500, what="500 records")
    took_s = time.monotonic() - begun
    assert 0.9 < took_s < 3, "500 records at 500 a second take a second"
    writer.stop(0.1)
    sent = writer.ledger.sent()
    assert [one.number for one in sent] == list(range(len(sent)))
    assert [one.partition for one in sent] == [number % 3 for number in range(len(sent))]
    assert [one.state for one in sent] == ["indeterminate"] * 50 + ["failed"] * (len(sent) - 50)
    assert sent[-1].error == "the local queue is full"
    assert writer.broken == "" and writer.ledger.open == 0


def test_a_send_that_times_out_is_indeterminate() -> None:
    writer = a_writer(StreamSettings(rate=100, delivery_timeout_ms=200))
    writer.start()
    wait_until(lambda: writer.ledger.indeterminate > 0, what="a timeout")
    writer.stop(0.1)
    first = writer.ledger.sent()[0]
    assert (first.state, first.error) == ("indeterminate", "Local: Message timed out")


def test_a_record_that_is_too_large_surely_was_not_written() -> None:
    writer = a_writer(StreamSettings(rate=100, record_bytes=2_000_000))
    writer.start()
    wait_until(lambda: writer.ledger.failed > 0, what="a refusal")
    writer.stop(0.1)
    assert {one.state for one in writer.ledger.sent()} == {"failed"}
    assert "too large" in writer.ledger.sent()[0].error


SURE = {"MSG_SIZE_TOO_LARGE", "INVALID_MSG_SIZE", "TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED"}
CODES = sorted(name for name in vars(KafkaError) if name.isupper() and isinstance(getattr(KafkaError, name), int))


@pytest.mark.parametrize("name", [name for name in CODES if name != "NO_ERROR"])
def test_every_error_but_a_few_leaves_it_open_whether_a_record_was_written(name: str) -> None:
    writer = a_writer()
    writer.ledger.hand_over(0, 1)
    error = KafkaError(getattr(KafkaError, name))
    writer._on_delivery(0, error, Message(topic="test-none", partition=0, error=error))
    (one,) = writer.ledger.sent()
    assert one.state == ("failed" if name in SURE else "indeterminate")
    assert one.error


def test_an_acknowledgement_is_noted_with_its_offset() -> None:
    writer = a_writer()
    for number, (offset, noted) in enumerate([(0, 0), (5, 5), (-1001, -1)]):
        writer.ledger.hand_over(0, 1)
        writer._on_delivery(number, None, Message(topic="test-none", partition=0, offset=offset))
        one = writer.ledger.sent()[number]
        assert (one.state, one.offset) == ("acked", noted) and one.acked_ms > 0
    assert writer.last_offsets() == {0: 5}


def test_with_acks_0_nothing_is_acknowledged() -> None:
    writer = a_writer(StreamSettings(acks="0"))
    writer.ledger.hand_over(0, 1)
    writer._on_delivery(0, None, Message(topic="test-none", partition=0))
    assert writer.ledger.sent() == [Sent(0, 0, 1, "indeterminate", error="with acks=0 brokers acknowledge nothing")]


def test_a_fatal_error_of_the_producer_is_told_and_stays() -> None:
    stream = Stream(Reached(), "test-none", 1, StreamSettings(), "run", clock=ManualClock())
    assert stream.fatal == ""
    code = KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
    stream._writer.troubles.hear(KafkaError(code, "sequence desynchronized", fatal=True))
    stream._writer.troubles.hear(KafkaError(code, "and again", fatal=True))
    assert stream.fatal == "sequence desynchronized"
    stream.stop(0.1)


def test_a_bug_in_a_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(self: Writer) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Writer, "_send", burst)
    stream = Stream(Reached(), "test-none", 1, StreamSettings(), "run")
    stream._writer.start()
    wait_until(lambda: stream.broken, what="the bug")
    assert stream.broken == "the producer's thread ended: ZeroDivisionError: a bug"
    stream.stop(0.1)
