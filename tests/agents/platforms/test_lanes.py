"""One resource that hangs, or many undos at once: nothing waits for anything but its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.agents.platforms.nodes import Node
from tests.agents.platforms.running import running, until
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.kafka import MoveLeader
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.actions.process import Kill, Suspend
from trogdor_bus.actions.process import Restart as RestartAction
from trogdor_bus.actions.program import RunCommand
from trogdor_bus.agents.platforms.linux.lanes import lane, resource_of
from trogdor_bus.agents.platforms.linux.node import Node as OnLinux
from trogdor_bus.agents.platforms.linux.operations import FIREWALL, PROCESSES, SEARCH, Nothing, freezes, step
from trogdor_bus.agents.platforms.linux.operations.freezes import Freeze, Stops, Thaw
from trogdor_bus.agents.platforms.linux.operations.kills import Deliver
from trogdor_bus.agents.platforms.linux.operations.leads import LEADERS
from trogdor_bus.agents.platforms.linux.operations.restarts import Restart
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.agents.platforms.linux.restart import Unit
from trogdor_bus.platform import ProcessIdentity, Step
from trogdor_bus.states import Outcome

TOOL = """#!/bin/sh
echo "$0 $*" >> {log}
while test -e {hangs}; do sleep 0.05; done
exec {real} "$@"
"""


class Tools:
    """Tools of iptables that hang while a file is there, and tell of each call."""

    def __init__(self, directory: Path) -> None:
        self.hangs, self.log = directory / "hangs", directory / "log"
        self.directory = directory / "bin"
        self.directory.mkdir()
        for name in (
            "iptables",
            "iptables-save",
            "iptables-restore",
            "ip6tables",
            "ip6tables-save",
            "ip6tables-restore",
        ):
            real = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
            assert real is not None
            tool = self.directory / name
            tool.write_text(TOOL.format(log=self.log, hangs=self.hangs, real=real))
            tool.chmod(0o755)

    def calls(self, name: str) -> int:
        """Return how often a tool was called since it was asked last."""
        found = self.log.read_text().count(f"/{name} ")
        self.log.write_text("")
        return found


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tools]:
    (tmp_path / "tools").mkdir()
    made = Tools(tmp_path / "tools")
    monkeypatch.setenv("PATH", f"{made.directory}:{os.environ['PATH']}")
    yield made
    with contextlib.suppress(FileNotFoundError):
        made.hangs.unlink()


def test_an_iptables_that_hangs_keeps_no_process_frozen(node: Node, tools: Tools, tmp_path: Path) -> None:
    node.sleeper("the-one")

    async def scenario() -> None:
        async with running(node.platform, tmp_path / "state") as agent:
            agent.order(1, BlockPorts(ports=(1111,)), 2_000)
            agent.order(2, Suspend(match=ProcessMatch(command="the-one")), 3_000)
            await agent.reports(1, "RUNNING")
            await agent.reports(2, "RUNNING")
            tools.hangs.touch()
            thawed = await agent.reports(2, "DONE")
            assert (thawed.outcome, thawed.late_ms < 1_000) == (Outcome.DONE, True), thawed
            assert agent.says(1).startswith("STOPPING")
            tools.hangs.unlink()
            late = await agent.reports(1, "DONE", 60)
            assert (late.outcome, late.error) == (Outcome.LATE, f"it was undone {late.late_ms / 1000:.1f} s late")

    asyncio.run(scenario())


def test_what_is_due_at_once_in_one_firewall_is_removed_at_once(node: Node, tools: Tools, tmp_path: Path) -> None:
    many = range(1, 21)

    async def scenario() -> None:
        async with running(node.platform, tmp_path / "state") as agent:
            for worker in many:
                agent.order(worker, BlockPorts(ports=(worker,)), 60_000)
            for worker in many:
                await agent.reports(worker, "RUNNING", 60)
            tools.calls("iptables-restore")
            agent.stop_all()
            await until(lambda: all(agent.says(worker).startswith("DONE") for worker in many))
            assert tools.calls("iptables-restore") == 1, "of 20 blocks"
            assert {agent.report(worker).outcome for worker in many} == {Outcome.DONE}

    asyncio.run(scenario())


def test_what_of_a_batch_cannot_be_removed_costs_no_other_its_undo(node: Node, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(node.platform, tmp_path / "state") as agent:
            for worker in (1, 2, 3):
                agent.order(worker, BlockPorts(ports=(worker,)), 60_000)
            for worker in (1, 2, 3):
                await agent.reports(worker, "RUNNING")
            chain = agent.performer.journal.entries[2].steps[0].undo["tables"][0]["chains"][0]
            foreign = ("FORWARD", "-s", "192.0.2.1", "-j", chain)
            node.run("iptables", "-A", *foreign)
            agent.stop_all()
            assert (await agent.reports(1, "DONE")).outcome is Outcome.DONE
            assert (await agent.reports(3, "DONE")).outcome is Outcome.DONE
            stuck = await agent.reports(2, "STUCK")
            assert "a rule of somebody else leads to it" in stuck.error
            node.run("iptables", "-D", *foreign)

    asyncio.run(scenario())


def test_lanes_are_what_is_touched() -> None:
    process = ProcessIdentity("b", 1, 1)
    thaw = step(Freeze(process, "x", leave=False), Thaw(process, "x", leave=False))
    match = ProcessMatch(port=1)
    start = step(
        Deliver(process, "x", "SIGKILL"),
        Restart(boot_id="b", how=Unit("/bin/systemctl", "kafka.service"), unless=match, alive_ms=1),
    )
    assert lane("undo", thaw) == lane("residue", thaw) == PROCESSES
    assert lane("prepare", Suspend(match=match)) == lane("prepare", Kill(match=match)) == SEARCH
    for one in (thaw, start):
        assert (lane("look", one), lane("search", one), lane("again", one)) == (PROCESSES, SEARCH, SEARCH)
    assert lane("undo", start) == "start kafka.service"
    assert lane("prepare", Kill(match=match, restart=RestartAction(unit="kafka.service"))) == "search kafka.service"
    assert lane("prepare", RunCommand(command=("a", "b"))) == "search a b"
    assert lane("prepare", BlockPorts(ports=(1,))) == lane("strays", None) == FIREWALL
    assert lane("prepare", MoveLeader(topic="t", partition=0, bootstrap="b:1")) == LEADERS
    assert lane("undo", Step(do={"op": "of a newer version"}, undo={"op": "of a newer version"})) == "others"
    assert (resource_of(thaw), resource_of(start)) == (PROCESSES, "start kafka.service")


def test_two_lanes_that_ask_for_the_stops_of_others_at_once_each_get_their_own() -> None:
    process = ProcessIdentity("b", 1, 1)
    frozen = (step(Freeze(process, "x", leave=False), Thaw(process, "x", leave=False)),)

    node = OnLinux("", ())

    class Meanwhile(freezes._Known):
        """Another lane asks at the worst moment: when the first one has written down what it found."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if isinstance(value, Stops) and value.of(process):
                freezes._stops(node, ())

    node._memories[freezes._Known] = Meanwhile(node)
    assert freezes._stops(node, frozen).wanted(process)


def test_who_starts_one_thing_keeps_nobody_from_starting_another() -> None:
    steps = [
        step(Nothing(), Restart(boot_id="b", how=Unit("/bin/systemctl", name), unless=ProcessMatch(port=1), alive_ms=1))
        for name in ("kafka.service", "zookeeper.service")
    ]
    platforms = LinuxPlatform(), LinuxPlatform()
    with platforms[0].alone(steps[:1]), platforms[1].alone(steps[1:]):
        pass


def test_lanes_that_remember_for_the_first_time_at_once_remember_the_same() -> None:
    node, slow = OnLinux("", ()), threading.Event()

    class Memory:
        def __init__(self, _: OnLinux) -> None:
            slow.wait(0.05)

    with ThreadPoolExecutor(4) as lanes:
        assert len({id(one) for one in lanes.map(node.memory, [Memory] * 4)}) == 1
