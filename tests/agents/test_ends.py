"""What an agent's machine makes of what is seen of a worker: disturbances, counts of packets, and how it ended."""

from __future__ import annotations

import pytest

from tests.agents.driver import Agent, order
from trogdor_bus.agents.events import Heal, Healed, Injected, Looked, NotHealed, ReadBack, Reapplied, Reapply
from trogdor_bus.agents.machine import ABORTED, STUCK_RETRY_MS
from trogdor_bus.agents.worker import UNMET
from trogdor_bus.states import Disturbance, Outcome, WorkerState


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
