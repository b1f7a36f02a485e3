"""Addresses that peers announce while a block runs, by the performer: written down, then blocked, once."""

from __future__ import annotations

import pytest

from tests.agents.model import FOREIGN
from tests.agents.simdisk import CrashPoints
from tests.agents.test_perform import Agent
from trogdor_bus.actions import Peer
from trogdor_bus.agents.events import ReadBack
from trogdor_bus.agents.journal import JournalState
from trogdor_bus.agents.perform import MAX_STEPS
from trogdor_bus.errors import HostError
from trogdor_bus.states import Outcome


@pytest.fixture
def agent() -> Agent:
    return Agent()


NEWS, MORE = Peer("n2", ("10.90.0.2",)), Peer("n2", ("10.90.0.2", "fd00::2"))


def test_drift_is_blocked_once_by_a_step_that_is_on_disk_before_it_is_done(agent: Agent) -> None:
    agent.inject()
    points = agent.machine.points = agent.disk.points = CrashPoints()
    assert agent.performer.reapply(1, (NEWS,)) == ReadBack()
    assert points.passed.index("after sync_directory .") < points.passed.index("before do rule-1-10.90.0.2")
    assert agent.performer.reapply(1, (MORE,)) == ReadBack()
    agent.performer.reapply(1, (NEWS,))
    added = [step.do["effect"] for step in agent.on_disk().steps][3:]
    assert added == ["rule-1-10.90.0.2", "rule-1-fd00::2"]
    assert agent.on_disk().state is JournalState.APPLIED and set(added) <= agent.machine.effects
    agent.start()
    agent.performer.recover()
    assert agent.machine.effects == FOREIGN


def test_drift_that_could_not_be_blocked_is_done_again_as_a_step_and_undone_as_one(agent: Agent) -> None:
    agent.inject()
    agent.machine.failures["do"] = [HostError("not now")]
    with pytest.raises(HostError, match="not now"):
        agent.performer.reapply(1, (NEWS,))
    agent.machine.effects.discard("rule-1-10.90.0.2")
    assert agent.performer.reapply(1, (NEWS,)) == ReadBack()
    assert len(agent.on_disk().steps) == 4 and "rule-1-10.90.0.2" in agent.machine.effects
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.machine.effects == FOREIGN


def test_drift_that_cannot_be_written_down_is_not_blocked(agent: Agent) -> None:
    agent.inject()
    agent.disk.full = True
    with pytest.raises(HostError, match="No space left"):
        agent.performer.reapply(1, (NEWS,))
    assert "rule-1-10.90.0.2" not in agent.machine.effects
    agent.disk.full = False
    assert agent.performer.reapply(1, (NEWS,)) == ReadBack()


def test_drift_of_which_something_is_left_out_is_not_called_blocked(agent: Agent) -> None:
    agent.inject()
    agent.machine.warnings = ("10.90.0.2 of n2 is left out: this node has it itself",)
    with pytest.raises(HostError, match="this node has it itself"):
        agent.performer.reapply(1, (NEWS,))


def test_drift_is_blocked_though_something_else_cannot_be_put_back(agent: Agent) -> None:
    agent.inject()
    agent.machine.effects.discard("rule-1")
    agent.machine.failures["do"] = [HostError("not now")]
    with pytest.raises(HostError, match="not now"):
        agent.performer.reapply(1, (NEWS,))
    assert "rule-1-10.90.0.2" in agent.machine.effects


def test_drift_without_end_ends(agent: Agent) -> None:
    agent.inject()
    with pytest.raises(HostError, match="addresses change so often"):
        for number in range(MAX_STEPS):
            agent.performer.reapply(1, (Peer("n2", (f"10.90.0.{number}",)),))
    assert len(agent.on_disk().steps) == MAX_STEPS
