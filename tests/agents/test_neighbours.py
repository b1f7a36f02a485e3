"""What an agent makes of what is beside it: another agent of its name, epochs of nobody, chains of nobody."""

from __future__ import annotations

import logging

import pytest

from tests.agents.driver import Agent, order
from trogdor_bus.agents.events import Inject, StraysSeen
from trogdor_bus.agents.machine import REFUSED_MS
from trogdor_bus.agents.neighbours import Refusal
from trogdor_bus.messages import MAX_EPOCH, Echo, Stamp

STRAY = "chain TB-0123456789abcdef in iptables cuts traffic and is in no journal that can be read; by hand: ..."


def test_an_agent_that_is_refused_knows_by_whom_and_does_nothing() -> None:
    agent = Agent()
    assert agent.machine.refused_by(agent.now) == ""
    effects = agent.hear(order(journal="j0"), echo=Echo("j0", 7), refused=("j1", "j2"))
    assert (effects, agent.machine.refused_by(agent.now), agent.machine.stamp) == ([], "j0", None)
    agent.hear(echo=Echo("j0", 8), refused=("j2",))
    assert agent.machine.refused_by(agent.now + REFUSED_MS) == "j0"
    assert agent.machine.refused_by(agent.now + REFUSED_MS + 1) == "", "nobody tells so any more"
    agent.hear()
    assert agent.machine.refused_by(agent.now) == "", "it is heard itself"
    agent.hear(refused=("j2",))
    assert agent.machine.refused_by(agent.now) == "", "it is another one that is refused"


def test_that_it_is_refused_is_said_once_and_when_it_is_to_be_said_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refusal = Refusal("n1", "journal-of-this")
    for heard in ("", "other", "other", "", "other"):
        refusal.heed(heard)
    assert len(caplog.records) == 2
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.messages[0].startswith("refused: another agent named n1 (journal other) is alive")
    refusal.heed("other", again=True)
    assert len(caplog.records) == 3


@pytest.mark.parametrize("epoch", [MAX_EPOCH + 1, 2**62, -1])
def test_an_epoch_of_nobody_is_not_obeyed(epoch: int) -> None:
    agent = Agent()
    assert agent.hear(order(), stamp=Stamp(epoch, "liar", 1)) == []
    assert agent.machine.stamp is None
    assert agent.hear(order(), stamp=Stamp(1, "c1", 1))


def test_chains_of_nobody_make_a_node_dirty_until_they_are_gone() -> None:
    agent = Agent()
    agent.give(StraysSeen((STRAY,)))
    assert agent.beats[-1].strays == (STRAY,), "told at once"
    agent.hear(order(1))
    assert "dirty, chain TB-0123456789abcdef" in agent.worker(1).error
    assert any(isinstance(effect, Inject) for effect in agent.hear(order(2, force=True)))
    agent.give(StraysSeen(()))
    assert agent.beats[-1].strays == ()
    assert any(isinstance(effect, Inject) for effect in agent.hear(order(2, force=True), order(3)))
