"""The guard, whatever happens to the agent, to the machine, and to those who should read what is told."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agents.guarded import Guarded, guarded, stands, start_text, write
from tests.agents.pids import group_of_pids
from tests.agents.platforms.hungfs import hung_process
from tests.support import require, wait_until
from trogdor_bus.agents import guard as guard_module
from trogdor_bus.agents.guard import FAREWELL, HOPELESS, PR_SET_CHILD_SUBREAPER, Guard
from trogdor_bus.agents.journal import JournalState
from trogdor_bus.agents.leash import Leash
from trogdor_bus.platform import Step


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, number)


# --- nothing that is told holds up an undo ----------------------------------------------------------------------------


@contextlib.contextmanager
def stopped_terminal(_: Path) -> Iterator[int]:
    ours, terminal = os.openpty()
    termios.tcflow(terminal, termios.TCOOFF)  # Ctrl-S
    yield terminal
    os.close(ours)
    os.close(terminal)


@contextlib.contextmanager
def full_fifo(directory: Path) -> Iterator[int]:
    path = directory / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"x" * 4096)
    os.set_blocking(fd, True)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("blocked", [stopped_terminal, full_fifo])
def test_where_nobody_reads_faults_go_on_time_and_ends_and_healing_wait_for_nobody(
    tmp_path: Path, blocked: Callable[[Path], contextlib.AbstractContextManager[int]]
) -> None:
    with blocked(tmp_path) as stderr, guarded(tmp_path, stderr=stderr) as guard:
        agent = guard.agent()
        victim = guard.frozen()
        kill(agent)
        wait_until(lambda: not stands(victim), 10, "the guard to undo")
        guard.agent(after=agent)
        assert guard.end() == 0
        left = guard.frozen()
        heal = [sys.executable, "-m", "trogdor_bus", "heal", "--state-dir", str(tmp_path / "state")]
        done = subprocess.run(heal, stderr=stderr, stdout=subprocess.PIPE, text=True, check=False, timeout=30)
        assert (done.returncode, stands(left)) == (0, False), done.stdout


# --- what the machine refuses is tried again --------------------------------------------------------------------------


@contextlib.contextmanager
def no_processes(guard: Guarded) -> Iterator[None]:
    """Let nobody around the guard have another process."""
    with group_of_pids() as group:
        (group / "cgroup.procs").write_text(str(guard.process.pid))
        (group / "pids.max").write_text("0")
        try:
            yield
        finally:
            (group / "pids.max").write_text("max")


@contextlib.contextmanager
def no_descriptors(guard: Guarded) -> Iterator[None]:
    soft, hard = resource.prlimit(guard.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(guard.process.pid, resource.RLIMIT_NOFILE, (3, hard))
    yield
    resource.prlimit(guard.process.pid, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (no_processes, "cannot start the undo: Resource temporarily unavailable; trying on"),
        (no_descriptors, "cannot look for what is left of the agent: Too many open files; trying on"),
    ],
)
def test_what_the_machine_refuses_a_guard_is_tried_again_until_it_can_be_had(
    tmp_path: Path, refused: Callable[[Guarded], contextlib.AbstractContextManager[None]], said: str
) -> None:
    require(os.geteuid() == 0, "needs root", "run it with sudo")
    with guarded(tmp_path) as guard:
        agent = guard.agent()
        victim = guard.frozen()
        with refused(guard):
            kill(agent)
            wait_until(lambda: said in guard.log(), 20, "the guard to say so")
            assert (guard.process.poll(), stands(victim)) == (None, True)
        wait_until(lambda: not stands(victim), 20, "the guard to undo")
        guard.agent(after=agent)


# --- every ending that was not asked for ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE])
def test_a_fatal_signal_leaves_a_stack_that_the_guard_reports(tmp_path: Path, number: signal.Signals) -> None:
    """Faulthandler reads threads that go on running: now and then one makes it end in the middle."""
    with guarded(tmp_path) as guard:
        agent = guard.agent()
        victim = guard.frozen()
        for _ in range(3):
            kill(agent, number)
            wait_until(lambda: not stands(victim), 10, "the guard to undo")
            before, agent = agent, guard.agent(after=agent)
            log = guard.log()
            assert f"the agent (pid {before}) died: killed by {number.name}; killing what it started" in log
            assert "GUARD   stack: Fatal Python error: " in log
            if "service.py" in log:
                break
        assert "service.py" in log, log
        assert "Fatal Python error" in (guard.state / "stack-last.txt").read_text()
        assert (guard.state / "stack.txt").read_text() == ""


def test_an_agent_that_is_killed_while_its_disk_is_full_lives_again(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "mounting a small file system needs root", "run it with sudo")
    state = tmp_path / "state"
    mount = f'mount -t tmpfs -o size=128k,mode=700 tmpfs "{state}" && exec "$@"'
    with guarded(tmp_path, prefix=["unshare", "-m", "sh", "-c", mount, "sh"]) as guard:
        agent = guard.agent()
        victim = guard.frozen()
        filler = os.open(guard.state / "filler", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(filler, b"x" * 512)
        os.close(filler)
        kill(agent)
        wait_until(lambda: not stands(victim), 10, "the guard to undo")
        agent = guard.agent(after=agent)
        said = "nothing is begun until that is mended"
        wait_until(lambda: said in guard.log(), 20, "the agent to say so")
        assert "No space left on device" in guard.log()
        assert guard.end() == 0


def test_an_agent_whose_namespace_is_gone_lives_and_heals(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "needs root", "run it with sudo")
    name = f"tb-guard-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with guarded(tmp_path, attach=f"netns:{name}") as guard:
            agent = guard.agent()
            subprocess.run(["ip", "netns", "del", name], check=True)
            victim = guard.frozen()
            kill(agent)
            wait_until(lambda: not stands(victim), 10, "the guard to undo")
            guard.agent(after=agent)
            said = f"no network namespace is called {name}"
            wait_until(lambda: said in guard.log(), 20, "the agent to say so")
            assert guard.end() == 0
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def test_what_cannot_be_read_keeps_nothing_else_from_being_undone(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "worker-7.json").write_text('{"v":99,"task":"of-tomorrow"}')
    (state / "worker-x.json").write_text("?")
    newer = Step(do={"op": "tomorrow"}, undo={"op": "tomorrow"})
    write(state, 8, os.getpid(), steps=(newer,), state=JournalState.STUCK)
    with guarded(tmp_path) as guard:
        agent = guard.agent()
        victim = guard.frozen(9)
        kill(agent)
        wait_until(lambda: not stands(victim), 10, "the guard to undo")
        guard.agent(after=agent)
        for words in ("worker-7.json in the journal cannot be read", "worker-x.json", "worker 8 of task t8"):
            assert words in guard.log()
        assert guard.end() == 1  # something may be left


def test_an_agent_that_cannot_start_ends_its_guard_the_first_time_only_and_only_if_nothing_is_left(
    tmp_path: Path,
) -> None:
    with guarded(tmp_path, platform="nosuch") as guard:
        assert guard.process.wait(30) == 2
        assert guard.log().count("unknown platform 'nosuch'") == 1
    for name, text in (("garbage", "{garbage"), ("open", "{}")):
        (keys := tmp_path / name).mkdir(mode=0o700)
        (keys / "member.json").write_text(text)
        (keys / "member.json").chmod(0o644 if name == "open" else 0o600)
        for given in (keys, keys / "member.json"):
            with guarded(tmp_path, keys=given) as guard:
                assert guard.process.wait(30) == 2
    (tmp_path / "state").chmod(0o777)
    with guarded(tmp_path) as guard:
        assert guard.process.wait(30) == 1
        assert "can be written by other users" in guard.log()
    (tmp_path / "state").chmod(0o700)
    (tmp_path / "state" / "worker-7.json").write_text("?")
    with guarded(tmp_path, platform="nosuch") as guard:
        wait_until(lambda: guard.log().count("the undo did not succeed") == 2, 30, "a second attempt")
        assert guard.end() == 1


def test_a_second_agent_on_a_directory_ends_with_its_guard(tmp_path: Path) -> None:
    with guarded(tmp_path) as guard:
        agent = guard.agent()
        with guarded(tmp_path) as second:
            assert second.process.wait(30) == 2
            assert "the undo did not succeed" not in second.log()
        assert f"belongs to a running agent (pid {agent})" in guard.log()
        assert guard.end() == 0


def test_what_ends_a_running_agent_is_no_bad_start() -> None:
    ours, theirs = socket.socketpair()
    leash = Leash(theirs.detach())
    leash.hopeless()
    assert ours.recv(9) == HOPELESS

    async def served() -> None:
        leash.serve()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(leash.hold(lambda: None), 0.01)

    asyncio.run(served())
    leash.hopeless()
    leash.farewell()
    assert ours.recv(9) == b"." + FAREWELL
    ours.close()
    leash.close()


# --- signals, words, names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_both_say_by_name_at_which_signal_they_end(tmp_path: Path, number: signal.Signals) -> None:
    with guarded(tmp_path) as guard:
        guard.agent()
        assert guard.end(number) == 0
        words = f"Terminating process due to signal {number.name}: "
        assert f"GUARD   {words}telling the agent to end" in guard.log()
        assert f"INFO    {words}undoing everything, then ending" in guard.log()


def test_ps_shows_who_they_are(tmp_path: Path) -> None:
    with guarded(tmp_path) as guard:
        agent = guard.agent()

        def shown(pid: int) -> str:
            return subprocess.check_output(["ps", "-o", "comm=,args=", "-p", str(pid)], text=True).strip()

        assert shown(guard.process.pid) == "trogdor-bus     trogdor-bus watchdog --node n1"
        assert shown(agent) == "trogdor-bus     trogdor-bus agent --node n1"
        assert guard.end() == 0


def test_a_guard_of_an_older_version_starts_agent_and_healer_of_this_one(tmp_path: Path) -> None:
    text = start_text(tmp_path / "state")
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-m", "trogdor_bus.agents", "run", text, str(theirs.fileno())]
    with ours, subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE) as agent:
        theirs.close()
        ours.settimeout(30)
        assert ours.recv(1) == b"."
        agent.terminate()
        assert agent.wait(20) == 0
        assert b"X" in ours.recv(99)
    done = subprocess.run([sys.executable, "-m", "trogdor_bus.agents.heal", text], check=False, timeout=30)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "text", ["plain", 'a "quoted" \\ path', "line\nend\x1b[31m", "größe \U0001f600 \U000e0001 \ud800"]
)
def test_the_guards_json_is_json(text: str) -> None:
    (line,) = Guard("", log_json=True)._line(text).splitlines()
    assert json.loads(line)["message"] == text
    assert b"\x1b" not in Guard("")._line(text)
    assert len(Guard("")._line(text).splitlines()) == 1


def test_the_leader_of_a_session_is_reaped_last() -> None:
    """Its number is the session's: once it is reaped, who is killed by it may be anybody's."""
    seen: list[str] = []

    class Short(Guard):
        def _command(self, verb: str, fd: int) -> list[str]:
            return ["/bin/sh", "-c", "sleep 3600 & exit 3" if verb == "run" else "exit 0"]

        def _kill_session(self, session: int) -> None:
            seen.append(Path(f"/proc/{session}/stat").read_text().rpartition(")")[2].split()[0])
            super()._kill_session(session)
            seen.append(Path(f"/proc/{session}/stat").read_text().rpartition(")")[2].split()[0])

        def _pause(self, seconds: float) -> None:
            self._ending = 1.0

    handlers = {number: signal.getsignal(number) for number in (*signal.valid_signals(),)}
    try:
        assert Short("").run() == 0
    finally:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)  # else every orphan of a later test is our child
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            with contextlib.suppress(OSError, TypeError, ValueError):
                signal.signal(number, handler)
    assert seen == ["Z", "Z"]


def test_what_hangs_beside_a_dead_agent_holds_up_no_undo(tmp_path: Path) -> None:
    with guarded(tmp_path) as guard, contextlib.ExitStack() as stack:
        agent = guard.agent()
        process = guard.frozen()
        for n in range(4):
            stack.enter_context(hung_process(tmp_path / f"dead{n}", f"hung{n}", "setsid"))
        kill(agent)
        began = time.monotonic()
        wait_until(lambda: not stands(process), 30, "the undo")
        assert time.monotonic() - began < 5


def test_a_disk_that_hangs_holds_up_no_guard_by_the_stack_of_an_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def hangs(directory: str) -> list[str]:
        answers.wait(20)
        return ["late"]

    monkeypatch.setattr(guard_module, "take", hangs)
    guard, began_s = Guard("", state_dir=str(tmp_path)), time.monotonic()
    said: list[str] = []
    monkeypatch.setattr(guard, "_say", said.append)
    guard._clear_away()
    assert time.monotonic() - began_s < 10
    answers.set()
    wait_until(lambda: said == ["stack: late"], what="the stack to be told all the same")
