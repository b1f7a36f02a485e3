from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.agents.platforms.nodes import SLEEP, Node, end, from_journal, inside, known, prepare
from tests.support import wait_until
from trogdor_bus.actions import Kill, ProcessMatch
from trogdor_bus.agents.platforms.linux import processes, restart
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.errors import CannotHealError, HostError, RefusedError
from trogdor_bus.platform import Step, Surroundings

HANDLER = f"""
import pathlib, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: pathlib.Path(sys.argv[1]).touch())
{SLEEP}
"""


def test_kill_takes_and_without_restart_nothing_comes_back(node: Node) -> None:
    pid = node.sleeper("victim")
    identity = known(pid)
    (step,) = prepare(node, Kill(match=ProcessMatch(command="victim")))
    node.platform.do(step)
    assert processes.thread_states(identity) == {}
    assert node.platform.disturbance(step) == ""
    assert node.platform.undo(step, []) == ""
    assert node.platform.residue(step, []) == ()
    node.platform.do(step)  # what is gone is gone: one of several matches may take others with it


def test_another_process_under_the_same_pid_is_not_killed(node: Node) -> None:
    pid = node.sleeper("reused")
    (step,) = prepare(node, Kill(match=ProcessMatch(command="reused")))
    earlier = {**step.do["process"], "start_ticks": step.do["process"]["start_ticks"] - 1}
    node.platform.do(Step(do={**step.do, "process": earlier}, undo=step.undo))
    assert processes.thread_states(known(pid))


def test_other_signals_are_delivered(node: Node, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    pid = node.sleeper(str(seen), HANDLER)
    wait_until(lambda: processes.signal_mask(pid, "SigCgt") & (1 << signal.SIGUSR1 - 1), what="the handler")
    (step,) = prepare(node, Kill(match=ProcessMatch(command=str(seen)), signal="SIGUSR1"))
    node.platform.do(step)
    wait_until(seen.exists, what="the signal")


@pytest.mark.parametrize("bad", ["SIGSTOP", "SIGCONT", "kill", "", "SIGKILL\n"])
def test_signals_that_leave_something_behind_are_refused(node: Node, bad: str) -> None:
    node.sleeper("victim")
    with pytest.raises(RefusedError, match="is not a signal"):
        prepare(node, Kill(match=ProcessMatch(command="victim"), signal=bad))


def test_a_process_that_is_deaf_to_the_signal_is_a_failure_with_the_reason(node: Node) -> None:
    pid = node.sleeper("deaf", f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}")
    wait_until(lambda: processes.signal_mask(pid, "SigIgn") & (1 << signal.SIGTERM - 1), what="the deafness")
    with pytest.raises(HostError, match="ignores SIGTERM"):
        prepare(node, Kill(match=ProcessMatch(command="deaf"), signal="SIGTERM"))
    inside(node, "init-of-its-own")
    with pytest.raises(HostError, match="init of its own pid namespace and does not handle SIGTERM"):
        prepare(node, Kill(match=ProcessMatch(command="init-of-its-own"), signal="SIGTERM"))


def test_restart_runs_only_what_the_agent_allows(node: Node) -> None:
    node.sleeper("victim")
    action = Kill(match=ProcessMatch(command="victim"), restart=("systemctl", "start", "kafka"))
    for allowed in ([], [["systemctl"]], [["systemctl", "start", "kafka", "now"]]):
        with pytest.raises(RefusedError, match="allowCommands"):
            LinuxPlatform(f"netns:{node.name}", allowed).prepare(1, action, Surroundings(), [])


def test_restart_brings_the_process_back_in_its_namespace_once(node: Node) -> None:
    pid = node.sleeper("service")
    command = (sys.executable, "-c", SLEEP, "service")
    platform = LinuxPlatform(f"netns:{node.name}", [command])
    action = Kill(match=ProcessMatch(command="service"), restart=command)
    (step,) = from_journal(platform.prepare(1, action, Surroundings(), []))
    platform.do(step)
    assert platform.undo(step, []) == ""
    (again,) = from_journal(platform.prepare(1, action, Surroundings(), []))
    reborn = again.do["process"]["pid"]
    node.own(reborn)
    assert reborn != pid
    assert processes.read_stat(f"/proc/{reborn}").parent != os.getpid()  # type: ignore[union-attr]
    assert platform.undo(step, []).startswith("already running")
    assert len(platform.prepare(1, action, Surroundings(), []).steps) == 1
    end(known(reborn))
    rebooted = Step(do=step.do, undo={**step.undo, "boot_id": "another"})
    assert platform.undo(rebooted, []).startswith("gone: the machine was booted")


def test_a_restart_that_brings_nothing_is_loud(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "APPEAR_S", 0.2)
    node.sleeper("service")
    platform = LinuxPlatform(f"netns:{node.name}", [["true"], ["no-such-program"]])
    match = ProcessMatch(command="service")
    (step,) = from_journal(platform.prepare(1, Kill(match=match, restart=("true",)), Surroundings(), []))
    platform.do(step)
    with pytest.raises(CannotHealError, match="ran true, but no process matches"):
        platform.undo(step, [])
    with pytest.raises(HostError, match="does not exist on this machine"):
        platform.prepare(1, Kill(match=match, restart=("no-such-program",)), Surroundings(), [])
