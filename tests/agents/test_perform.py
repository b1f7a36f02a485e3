from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest

from tests.agents.inline import Inline
from tests.agents.model import FOREIGN, Machine, order
from tests.agents.performing import AROUND, Agent
from tests.agents.simdisk import CrashPoints
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents.events import ReadBack
from trogdor_bus.agents.journal import Journal, JournalState
from trogdor_bus.agents.perform import MAX_STEPS, RESTARTED, NotInjectedError
from trogdor_bus.errors import CannotHealError, HostError, InvalidTransitionError, NotFoundError, RefusedError
from trogdor_bus.platform import Operation, Step, Surroundings
from trogdor_bus.states import Outcome

WRITES = ["create", "sync", "rename", "sync_directory"]


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_the_undo_is_on_disk_before_the_do_and_the_undo_comes_before_undone(agent: Agent) -> None:
    agent.disk.points.passed.clear()
    agent.inject()
    agent.performer.heal(1, Outcome.EXPIRED, "late")
    agent.performer.forget(1)
    write = ["create worker-1.json.tmp", "sync worker-1.json.tmp", "rename worker-1.json", "sync_directory ."]
    prepare = ["prepare block-ports", "prepare suspend", "prepare suspend"]
    do = ["do rule-1", "do stopped-7", "do stopped-9"]
    undo = ["undo stopped-9", "undo stopped-7", "undo rule-1"]
    finished = [moment.removeprefix("after ") for moment in agent.disk.points.passed if moment.startswith("after ")]
    assert finished == [*prepare, *write, *do, *write, *undo, *write, "remove worker-1.json", "sync_directory ."]


def test_an_entry_says_everything(agent: Agent) -> None:
    agent.machine.warnings = ("process 9 was stopped before",)
    asked = msgspec.structs.replace(order(1), spec=msgspec.Raw(b'{"class":"x"}'))
    assert agent.performer.inject(asked, 99, AROUND) == ("process 9 was stopped before",) * 3
    found = agent.on_disk()
    assert (found.worker, found.task, found.state) == (1, "task-1", JournalState.APPLIED)
    assert (found.boot_id, found.ends_ms, bytes(found.spec)) == ("boot", 99, b'{"class":"x"}')
    assert (found.texts, len(found.steps), found.warnings) == (asked.texts, 3, ("process 9 was stopped before",) * 3)
    assert agent.performer.heal(1, Outcome.EXPIRED, "late") == ()
    undone = agent.on_disk()
    assert (undone.state, undone.outcome, undone.error) == (JournalState.UNDONE, Outcome.EXPIRED, "late")
    assert agent.machine.effects == FOREIGN


def test_a_task_without_actions_is_journaled_all_the_same(agent: Agent) -> None:
    assert agent.performer.inject(msgspec.structs.replace(order(1), actions=()), 99, AROUND) == ()
    assert agent.on_disk().state is JournalState.APPLIED
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.on_disk().state is JournalState.UNDONE


def test_a_worker_is_never_performed_twice(agent: Agent) -> None:
    agent.inject()
    for _ in range(2):
        with pytest.raises(NotInjectedError, match="already performed"):
            agent.inject()
        agent.performer.heal(1, Outcome.DONE, "")
    agent.start()
    with pytest.raises(NotInjectedError, match="already performed"):
        agent.inject()
    assert agent.machine.effects == FOREIGN and set(agent.machine.done.values()) == {1}


def test_a_worker_whose_file_is_broken_is_not_performed_again_and_recover_says_so(agent: Agent) -> None:
    agent.disk.create("worker-1.json", b"?")
    agent.start()
    with pytest.raises(NotInjectedError, match="already performed") as caught:
        agent.inject()
    assert not caught.value.stuck and agent.machine.effects == FOREIGN
    assert agent.performer.recover() == (
        "worker-1.json in the journal cannot be read: look whether its fault is gone, then remove the file",
    )
    agent.performer.forget(1)
    assert agent.disk.read("worker-1.json") == b"?"


