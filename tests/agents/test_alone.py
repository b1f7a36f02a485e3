"""The performer and the lock of what it acts on: taken around everything that changes the machine, once at a time."""

from __future__ import annotations

from random import Random

import pytest

from tests.agents.inline import Inline
from tests.agents.model import FOREIGN, Machine, order
from tests.agents.simdisk import SimDisk
from trogdor_bus.agents.journal import Journal, JournalState
from trogdor_bus.agents.perform import NotInjectedError
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.platform import Surroundings
from trogdor_bus.states import Outcome

TAKEN = HostError("process 7 injects or undoes a fault")


class Agent:
    def __init__(self) -> None:
        self.disk, self.machine = SimDisk(Random(7)), Machine()
        self.performer = Inline(Journal(self.disk), self.machine, lambda _: None)

    def inject(self, *workers: int) -> None:
        for worker in workers:
            self.performer.inject(order(worker), 99, Surroundings())

    def bar(self, times: int = 1) -> None:
        """Let somebody else have the lock the next times that it is asked for."""
        self.machine.failures["alone"] = [TAKEN] * times

    def state(self, worker: int) -> JournalState:
        return Journal.read_only(self.disk).entries[worker].state


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_without_the_lock_nothing_is_injected(agent: Agent) -> None:
    agent.bar()
    with pytest.raises(NotInjectedError, match=f"^{TAKEN}$") as caught:
        agent.inject(1)
    assert (caught.value.stuck, caught.value.residue) == (False, ())
    assert agent.machine.effects == FOREIGN and not agent.machine.done
    assert agent.state(1) is JournalState.UNDONE


def test_without_the_lock_an_undo_is_stuck_and_touches_nothing(agent: Agent) -> None:
    agent.inject(1)
    faulty = set(agent.machine.effects)
    agent.bar()
    with pytest.raises(CannotHealError, match=f"the fault may still be there: {TAKEN}"):
        agent.performer.heal(1, Outcome.DONE, "")
    assert agent.state(1) is JournalState.STUCK and agent.machine.effects == faulty
    assert agent.performer.heal(1, Outcome.DONE, "") == ()
    assert agent.state(1) is JournalState.UNDONE and agent.machine.effects == FOREIGN


def test_a_recovery_waits_for_the_lock_once_for_all_workers(agent: Agent) -> None:
    agent.inject(1, 2, 3)
    agent.bar(2)
    lines = agent.performer.recover()
    assert len(lines) == 3 and all(str(TAKEN) in line for line in lines)
    assert len(agent.machine.failures["alone"]) == 1
    assert {agent.state(worker) for worker in (1, 2, 3)} == {JournalState.STUCK}
    agent.machine.failures.clear()
    agent.performer.recover()
    assert agent.machine.effects == FOREIGN


def test_a_failing_fault_is_taken_back_under_the_lock_that_it_was_done_under(agent: Agent) -> None:
    agent.machine.failures["do"] = [None, HostError("did not take")]
    agent.machine.failures["alone"] = [None, TAKEN]
    with pytest.raises(NotInjectedError, match=r"^did not take$"):
        agent.inject(1)
    assert agent.machine.effects == FOREIGN and agent.machine.failures["alone"] == [TAKEN]


def test_what_came_back_is_undone_under_the_lock(agent: Agent) -> None:
    agent.inject(1)
    agent.performer.heal(1, Outcome.DONE, "")
    agent.machine.effects.add("rule-1")
    agent.bar()
    lines = agent.performer.look_again((1,))
    assert "came back: rule-1; undoing again" in lines[0] and str(TAKEN) in lines[1]
    assert agent.state(1) is JournalState.STUCK
    agent.performer.heal(1, Outcome.DONE, "")
    agent.machine.effects.add("rule-1")
    assert len(agent.performer.look_again((1,))) == 1
    assert agent.machine.effects == FOREIGN and agent.state(1) is JournalState.UNDONE


def test_what_cannot_be_looked_at_again_is_undone_again(agent: Agent) -> None:
    agent.inject(1)
    agent.performer.heal(1, Outcome.DONE, "")
    agent.machine.failures["residue"] = [HostError("no iptables")] * 2
    lines = agent.performer.look_again((1,))
    assert "cannot be looked at again: no iptables; undoing again" in lines[0] and "no iptables" in lines[1]
    assert agent.state(1) is JournalState.STUCK
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.state(1) is JournalState.UNDONE
