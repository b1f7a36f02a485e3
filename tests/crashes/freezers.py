"""Control groups and locks: an agent that is frozen, killed with all that is around it, or waits for a lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.crashes.run import Run
from tests.crashes.slot import until
from tests.support import require
from trogdor_bus.states import Outcome

V2 = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
V1 = (Path("/sys/fs/cgroup/freezer"),)


@contextlib.contextmanager
def own_cgroup(run: Run, roots: tuple[Path, ...], file: str) -> Iterator[Path]:
    """Make a control group that has the file, for this cell alone; skip if that is not possible here."""
    folder = Path()
    for root in roots:
        folder = root / f"tb-crash-{os.getpid()}-{run.task}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / file).exists():
                break
            folder.rmdir()
    require((folder / file).exists(), f"no control group with {file} can be made here", "run it as root on Linux 5.14")
    try:
        yield folder
    finally:
        until(lambda: removed(folder), "the control group to be empty")


def removed(folder: Path) -> bool:
    """Remove a control group; False while somebody is in it."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def frozen(roots: tuple[Path, ...], file: str, word: str) -> Callable[[Run], None]:
    """Freeze the agent alone: the guard thaws and kills it, and heals."""

    def happen(run: Run) -> None:
        run.start_agent()
        run.submit()
        run.await_active()
        agent = run.agent()
        with own_cgroup(run, roots, file) as folder:
            (folder / "cgroup.procs").write_text(str(agent.pid))
            began = time.monotonic()
            (folder / file).write_text(word)
            run.await_clean(began)
            assert agent.state() == "gone", "the frozen agent is still there after the healing"
            if run.healed_s is not None:
                assert run.healed_s > 2, "healed before the guard could know; was it frozen at all?"
        run.must_end(Outcome.RESTARTED)

    return happen


frozen_v2 = frozen(V2, "cgroup.freeze", "1")
frozen_v1 = frozen(V1, "freezer.state", "FROZEN")


def kill_cgroup(run: Run) -> None:
    """Kill the control group that guard and agent are in."""
    guard, agent = run.guard(), run.agent()
    with own_cgroup(run, V2, "cgroup.kill") as folder:
        for process in (guard, agent):
            (folder / "cgroup.procs").write_text(str(process.pid))
        (folder / "cgroup.kill").write_text("1")
        until(lambda: guard.state() == agent.state() == "gone", "guard and agent to die")


def helper_blocked(run: Run) -> None:
    """Kill the agent while an iptables-restore of its own waits for the lock, then let go of the lock."""
    lock = run.own_lock()
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run.start_agent()
        run.submit()
        agent = run.agent()
        until(lambda: waiting(agent.pid), "a helper to wait for the lock")
        run.must_be_untouched()
        agent.send(signal.SIGKILL)
        until(lambda: run.count("heal 1 undone is on disk"), "the guard to heal")
        assert not waiting(agent.pid), "the helper outlived the healing"
    run.must_end(Outcome.RESTARTED)
    assert run.count(" did ") == 0


def waiting(session: int) -> list[int]:
    """Return the helpers of an agent's session that have the lock's file open."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"-restore" in (entry / "cmdline").read_bytes():
                theirs = int((entry / "stat").read_text().rpartition(")")[2].split()[3])
                opened = [str(link.readlink()) for link in (entry / "fd").iterdir()]
                if theirs == session and any(path.endswith("xtables.lock") for path in opened):
                    found.append(int(entry.name))
    return found