def test_an_adopted_worker_that_is_unknown_is_not_started(agent: Agent) -> None:
    with pytest.raises(NotInjectedError, match="unknown here"):
        agent.performer.inject(msgspec.structs.replace(order(1), actions=None), 99, AROUND)
    assert not agent.journal.knows(1) and agent.machine.effects == FOREIGN


@pytest.mark.parametrize("op", WRITES)
def test_no_intent_no_fault(agent: Agent, op: str) -> None:
    agent.disk.fail(op)
    with pytest.raises(NotInjectedError, match=f"nothing was done.*cannot {op}") as caught:
        agent.inject()
    assert (caught.value.stuck, caught.value.residue) == (False, ())
    assert agent.machine.effects == FOREIGN and not agent.machine.done
    with pytest.raises(NotInjectedError, match="already performed"):
        agent.inject()
    agent.performer.forget(1)
    assert agent.disk.names() == ("journal.json",)


def test_a_step_that_json_cannot_carry_is_not_done(agent: Agent) -> None:
    agent.machine.extra = object()
    with pytest.raises(NotInjectedError, match="cannot be written as JSON"):
        agent.inject()
    assert not agent.machine.done


@pytest.mark.parametrize("op", WRITES)
def test_applied_that_cannot_be_written_is_a_warning(agent: Agent, op: str) -> None:
    agent.disk.fail(op, 2)
    (warning,) = agent.inject()
    assert "could not note that this was done" in warning and f"cannot {op}" in warning
    assert agent.journal.entries[1].state is JournalState.APPLIED
    assert agent.journal.entries[1].warnings == (warning,)
    agent.start()
    agent.performer.recover()
    assert agent.machine.effects == FOREIGN


@pytest.mark.parametrize("op", WRITES)
def test_undone_that_cannot_be_written_is_a_note(agent: Agent, op: str) -> None:
    agent.inject()
    agent.disk.fail(op)
    (note,) = agent.performer.heal(1, Outcome.DONE, "")
    assert note.startswith("undone, but") and f"cannot {op}" in note
    assert agent.machine.effects == FOREIGN and agent.journal.entries[1].state is JournalState.UNDONE
    assert agent.performer.heal(1, Outcome.DONE, "") == ()
    agent.performer.forget(1)
    agent.start()
    assert agent.performer.recover() == ()


def test_a_disk_that_is_full_when_the_agent_starts_keeps_no_fault(agent: Agent) -> None:
    agent.inject()
    agent.disk.full = True
    with pytest.raises(HostError):
        agent.start()
    lines = Inline(Journal.read_only(agent.disk), agent.machine).recover()
    assert agent.machine.effects == FOREIGN
    assert len(lines) == 1 and RESTARTED in lines[0] and "could not be written down" in lines[0]


@pytest.mark.parametrize("error", [HostError("no such port"), RefusedError("not allowed"), KeyError("a bug")])
def test_a_failing_prepare_changes_nothing_and_is_remembered(agent: Agent, error: Exception) -> None:
    agent.machine.failures["prepare"] = [None, error]
    with pytest.raises(NotInjectedError, match=r"no such port|not allowed|KeyError: 'a bug'") as caught:
        agent.inject()
    assert not caught.value.stuck and not agent.machine.done
    assert (agent.on_disk().state, agent.on_disk().outcome) == (JournalState.UNDONE, Outcome.FAILED)
    assert agent.on_disk().error == str(caught.value)
    agent.start()
    with pytest.raises(NotInjectedError, match="already performed"):
        agent.inject()


def test_a_failing_prepare_on_a_full_disk_is_remembered_in_memory(agent: Agent) -> None:
    agent.machine.failures["prepare"] = [HostError("no such port")]
    agent.disk.full = True
    with pytest.raises(NotInjectedError, match="no such port"):
        agent.inject()
    with pytest.raises(NotInjectedError, match="already performed"):
        agent.inject()


