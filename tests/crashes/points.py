"""The fail points: what dies, when, what must be seen before and after, and how the worker must have ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import msgspec

from tests.crashes import disks, freezers
from tests.crashes.cases import Case
from tests.crashes.containers import Voyage
from tests.crashes.run import Run
from tests.crashes.slot import until
from trogdor_bus.states import Outcome, WorkerState

GUARDED = "agent killed, guard alive"


class Point(msgspec.Struct, frozen=True):
    """A fail point: its name, the kind that it stands for, what happens, and "" or why a case cannot have it.

    `group`: under which heading its time to heal is told. `where`: the kind of slot that it needs.
    """

    name: str
    kind: str
    happen: Callable[[Any], None]
    group: str = ""
    unfit: Callable[[Case], str] = lambda case: ""
    where: str = "plain"


def needs_pieces(case: Case) -> str:
    """Say why a fault has no middle."""
    return "" if case.pieces > 1 else "it is done by one change or none, which has no middle"


def needs_lock(case: Case) -> str:
    """Say why no helper of a fault waits for a lock."""
    return "" if case.kind == "firewall" else "it runs no helper that waits for a lock"


# --- SIGKILL at each step of the journal's life -----------------------------------------------------------------------


def killed_before_intent(step: str) -> Callable[[Run], None]:
    """Kill before the intent is durable: nothing was begun, and the next life does not begin what was told of."""

    def happen(run: Run) -> None:
        _hold(run, step)
        run.must_be_untouched()
        until(lambda: run.worker().state is WorkerState.STARTING, "the coordinator to hear that the worker starts")
        _release(run)
        worker = run.must_end(Outcome.UNKNOWN)
        assert "no record" in worker.error, worker
        run.must_be_untouched()

    return happen


def killed_on_the_way_in(step: str, seen: Callable[[Run], None]) -> Callable[[Run], None]:
    """Kill between the intent and the fault in force: the guard has it undone."""

    def happen(run: Run) -> None:
        _hold(run, step)
        seen(run)
        _release(run)
        run.await_clean()
        if seen is Run.must_be_untouched:
            run.healed_s = None  # there was nothing to heal
        run.must_end(Outcome.RESTARTED)

    return happen


def killed_on_the_way_out(step: str, seen: Callable[[Run], None], outcome: Outcome) -> Callable[[Run], None]:
    """Kill while the fault is taken back: it was in force, and the guard ends what was begun."""

    def happen(run: Run) -> None:
        run.start_agent(step=step)
        run.submit()
        run.await_active()
        run.stop()
        until((run.folder / "held").exists, f"the agent to reach: {step}")
        seen(run)
        _release(run)
        run.await_clean()
        if seen is gone:
            run.healed_s = None
        run.must_end(outcome)

    return happen


def gone(run: Run) -> None:
    """See that the fault is taken back already."""
    assert run.clean(), "the fault is still there"


def healer_killed(run: Run) -> None:
    """Kill the agent, and then the one that heals after it: the next life undoes."""
    run.start_agent(verb="heal", step="before undone is written")
    run.submit()
    run.await_active()
    agent = run.agent()
    agent.send(signal.SIGKILL)
    until((run.folder / "held").exists, "the healer to come to its end")
    _release(run)
    run.await_clean()
    run.healed_s = None
    run.must_end(Outcome.RESTARTED)
    assert run.count("run 2 before undone is written") == 1


# --- stopped, blocked, frozen -----------------------------------------------------------------------------------------


def stopped_before_the_do(run: Run) -> None:
    """Stop the agent before the do and let it go on after the healing: it must not inject then."""
    run.start_agent(step="intended is on disk", signal="SIGSTOP")
    run.submit()
    until((run.folder / "held").exists, "the agent to write its intent")
    run.must_be_untouched()
    agent = run.agent()
    _release(run)
    until(lambda: "did not succeed" in run.log() or run.count("heal 1 undone is on disk"), "the guard to heal")
    assert not agent.send(signal.SIGCONT), "the stopped agent is still there after the healing"
    run.must_end(Outcome.RESTARTED)
    run.must_be_untouched()


def guard_killed(run: Run) -> None:
    """Kill the guard: the agent undoes everything and ends."""
    run.start_agent()
    run.submit()
    run.await_active()
    agent, began = run.agent(), time.monotonic()
    run.slot.lab.end(run.guard(), signal.SIGKILL)
    run.await_clean(began)
    until(lambda: agent.state() == "gone", "the agent to end")
    run.start_agent()
    run.must_end(Outcome.RESTARTED)


# --- nobody is left ---------------------------------------------------------------------------------------------------


def in_force_then(kill: Callable[[Run], None], mend: Callable[[Run], None]) -> Callable[[Run], None]:
    """Kill guard and agent while the fault is in force; it stays, until somebody mends."""

    def happen(run: Run) -> None:
        run.start_agent()
        run.submit()
        run.await_active()
        kill(run)
        run.must_be_there()
        mend(run)
        run.must_end(Outcome.RESTARTED)

    return happen


def by_start(run: Run) -> None:
    """Start the agent again: it mends."""
    began = time.monotonic()
    guard = run.start_agent(wait=False)
    run.await_clean(began)
    run.await_heard(guard)


def by_hand(run: Run) -> None:
    """Heal as a person would, then start the agent."""
    began = time.monotonic()
    child = run.slot.lab.begin("node1", "trogdor-bus", "heal", "--state-dir", str(run.state))
    run.await_clean(began)
    told, wrong = child.communicate(timeout=20)
    assert child.returncode == 0, told + wrong
    assert run.task in told, told
    again = run.in_place("trogdor-bus", "heal", "--state-dir", str(run.state))
    assert (again.returncode, again.stdout.strip()) == (0, "nothing to undo"), again.stdout + again.stderr
    run.start_agent()


def both_killed(run: Run) -> None:
    """Kill guard and agent by pid."""
    run.kill_both()


def rebooted_in_place(run: Run) -> None:
    """Start under another boot id in the same namespace: nothing is touched, and that is said."""
    left = run.slot.changed()
    run.start_agent(boot="11111111-2222-3333-4444-555555555555")
    run.must_end(Outcome.RESTARTED)
    assert run.slot.changed() == left, "something was touched that this boot did not make"
    undone = run.undone()
    assert run.count(": gone: ") == undone, run.story()
    assert ("gone: " in run.log()) == bool(undone), run.log()
    _boot_takes_away(run)


def rebooted(run: Run) -> None:
    """Make the namespace anew under the same name and start under another boot id: what is new is not touched."""
    run.slot.reboot()
    run.start_agent(boot="11111111-2222-3333-4444-555555555555")
    run.must_end(Outcome.RESTARTED)
    assert run.count(": gone: ") == run.undone(), run.story()


def recreated(run: Run) -> None:
    """Make the namespace anew under the same name, in the same boot: what is new is not touched."""
    run.slot.reboot()
    run.start_agent()
    run.must_end(Outcome.RESTARTED)


def _boot_takes_away(run: Run) -> None:
    """Take away what no boot leaves."""
    slot = run.slot
    for tool in run.tools:
        for chain in slot.chains((tool,)):
            for words in (["-D", "INPUT", "-j", chain], ["-F", chain], ["-X", chain]):
                assert slot.lab.run("node1", tool, "-w", *words).returncode == 0
    for role, state in run.case.processes.items():
        if state == "stopped":
            slot.lab.process(role, "node1").send(signal.SIGCONT)
        else:
            slot.start_echo()


def _hold(run: Run, step: str) -> None:
    run.start_agent(step=step)
    run.submit()
    until((run.folder / "held").exists, f"the agent to reach: {step}")


def _release(run: Run) -> None:
    (run.folder / "go").touch()


def in_a_container(voyage: Voyage) -> None:
    """Restart the container in mid-fault."""
    voyage.happen()


UNTOUCHED, HALF, THERE = Run.must_be_untouched, Run.must_be_half, Run.must_hold
CANCELLED = Outcome.DONE
"""A worker that was told to stop has done its duty; the task is called cancelled."""

POINTS = (
    Point("before the intent is written", "kill", killed_before_intent("before intended is written")),
    Point("after the temporary file", "kill", killed_before_intent("intended is in a temporary file")),
    Point("after the rename", "kill", killed_on_the_way_in("intended is renamed", UNTOUCHED)),
    Point("intended", "kill", killed_on_the_way_in("intended is on disk", UNTOUCHED)),
    Point("in the middle of the do", "kill", killed_on_the_way_in("middle of do", HALF), GUARDED, needs_pieces),
    Point("after the do", "kill", killed_on_the_way_in("before applied is written", THERE), GUARDED),
    Point("applied", "kill", killed_on_the_way_in("applied is on disk", THERE), GUARDED),
    Point(
        "at the start of the undo", "kill", killed_on_the_way_out("the undo begins", THERE, Outcome.RESTARTED), GUARDED
    ),
    Point(
        "in the middle of the undo",
        "kill",
        killed_on_the_way_out("middle of undo", HALF, Outcome.RESTARTED),
        GUARDED,
        needs_pieces,
    ),
    Point(
        "after the undo (restart done, not marked)",
        "kill",
        killed_on_the_way_out("before undone is written", gone, Outcome.RESTARTED),
    ),
    Point("undone", "kill", killed_on_the_way_out("undone is on disk", gone, CANCELLED)),
    Point("the healer after the undo", "healer", healer_killed),
    Point("guard killed", "guard", guard_killed, "guard killed"),
    Point("stopped before the do, continued after", "stop", stopped_before_the_do),
    Point("helper blocked on the lock", "lock", freezers.helper_blocked, unfit=needs_lock, where="legacy"),
    Point("frozen cgroup (v2)", "freeze", freezers.frozen_v2, "agent frozen, after 4 s of silence"),
    Point("frozen cgroup (v1)", "freeze", freezers.frozen_v1, "agent frozen, after 4 s of silence"),
    Point("cgroup killed, next start", "cgroup", in_force_then(freezers.kill_cgroup, by_start), "next start"),
    Point("cgroup killed, heal", "cgroup", in_force_then(freezers.kill_cgroup, by_hand), "heal by hand"),
    Point("guard and agent killed, next start", "both", in_force_then(both_killed, by_start), "next start"),
    Point("guard and agent killed, heal", "both", in_force_then(both_killed, by_hand), "heal by hand"),
    Point("reboot, namespace kept", "reboot", in_force_then(both_killed, rebooted_in_place)),
    Point("reboot, namespace made anew", "reboot", in_force_then(both_killed, rebooted)),
    Point("namespace made anew, no reboot", "reboot", in_force_then(both_killed, recreated)),
    Point("container restarted", "container", in_a_container, where="container"),
    Point("disk full at the intent", "disk", disks.full_at_the_intent),
    Point("disk full at the undo", "disk", disks.full_at_the_undo),
    Point("disk full, agent killed", "disk", disks.full_and_killed, "agent killed, disk full"),
    Point("disk read-only at the intent", "disk", disks.refused_at_the_intent("EROFS create intended")),
    Point("disk read-only at the undo", "disk", disks.refused_at_the_undo("EROFS create undone")),
    Point("disk read-only, both killed", "disk", disks.read_only_and_killed),
    Point("EIO at the intent", "disk", disks.refused_at_the_intent("EIO sync intended")),
    Point("EIO at the mark of the do", "disk", disks.refused_at_the_undo("EIO sync applied")),
    Point("EIO at the undo", "disk", disks.refused_at_the_undo("EIO sync undone")),
    Point("journal truncated, agent alive", "disk", disks.truncated_alive),
    Point("journal truncated, both killed", "disk", disks.truncated_and_killed),
)
