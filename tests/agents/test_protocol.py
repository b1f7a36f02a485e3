"""The agent's half of the protocol: stamps, freshness, once, ends and leases."""

from __future__ import annotations

import pytest

from tests.agents.driver import TEXTS, Agent, order
from trogdor_bus.agents.events import (
    Forget,
    Heal,
    Healed,
    Inject,
    Injected,
    NotHealed,
    NotInjected,
    SnapshotHeard,
)
from trogdor_bus.agents.machine import (
    FRESH_MS,
)
from trogdor_bus.agents.worker import Worker
from trogdor_bus.messages import Echo, Snapshot, Stamp
from trogdor_bus.states import Outcome, WorkerState

# --- stamps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamp", "obeyed"),
    [
        (Stamp(2, "c2", 5), True),
        (Stamp(2, "c2", 6), True),
        (Stamp(3, "c3", 0), True),
        (Stamp(2, "c2", 4), False),
        (Stamp(1, "c1", 99), False),
        (Stamp(2, "c9", 99), False),
    ],
    ids=["same", "later", "next epoch", "older", "older epoch", "other coordinator"],
)
def test_an_old_word_is_ignored(stamp: Stamp, obeyed: bool) -> None:
    agent = Agent()
    agent.run(1, task="t1")
    agent.hear(order(1), stamp=Stamp(2, "c2", 5))
    effects = agent.hear(order(2), stamp=stamp)
    assert (agent.worker(1).state is WorkerState.STOPPING) is obeyed
    assert any(isinstance(effect, Inject) for effect in effects) is obeyed
    assert agent.machine.stamp == (stamp if obeyed else Stamp(2, "c2", 5))


def test_two_coordinators_of_one_epoch_are_a_clash_that_is_reported() -> None:
    agent = Agent()
    agent.run()
    other = Stamp(1, "c9", 50)
    assert agent.hear(stamp=other) == []
    assert agent.worker().state is WorkerState.RUNNING
    last = agent.beats[-1]
    assert last.clash == other
    assert last.stamp == Stamp(1, "c1", 1)


def test_a_snapshot_for_another_node_or_another_agent_of_our_name_is_not_ours() -> None:
    agent = Agent()
    agent.run()
    beats = len(agent.beats)
    snapshot = Snapshot(node="n2", stamp=Stamp(9, "c9", 9), echo=Echo("j1", agent.beats[-1].counter))
    assert agent.give(SnapshotHeard(snapshot)) == []
    assert agent.hear(order(2), echo=Echo("j9", agent.beats[-1].counter)) == []
    assert agent.worker().state is WorkerState.RUNNING
    assert (agent.machine.stamp, len(agent.beats)) == (Stamp(1, "c1", 1), beats)


def test_a_doubled_snapshot_is_harmless() -> None:
    agent = Agent()
    echo = Echo("j1", agent.beats[-1].counter)
    assert len(agent.hear(order(), stamp=Stamp(1, "c1", 1), echo=echo)) == 1
    beats = len(agent.beats)
    assert agent.hear(order(), stamp=Stamp(1, "c1", 1), echo=echo) == []
    agent.give(Injected(1))
    assert agent.hear(order(), stamp=Stamp(1, "c1", 1), echo=echo) == []
    assert len(agent.beats) == beats + 1


# --- freshness, once, the end -----------------------------------------------------------------------------------------


def test_a_word_that_answers_an_old_beat_starts_nothing_but_stops() -> None:
    agent = Agent()
    agent.run(1)
    old = Echo("j1", agent.beats[-1].counter)
    agent.pass_(FRESH_MS)
    assert agent.hear(order(2), echo=old) == [Heal(1, Outcome.DONE, "", agent.now - agent.worker().since_ms)]
    assert 2 not in agent.machine.workers
    assert isinstance(agent.hear(order(2))[0], Inject)


@pytest.mark.parametrize("age_ms", [0, FRESH_MS - 1, FRESH_MS, FRESH_MS + 1])
def test_five_seconds_are_the_limit(age_ms: int) -> None:
    agent = Agent()
    echo = Echo("j1", agent.beats[-1].counter)
    agent.now += age_ms
    assert bool(agent.hear(order(), echo=echo)) is (age_ms < FRESH_MS)


@pytest.mark.parametrize("echo", [Echo("j1", 7), Echo("j1", 2**40)], ids=["of an earlier life", "never sent"])
def test_only_a_beat_of_this_life_counts(echo: Echo) -> None:
    agent = Agent()
    assert agent.hear(order(), echo=echo) == []
    assert agent.machine.workers == {}


def test_the_end_is_counted_from_the_echoed_beat() -> None:
    agent = Agent()
    echo = Echo("j1", agent.beats[-1].counter)
    sent = agent.now
    agent.pass_(4_000)
    effect = agent.hear(order(remaining_ms=7_000), echo=echo)[0]
    assert isinstance(effect, Inject)
    assert effect.ends_ms == sent + 7_000


def test_a_later_word_does_not_move_the_end() -> None:
    agent = Agent()
    ends = agent.run(remaining_ms=7_000).ends_ms
    agent.hear(order(remaining_ms=70_000))
    assert agent.worker().ends_ms == ends


