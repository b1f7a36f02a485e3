"""The memory network as the simulation uses it: seeded, by hand, without a loop."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.transports.memory import COORDINATOR, MAX_QUEUED, MemoryNetwork


class Ends:
    """A coordinator and two agents that remember what came and when."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.now_ms = 0
        self.log: list[tuple[int, str, bytes]] = []
        self.coordinator = network.coordinator()
        self.coordinator.receive(lambda frame: self.note("coordinator", frame), lambda frame, answer: None)
        self.agents = {name: network.agent(name) for name in ("n1", "n2")}
        for name, agent in self.agents.items():
            agent.receive(lambda frame, name=name: self.note(name, frame))

    def note(self, name: str, frame: bytes) -> None:
        self.log.append((self.now_ms, name, frame))

    def advance(self, now_ms: int) -> int:
        self.now_ms = now_ms
        return self.network.advance(now_ms)

    def frames(self, name: str) -> list[bytes]:
        return [frame for _, to, frame in self.log if to == name]


def story(seed: int) -> list[tuple[int, str, bytes]]:
    ends = Ends(MemoryNetwork(Random(seed), loss=0.2, duplication=0.2, delay_ms=(0, 50)))
    for now_ms in range(0, 300):
        ends.advance(now_ms)
        if now_ms < 200:
            ends.coordinator.publish("n1", b"p%d" % now_ms)
            ends.agents["n2"].send(b"b%d" % now_ms)
    assert ends.network.next_due_ms() is None
    return ends.log


def test_the_same_seed_does_the_same_and_another_seed_something_else() -> None:
    assert story(7) == story(7)
    assert story(7) != story(8)


def test_loss_duplication_and_reordering_all_happen_about_as_often_as_asked() -> None:
    frames = [frame for seed in range(20) for _, to, frame in story(seed) if to == "n1"]
    log = [frame for _, to, frame in story(1) if to == "n1"]
    assert log != sorted(log, key=lambda frame: int(frame[1:]))
    assert 200 * 20 * 0.75 < len(frames) < 200 * 20 * 1.15  # 0.8 of them arrive, 1.2 times
    for seed in range(3):
        counts = Counter(frame for _, to, frame in story(seed) if to == "coordinator")
        assert len(counts) < 200
        assert 2 in counts.values()
        assert max(counts.values()) == 2


def test_without_faults_everything_arrives_once_in_order_when_it_is_due() -> None:
    ends = Ends(MemoryNetwork(Random(1), delay_ms=(10, 10)))
    ends.advance(100)
    for number in range(50):
        ends.coordinator.publish("n1", b"%d" % number)
    assert ends.network.next_due_ms() == 110
    assert ends.advance(109) == 0
    assert ends.advance(110) == 50
    assert ends.log == [(110, "n1", b"%d" % number) for number in range(50)]
    assert ends.network.next_due_ms() is None


def test_what_a_delivery_causes_without_delay_arrives_in_the_same_advance() -> None:
    ends = Ends(MemoryNetwork(Random(1)))
    ends.agents["n1"].receive(lambda frame: ends.agents["n1"].send(b"ack " + frame))
    ends.coordinator.publish("n1", b"x")
    assert ends.advance(0) == 2
    assert ends.frames("coordinator") == [b"ack x"]


def test_a_cut_is_per_direction_takes_what_is_on_its_way_and_heals() -> None:
    ends = Ends(MemoryNetwork(Random(1), delay_ms=(10, 10)))
    agent, network = ends.agents["n1"], ends.network
    ends.coordinator.publish("n1", b"on its way")
    network.cut(COORDINATOR, "n1")
    ends.coordinator.publish("n1", b"during")
    ends.coordinator.publish("n2", b"other")
    agent.send(b"back")
    ends.advance(20)
    assert (ends.frames("n1"), ends.frames("n2"), ends.frames("coordinator")) == ([], [b"other"], [b"back"])
    network.cut("n1", COORDINATOR)
    agent.send(b"lost")
    network.heal(COORDINATOR, "n1")
    network.heal("n1", COORDINATOR)
    ends.coordinator.publish("n1", b"after")
    ends.advance(100)
    assert (ends.frames("n1"), ends.frames("coordinator")) == ([b"after"], [b"back"])


def test_a_frame_sent_during_a_cut_stays_lost_when_the_cut_heals_before_it_is_due() -> None:
    ends = Ends(MemoryNetwork(Random(1), delay_ms=(10, 10)))
    ends.network.cut(COORDINATOR, "n1")
    ends.coordinator.publish("n1", b"lost")
    ends.network.heal(COORDINATOR, "n1")
    assert ends.advance(1000) == 0


def test_a_crash_loses_what_is_on_its_way_there_but_not_what_was_sent() -> None:
    ends = Ends(MemoryNetwork(Random(1), delay_ms=(10, 10)))
    ends.coordinator.publish("n1", b"lost")
    ends.agents["n1"].send(b"last words")
    ends.network.detach("n1")
    again = ends.network.agent("n1")
    again.receive(lambda frame: ends.note("n1", frame))
    ends.coordinator.publish("n1", b"to the next life")
    assert ends.advance(10) == 2
    assert ends.frames("n1") == [b"to the next life"]
    assert ends.frames("coordinator") == [b"last words"]
    ends.agents["n1"].send(b"from the dead")
    assert ends.advance(100) == 0


def test_the_coordinator_crashes_and_restarts() -> None:
    ends = Ends(MemoryNetwork(Random(1)))
    ends.network.detach(COORDINATOR)
    assert ends.agents["n1"].trouble() != ""
    ends.agents["n1"].send(b"to nobody")
    heard: list[bytes] = []
    ends.network.coordinator().receive(heard.append, lambda frame, answer: None)
    ends.agents["n1"].send(b"hello")
    ends.advance(0)
    assert (heard, ends.frames("coordinator"), ends.agents["n1"].trouble()) == ([b"hello"], [], "")


def test_the_queue_to_one_end_is_bounded_and_loses_the_oldest() -> None:
    ends = Ends(MemoryNetwork(Random(1), delay_ms=(10, 10)))
    for number in range(MAX_QUEUED + 3):
        ends.coordinator.publish("n1", b"%d" % number)
    ends.coordinator.publish("n2", b"untouched")
    ends.advance(10)
    assert ends.frames("n1") == [b"%d" % number for number in range(3, MAX_QUEUED + 3)]
    assert ends.frames("n2") == [b"untouched"]


def test_a_frame_too_large_is_dropped_loudly(caplog: pytest.LogCaptureFixture) -> None:
    ends = Ends(MemoryNetwork(Random(1)))
    ends.coordinator.publish("n1", b"x" * (MAX_FRAME_BYTES + 1))
    assert ends.advance(0) == 0
    assert "too large" in caplog.text
