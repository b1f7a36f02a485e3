"""The agent's worker table: every move through `handle`, every other refused, and what it does and says."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from tests.agents.driver import TEXTS, Agent, order
from trogdor_bus.actions import Peer
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
    Reapplied,
    Reapply,
    SendBeat,
    Ticked,
)
from trogdor_bus.agents.machine import (
    ABORTED,
    FRESH_MS,
    LONELY_BEAT_MS,
    SOON_MS,
    STUCK_RETRY_MS,
    TABLE,
    AgentMachine,
    Move,
)
from trogdor_bus.agents.worker import UNMET, Worker
from trogdor_bus.errors import InvalidTransitionError
from trogdor_bus.messages import Beat, Echo, Stamp, decode, encode
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.states import Disturbance, Outcome, WorkerState

STATES = [state for state in WorkerState if state is not WorkerState.RECEIVING]
MOVES: tuple[Move, ...] = (
    "stop",
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


def looked(*found: str, worker: int = 1, unseen: tuple[str, ...] = (), dropped: int | None = None) -> Looked:
    return Looked({worker: ReadBack(found, unseen, dropped)})


def test_what_disturbs_a_worker_is_reported_once() -> None:
    agent = Agent()
    agent.run()
    agent.give(Looked({1: ReadBack(("jump is not first",)), 7: ReadBack(("nobody's",))}))
    assert agent.report().disturbed == (Disturbance(0, "jump is not first"),)
    agent.pass_(300)
    beats = len(agent.beats)
    agent.give(looked("jump is not first"))
    assert len(agent.beats) == beats
    for number in range(20):
        agent.give(looked(f"thing {number}"))
    assert len(agent.report().disturbed) == 10
    assert {one.after_ms for one in agent.report().disturbed} == {0, 300}
    agent.hear()
    agent.give(looked("while it stops"))
    assert "while it stops" not in [one.text for one in agent.report().disturbed]


def test_that_packets_are_dropped_is_told_at_once_and_how_many_at_the_end() -> None:
    agent = Agent()
    agent.run()
    agent.give(Looked({1: ReadBack(dropped=0), 7: ReadBack(dropped=4)}))
    assert agent.report().dropped == 0
    assert agent.give(looked(dropped=3)) == []
    assert agent.report().dropped == 3
    beats = len(agent.beats)
    agent.give(looked(dropped=9))
    assert (agent.report().dropped, len(agent.beats)) == (3, beats)
    agent.hear()
    agent.give(Healed(1, last=ReadBack(dropped=12)))
    assert (agent.report().dropped, agent.report().warnings) == (12, ())


@pytest.mark.parametrize("last", [0, None, 2])
def test_what_was_counted_before_somebody_changed_the_rules_is_not_forgotten(last: int | None) -> None:
    agent = Agent()
    agent.run(reapply=True)
    agent.give(looked(dropped=7))
    agent.give(looked("chain gone", dropped=0))
    agent.give(Reapplied(1, after=ReadBack(dropped=0)))
    agent.give(looked(dropped=1))
    agent.give(looked(dropped=5))
    agent.hear()
    agent.give(Healed(1, last=ReadBack(dropped=last)))
    assert agent.report().dropped == 12 + (last or 0)


def test_a_block_that_no_packet_met_says_so_and_is_done_all_the_same() -> None:
    for seen, told in ((0, (UNMET,)), (None, ()), (1, ())):
        agent = Agent()
        agent.run()
        agent.give(looked(dropped=0))
        agent.hear()
        agent.give(Healed(1, ("a note",), ReadBack(dropped=seen)))
        assert (agent.report().warnings, agent.report().outcome) == (("a note", *told), Outcome.DONE)


def test_that_no_packet_came_is_not_said_of_rules_that_somebody_changed() -> None:
    agent = Agent()
    agent.run()
    agent.give(looked("chain gone", dropped=0))
    agent.hear()
    agent.give(Healed(1, last=ReadBack(("chain gone",), dropped=0)))
    assert agent.report().warnings == ()


def test_what_is_disturbed_is_put_back_only_if_the_order_says_so() -> None:
    agent = Agent()
    agent.run()
    assert agent.give(looked("no jump")) == []
    agent.run(2, reapply=True)
    assert agent.give(Looked({1: ReadBack(("no jump",)), 2: ReadBack()})) == []
    assert agent.give(looked("no jump", worker=2)) == [Reapply(2)]
    agent.give(Reapplied(2))
    assert agent.report(2).disturbed == (Disturbance(0, "no jump", mended=True),)
    agent.pass_(500)
    assert agent.give(looked("no jump", worker=2)) == [Reapply(2)]
    agent.give(Reapplied(2, "no iptables"))
    said = [(one.after_ms, one.mended) for one in agent.report(2).disturbed]
    assert said == [(0, True), (500, False), (500, False)]
    agent.hear()
    agent.give(Reapplied(2, "too late"))
    assert len(agent.report(2).disturbed) == 3


# --- what did not hold to its end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reapply", [False, True])
def test_a_disturbance_that_is_never_put_back_ends_disturbed_and_names_what_and_when(reapply: bool) -> None:
    agent = Agent()
    agent.run(reapply=reapply)
    agent.pass_(2_100)
    agent.give(looked("chain gone"))
    error = "it did not hold to its end: chain gone (2.1 s in)"
    assert Heal(1, Outcome.DISTURBED, error, 2_100) in agent.hear()
    agent.give(Healed(1, last=ReadBack(("chain gone",))))
    report = agent.report()
    assert (report.outcome, report.error, report.status) == (Outcome.DISTURBED, error, error)
    assert report.disturbed == (Disturbance(2_100, "chain gone"),)


def test_what_is_put_back_each_time_ends_done_and_says_how_often() -> None:
    agent = Agent()
    agent.run(reapply=True)
    for number in range(30):
        agent.give(looked(f"change {number}"))
        agent.give(Reapplied(1))
    assert agent.hear() == [Heal(1, Outcome.DONE, "", 0)]
    agent.give(Healed(1))
    report = agent.report()
    assert (report.outcome, report.error) == (Outcome.DONE, "")
    assert report.warnings == ("it was disturbed, and put back 30 times",)


def test_the_last_of_many_disturbances_counts_though_no_more_are_told() -> None:
    agent = Agent()
    agent.run(reapply=True)
    for number in range(30):
        agent.give(looked(f"change {number}"))
        agent.give(Reapplied(1))
    agent.give(looked("the last"))
    assert [one.text for one in agent.report().disturbed if not one.mended] == ["the last"]
    agent.hear()
    agent.give(Healed(1))
    assert agent.report().outcome is Outcome.DISTURBED


def test_what_is_not_back_after_it_was_done_again_is_not_called_put_back() -> None:
    agent = Agent()
    agent.run(reapply=True)
    agent.give(Looked({1: ReadBack(("chain gone", "process 7 ended"))}))
    agent.give(Reapplied(1, after=ReadBack(("process 7 ended",))))
    assert {one.text: one.mended for one in agent.report().disturbed} == {"chain gone": True, "process 7 ended": False}
    agent.hear()
    agent.give(Healed(1, last=ReadBack(("process 7 ended",))))
    assert (agent.report().outcome, agent.report().warnings) == (
        Outcome.DISTURBED,
        ("it was disturbed, and put back once",),
    )


def test_a_change_between_the_last_look_and_the_undo_is_seen() -> None:
    agent = Agent()
    agent.run()
    agent.give(looked())
    agent.pass_(700)
    assert agent.hear() == [Heal(1, Outcome.DONE, "", 700)]
    agent.pass_(60_000)  # the undo takes its time: what was seen before it is told with the time of the end
    agent.give(Healed(1, last=ReadBack(("chain gone",))))
    error = "it did not hold to its end: chain gone (0.7 s in)"
    assert (agent.report().outcome, agent.report().error) == (Outcome.DISTURBED, error)
    assert agent.report().disturbed == (Disturbance(700, "chain gone"),)


def test_a_worker_that_met_nothing_says_so() -> None:
    agent = Agent()
    agent.hear(order())
    agent.give(Injected(1, ("no process matches",), "no process matches"))
    error = "it met nothing: no process matches"
    assert agent.hear() == [Heal(1, Outcome.DISTURBED, error, 0)]
    agent.give(Healed(1))
    assert (agent.report().outcome, agent.report().error) == (Outcome.DISTURBED, error)


def test_other_outcomes_weigh_more_and_keep_the_note() -> None:
    agent = Agent()
    agent.run()
    agent.give(looked("chain gone"))
    assert Heal(1, Outcome.ABORTED, ABORTED, 0) in agent.hear(order(), abort="L1")
    agent.give(Healed(1, last=ReadBack(("chain gone",))))
    report = agent.report()
    assert (report.outcome, report.error) == (Outcome.ABORTED, ABORTED)
    assert report.disturbed == (Disturbance(0, "chain gone"),)


def test_what_could_not_be_looked_at_once_and_holds_later_is_no_disturbance() -> None:
    agent = Agent()
    agent.run()
    agent.give(looked(unseen=("cannot look: no memory",)))
    assert agent.report().disturbed == (Disturbance(0, "cannot look: no memory", unseen=True),)
    agent.give(looked())
    assert agent.report().disturbed[0].mended
    assert str(agent.report().disturbed[0]) == "cannot look: no memory (0.0 s in, held when looked at again)"
    agent.give(looked(unseen=("cannot look: no memory",)))
    assert agent.hear() == [Heal(1, Outcome.DONE, "", 0)], "the last look decides"
    agent.give(Healed(1))
    assert (agent.report().outcome, agent.report().error) == (Outcome.DONE, "")


def test_what_cannot_be_looked_at_to_the_end_is_not_known_to_have_held() -> None:
    agent = Agent()
    agent.run()
    agent.hear()
    agent.give(Healed(1, last=ReadBack(unseen=("cannot look: no memory",))))
    error = "it is not known whether it held to its end: cannot look: no memory (0.0 s in)"
    assert (agent.report().outcome, agent.report().error) == (Outcome.DISTURBED, error)


def test_a_stuck_worker_that_is_undone_late_tells_what_is_true_now() -> None:
    agent = Agent()
    agent.run()
    agent.hear()
    agent.give(NotHealed(1, "the fault may still be there", ("a rule",), ("iptables -F",), ReadBack(("jump gone",))))
    assert agent.report().disturbed == (Disturbance(0, "jump gone"),)
    agent.after(STUCK_RETRY_MS)
    agent.give(Healed(1, outcome=Outcome.FAILED, error="undone late, and nothing is left"))
    report = agent.report()
    assert (report.state, report.outcome, report.error) == (
        WorkerState.DONE,
        Outcome.FAILED,
        "undone late, and nothing is left",
    )
    assert (report.residue, report.by_hand, report.status) == ((), (), "undone late, and nothing is left")


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
    assert agent.give(Looked({1: (), 2: ()})) == [Reapply(2, NEWS)]
    agent.give(Reapplied(2, "no iptables"))
    assert (agent.report(2).disturbed[0].text, agent.report(2).disturbed[0].mended) == (SAID, False)
    agent.hear(order(1, actions=None), order(2, actions=None))
    assert agent.give(Looked({2: ()})) == [Reapply(2, NEWS)], "a coordinator that starts anew does not know it yet"
    agent.give(Reapplied(2, blocked=NEWS))
    assert all(one.mended for one in agent.report(2).disturbed)
    agent.hear(*told)
    assert agent.give(Looked({2: ()})) == []
    assert [one.mended for one in agent.report(2).disturbed] == [True, True]
    assert agent.report(1).disturbed == (Disturbance(300, SAID),)


def test_what_is_announced_while_something_else_is_put_back_stays_open() -> None:
    agent = Agent()
    agent.run(reapply=True)
    assert agent.give(Looked({1: ("no jump",)})) == [Reapply(1)]
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
