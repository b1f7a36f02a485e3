"""How a worker ended, as its journal has it: by a last look directly before the undo, and by what the undo came to."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from tests.agents.model import FOREIGN, Machine, order
from tests.agents.performing import AROUND, Agent
from trogdor_bus.actions import Action
from trogdor_bus.agents.events import ReadBack
from trogdor_bus.agents.journal import JournalState
from trogdor_bus.agents.threads import run_in_lanes
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.platform import Prepared, Seen, Step, Verb
from trogdor_bus.states import Outcome


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_what_an_earlier_life_could_not_undo_is_told_as_late_and_not_as_restarted(agent: Agent) -> None:
    agent.inject()
    agent.machine.sticky = {"rule-1"}
    with pytest.raises(CannotHealError):
        agent.performer.heal(1, Outcome.DONE, "")
    agent.start()
    assert "may still be there" in agent.performer.recover()[0]
    agent.machine.sticky = set()
    agent.start()
    (line,) = agent.performer.recover()
    assert line == "worker 1 of task task-1: undone late, and nothing is left; at first its undo failed: rule-1"
    assert (agent.on_disk().outcome, agent.on_disk().state) == (Outcome.FAILED, JournalState.UNDONE)


@pytest.mark.parametrize("outcome", [one for one in Outcome if one not in (Outcome.NONE, Outcome.DONE)])
def test_what_changed_since_the_last_look_is_seen_before_the_undo(agent: Agent, outcome: Outcome) -> None:
    seen: list[ReadBack] = []
    agent.inject(1)
    agent.inject(2)
    agent.machine.effects.discard("rule-1")
    agent.performer.heal(1, Outcome.DONE, "", 2_100, seen.append)
    assert seen == [ReadBack(("rule-1 is gone",))]
    told = (agent.on_disk().outcome, agent.on_disk().error)
    assert told == (Outcome.DISTURBED, "it did not hold to its end: rule-1 is gone (2.1 s in)")
    agent.machine.effects.discard("rule-2")
    agent.performer.heal(2, outcome, "why", 2_100, seen.append)
    assert (agent.on_disk(2).outcome, agent.on_disk(2).error) == (outcome, "why"), "the weightier outcome stays"


def test_not_being_able_to_look_at_the_end_is_no_success_and_keeps_no_fault(agent: Agent) -> None:
    agent.inject()
    agent.machine.failures["disturbance"] = [HostError("no /proc")]
    agent.performer.heal(1, Outcome.DONE, "", 900)
    error = "it is not known whether it held to its end: cannot look whether it holds: no /proc (0.9 s in)"
    assert (agent.on_disk().outcome, agent.on_disk().error) == (Outcome.DISTURBED, error)
    assert agent.machine.effects == FOREIGN


def test_a_search_that_takes_its_time_keeps_no_fault() -> None:
    class Searching(Machine):
        hangs = threading.Event()

        def lane(self, verb: Verb, what: Step | Action | None) -> str:
            return verb

        def look(self, step: Step) -> Seen:
            return Seen(unsure=True)

        def search(self, step: Step) -> Seen:
            self.hangs.wait(60)
            return Seen()

        def search_many(self, steps: Sequence[Step]) -> Sequence[Seen | Exception]:
            return [self.search(step) for step in steps]

    machine = Searching()
    agent = Agent(machine)
    run_in_lanes(agent.performer.performer.inject(order(1), 99, AROUND))
    try:
        run_in_lanes(agent.performer.performer.heal(1, Outcome.DONE, "", 900))
    finally:
        machine.hangs.set()
    assert "cannot look whether it holds: the search for processes takes more than 0.8 s" in agent.on_disk().error
    assert (agent.on_disk().outcome, agent.machine.effects) == (Outcome.DISTURBED, FOREIGN)
    run_in_lanes(agent.performer.performer.inject(order(2), 99, AROUND))
    run_in_lanes(agent.performer.performer.heal(2, Outcome.DONE, ""))
    assert agent.on_disk(2).outcome is Outcome.DONE


def test_a_worker_with_nothing_to_do_met_nothing(agent: Agent) -> None:
    agent.machine.on_prepare = lambda: None
    nothing = Prepared((), ("no process matches",))
    agent.machine.prepare = lambda *_: nothing  # type: ignore[method-assign]
    assert agent.performer.inject(order(1), 99, AROUND) == ("no process matches",) * 3
    assert agent.on_disk().met_nothing.startswith("no process matches")
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.on_disk().outcome is Outcome.DISTURBED
    assert agent.on_disk().error.startswith("it met nothing: no process matches")