def test_an_order_whose_end_has_passed_has_expired() -> None:
    agent = Agent()
    assert agent.hear(order(remaining_ms=0)) == []
    report = agent.report()
    assert (report.state, report.outcome, report.error) == (WorkerState.DONE, Outcome.EXPIRED, "worker expired")


def test_an_order_for_another_journal_is_not_performed() -> None:
    agent = Agent()
    assert agent.hear(order(journal="j9")) == []
    assert agent.machine.workers == {}


def test_an_order_without_actions_keeps_but_never_starts() -> None:
    agent = Agent()
    assert agent.hear(order(actions=None)) == []
    assert agent.machine.workers == {}
    agent.run(2)
    assert agent.hear(order(2, actions=None)) == []
    assert agent.worker(2).state is WorkerState.RUNNING


def test_a_worker_that_ended_is_not_performed_again() -> None:
    agent = Agent()
    agent.hear(order())
    agent.give(NotInjected(1, "no such device"))
    assert agent.hear(order()) == []
    done = Worker(id=1, task="t1", state=WorkerState.DONE, texts=TEXTS, ends_ms=200_000, outcome=Outcome.RESTARTED)
    again = Agent(done)
    assert again.hear(order()) == []
    assert again.report().outcome is Outcome.RESTARTED


def test_done_is_forgotten_only_after_the_coordinator_heard_it() -> None:
    agent = Agent()
    agent.run()
    before = Echo("j1", agent.beats[-1].counter)
    agent.hear()
    agent.give(Healed(1))
    heard = Echo("j1", agent.beats[-1].counter)
    assert agent.hear(echo=before) == [], "it answers a beat from before the end"
    assert agent.hear(order(), echo=heard) == [], "it is still wanted"
    agent.pass_(FRESH_MS)
    assert agent.hear(echo=heard) == [], "the word is stale"
    assert agent.hear() == []
    assert agent.beats[-1].reports == ()


def test_what_was_forgotten_before_its_end_is_told_to_an_older_store_that_asks_and_never_done_again() -> None:
    agent = Agent()
    agent.run()
    agent.hear()
    agent.give(Healed(1))
    agent.hear()
    assert agent.beats[-1].reports == ()
    assert agent.hear(order()) == []
    assert (agent.report().state, agent.report().outcome) == (WorkerState.DONE, Outcome.DONE)
    agent.hear()
    assert Forget(1) in agent.pass_(11_000)


def test_an_end_is_never_later_than_the_duration_whatever_the_coordinators_clock_did() -> None:
    agent = Agent()
    agent.run(remaining_ms=3_600_000, duration_ms=10_000)
    assert Heal(1, Outcome.DONE, "", 10_000) in agent.pass_(10_000)


# --- leases and limits ------------------------------------------------------------------------------------------------


def test_a_fresh_word_renews_the_lease_and_a_stale_one_does_not() -> None:
    agent = Agent(lease_ms=6_000)
    agent.run(remaining_ms=60_000)
    old = Echo("j1", agent.beats[-1].counter)
    agent.pass_(5_500)
    agent.hear(order())
    agent.pass_(5_999)
    agent.hear(order(), echo=old)
    assert agent.worker().state is WorkerState.RUNNING
    effects = agent.pass_(1)
    error = "lease expired: no fresh word from the coordinator for 6000 ms"
    assert error in [one.error for one in effects if isinstance(one, Heal)]


def test_a_worker_that_is_starting_loses_its_lease_too() -> None:
    agent = Agent(lease_ms=6_000)
    agent.hear(order(remaining_ms=60_000))
    agent.pass_(6_000)
    assert agent.worker().state is WorkerState.CANCELLING
    agent.give(Injected(1))
    agent.give(Healed(1))
    assert agent.report().outcome is Outcome.LEASE


def test_without_a_lease_only_the_end_counts() -> None:
    agent = Agent(lease_ms=None)
    agent.run(remaining_ms=3_600_000)
    healed = [effect for effect in agent.pass_(3_599_999) if isinstance(effect, Heal)]
    assert healed == []
    assert [one.outcome for one in agent.pass_(1) if isinstance(one, Heal)] == [Outcome.DONE]


def test_a_duration_above_the_ceiling_is_refused() -> None:
    agent = Agent(ceiling_ms=9_999)
    assert agent.hear(order(duration_ms=10_000)) == []
    report = agent.report()
    assert (report.state, report.outcome) == (WorkerState.DONE, Outcome.FAILED)
    assert report.error.startswith("durationMs 10000 is above this agent's ceiling of 9999 ms; shorten it, or")
    assert agent.hear(order(2, duration_ms=9_999)) != []


def test_a_dirty_node_refuses_unless_forced() -> None:
    agent = Agent()
    agent.run()
    agent.hear()
    agent.give(NotHealed(1, "device busy"))
    assert agent.hear(order(2)) == []
    report = agent.report(2)
    assert (report.outcome, report.state) == (Outcome.FAILED, WorkerState.DONE)
    assert report.error == "node n1 is dirty, the undo of task t1 is stuck; heal it, or submit with ‹force›"
    assert agent.hear(order(3, force=True)) != []
