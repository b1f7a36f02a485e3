"""Entries and operations that this version cannot read."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest

from tests.agents.test_perform import FOREIGN, Agent
from trogdor_bus.agents import hands
from trogdor_bus.agents.journal import JournalState
from trogdor_bus.agents.threads import run_in_lanes
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.platform import Step
from trogdor_bus.states import Outcome


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_an_entry_that_cannot_be_read_is_tried_again_until_it_can_be_or_is_gone(agent: Agent) -> None:
    agent.inject()
    agent.inject(2)
    good = agent.disk.read("worker-1.json")
    for name in ("worker-1.json", "worker-2.json"):
        agent.disk.create(name, b'{"v":99}')
    agent.start()
    for worker in (1, 2):
        with pytest.raises(CannotHealError, match=f"worker-{worker}.json in the journal cannot be read"):
            agent.performer.heal(worker, Outcome.FAILED, "")
    agent.disk.create("worker-1.json", good)
    agent.disk.remove("worker-2.json")
    assert agent.performer.heal(1, Outcome.FAILED, "") == ()
    assert agent.on_disk().state is JournalState.UNDONE
    assert agent.performer.heal(2, Outcome.FAILED, "") == ("somebody removed its file from the journal",)
    assert (agent.journal.unreadable, agent.journal.live()) == ({}, ())


def test_a_disk_that_hangs_while_an_entry_is_read_again_is_no_end_of_its_undo(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.inject()
    good = agent.disk.read("worker-1.json")
    agent.disk.create("worker-1.json", b'{"v":99}')
    agent.start()
    read_again = agent.journal.read_again

    def hangs(worker: int) -> str:
        agent.disk.create("worker-1.json", good)
        assert read_again(worker) == "" == read_again(worker), "it answers late, and twice"
        raise TimeoutError

    with monkeypatch.context() as patched:
        patched.setattr(agent.journal, "read_again", hangs)
        with pytest.raises(CannotHealError, match="the disk of the state directory does not answer within 5 s"):
            agent.performer.heal(1, Outcome.FAILED, "")
    assert agent.performer.heal(1, Outcome.FAILED, "") == ()
    assert agent.on_disk().state is JournalState.UNDONE


def test_what_to_type_is_told_of_an_operation_that_cannot_be_read_as_well(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.inject()

    def unknown(step: Step) -> str:
        raise HostError("not an operation of this platform")

    monkeypatch.setattr(agent.machine, "by_hand", unknown)
    assert len(typed := agent.performer.by_hand(1)) == 3
    assert all(
        line.startswith("# not an operation of this platform; look what it left and undo it: {") for line in typed
    )


def test_what_to_type_is_waited_for_a_while_only(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.inject()
    answers = threading.Event()
    monkeypatch.setattr(agent.machine, "by_hand", lambda step: str(answers.wait(30)))
    monkeypatch.setattr(hands, "BY_HAND_S", 0.1)
    began_s = time.monotonic()
    typed = run_in_lanes(agent.performer.performer.by_hand(1))
    answers.set()
    assert time.monotonic() - began_s < 20
    assert len(typed) == 3
    assert all(line.startswith("# what to type is not found within 0.1 s; look what it left") for line in typed)


@pytest.mark.parametrize(
    ("field", "value"), [("state", "exploded"), ("outcome", "weird"), ("texts", 7), ("warnings", 7)]
)
def test_what_a_newer_agent_wrote_of_a_worker_does_not_keep_it_from_being_undone(
    agent: Agent, field: str, value: object
) -> None:
    agent.inject()
    was = msgspec.json.decode(agent.disk.read("worker-1.json"))
    agent.disk.create("worker-1.json", msgspec.json.encode({**was, field: value, "news": 1}))
    agent.start()
    assert agent.journal.broken == ()
    (entry,) = agent.journal.live()
    assert any(field in line and "a newer agent has written it" in line for line in entry.warnings)
    agent.performer.recover()
    assert agent.machine.effects == FOREIGN
    assert agent.on_disk().state is JournalState.UNDONE