@pytest.mark.parametrize("error", [HostError("did not take"), ZeroDivisionError("did not take")])
@pytest.mark.parametrize("step", range(3))
def test_a_failing_do_is_undone_at_once(agent: Agent, step: int, error: Exception) -> None:
    agent.machine.failures["do"] = [*[None] * step, error]
    with pytest.raises(NotInjectedError, match="did not take") as caught:
        agent.inject()
    assert (caught.value.stuck, caught.value.residue) == (False, ())
    assert agent.machine.effects == FOREIGN and agent.pauses == []
    assert (agent.on_disk().state, agent.on_disk().outcome) == (JournalState.UNDONE, Outcome.FAILED)
    assert agent.on_disk().error == str(caught.value)
    assert str(caught.value) in ("did not take", "ZeroDivisionError: did not take")


def test_a_failing_do_whose_undoing_cannot_be_written_down_says_so(agent: Agent) -> None:
    agent.machine.failures["do"] = [HostError("did not take")]
    agent.disk.fail("create", 2)
    with pytest.raises(NotInjectedError, match="did not take; undone, but this could not be written down") as caught:
        agent.inject()
    assert not caught.value.stuck and agent.machine.effects == FOREIGN


def test_a_failing_do_whose_undo_fails_is_stuck_and_loud(agent: Agent) -> None:
    agent.machine.failures["do"] = [None, HostError("did not take")]
    agent.machine.failures["undo"] = [CannotHealError("still there")] * 9
    with pytest.raises(NotInjectedError, match=r"did not take; .*may still be there: still there; .*") as caught:
        agent.inject()
    assert caught.value.stuck and set(caught.value.residue) == {"rule-1", "stopped-7"}
    stuck = agent.on_disk()
    assert stuck.state is JournalState.STUCK and stuck.residue == caught.value.residue
    assert stuck.error == str(caught.value) and stuck.outcome is Outcome.FAILED
    assert agent.performer.heal(1, Outcome.FAILED, "did not take") == ()
    assert agent.machine.effects == FOREIGN
    undone = agent.on_disk()
    assert (undone.state, undone.outcome, undone.residue) == (JournalState.UNDONE, Outcome.FAILED, ())
    assert undone.error.startswith(
        "did not take; undone late, and nothing is left; at first its undo failed: still there"
    )


@pytest.mark.parametrize("failed", [0, 1, 2])
def test_an_undo_is_tried_three_times(agent: Agent, failed: int) -> None:
    agent.inject()
    agent.machine.failures["undo"] = [CannotHealError("the lock is held")] * failed
    assert agent.performer.heal(1, Outcome.DONE, "") == ()
    assert len(agent.pauses) == failed and all(0 < pause <= 0.2 for pause in agent.pauses)
    assert agent.machine.effects == FOREIGN


def test_one_stuck_step_does_not_keep_the_others(agent: Agent) -> None:
    agent.inject()
    agent.machine.failures["undo"] = [None, *[CannotHealError("will not wake")] * 3]
    with pytest.raises(CannotHealError, match=r"worker 1 of task task-1: .*will not wake; stopped-7"):
        agent.performer.heal(1, Outcome.EXPIRED, "late")
    assert agent.machine.effects == FOREIGN | {"stopped-7"}
    stuck = agent.on_disk()
    assert (stuck.state, stuck.residue) == (JournalState.STUCK, ("stopped-7",)) and stuck.error.startswith("late; ")
    with pytest.raises(InvalidTransitionError, match="forget is not allowed in state stuck"):
        agent.performer.forget(1)


def test_what_a_person_would_type_is_of_what_may_be_left_newest_first(agent: Agent) -> None:
    assert agent.performer.by_hand(1) == ()
    agent.inject()
    assert agent.performer.by_hand(1) == ("remove stopped-7", "remove rule-1")
    agent.machine.sticky = {"rule-1"}
    with pytest.raises(CannotHealError):
        agent.performer.heal(1, Outcome.DONE, "")
    assert agent.performer.by_hand(1) == ("remove rule-1",)
    agent.machine.sticky = set()
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.performer.by_hand(1) == ()


