"""What an agent's machine makes of addresses that peers announce while a fault runs, and of a target that is gone."""

from __future__ import annotations

from tests.agents.driver import Agent, order
from trogdor_bus.actions import Peer
from trogdor_bus.agents.events import AddressesRead, Injected, Looked, ReadBack, Reapplied, Reapply
from trogdor_bus.agents.machine import FRESH_MS
from trogdor_bus.messages import Beat, Echo, decode, encode
from trogdor_bus.states import Disturbance

NEWS = (Peer("node2", ("10.90.0.2",)),)
SAID = "node2 announces 10.90.0.2, which no rule names"


def test_what_a_peer_announces_since_disturbs_and_is_blocked_only_if_the_order_says_so() -> None:
    agent = Agent()
    agent.hear(order(1), order(2, reapply=True))
    agent.give(Injected(1))
    agent.give(Injected(2))
    agent.now += 300
    told = [order(1, actions=None, drift=NEWS), order(2, actions=None, drift=NEWS)]
    for _ in range(2):
        agent.hear(*told)
        assert agent.report(1).disturbed == agent.report(2).disturbed == (Disturbance(300, SAID),)
    assert agent.give(Looked({1: ReadBack(), 2: ReadBack()})) == [Reapply(2, NEWS)]
    agent.give(Reapplied(2, "no iptables"))
    assert (agent.report(2).disturbed[0].text, agent.report(2).disturbed[0].mended) == (SAID, False)
    agent.hear(order(1, actions=None), order(2, actions=None))
    assert agent.give(Looked({2: ReadBack()})) == [Reapply(2, NEWS)], (
        "a coordinator that starts anew does not know it yet"
    )
    agent.give(Reapplied(2, blocked=NEWS))
    assert all(one.mended for one in agent.report(2).disturbed)
    agent.hear(*told)
    assert agent.give(Looked({2: ReadBack()})) == []
    assert [one.mended for one in agent.report(2).disturbed] == [True, True]
    assert agent.report(1).disturbed == (Disturbance(300, SAID),)


def test_what_is_announced_while_something_else_is_put_back_stays_open() -> None:
    agent = Agent()
    agent.run(reapply=True)
    assert agent.give(Looked({1: ReadBack(("no jump",))})) == [Reapply(1)]
    agent.hear(order(1, actions=None, drift=NEWS))
    agent.give(Reapplied(1))
    assert [(one.text, one.mended) for one in agent.report().disturbed] == [("no jump", True), (SAID, False)]


def test_an_old_word_adds_no_rule() -> None:
    agent = Agent()
    agent.run(reapply=True)
    old = Echo("j1", agent.beats[-1].counter)
    agent.now += FRESH_MS
    agent.hear(order(1, actions=None, drift=NEWS), echo=old)
    assert agent.report().disturbed == ()


def test_what_is_not_there_any_more_is_told_at_once_and_announced_no_more() -> None:
    agent = Agent()
    agent.give(AddressesRead(("10.0.0.1",), broker=1))
    agent.give(AddressesRead((), broker=1, trouble="process 7 has ended"))
    beat = decode(encode(agent.beats[-1]), Beat)
    assert (beat.addresses, beat.broker, beat.trouble) == ((), 1, "process 7 has ended")
