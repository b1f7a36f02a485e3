"""The performer and the lock of what it acts on: taken around everything that changes the machine, once at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest

from tests.agents.inline import Inline
from tests.agents.model import FOREIGN, Machine, order
from tests.agents.simdisk import SimDisk
from trogdor_bus.agents.journal import Journal, JournalState
from trogdor_bus.agents.perform import NotInjectedError
from trogdor_bus.agents.threads import run_in_lanes
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.platform import Operation, Seen, Step, Surroundings
from trogdor_bus.states import Outcome

TAKEN = HostError("process 7 injects or undoes a fault")


class Batching(Machine):
    """Undoes and looks at once at what waits at the same time."""

    def undo_many(
        self, many: Sequence[tuple[Step, Sequence[Step], Callable[[Operation], None]]]
    ) -> list[str | Exception]:
        assert self.held, "nothing is undone without the lock"
        return [self.undo(*one) for one in many]

    def residue_many(self, many: Sequence[tuple[Step, Sequence[Step]]]) -> list[tuple[str, ...] | Exception]:
        return [self.residue(*one) for one in many]

    def look_many(self, steps: Sequence[Step]) -> list[Seen | Exception]:
        return [Seen(self.disturbance(step)) for step in steps]


class Agent:
    def __init__(self, machine: Machine | None = None) -> None:
        self.disk, self.machine = SimDisk(Random(7)), machine or Machine()
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
    agent.bar(3)
    with pytest.raises(CannotHealError, match=f"the fault may still be there: {TAKEN}"):
        agent.performer.heal(1, Outcome.DONE, "")
    assert agent.state(1) is JournalState.STUCK and agent.machine.effects == faulty
    assert agent.performer.heal(1, Outcome.DONE, "") == ()
    assert agent.state(1) is JournalState.UNDONE and agent.machine.effects == FOREIGN


def test_a_recovery_waits_for_the_lock_once_for_all_that_is_undone_together() -> None:
    agent = Agent(Batching())
    agent.inject(1, 2, 3)
    agent.bar(2)
    lines = run_in_lanes(agent.performer.performer.recover())
    assert len(lines) == 3 and all(str(TAKEN) in line for line in lines)
    assert len(agent.machine.failures["alone"]) == 1
    assert {agent.state(worker) for worker in (1, 2, 3)} == {JournalState.STUCK}
    agent.machine.failures.clear()
    run_in_lanes(agent.performer.performer.recover())
    assert agent.machine.effects == FOREIGN


def test_what_cannot_have_the_lock_is_not_tried_again_at_once(agent: Agent) -> None:
    agent.inject(1)
    agent.bar(3)
    with pytest.raises(CannotHealError):
        agent.performer.heal(1, Outcome.DONE, "")
    assert agent.machine.failures["alone"] == []


def test_what_came_back_is_undone_under_the_lock(agent: Agent) -> None:
    agent.inject(1)
    agent.performer.heal(1, Outcome.DONE, "")
    agent.machine.effects.add("rule-1")
    agent.bar()
    lines = agent.performer.look_again((1,))
    assert "came back: rule-1; undoing again" in lines[0] and str(TAKEN) in lines[1]
    assert agent.state(1) is JournalState.STUCK
    agent.performer.heal(1, Outcome.DONE, "")
    agent.inject(2)
    agent.performer.heal(2, Outcome.DONE, "")
    agent.machine.effects.add("rule-2")
    assert len(agent.performer.look_again((2,))) == 1
    assert agent.machine.effects == FOREIGN and agent.state(2) is JournalState.UNDONE


def test_what_cannot_be_looked_at_again_is_undone_again(agent: Agent) -> None:
    agent.inject(1)
    agent.performer.heal(1, Outcome.DONE, "")
    agent.machine.failures["residue"] = [HostError("no iptables")] * 6
    lines = agent.performer.look_again((1,))
    assert "cannot be looked at again: no iptables; undoing again" in lines[0] and "no iptables" in lines[1]
    assert agent.state(1) is JournalState.STUCK
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.state(1) is JournalState.UNDONE