def test_a_stuck_worker_keeps_only_what_is_left_and_its_first_cause(agent: Agent) -> None:
    agent.inject()
    agent.machine.sticky = {"rule-1"}
    error = "lease expired"
    for _ in range(3):
        with pytest.raises(CannotHealError) as caught:
            agent.performer.heal(1, Outcome.LEASE, error)
        stuck = agent.on_disk()
        assert [step.undo["effect"] for step in stuck.steps] == ["rule-1"]
        assert (stuck.outcome, stuck.error) == (Outcome.FAILED, f"lease expired; {caught.value}")
        error = stuck.error
    agent.machine.effects.add("stopped-7")  # somebody else stops the process that we have let go
    agent.machine.sticky = set()
    agent.performer.heal(1, Outcome.LEASE, "lease expired")
    assert agent.machine.effects == FOREIGN | {"stopped-7"}
    late = "lease expired; undone late, and nothing is left; at first its undo failed: rule-1"
    assert (agent.on_disk().outcome, agent.on_disk().error) == (Outcome.FAILED, late)


def test_a_stuck_worker_does_not_keep_what_it_shared(agent: Agent) -> None:
    agent.inject(1)
    agent.inject(2)
    agent.machine.sticky = {"rule-2"}
    with pytest.raises(CannotHealError):
        agent.performer.heal(2, Outcome.DONE, "")
    assert agent.machine.effects == FOREIGN | {"rule-1", "rule-2", "stopped-7"}
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.machine.effects == FOREIGN | {"rule-2"}


def test_an_undo_that_lies_is_found_out(agent: Agent) -> None:
    agent.inject()
    agent.machine.sticky = {"rule-1"}
    with pytest.raises(CannotHealError, match="may still be there: rule-1"):
        agent.performer.heal(1, Outcome.DONE, "")
    agent.machine.sticky = set()
    assert agent.performer.heal(1, Outcome.DONE, "") == ()
    assert agent.on_disk().residue == () and agent.machine.effects == FOREIGN


def test_not_being_able_to_look_counts_as_left(agent: Agent) -> None:
    agent.inject()
    agent.machine.failures["residue"] = [OSError("no /proc \udcff")]
    with pytest.raises(CannotHealError, match=r"cannot look whether anything is left: OSError: no /proc \\udcff"):
        agent.performer.heal(1, Outcome.DONE, "")
    assert agent.on_disk().state is JournalState.STUCK


def test_stuck_on_a_full_disk_is_still_stuck(agent: Agent) -> None:
    agent.inject()
    agent.machine.sticky, agent.disk.full = {"rule-1"}, True
    with pytest.raises(CannotHealError, match="rule-1; and the journal could not be written"):
        agent.performer.heal(1, Outcome.DONE, "")
    assert agent.journal.entries[1].state is JournalState.STUCK
    assert agent.on_disk().state is JournalState.APPLIED


def test_notes_of_the_platform_are_handed_on(agent: Agent) -> None:
    agent.inject()
    agent.machine.effects.discard("stopped-7")
    assert agent.performer.heal(1, Outcome.DONE, "") == ("gone: stopped-7",)


def test_overlapping_workers_do_not_disturb_each_other(agent: Agent) -> None:
    agent.inject(1)
    agent.inject(2)
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.machine.effects == FOREIGN | {"rule-2", "stopped-7"}
    assert agent.performer.look(2) == ReadBack()
    agent.performer.heal(2, Outcome.DONE, "")
    assert agent.machine.effects == FOREIGN


