"""What an undo waits for holds up no other undo, and who was told to end is not taken for who was started again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.agents.platforms.nodes import Node, end, known, undone
from tests.agents.platforms.running import TEXTS, running, until
from tests.support import require, wait_until
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.kafka import MoveLeader
from trogdor_bus.actions.process import Kill, Restart, Suspend
from trogdor_bus.agents import service
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.agents.platforms.linux import endings, leaders, processes, signals
from trogdor_bus.agents.platforms.linux.operations import step
from trogdor_bus.agents.platforms.linux.operations.leads import Lead, LeadBack
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.cluster import Move
from trogdor_bus.errors import CannotHealError, HostError, NotYetError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import ProcessIdentity, Step, Surroundings
from trogdor_bus.states import Outcome
from trogdor_bus.testing import RecordingPlatform, unnoted

SLOW = """
import os, signal, socket, sys, time
def end(*_):
    while not os.path.exists(sys.argv[1] + ".may-end"):
        time.sleep(0.02)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGHUP, lambda *_: None)
signal.signal(signal.SIGQUIT, end)
with open(sys.argv[1], "a") as starts:
    starts.write(f"{os.getpid()}\\n")
server = socket.create_server(("", 9092))
while True:
    time.sleep(600)
"""
"""Listens; was it told to end by SIGTERM or SIGQUIT, it does as soon as a file is there."""
HANGING = """
import json, socket, sys
host, port = json.load(sys.stdin)["bootstrap"].split(":")
socket.create_connection((host, int(port))).recv(1)

"""
"""Asks a cluster, in the place of the program that does, and waits for its answer."""


class Slow:
    """A service that takes its time to end."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node, self._starts = node, folder / "starts"
        self.argv = (sys.executable, "-c", SLOW, str(self._starts))
        self.platform = LinuxPlatform(f"netns:{node.name}", [self.argv])
        self.match = ProcessMatch(command=str(self._starts))
        node.spawn(*self.argv)
        self.victim = self.started(1)

    def started(self, number: int) -> ProcessIdentity:
        wait_until(lambda: len(self.starts()) == number, what="the start")
        self.node.own(self.starts()[-1])
        return known(self.starts()[-1])

    def starts(self) -> list[int]:
        text = self._starts.read_text() if self._starts.exists() else ""
        return [int(line) for line in text.splitlines() if text.endswith("\n")]

    def kill(self, signal: str = "SIGTERM", *, restart: bool = True) -> Kill:
        return Kill(match=self.match, signal=signal, restart=Restart(command=self.argv) if restart else None)

    def may_end(self) -> None:
        self._starts.with_name("starts.may-end").touch()

    def close(self) -> None:
        """End whoever was started, also when a test failed in the middle."""
        for pid in self.starts():
            with contextlib.suppress(OSError):
                if os.fsencode(self._starts) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    end(known(pid))

    def lives(self) -> bool:
        return bool(processes.thread_states(self.victim))

    def told(self, how: Kill) -> Step:
        """Return the step of that kill as it is done."""
        prepared = self.platform.prepare(1, how, Surroundings(), [])
        (one,) = prepared.steps
        undo = self.platform.do(one)
        return Step(one.do, undo) if undo else one


