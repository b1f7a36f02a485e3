"""A do or an undo that goes on by itself: the performer lets go of it, and is asked again."""

from __future__ import annotations

import pytest

from tests.agents.driver import TEXTS, order
from tests.agents.driver import Agent as Driven
from tests.agents.model import FOREIGN
from tests.agents.test_perform import Agent
from trogdor_bus.agents.events import Heal, Healed, Inject, NotYet, ReadBack
from trogdor_bus.agents.journal import JournalState
from trogdor_bus.agents.machine import AGAIN_MS, Worker
from trogdor_bus.agents.perform import RESTARTED, NotInjectedError
from trogdor_bus.agents.service import remembered
from trogdor_bus.errors import CannotHealError, HostError, NotYetError
from trogdor_bus.states import Outcome, WorkerState

NOT_YET = NotYetError("it is ending")


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_what_is_undone_is_no_longer_held_and_what_goes_on_is_asked_for_again_by_this_life_or_the_next(
    agent: Agent,
) -> None:
    agent.inject()
    agent.machine.failures["undo"] = [None, NOT_YET, None, NOT_YET]
    for _ in range(2):
        with pytest.raises(NotYetError, match="it is ending"):
            agent.performer.heal(1, Outcome.DONE, "")
        entry = agent.on_disk()
        assert (entry.state, [step.undo["effect"] for step in entry.steps]) == (JournalState.UNKNOWN, ["stopped-7"])
    assert agent.pauses == [], "it is no failure"
    agent.start()
    assert remembered(agent.journal.entries[1]).state is WorkerState.STOPPING
    assert agent.performer.heal(1, Outcome.DONE, "") == ()
    assert agent.machine.effects == FOREIGN
    assert agent.on_disk().state is JournalState.UNDONE


def test_what_an_agent_that_serves_has_not_undone_yet_is_on_its_way_out(agent: Agent) -> None:
    agent.inject()
    agent.start()
    worker = remembered(agent.journal.entries[1])
    assert (worker.state, worker.outcome, worker.error) == (WorkerState.STOPPING, Outcome.RESTARTED, RESTARTED)


def test_while_it_goes_on_the_journal_is_not_written_over_and_over(agent: Agent) -> None:
    agent.inject()
    agent.machine.failures["undo"] = [NOT_YET, *[None] * 2, *[NOT_YET] * 5]
    for times in range(6):
        with pytest.raises(NotYetError):
            agent.performer.heal(1, Outcome.DONE, "")
        if times == 1:
            agent.disk.points.passed.clear()
    assert not [moment for moment in agent.disk.points.passed if "create" in moment]


def test_a_failure_beside_it_is_stuck_and_tells_of_both(agent: Agent) -> None:
    agent.inject()
    agent.machine.failures["undo"] = [NOT_YET, *[CannotHealError("no signal")] * 3]
    with pytest.raises(CannotHealError, match=r"no signal; .*it is ending"):
        agent.performer.heal(1, Outcome.DONE, "")
    assert agent.on_disk().state is JournalState.STUCK


def test_a_recovery_leaves_it_live_or_waits_for_it_when_all_others_are_undone(agent: Agent) -> None:
    for worker in (1, 2):
        agent.inject(worker)
    agent.start()
    agent.machine.failures["undo"] = [NOT_YET, *[None] * 5, NOT_YET]
    lines = agent.performer.recover()
    assert lines == (
        "worker 2 of task task-2: the undo goes on: it is ending",
        f"worker 1 of task task-1: {RESTARTED}",
    )
    assert [entry.worker for entry in agent.journal.live()] == [2]
    assert agent.performer.recover(wait=True) == (lines[0], f"worker 2 of task task-2: {RESTARTED}")
    assert agent.machine.effects == FOREIGN
    assert (agent.journal.live(), agent.on_disk(2).outcome) == ((), Outcome.RESTARTED)


def test_a_do_that_goes_on_is_gone_on_with_and_nothing_is_done_twice(agent: Agent) -> None:
    agent.machine.failures = {"prepare": [None, NOT_YET], "do": [None, NOT_YET]}
    with pytest.raises(NotYetError):
        agent.inject()
    assert not agent.journal.knows(1)
    with pytest.raises(NotYetError):
        agent.inject()
    assert agent.on_disk().state is JournalState.INTENDED
    assert agent.inject() == ()
    assert agent.on_disk().state is JournalState.APPLIED
    assert agent.machine.done == {(1, "rule-1"): 1, (1, "stopped-7"): 2, (1, "stopped-9"): 1}
    with pytest.raises(NotInjectedError, match="already performed"):
        agent.inject()


def test_a_do_that_goes_on_can_be_undone_instead(agent: Agent) -> None:
    agent.machine.failures["do"] = [None, NOT_YET]
    with pytest.raises(NotYetError):
        agent.inject()
    assert agent.performer.heal(1, Outcome.DONE, "") == ()
    assert agent.machine.effects == FOREIGN
    with pytest.raises(NotInjectedError, match="already performed"):
        agent.inject()