def test_disturbances_are_of_applied_workers_only(agent: Agent) -> None:
    assert agent.performer.look(1) == ReadBack()
    agent.inject()
    assert agent.performer.look(1) == ReadBack()
    agent.machine.effects.discard("rule-1")
    agent.machine.failures["disturbance"] = [None, HostError("no /proc")]
    assert agent.performer.look(1) == ReadBack(("rule-1 is gone",), ("cannot look whether it holds: no /proc",))
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.performer.look(1) == ReadBack()


def test_reapply_does_again_what_no_longer_holds_and_nothing_else(agent: Agent) -> None:
    agent.inject()
    before = agent.on_disk()
    agent.performer.reapply(1)
    assert set(agent.machine.done.values()) == {1}
    agent.machine.effects -= {"rule-1", "stopped-7"}
    agent.performer.reapply(1)
    assert agent.machine.done == {(1, "rule-1"): 2, (1, "stopped-7"): 2, (1, "stopped-9"): 1}
    assert agent.performer.look(1) == ReadBack() and agent.on_disk() == before
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.machine.effects == FOREIGN


@pytest.mark.parametrize("state", [state for state in JournalState if state is not JournalState.APPLIED])
def test_reapply_is_of_applied_workers_only(agent: Agent, state: JournalState) -> None:
    agent.performer.reapply(1)
    agent.inject()
    agent.journal.put(msgspec.structs.replace(agent.journal.entries[1], state=state))
    agent.machine.effects.discard("rule-1")
    agent.performer.reapply(1)
    assert "rule-1" not in agent.machine.effects


class Replacing(Machine):
    """A machine on which rule 1 never comes back: something new, with a number, takes its place."""

    number = 0

    def again(self, step: Step, surroundings: Surroundings, held: Sequence[Step]) -> tuple[Step, ...]:
        assert surroundings is AROUND
        self.number += 1
        effect = f"{step.do['effect']}-{self.number}"
        return (Step({"worker": 1, "effect": effect}, {"effect": effect, "ours": True}),)


def test_what_reapply_does_newly_is_on_disk_before_it_is_done(agent: Agent) -> None:
    agent.machine = agent.performer.platform = Replacing()
    agent.inject()
    agent.machine.effects.discard("rule-1")
    points = agent.machine.points = agent.disk.points = CrashPoints()
    agent.performer.reapply(1)
    put, do = points.passed.index("after rename worker-1.json"), points.passed.index("before do rule-1-1")
    assert points.passed.index("after sync_directory .") < do and put < do
    assert [step.do["effect"] for step in agent.on_disk().steps] == ["rule-1", "stopped-7", "stopped-9", "rule-1-1"]
    agent.start()
    agent.performer.recover()
    assert agent.machine.effects == FOREIGN