@pytest.fixture
def slow(node: Node, tmp_path: Path) -> Iterator[Slow]:
    made = Slow(node, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("how", ["at its end", "by a stop right after the signal"])
def test_who_takes_long_to_end_is_waited_for_and_started_again_and_others_are_undone_meanwhile(
    slow: Slow, node: Node, tmp_path: Path, how: str
) -> None:
    async def scenario() -> None:
        async with running(slow.platform, tmp_path / "state") as agent:
            agent.order(1, slow.kill(), 1_000 if how == "at its end" else 60_000)
            if how != "at its end":
                await agent.reports(1, "RUNNING")
                agent.stop(1)
            awaited = f"STOPPING: stopping it: process {slow.victim.pid} was told to end"
            await until(lambda: awaited in agent.says(1))
            other = known(node.sleeper("the-other-one"))
            agent.order(9, Suspend(match=ProcessMatch(command="the-other-one")), 3_000)
            await agent.reports(9, "RUNNING")
            assert (await agent.reports(9, "DONE")).outcome is Outcome.DONE
            assert (slow.lives(), signals.is_stopped(other)) == (True, False)
            assert agent.says(1).startswith(awaited)
            slow.may_end()
            report = await agent.reports(1, "DONE")
            assert report.outcome is Outcome.DISTURBED
            assert "has not ended by SIGTERM" in report.error
            assert not report.warnings

    asyncio.run(scenario())
    assert not slow.lives()
    assert processes.thread_states(slow.started(2))
    assert ":9092" in node.run("ss", "-Hltn")


def test_who_ends_in_time_is_no_disturbance(slow: Slow, node: Node, tmp_path: Path) -> None:
    slow.may_end()

    async def scenario() -> None:
        async with running(slow.platform, tmp_path / "state") as agent:
            agent.order(1, slow.kill(), 3_000)
            await agent.reports(1, "RUNNING")
            await until(lambda: not slow.lives())
            agent.stop(1)
            assert (await agent.reports(1, "DONE")).outcome is Outcome.DONE

    asyncio.run(scenario())
    slow.started(2)


def test_who_never_ends_is_stuck_with_what_to_type_and_started_again_when_it_is_gone(
    slow: Slow, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = slow.told(slow.kill())
    monkeypatch.setattr(endings, "DYING_MS", 300)
    for platform in (slow.platform, LinuxPlatform(f"netns:{node.name}", [slow.argv])):  # this life, and another
        with pytest.raises(
            CannotHealError, match=rf"process {slow.victim.pid} was told to end by SIGTERM, and is still"
        ):
            undone(platform, done)
        assert platform.by_hand(done).startswith(f"kill -KILL {slow.victim.pid}; nsenter")
    assert slow.starts() == [slow.victim.pid]
    end(slow.victim)
    assert undone(slow.platform, done) == ""
    assert processes.thread_states(slow.started(2))
    assert "kill" not in slow.platform.by_hand(done)


def test_of_an_earlier_life_that_did_not_note_the_signal_it_is_not_known_and_waited_for(
    slow: Slow, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (prepared,) = slow.platform.prepare(1, slow.kill(), Surroundings(), []).steps
    assert undone(slow.platform, prepared).startswith("already running"), "this life knows that it sent nothing"
    monkeypatch.setattr(endings, "DYING_MS", 300)
    with pytest.raises(CannotHealError, match="may have been told to end by SIGTERM"):
        undone(LinuxPlatform(f"netns:{node.name}"), prepared)
    (prepared,) = slow.platform.prepare(1, slow.kill("SIGKILL"), Surroundings(), []).steps
    assert undone(LinuxPlatform(f"netns:{node.name}"), prepared).startswith("already running"), "no SIGKILL is pending"


@contextlib.contextmanager
def frozen(process: ProcessIdentity) -> Iterator[Path]:
    """Freeze a process of the test in a control group of its own; yields the file that says so."""
    root = Path("/sys/fs/cgroup/freezer")
    require(os.access(root, os.W_OK), "no control group can freeze here", "run as root with the freezer of cgroup v1")
    folder = root / f"tbt-{os.getpid()}-{process.pid}"
    folder.mkdir()
    try:
        (folder / "cgroup.procs").write_text(str(process.pid))
        (folder / "freezer.state").write_text("FROZEN")
        wait_until(lambda: (folder / "freezer.state").read_text().strip() == "FROZEN", what="the frost")
        yield folder / "freezer.state"
    finally:
        (folder / "freezer.state").write_text("THAWED")
        end(process)
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), what="the end of who was frozen")
        folder.rmdir()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_a_signal_that_is_pending_on_a_frozen_process_has_killed_nobody(
    slow: Slow, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    slow.may_end()
    monkeypatch.setattr(signals, "KILL_S", 0.3)
    with frozen(slow.victim) as frost:
        (prepared,) = slow.platform.prepare(1, slow.kill(number), Surroundings(), []).steps
        done = prepared
        if number == "SIGKILL":
            with pytest.raises(NotYetError, match="was killed, and is not gone yet"):
                slow.platform.do(prepared)
            time.sleep(signals.KILL_S)
            with pytest.raises(HostError, match=r"is still there 0\.3 s after SIGKILL"):
                slow.platform.do(prepared)
        else:
            done = Step(prepared.do, slow.platform.do(prepared) or prepared.undo)
        said = rf"process {slow.victim.pid} \(.*\) lives: {number} is pending: it is stopped, frozen"
        assert re.search(said, slow.platform.missed(done))
        with pytest.raises(NotYetError, match="is waited for"):
            slow.platform.undo(done, [], unnoted)
        monkeypatch.setattr(endings, "DYING_MS", 0)
        with pytest.raises(
            CannotHealError, match=f"told to end by {number}, and is still there .*pending: it is stopped, frozen"
        ):
            undone(slow.platform, done)
        frost.write_text("THAWED")
        monkeypatch.setattr(endings, "DYING_MS", 60_000)
        assert undone(slow.platform, done) == ""
        assert not slow.lives()
        slow.started(2)


def arrived(slow: Slow, done: Step) -> bool:
    return "pending" not in slow.platform.missed(done)


def test_signals_by_which_a_process_need_not_end_are_not_judged_by_its_death(
    slow: Slow, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = slow.told(slow.kill("SIGHUP"))
    wait_until(functools.partial(arrived, slow, done), what="the signal")
    assert slow.platform.missed(done) == ""
    assert undone(slow.platform, done).startswith("already running")
    for number, jvm in (("SIGTERM", True), ("SIGQUIT", False), ("SIGQUIT", True)):
        monkeypatch.setattr(endings, "_is_jvm", [lambda _: False, lambda _: True][jvm])
        done = slow.told(slow.kill(number, restart=False))
        wait_until(functools.partial(arrived, slow, done), what="the signal")
        assert bool(slow.platform.missed(done)) is not (number == "SIGQUIT" and jvm)


def test_an_undo_is_not_held_up_by_a_cluster_that_does_not_answer(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaders, "PROGRAM", (sys.executable, "-c", HANGING))
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # it is connected to, and says nothing
        bootstrap = f"127.0.0.1:{hanging.getsockname()[1]}"
        move = Move(topic="orders", partition=1, found=(1, 2, 3), leader=1, to=2)
        restoring = step(Lead(bootstrap, "", move), LeadBack(bootstrap, "", move))
        journal = Journal(FileDisk(tmp_path / "state"))
        journal.put(
            Entry(
                worker=1,
                task="t1",
                state=JournalState.APPLIED,
                boot_id=boot_id(),
                ends_ms=0,
                spec=msgspec.Raw(b"null"),
                texts=TEXTS,
                steps=(restoring,),
            )
        )

        async def scenario() -> None:
            async with running(node.platform, tmp_path / "state") as agent:
                await until(lambda: "are asked" in agent.says(1))
                assert agent.says(1).startswith("STOPPING")
                agent.order(2, MoveLeader(topic="orders", partition=1, bootstrap=bootstrap), 60_000)
                node.sleeper("the-other-one")
                agent.order(9, Suspend(match=ProcessMatch(command="the-other-one")), 3_000)
                assert (await agent.reports(9, "DONE")).outcome is Outcome.DONE, "the other fault waited"
                assert ("are asked" in agent.says(1), agent.says(2).startswith("STARTING")) == (True, True)
                agent.stop(2)
                assert (await agent.reports(2, "DONE")).residue == (), "nothing was begun"
                assert "are asked" in agent.says(1)
                hanging.close()
                assert "Connection reset" in (await agent.reports(1, "STUCK")).error

        asyncio.run(scenario())


def test_an_undo_is_not_held_up_by_an_engine_that_does_not_tell_the_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "ADDRESSES_S", 0.05)
    hangs, go_on = threading.Event(), threading.Event()

    class Hanging(RecordingPlatform):
        def addresses(self) -> tuple[str, ...]:
            if agent_runs.is_set():
                hangs.set()
                go_on.wait(20)
            return ()

    agent_runs = threading.Event()

    async def scenario() -> None:
        platform = Hanging()
        async with running(platform, tmp_path / "state") as agent:
            try:
                agent_runs.set()
                await until(hangs.is_set)
                agent.order(1, Suspend(match=ProcessMatch(command="x")), 200)
                assert (await agent.reports(1, "DONE", within_s=5)).outcome is Outcome.DONE
                assert (platform.in_force, go_on.is_set()) == ([], False)
            finally:
                go_on.set()

    asyncio.run(scenario())
