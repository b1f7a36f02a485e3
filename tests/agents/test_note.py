"""What an undo notes of what it starts is in the journal before it goes on, and comes back with the next attempt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.agents.model import Machine, order
from tests.agents.simdisk import SimDisk
from tests.agents.test_perform import AROUND, Agent
from trogdor_bus.agents.journal import JournalState
from trogdor_bus.errors import CannotHealError
from trogdor_bus.platform import Operation, Step
from trogdor_bus.states import Outcome


class StartingMachine(Machine):
    """Its undo of a rule starts something, and notes a pid that the disk must have when it goes on."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent
        self.seen: list[object] = []
        self.on_disk: list[object] = []
        self.fails = 0

    def undo(self, step: Step, held: Sequence[Step], note: Callable[[Operation], None]) -> str:
        if not step.undo["effect"].startswith("rule"):
            return super().undo(step, held, note)
        self.seen.append(step.undo.get("pid"))
        note({**step.undo, "pid": len(self.seen)})
        self.on_disk.append([one.undo.get("pid") for one in self.agent.on_disk().steps])
        if len(self.seen) <= self.fails:
            raise CannotHealError("nothing came of it")
        return super().undo(step, held, note)


@pytest.fixture
def agent() -> Agent:
    agent = Agent()
    agent.machine = StartingMachine(agent)
    agent.start()
    return agent


def machine(agent: Agent) -> StartingMachine:
    assert isinstance(agent.machine, StartingMachine)
    return agent.machine


def test_a_note_is_on_disk_when_the_undo_goes_on_and_the_next_attempt_knows_it(agent: Agent) -> None:
    machine(agent).fails = 2
    agent.performer.inject(order(1), 99, AROUND)
    assert agent.performer.heal(1, Outcome.DONE, "") == ()
    assert machine(agent).seen == [None, 1, 2]
    assert machine(agent).on_disk == [[1, None, None], [2, None, None], [3, None, None]]
    assert agent.on_disk().state is JournalState.UNDONE


def test_a_note_outlives_what_is_stuck_and_the_agent(agent: Agent) -> None:
    machine(agent).fails = 3
    agent.performer.inject(order(1), 99, AROUND)
    with pytest.raises(CannotHealError, match="nothing came of it"):
        agent.performer.heal(1, Outcome.DONE, "")
    assert [step.undo.get("pid") for step in agent.on_disk().steps] == [3]
    agent.start()
    agent.performer.recover()
    assert machine(agent).seen == [None, 1, 2, 3]


def test_a_note_that_cannot_be_written_does_not_stop_the_undo_and_is_told(agent: Agent) -> None:
    agent.performer.inject(order(1), 99, AROUND)
    disk: SimDisk = agent.disk
    disk.fail("create")
    notes = agent.performer.heal(1, Outcome.DONE, "")
    assert [note for note in notes if "could not be written down, so it may be started twice: " in note]
    assert machine(agent).on_disk == [[None, None, None]]
    assert agent.on_disk().state is JournalState.UNDONE
