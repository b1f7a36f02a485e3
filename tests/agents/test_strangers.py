"""A real agent's core hears a coordinator of another version: it says so, and goes on as if nothing was heard."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec
import pytest

from tests.agents.driver import order
from tests.agents.simdisk import CrashPoints, SimDisk
from tests.sim.model import Machine
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents.core import AgentCore
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.lanes import Call, Lanes, carry_out
from trogdor_bus.agents.machine import AgentMachine
from trogdor_bus.agents.perform import Performer
from trogdor_bus.agents.strangers import AGAIN_MS
from trogdor_bus.agents.work import Work
from trogdor_bus.messages import VERSION, Beat, Echo, Snapshot, Stamp, decode, encode
from trogdor_bus.states import Outcome, WorkerState

OLD = "the coordinator speaks version 1 of the protocol, this agent version 2: upgrade the coordinator"
NEW = "the coordinator speaks version 3 of the protocol, this agent version 2: upgrade this agent"


class Host:
    """A core on a model machine; what it does is done at once, and what it says is kept."""

    def __init__(self) -> None:
        self.now, self.beats, self.revision = 100_000, list[Beat](), 0
        journal = Journal(SimDisk(Random(1), CrashPoints()), new_id=lambda: "j1")
        performer = Performer(journal, Machine(Random(1), "10.0.0.1", lambda *_: None), lambda: self.now)
        self._soon: list[Callable[[], None]] = []
        self.lanes = Lanes(self._carry, lambda seconds, go_on: None if seconds else self._soon.append(go_on))
        self.core = AgentCore(
            AgentMachine("n1", "j1", 1, now_ms=self.now),
            self,
            Work(performer),
            self.lanes,
            lambda: self.now,
            fed=lambda: None,
            broken=self._broken,
        )
        self.core.shell.tick()

    def _carry(self, lane: str, calls: Sequence[Call[Any]]) -> None:
        self._soon.append(lambda: self.lanes.carried(lane, carry_out(calls)))

    def _broken(self, error: Exception) -> None:
        raise error

    def send(self, frame: bytes) -> None:
        self.beats.append(decode(frame, Beat))

    def hear(self, *orders: Any, **changed: Any) -> None:
        """Hear a word, in whose JSON some fields are changed."""
        self.revision += 1
        echo = Echo("j1", self.beats[-1].counter)
        word = Snapshot(node="n1", stamp=Stamp(1, "c1", self.revision), echo=echo, orders=orders)
        self.core.hear(msgspec.json.encode({**msgspec.json.decode(encode(word)), **changed}))

    def after(self, ms: int) -> None:
        while self._soon:
            self._soon.pop(0)()
        self.now += ms
        self.core.shell.tick()


@pytest.mark.parametrize(("version", "told"), [(1, OLD), (3, NEW)])
def test_a_coordinator_of_another_version_is_refused_in_words(
    version: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host()
    for _ in range(3):
        host.hear(v=version, abort="latch")
        host.after(1_000)
    assert [record.message for record in caplog.records] == [f"refused: {told}. Trying on."]
    assert caplog.records[0].levelno == logging.ERROR
    assert host.core.strangers.refused(host.now) == told
    assert (host.core.machine.stamp, host.core.machine.latch) == (None, "")
    host.after(AGAIN_MS)
    host.hear(v=version)
    assert len(caplog.records) == 2, "it is said again"
    host.hear()
    assert (host.core.strangers.refused(host.now), host.beats[-1].latch) == ("", "")


def test_who_is_silent_for_long_is_not_called_refused_any_more() -> None:
    host = Host()
    host.hear(v=1)
    host.now += AGAIN_MS + 1
    assert host.core.strangers.refused(host.now) == ""


def test_an_order_that_cannot_be_read_is_said_once_and_reported_and_another_one_is_performed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = Host()
    ports = (BlockPorts(ports=(9092,)),)
    orders = msgspec.json.decode(msgspec.json.encode([order(1, actions=ports), order(2, actions=ports)]))
    orders[0]["actions"][0]["action"] = "cut-cable"
    for _ in range(3):
        host.hear(orders=orders)
        host.after(1_000)
    told = "task t1: what was ordered is not known here: the action 'cut-cable'; upgrade the agent"
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [told]
    one, two = host.beats[-1].reports
    assert (one.state, one.outcome) == (WorkerState.DONE, Outcome.FAILED)
    assert two.state is WorkerState.RUNNING


def test_every_frame_says_its_version() -> None:
    assert VERSION == 2
    assert msgspec.json.decode(encode(Host().beats[-1]))["v"] == 2
