"""A machine that has no process, thread or descriptor to spare: nothing of ours ends, and what can be undone is."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

from tests.agents.pids import group_of_pids
from tests.agents.platforms.nodes import Node, cut, undone
from tests.agents.platforms.running import running, until
from tests.support import wait_until
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.process import Suspend
from trogdor_bus.actions.program import RunCommand
from trogdor_bus.agents.lanes import Call
from trogdor_bus.agents.platforms.linux.namespace import Namespace, open_again
from trogdor_bus.agents.platforms.linux.newcomers import Watch
from trogdor_bus.agents.platforms.linux.operations import Nothing, step
from trogdor_bus.agents.platforms.linux.operations.kills import Deliver
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.agents.threads import Threads
from trogdor_bus.errors import HostError
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.states import Outcome

MOST = 40
FORKS = """
import os, time
while True:
    try:
        if not os.fork():
            time.sleep(600)
    except OSError:
        time.sleep(0.01)
"""


def in_group(group: Path, scenario: str, *arguments: str) -> str:
    """Have a function of this module called by a process of the group; return what it prints."""
    code = f"import sys; from {__name__} import *; join(sys.argv[1]); {scenario}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(group), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def join(group: str) -> None:
    (Path(group) / "cgroup.procs").write_text(str(os.getpid()))


def is_full(group: Path) -> bool:
    return int((group / "pids.current").read_text()) >= MOST


def beside_a_program_that_forks(group: str, node: str, state: str) -> None:
    """Freeze a process, and have a program use up all processes; both end on time, and so does this."""
    forks = (sys.executable, "-c", FORKS)

    async def scenario() -> None:
        async with running(LinuxPlatform(f"netns:{node}", [forks]), Path(state)) as agent:
            (Path(group) / "pids.max").write_text(str(MOST))
            agent.order(1, Suspend(match=ProcessMatch(command="the-one")), 9_000)
            await agent.reports(1, "RUNNING")
            agent.order(2, RunCommand(command=forks), 14_000)
            await until(lambda: is_full(Path(group)))
            thawed = await agent.reports(1, "DONE")
            assert is_full(Path(group))
            assert (thawed.outcome, thawed.late_ms < 1_000) == (Outcome.DONE, True), thawed
            ended = await agent.reports(2, "DONE")
            assert not ended.residue, ended
            print("all ended")

    asyncio.run(scenario())


def test_a_program_that_uses_up_the_processes_ends_no_agent_and_keeps_no_process_frozen(
    node: Node, tmp_path: Path
) -> None:
    node.sleeper("the-one")
    with group_of_pids() as group:
        said = in_group(group, "beside_a_program_that_forks", node.name, str(tmp_path / "state"))
    assert "cannot read this node's addresses" in said and "pids.max of the control group" in said
    assert "all ended" in said


def a_thread_that_is_refused(group: str) -> None:
    """A lane waits for a thread by a timer, and holds up nobody."""
    came, timers = list[tuple[str, Sequence[object]]](), list[tuple[float, object]]()
    threads = Threads(
        lambda lane, outcomes: came.append((lane, outcomes)), lambda seconds, go_on: timers.append((seconds, go_on))
    )
    limit = Path(group) / "pids.max"
    limit.write_text("1")
    threads.carry("a", [Call("a", lambda: 7)])
    ((seconds, go_on),) = timers
    assert seconds > 0 and not came and callable(go_on)
    go_on()
    assert len(timers) == 2 and not came
    limit.write_text("max")
    go_on()
    wait_until(lambda: came == [("a", [7])], what="the call to be carried out")
    assert len(timers) == 2


def test_a_thread_that_is_refused_is_asked_for_again_and_nobody_waits_for_it() -> None:
    with group_of_pids() as group:
        said = in_group(group, "a_thread_that_is_refused")
    assert said.count("no thread can be started: ") == 1, "told once"


def a_namespace_without_a_thread(group: str, node: str) -> None:
    """What cannot be entered is not gone."""
    with Namespace(f"/run/netns/{node}") as namespace:
        identity = namespace.identity
    limit = Path(group) / "pids.max"
    limit.write_text("1")
    with pytest.raises(HostError, match=r"the network namespace cannot be entered: can't start new thread; end what"):
        open_again(identity)
    limit.write_text("max")
    again = open_again(identity)
    assert again is not None
    again.close()


def test_a_namespace_that_cannot_be_entered_now_is_not_gone(node: Node) -> None:
    with group_of_pids() as group:
        in_group(group, "a_namespace_without_a_thread", node.name)


def a_search_without_a_process(group: str) -> None:
    """That nobody can look is not that nobody is there."""
    watch = Watch(ProcessMatch(command="nobody-is-called-so"), 0)
    one = step(Deliver(ProcessIdentity("b", 1, 1), "x", "SIGKILL", watch, 0), Nothing())
    platform = LinuxPlatform()
    assert platform.disturbance(one) == ""
    limit = Path(group) / "pids.max"
    limit.write_text("1")
    with pytest.raises(HostError, match="the process that looks for processes and files cannot be started: Resource"):
        platform.disturbance(one)
    limit.write_text("max")


def test_without_a_process_to_look_with_it_is_not_known_whether_somebody_came_back() -> None:
    with group_of_pids() as group:
        in_group(group, "a_search_without_a_process")


def test_without_a_descriptor_a_namespace_is_not_gone(node: Node) -> None:
    with Namespace(f"/run/netns/{node.name}") as namespace:
        identity = namespace.identity
    taken = list[int]()
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        os.close(taken.pop())  # one is enough to open it, and not to look at it
        with pytest.raises(HostError, match="Too many open files"):
            open_again(identity)
    finally:
        for fd in taken:
            os.close(fd)


def test_without_a_thread_both_families_are_unblocked_one_after_the_other(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    block = cut(here, there)

    def refused(_: ThreadPoolExecutor) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "_adjust_thread_count", refused)
    assert undone(here.platform, block) == ""
    assert here.platform.residue(block, ()) == ()
    assert (here.rules("iptables"), here.rules("ip6tables")) == ("", "")
