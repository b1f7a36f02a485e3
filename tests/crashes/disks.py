"""Disks that fail: full, read-only, truncated, or with errors."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable

from tests.crashes.run import Run
from tests.crashes.slot import until
from trogdor_bus.agents.machine import STUCK_RETRY_MS
from trogdor_bus.states import Outcome, WorkerState

REFUSED = "nothing was done, because its undo could not be written down first"
UNMARKED = "this could not be written down"


def refused_at_the_intent(disk: str) -> Callable[[Run], None]:
    """Have the disk refuse the intent: the fault is refused, and nothing is begun."""

    def happen(run: Run) -> None:
        run.start_agent(disk=disk)
        _must_be_refused(run)

    return happen


def refused_at_the_undo(disk: str) -> Callable[[Run], None]:
    """Have the disk refuse a later mark: the fault is undone all the same, and that is said."""

    def happen(run: Run) -> None:
        run.start_agent(disk=disk)
        run.submit()
        run.await_active()
        run.stop()
        run.await_clean(time.monotonic())
        run.healed_s = None
        worker = run.must_end(Outcome.DONE)
        words = "could not note" if disk.endswith("applied") else UNMARKED
        assert any(words in warning for warning in worker.warnings), worker

    return happen


def full_at_the_intent(run: Run) -> None:
    """Fill the disk: the fault is refused; with room again, the next one is performed."""
    run.mount_small_disk()
    run.start_agent()
    fill(run)
    _must_be_refused(run)
    empty(run)


def full_at_the_undo(run: Run) -> None:
    """Fill the disk while the fault is in force: it is undone, and that it could not be noted is said."""
    _in_force_on_a_small_disk(run)
    fill(run)
    run.stop()
    run.await_clean(time.monotonic())
    run.healed_s = None
    worker = run.must_end(Outcome.DONE)
    assert any(UNMARKED in warning for warning in worker.warnings), worker
    empty(run)


def full_and_killed(run: Run) -> None:
    """Fill the disk and kill the agent: the guard heals, and the next agent, which cannot write, tells what ended."""
    _in_force_on_a_small_disk(run)
    fill(run)
    guard, began = run.guard(), time.monotonic()
    run.agent().send(signal.SIGKILL)
    run.await_clean(began)
    run.must_end(Outcome.RESTARTED)
    run.await_heard(guard)
    assert "No space left" in run.log(), run.log()
    empty(run)


def read_only_and_killed(run: Run) -> None:
    """Kill both and make the disk read-only: `heal` undoes; the agent starts when it can write again."""
    _in_force_on_a_small_disk(run)
    run.kill_both()
    run.must_be_there()
    assert run.in_place("mount", "-o", "remount,ro", str(run.state)).returncode == 0
    done = run.in_place("trogdor-bus", "heal", "--state-dir", str(run.state))
    assert (done.returncode, run.task in done.stdout) == (0, True), done.stdout + done.stderr
    assert run.case.kind == "nothing" or run.clean()
    guard = run.start_agent(wait=False)
    until(lambda: guard.state() == "gone", "the agent to refuse to start on a read-only disk")
    assert "Read-only" in run.log(), run.log()
    assert run.in_place("mount", "-o", "remount,rw", str(run.state)).returncode == 0
    run.start_agent()
    run.must_end(Outcome.RESTARTED)


def truncated_alive(run: Run) -> None:
    """Cut the journal's file in the middle while the agent lives: it undoes from memory."""
    run.start_agent()
    run.submit()
    run.await_active()
    file = run.worker_file()
    file.write_bytes(file.read_bytes()[:100])
    run.stop()
    run.await_clean(time.monotonic())
    run.healed_s = None
    run.must_end(Outcome.DONE)


def truncated_and_killed(run: Run) -> None:
    """Kill both and cut the file: `heal` fails, the node is dirty, both name it; made whole, it is undone."""
    run.start_agent()
    run.submit()
    run.await_active()
    run.kill_both()
    file = run.worker_file()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    left = run.slot.changed()
    healing = run.in_place("trogdor-bus", "heal", "--state-dir", str(run.state))
    assert (healing.returncode, file.name in healing.stdout) == (1, True), healing.stdout + healing.stderr
    run.start_agent()
    until(lambda: f"{file.name} in the journal cannot be read" in run.log(), "the agent to say so")
    until(lambda: run.worker().state is WorkerState.STUCK, "the worker to be stuck")
    assert run.slot.changed() == left
    file.write_bytes(whole)  # what a person would do by hand, only quicker
    until(lambda: run.worker().state is WorkerState.DONE, "the next attempt", STUCK_RETRY_MS / 1_000 + 15)
    assert run.case.kind == "nothing" or run.clean()
    run.must_end(Outcome.FAILED)


def fill(run: Run) -> None:
    """Write until the agent's disk is full."""
    with contextlib.suppress(OSError), (run.inner(run.state) / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"\0" * 4096)


def empty(run: Run) -> None:
    """Make room again."""
    (run.inner(run.state) / "filler").unlink()


def _must_be_refused(run: Run) -> None:
    run.submit()
    worker = run.must_end(Outcome.FAILED)
    assert REFUSED in worker.error, worker
    run.must_be_untouched()


def _in_force_on_a_small_disk(run: Run) -> None:
    run.mount_small_disk()
    run.start_agent()
    run.submit()
    run.await_active()