class Telling(Replacing):
    """A machine on which whatever is done has another undo from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.undone: list[tuple[str, bool]] = []

    def do(self, step: Step) -> Operation:
        super().do(step)
        return {**step.undo, "told": True}

    def undo(self, step: Step, held: Sequence[Step], note: Callable[[Operation], None]) -> str:
        self.undone.append((step.undo["effect"], "told" in step.undo))
        return super().undo(step, held, note)


def test_what_a_do_tells_is_the_undo_from_then_on(agent: Agent) -> None:
    machine = agent.machine = agent.performer.platform = Telling()
    agent.inject()
    machine.effects.discard("rule-1")
    agent.performer.reapply(1)
    assert [step.undo["told"] for step in agent.on_disk().steps] == [True] * 4
    agent.start()
    agent.performer.recover()
    assert machine.undone == [("rule-1-1", True), ("stopped-9", True), ("stopped-7", True), ("rule-1", True)]
    assert machine.effects == FOREIGN


def test_if_a_do_fails_those_before_it_have_told(agent: Agent) -> None:
    machine = agent.machine = agent.performer.platform = Telling()
    machine.failures["do"] = [None, HostError("no")]
    with pytest.raises(NotInjectedError, match="no"):
        agent.inject()
    assert machine.undone == [("stopped-9", False), ("stopped-7", False), ("rule-1", True)]


def test_what_cannot_be_written_down_is_not_done_again(agent: Agent) -> None:
    agent.machine = agent.performer.platform = Replacing()
    agent.inject()
    agent.machine.effects.discard("rule-1")
    agent.disk.full = True
    with pytest.raises(HostError, match="No space left"):
        agent.performer.reapply(1)
    assert not [effect for effect in agent.machine.effects if effect.startswith("rule")]
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.machine.effects == FOREIGN


def test_reapply_without_end_ends(agent: Agent) -> None:
    agent.machine = agent.performer.platform = Replacing()
    agent.inject()
    with pytest.raises(HostError, match="who undoes it"):
        for _ in range(MAX_STEPS):
            agent.machine.effects = {effect for effect in agent.machine.effects if not effect.startswith("rule")}
            agent.performer.reapply(1)
    assert len(agent.on_disk().steps) == MAX_STEPS
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.machine.effects == FOREIGN


@pytest.mark.parametrize("method", ["alone", "do"])
def test_reapply_that_fails_says_why_and_the_undo_is_the_same(agent: Agent, method: str) -> None:
    agent.inject()
    agent.machine.effects.discard("rule-1")
    agent.machine.failures[method] = [HostError("not now")]
    with pytest.raises(HostError, match="not now"):
        agent.performer.reapply(1)
    assert agent.on_disk().state is JournalState.APPLIED
    agent.performer.heal(1, Outcome.DONE, "")
    assert agent.machine.effects == FOREIGN


def test_recover_undoes_everything_newest_first_and_goes_on_after_a_problem(agent: Agent) -> None:
    for worker in (1, 2, 3):
        agent.inject(worker)
    agent.performer.heal(2, Outcome.DONE, "")
    agent.start()
    agent.machine.sticky = {"rule-3"}
    lines = agent.performer.recover()
    assert [line.split(":")[0] for line in lines] == ["worker 3 of task task-3", "worker 1 of task task-1"]
    assert "rule-3" in lines[0] and lines[1] == f"worker 1 of task task-1: {RESTARTED}"
    assert agent.machine.effects == FOREIGN | {"rule-3"}
    assert agent.on_disk(3).state is JournalState.STUCK and agent.on_disk(3).outcome is Outcome.FAILED
    assert agent.on_disk(3).error == f"agent restarted; {lines[0]}"
    assert agent.on_disk(2).outcome is Outcome.DONE
    assert (agent.on_disk(1).outcome, agent.on_disk(1).error) == (Outcome.RESTARTED, RESTARTED)


@pytest.mark.parametrize("state", [state for state in JournalState if state is not JournalState.UNDONE])
def test_recover_undoes_every_live_state(agent: Agent, state: JournalState) -> None:
    agent.inject()
    agent.journal.put(msgspec.structs.replace(agent.journal.entries[1], state=state))
    agent.start()
    agent.performer.recover()
    assert agent.machine.effects == FOREIGN and agent.on_disk().state is JournalState.UNDONE


def test_forget(agent: Agent) -> None:
    agent.performer.forget(1)
    agent.inject()
    with pytest.raises(InvalidTransitionError, match="worker 1 of task task-1: forget is not allowed in state applied"):
        agent.performer.forget(1)
    agent.performer.heal(1, Outcome.DONE, "")
    agent.performer.forget(1)
    assert agent.disk.names() == ("journal.json",)
    with pytest.raises(NotFoundError, match="worker 1 is unknown here"):
        agent.performer.heal(1, Outcome.DONE, "")


def test_all_actions_are_prepared_before_anything_changes(agent: Agent) -> None:
    seen: list[frozenset[str]] = []
    agent.machine.on_prepare = lambda: seen.append(frozenset(agent.machine.effects))
    asked = msgspec.structs.replace(order(1), actions=(BlockPorts(ports=(1,)), BlockPorts(ports=(2,))))
    agent.performer.inject(asked, 99, AROUND)
    assert seen == [FOREIGN, FOREIGN]
