"""The agent's worker table: every move through `handle`, every other refused, and what it does and says."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from tests.agents.driver import TEXTS, Agent, order
from trogdor_bus.agents.events import (
    AddressesRead,
    EndRequested,
    Event,
    Exit,
    Forget,
    Heal,
    Healed,
    Inject,
    Injected,
    KeepLatch,
    LatchKept,
    Look,
    Looked,
    NotHealed,
    NotInjected,
    NotYet,
    ReadBack,
    SendBeat,
    Ticked,
)
from trogdor_bus.agents.machine import (
    ABORTED,
    FRESH_MS,
    LONELY_BEAT_MS,
    SOON_MS,
    STUCK_RETRY_MS,
    AgentMachine,
)
from trogdor_bus.agents.moves import TABLE, Move
from trogdor_bus.agents.worker import Worker
from trogdor_bus.errors import InvalidTransitionError
from trogdor_bus.messages import Beat, Echo, Snapshot, Stamp, decode, encode
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.states import Outcome, WorkerState

STATES = [state for state in WorkerState if state is not WorkerState.RECEIVING]
MOVES: tuple[Move, ...] = (
    "stop",
    "ended",
    "injected",
    "not-injected",
    "half-injected",
    "healed",
    "not-healed",
    "not-yet",
    "forget",
)
EVENTS: dict[Move, Event] = {
    "injected": Injected(1),
    "not-injected": NotInjected(1, "no such device"),
    "half-injected": NotInjected(1, "no such device", ("a rule",), stuck=True),
    "healed": Healed(1),
    "not-healed": NotHealed(1, "device busy", ("a rule",)),
    "not-yet": NotYet(1, "the service is stopping"),
}


def in_state(state: WorkerState) -> Agent:
    outcome = Outcome.DONE if state is WorkerState.DONE else Outcome.NONE
    worker = Worker(id=1, task="t1", state=state, texts=TEXTS, ends_ms=200_000, outcome=outcome, retry_ms=200_000)
    return Agent(worker)


def everything(machine: AgentMachine) -> dict[str, Any]:
    """Return all that a machine knows, as plain data."""
    known = {name: repr(value) for name, value in vars(machine).items()}
    return {**known, "deadline": machine.deadline()}


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "move"), TABLE)
def test_every_move_of_the_table_happens(state: WorkerState, move: Move) -> None:
    agent = in_state(state)
    if move in EVENTS:
        agent.give(EVENTS[move])
    elif move == "ended":
        agent.give(Looked({1: ReadBack(ended="it failed")}))
    else:
        agent.hear()
    if move == "stop" and state is WorkerState.DONE:
        assert 1 not in agent.machine.workers, "a stop and a fresh word: it may be forgotten as well"
    elif TABLE[state, move] == "GONE":
        assert agent.machine.workers == {}
    else:
        assert agent.worker().state is TABLE[state, move]
    assert (state, move) in agent.machine.taken


@pytest.mark.parametrize(("state", "move"), [pair for pair in itertools.product(STATES, EVENTS) if pair not in TABLE])
def test_every_other_move_is_refused_and_changes_nothing(state: WorkerState, move: Move) -> None:
    agent = in_state(state)
    before = everything(agent.machine)
    with pytest.raises(InvalidTransitionError, match=rf"worker 1: {move} is not allowed in state {state}"):
        agent.machine.handle(EVENTS[move], agent.now)
    assert everything(agent.machine) == before


@pytest.mark.parametrize("state", [state for state in STATES if (state, "forget") not in TABLE])
def test_only_what_is_done_is_forgotten(state: WorkerState) -> None:
    agent = in_state(state)
    assert Forget(1) not in agent.hear()
    assert 1 in agent.machine.workers


@pytest.mark.parametrize("move", EVENTS)
def test_news_of_an_unknown_worker_is_refused(move: Move) -> None:
    agent = Agent()
    before = everything(agent.machine)
    with pytest.raises(InvalidTransitionError, match=r"worker 1: .* is not allowed in state unknown"):
        agent.machine.handle(EVENTS[move], agent.now)
    assert everything(agent.machine) == before


def test_an_illegal_event_tells_the_story_of_its_worker() -> None:
    agent = Agent()
    agent.run()
    with pytest.raises(InvalidTransitionError) as raised:
        agent.give(Healed(1))
    assert [line.split(": ", 1)[1] for line in raised.value.story] == [
        "ordered by Stamp(epoch=1, coordinator='c1', revision=1), ends 110000",
        "injected: STARTING -> RUNNING",
    ]


def test_the_table_has_every_state_and_move() -> None:
    assert {state for state, _ in TABLE} == set(STATES)
    assert {move for _, move in TABLE} == set(MOVES)


# --- a worker's life --------------------------------------------------------------------------------------------------


def test_a_worker_from_order_to_forgetting() -> None:
    agent = Agent()
    coordinator = ProcessIdentity("boot", 42, 7)
    asked = order(spec=msgspec.Raw(b'{"class":"x"}'))
    assert agent.hear(asked, coordinator=coordinator) == [Inject(asked, 110_000, coordinator)]
    assert agent.beats[-1].reports == (), "most injections are over before anybody could read of them"
    agent.pass_(SOON_MS)
    assert (agent.report().state, agent.report().status) == (WorkerState.STARTING, "starting it")
    assert agent.give(Injected(1, ("mind the gap",))) == []
    report = agent.report()
    assert (report.state, report.status, report.warnings) == (WorkerState.RUNNING, "it runs", ("mind the gap",))
    assert (report.task, report.remaining_ms, report.outcome) == ("t1", 10_000 - SOON_MS, Outcome.NONE)
    agent.hear(order())
    effects = agent.pass_(10_000)
    assert Heal(1, Outcome.DONE, "", 10_000 - SOON_MS) in effects
    assert (agent.report().state, agent.report().status) == (WorkerState.STOPPING, "stopping it")
    assert agent.give(Healed(1, ("gone: pid 7",))) == []
    report = agent.report()
    assert (report.state, report.status, report.outcome) == (WorkerState.DONE, "it is over", Outcome.DONE)
    assert (report.warnings, report.error, report.remaining_ms) == (("mind the gap", "gone: pid 7"), "", 0)
    assert agent.hear() == []
    assert agent.beats[-1].reports == ()
    assert agent.after(1_000) == [Forget(1)]


def test_a_failed_injection_is_reported() -> None:
    agent = Agent()
    agent.hear(order())
    assert agent.give(NotInjected(1, "no such device")) == []
    report = agent.report()
    assert (report.state, report.outcome, report.error) == (WorkerState.DONE, Outcome.FAILED, "no such device")
    assert report.status == "no such device"


def test_a_stop_while_it_starts_is_kept_until_it_has_started() -> None:
    agent = Agent()
    agent.hear(order())
    assert agent.hear() == []
    assert agent.worker().state is WorkerState.CANCELLING
    assert agent.give(Injected(1, ("mind",))) == [Heal(1, Outcome.DONE, "")]
    assert agent.worker().state is WorkerState.STOPPING
    agent.give(Healed(1))
    assert (agent.report().outcome, agent.report().warnings) == (Outcome.DONE, ("mind",))


def test_the_first_reason_to_stop_counts() -> None:
    agent = Agent(lease_ms=3_000)
    agent.run()
    error = "lease expired: no fresh word from the coordinator for 3000 ms"
    assert Heal(1, Outcome.LEASE, error, 3_000) in agent.pass_(3_000)
    assert agent.hear() == []
    assert agent.pass_(20_000) == []
    assert agent.give(EndRequested()) == []
    agent.give(Healed(1))
    assert agent.report().outcome is Outcome.LEASE


def test_an_end_that_is_noticed_late_was_due_when_it_was_due_and_a_stop_now() -> None:
    agent = Agent()
    agent.run(1, remaining_ms=10_000)
    ends = agent.now + 10_000
    agent.after(13_000)
    assert agent.due[1] == ends
    agent.run(2, remaining_ms=10_000)
    agent.after(100)
    agent.hear()
    assert agent.due[2] == agent.now


def test_a_stop_that_comes_twice_undoes_once() -> None:
    agent = Agent()
    agent.run()
    assert agent.hear() == [Heal(1, Outcome.DONE, "")]
    assert agent.hear() == []


def test_a_stuck_undo_is_loud_and_tried_again_one_at_a_time() -> None:
    agent = Agent()
    agent.run()
    agent.hear()
    agent.give(NotHealed(1, "device busy", ("a rule",)))
    report = agent.report()
    assert (report.state, report.outcome, report.error) == (WorkerState.STUCK, Outcome.FAILED, "device busy")
    assert (report.residue, report.status) == (("a rule",), "stopping it")
    assert agent.pass_(STUCK_RETRY_MS - 1) == []
    assert agent.pass_(1) == [Heal(1, Outcome.FAILED, "device busy")]
    assert agent.pass_(10 * STUCK_RETRY_MS) == [], "a second undo while the first is under way"
    agent.give(NotHealed(1, "device busy", ("a rule",)))
    assert agent.pass_(STUCK_RETRY_MS) == [Heal(1, Outcome.FAILED, "device busy")]
    agent.give(Healed(1))
    report = agent.report()
    assert (report.state, report.outcome, report.residue) == (WorkerState.DONE, Outcome.FAILED, ())


def test_a_worker_of_an_earlier_life_that_is_stuck_is_tried_at_once() -> None:
    stuck = Worker(id=1, task="t1", state=WorkerState.STUCK, texts=TEXTS, ends_ms=5, outcome=Outcome.RESTARTED)
    agent = Agent()
    agent.machine.workers[1] = stuck
    assert agent.machine.deadline() <= agent.now
    assert agent.give(Ticked()) == [Heal(1, Outcome.RESTARTED, "")]


# --- looking ----------------------------------------------------------------------------------------------------------


def test_running_workers_are_looked_at_each_beat_but_never_twice_at_once() -> None:
    agent = Agent()
    agent.run()
    assert agent.pass_(1_000) == [Look((1,))]
    assert agent.pass_(3_000) == []
    agent.give(Looked({1: ReadBack()}))
    assert agent.pass_(1_000) == [Look((1,))]


# --- aborts -----------------------------------------------------------------------------------------------------------


def test_a_latch_ends_everything_and_is_told_once_it_is_kept() -> None:
    agent = Agent()
    agent.run()
    effects = agent.hear(order(), abort="L1")
    assert effects == [KeepLatch("L1"), Heal(1, Outcome.ABORTED, ABORTED)]
    assert agent.beats[-1].latch == ""
    agent.give(LatchKept("L1"))
    assert agent.beats[-1].latch == "L1"
    agent.give(Healed(1))
    assert (agent.report().outcome, agent.report().error) == (Outcome.ABORTED, ABORTED)
    assert agent.hear(abort="L1") == []  # the same latch is not written down again


def test_a_latch_is_heeded_without_a_fresh_word_and_dropped_only_with_one() -> None:
    agent = Agent()
    agent.run()
    stale = Echo("j1", 1)
    agent.pass_(FRESH_MS + 1)
    assert agent.hear(order(), abort="L1", echo=stale) == [
        KeepLatch("L1"),
        Heal(1, Outcome.ABORTED, ABORTED, FRESH_MS + 1),
    ]
    agent.give(LatchKept("L1"))
    agent.give(Healed(1))
    assert agent.hear(resume="L1", echo=stale) == []
    assert KeepLatch("") in agent.hear(resume="L1")
    assert agent.beats[-1].latch == "L1"
    agent.give(LatchKept(""))
    assert agent.beats[-1].latch == ""


def test_of_a_coordinator_that_has_not_heard_us_only_an_abort_is_heeded() -> None:
    agent = Agent()
    agent.run()
    stamp, nothing = agent.machine.stamp, Snapshot(node="n1", stamp=Stamp(7, "another", 1))
    assert agent.take(nothing) == []
    assert (agent.worker().state, agent.machine.stamp) == (WorkerState.RUNNING, stamp)
    aborted = agent.take(msgspec.structs.replace(nothing, abort="L1"))
    assert KeepLatch("L1") in aborted and agent.worker().state is WorkerState.STOPPING


def test_under_a_latch_nothing_starts_not_even_by_force_or_another_coordinator() -> None:
    agent = Agent(latch="L1")
    assert agent.beats[-1].latch == "L1"
    agent.hear(order(force=True))
    assert (agent.worker().state, agent.report().outcome) == (WorkerState.DONE, Outcome.FAILED)
    assert "resume" in agent.report().error
    agent.hear(order(2), stamp=Stamp(9, "c9", 1), resume="L0")
    assert agent.worker(2).state is WorkerState.DONE
    effects = agent.hear(order(3), stamp=Stamp(9, "c9", 2), resume="L1")
    assert [type(effect) for effect in effects] == [KeepLatch, Inject]


def test_a_new_latch_takes_the_place_of_the_old_one() -> None:
    agent = Agent(latch="L1")
    assert agent.hear(abort="L2") == [KeepLatch("L2")]
    assert agent.hear(resume="L1") == []
    assert agent.hear(resume="L2") == [KeepLatch("")]


def test_a_stuck_undo_is_told_with_what_a_person_would_type() -> None:
    agent = Agent()
    agent.run()
    agent.hear()
    agent.give(NotHealed(1, "no iptables", ("a chain",), ("iptables -F",)))
    assert agent.report().by_hand == ("iptables -F",)
    agent.after(STUCK_RETRY_MS)
    agent.give(Healed(1))
    assert agent.report().by_hand == ()


# --- beats ------------------------------------------------------------------------------------------------------------


def test_beats_come_fast_until_somebody_answers() -> None:
    agent = Agent(beat_ms=1_000)
    assert agent.machine.lonely(agent.now)
    agent.pass_(1_000)
    assert len(agent.beats) == 1 + 1_000 // LONELY_BEAT_MS
    agent.hear()
    assert not agent.machine.lonely(agent.now)
    before = len(agent.beats)
    agent.pass_(3_000)
    assert len(agent.beats) - before == 3
    agent.pass_(1_000)
    assert agent.machine.lonely(agent.now)


def test_every_change_is_told_at_once_and_counters_only_grow() -> None:
    agent = Agent()
    agent.give(AddressesRead(("10.0.0.1", "fd00::1")))
    assert agent.beats[-1].addresses == ("10.0.0.1", "fd00::1")
    agent.give(AddressesRead(("10.0.0.1", "fd00::1")))
    assert len(agent.beats) == 2
    agent.give(AddressesRead(("10.0.0.1", "fd00::1"), 7))
    assert (agent.beats[-1].broker, agent.beats[-1].attached) == (7, False)
    agent.run()
    counters = [beat.counter for beat in agent.beats]
    assert counters == sorted(set(counters))
    assert all(3 << 32 < counter < 4 << 32 for counter in counters), "a later life counts on above this one"


def test_a_worker_describes_itself_when_asked() -> None:
    agent = Agent()
    agent.run(spec=msgspec.Raw(b'{"class":"x"}'))
    agent.hear(order(), describe=True)
    assert bytes(agent.report().spec or b"") == b'{"class":"x"}'
    agent.hear(order())
    agent.pass_(1_000)
    assert agent.report() == decode(encode(agent.beats[-1]), Beat).reports[0]
    assert bytes(agent.report().spec or b"null") == b"null"


def test_a_beat_that_describes_can_be_read() -> None:
    agent = Agent()
    agent.run(spec=msgspec.Raw(b'{"class":"x"}'))
    agent.hear(order(), describe=True)
    read: Beat = decode(encode(agent.beats[-1]), Beat)
    assert bytes(read.reports[0].spec or b"") == b'{"class":"x"}'


# --- the end ----------------------------------------------------------------------------------------------------------


def test_an_agent_that_is_told_to_end_undoes_reports_and_exits() -> None:
    agent = Agent()
    agent.run(1)
    agent.hear(order(1), order(2))
    effects = agent.give(EndRequested())
    assert effects == [Heal(1, Outcome.RESTARTED, "agent stopped, fault undone")]
    assert not agent.beats[-1].leaving
    assert agent.give(Injected(2)) == [Heal(2, Outcome.RESTARTED, "agent stopped, fault undone")]
    assert agent.give(Healed(1)) == []
    assert agent.hear(order(1), order(3)) == [], "nothing starts any more"
    assert agent.give(Healed(2)) == [Exit()]
    assert agent.beats[-1].leaving
    ended = [(report.state, report.outcome) for report in agent.beats[-1].reports]
    assert ended == [(WorkerState.DONE, Outcome.RESTARTED)] * 2
    assert Exit() not in agent.after(1_000)


def test_an_idle_agent_ends_at_once_and_a_stuck_worker_does_not_hold_it() -> None:
    idle = Agent()
    assert idle.give(EndRequested()) == [Exit()]
    assert idle.beats[-1].leaving
    agent = Agent()
    agent.run()
    agent.hear()
    agent.give(NotHealed(1, "device busy"))
    assert agent.give(EndRequested()) == [Exit()]
    assert agent.report().state is WorkerState.STUCK


def test_a_life_that_is_not_on_disk_counts_on_from_what_it_may_have_sent() -> None:
    """Its number may be that of the life before: who counts from the beginning again is taken for an old frame."""
    effects = AgentMachine("n1", "j1", 3, now_ms=5, counted=70).handle(Ticked(), 5)
    assert [effect.beat.counter for effect in effects if isinstance(effect, SendBeat)] == [(3 << 32) + 71]