def test_why_it_failed_is_told_though_taking_it_back_goes_on(agent: Agent) -> None:
    agent.machine.failures = {"do": [None, HostError("no such process")], "undo": [NOT_YET, None, None, NOT_YET]}
    for _ in range(2):
        with pytest.raises(NotYetError, match="it is ending"):
            agent.inject()
    with pytest.raises(NotInjectedError, match=r"^no such process$"):
        agent.inject()
    assert agent.machine.effects == FOREIGN
    assert agent.on_disk().outcome is Outcome.FAILED


def test_without_the_lock_what_goes_on_is_stuck(agent: Agent) -> None:
    agent.machine.failures["do"] = [None, NOT_YET]
    with pytest.raises(NotYetError):
        agent.inject()
    agent.machine.failures["alone"] = [HostError("somebody has it")] * 9
    with pytest.raises(NotInjectedError, match="somebody has it") as caught:
        agent.inject()
    assert caught.value.stuck


def test_looking_again_waits_for_what_goes_on(agent: Agent) -> None:
    agent.inject()
    agent.performer.heal(1, Outcome.DONE, "")
    agent.machine.effects.add("rule-1")
    agent.machine.failures["undo"] = [None, None, NOT_YET]
    assert agent.performer.look_again((1,)) == ("worker 1 of task task-1 came back: rule-1; undoing again",)
    assert agent.machine.effects == FOREIGN
    assert len(agent.pauses) == 1


# --- what goes on by itself -------------------------------------------------------------------------------------------


def test_an_undo_that_goes_on_by_itself_is_asked_for_again_soon_and_what_it_awaits_is_told() -> None:
    agent = Driven()
    agent.run()
    assert agent.hear() == [Heal(1, Outcome.DONE, "")]
    assert agent.due[1] == agent.now
    assert agent.pass_(10 * AGAIN_MS) == [], "a second undo while the first is under way"
    agent.give(NotYet(1, "the service is ending", ("a note",), ReadBack(found=("it lives",), dropped=3)))
    assert agent.pass_(AGAIN_MS - 1) == []
    (again,) = agent.pass_(1)
    assert again == Heal(1, Outcome.DISTURBED, "it did not hold to its end: it lives (0.0 s in)")
    assert agent.due[1] == agent.now
    agent.pass_(2_000)
    assert (agent.report().state, agent.report().status) == (WorkerState.STOPPING, "stopping it: the service is ending")
    agent.give(Healed(1, ("another",), late_ms=30))
    told = agent.report()
    assert told.late_ms == 10 * AGAIN_MS + 30, "while somebody is waited for, nobody is late"
    assert told.warnings == ("a note", "another", "it was undone 1.0 s late")
    assert (told.dropped, told.outcome) == (3, Outcome.DISTURBED)
    assert "it lives" in told.error
    assert agent.pass_(10 * AGAIN_MS) == []


def test_who_waits_for_what_should_have_happened_is_late_meanwhile() -> None:
    agent = Driven()
    agent.run()
    agent.hear()
    agent.give(NotYet(1, "it may take its time"))
    agent.pass_(5_000)
    due = agent.due[1]
    agent.give(NotYet(1, "it was killed, and is not gone yet", overdue=True))
    agent.pass_(2_000)
    assert agent.due[1] == due, "it is late since then"
    agent.give(NotYet(1, "the service is starting"))
    late_ms = agent.now - due
    agent.pass_(60_000)
    agent.give(Healed(1, late_ms=30))
    told = agent.report()
    assert (told.late_ms, told.outcome) == (late_ms + 30, Outcome.LATE)


def test_a_do_that_goes_on_by_itself_is_asked_for_again_and_if_it_is_stopped_what_was_begun_is_undone() -> None:
    agent = Driven()
    (inject,) = agent.hear(order())
    agent.give(NotYet(1, "the cluster is asked"))
    assert [effect for effect in agent.pass_(2 * AGAIN_MS) if isinstance(effect, Inject)] == [inject]
    agent.give(NotYet(1, "the cluster is asked"))
    assert agent.hear() == []
    assert agent.worker().state is WorkerState.CANCELLING
    assert agent.pass_(2 * AGAIN_MS) == [Heal(1, Outcome.DONE, "")]
    assert agent.due[1] == agent.now - 2 * AGAIN_MS
    agent.give(Healed(1))
    assert (agent.report().state, agent.report().outcome) == (WorkerState.DONE, Outcome.DONE)


def test_an_undo_of_an_earlier_life_that_goes_on_is_asked_for_at_once() -> None:
    worker = Worker(id=1, task="t1", state=WorkerState.STOPPING, texts=TEXTS, ends_ms=0, outcome=Outcome.RESTARTED)
    agent = Driven()
    agent.machine.workers[1] = worker
    assert agent.after(0) == [Heal(1, Outcome.RESTARTED, "")]
