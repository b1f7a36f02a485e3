"""What hangs for ever, as on a dead disk: it is given up, told, and holds up nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.platforms.hungfs import hung, hung_process
from tests.agents.platforms.nodes import Node, undone
from tests.agents.platforms.running import running, until
from tests.agents.platforms.test_restart import Service
from tests.agents.platforms.test_waiting import Slow
from tests.support import wait_until
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.process import Kill, Restart, Suspend
from trogdor_bus.actions.program import RunCommand
from trogdor_bus.agents.platforms.linux import processes, reader
from trogdor_bus.agents.platforms.linux.namespace import Namespace, UnseenError
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.platform import Surroundings
from trogdor_bus.states import Outcome
from trogdor_bus.supervisor import tree
from trogdor_bus.testing import unnoted


def find(node: Node, match: ProcessMatch) -> processes.Found:
    with Namespace(f"/run/netns/{node.name}") as namespace:
        return processes.find(match, namespace, Surroundings())


def test_a_pid_file_on_a_dead_mount_fails_its_task_and_holds_up_no_undo(node: Node, tmp_path: Path) -> None:
    node.sleeper("the-one")

    async def scenario() -> None:
        async with running(node.platform, tmp_path / "state") as agent:
            agent.order(1, Suspend(match=ProcessMatch(command="the-one")), 3_000)
            await agent.reports(1, "RUNNING")
            with hung(tmp_path / "dead"):
                agent.order(2, Suspend(match=ProcessMatch(pid_file=f"{tmp_path}/dead/hung.pid")), 60_000)
                failed = await agent.reports(2, "DONE")
                thawed = await agent.reports(1, "DONE")
            assert failed.outcome is Outcome.FAILED
            assert "dead/hung.pid cannot be read: nothing answers within 1 s: is it on a dead mount?" in failed.error
            assert (thawed.outcome, thawed.late_ms < 1_000) == (Outcome.DONE, True), thawed

    asyncio.run(scenario())


def test_an_undo_waits_for_no_search_neither_of_others_nor_of_its_own_last_look(node: Node, tmp_path: Path) -> None:
    node.sleeper("the-frozen")
    node.sleeper("the-killed")

    async def scenario(hangs: contextlib.ExitStack) -> None:
        async with running(node.platform, tmp_path / "state") as agent:
            agent.order(1, Suspend(match=ProcessMatch(command="the-frozen")), 60_000)
            agent.order(2, Kill(match=ProcessMatch(command="the-killed"), signal="SIGKILL"), 60_000)
            await agent.reports(1, "RUNNING")
            await agent.reports(2, "RUNNING")
            for number in range(5):
                inside = ("ip", "netns", "exec", node.name)
                hangs.enter_context(hung_process(tmp_path / f"dead{number}", f"hung{number}", *inside))
            for worker in (3, 4, 5):
                agent.order(worker, Suspend(match=ProcessMatch(command="the-frozen")), 60_000)
            await agent.reports(3, "STARTING")
            agent.stop(1)
            agent.stop(2)
            thawed = await agent.reports(1, "DONE")
            assert (thawed.outcome, thawed.late_ms < 700) == (Outcome.DONE, True), thawed
            undone = await agent.reports(2, "DONE")
            assert (undone.outcome, undone.late_ms < 1_500) == (Outcome.DISTURBED, True), undone
            assert "the search for processes takes more than 0.8 s" in undone.error
            assert agent.says(5).startswith("STARTING"), "the searches go on"
            for worker in (3, 4, 5):
                agent.stop(worker)

    with contextlib.ExitStack() as hangs:
        asyncio.run(scenario(hangs))


@pytest.mark.parametrize("by_path", [True, False])
def test_a_program_on_a_dead_mount_fails_its_task(
    by_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = tmp_path / "dead"
    argv = (f"{dead}/hung-program" if by_path else "hung-program",)
    monkeypatch.setenv("PATH", f"{dead}:{os.environ['PATH']}")

    async def scenario() -> None:
        async with running(LinuxPlatform("", [argv]), tmp_path / "state") as agent:
            with hung(dead):
                agent.order(1, RunCommand(command=argv, grace_ms=100), 3_000)
                failed = await agent.reports(1, "DONE")
            assert failed.outcome is Outcome.FAILED
            why = "cannot be looked at: nothing answers within 1 s: is it on a dead mount?"
            assert failed.error == f"Unable to start process: {argv[0]!r} {why}"

    asyncio.run(scenario())


def test_a_restart_by_a_program_on_a_dead_mount_is_no_fault(node: Node, tmp_path: Path) -> None:
    node.sleeper("the-one")
    argv = (f"{tmp_path}/dead/hung-service",)
    kill = Kill(match=ProcessMatch(command="the-one"), restart=Restart(command=argv))
    platform = LinuxPlatform(f"netns:{node.name}", [argv])
    with hung(tmp_path / "dead"), pytest.raises(HostError, match="hung-service' cannot be looked at: nothing answers"):
        platform.prepare(1, kill, Surroundings(), ())


def test_a_process_that_hangs_keeps_no_other_from_being_found(node: Node, tmp_path: Path) -> None:
    pid = node.sleeper("the-one")
    with hung_process(tmp_path / "dead", "the-hung", "ip", "netns", "exec", node.name) as victim:
        began_s = time.monotonic()
        found = find(node, ProcessMatch(command="the-one"))
        assert [process.pid for process in found.processes] == [pid]
        name = Path(f"/proc/{victim.pid}/comm").read_text().strip()
        assert found.silent.startswith(
            f"what these were started with cannot be read, they hang: {victim.pid} ({name}); "
        )
        none = find(node, ProcessMatch(command="the-hung"))
        assert not none.processes
        assert none.why_none.endswith(f"; {found.silent}")
        assert tree.mark_of(victim.pid) == ("", False)
        pid_file = tmp_path / "pid"
        pid_file.write_text(f"{victim.pid}")
        named = find(node, ProcessMatch(pid_file=str(pid_file)))
        assert f"what matches is never touched: {victim.pid} ({name}) is a child of this agent" in named.why_none
        assert time.monotonic() - began_s < 60
    with reader.Reader() as again:  # it sees to those that were given up before
        assert again.read(str(pid_file), 3) == f"{victim.pid}"[:3].encode()
        wait_until(lambda: again._give_up() or not reader._given_up, what="all of them to be gone")


def test_where_too_many_hang_the_search_fails_and_says_so(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MOST_SILENT", 0)
    node.sleeper("the-one")
    with (
        hung_process(tmp_path / "dead", "the-hung", "ip", "netns", "exec", node.name),
        pytest.raises(HostError, match="more than 0 processes hang, and do not tell what they are"),
    ):
        find(node, ProcessMatch(command="the-one"))


def test_a_reader_tells_why_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff\0text")
    with reader.Reader() as one:
        for _ in range(2):
            assert one.read(str(tmp_path / "file"), 4) == b"\xff\0te"
            for path, says in ((tmp_path / "none", "No such file"), (tmp_path, "not a regular file")):
                try:
                    one.read(str(path), 4)
                except OSError as error:
                    assert says in str(error.strerror), error
                else:
                    raise AssertionError(path)


@contextlib.contextmanager
def readers_killed(pid: int, times: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Have so many readers killed that are about to look at a process; yields who was."""
    killed, write = list[int](), reader._write

    def writing(child: subprocess.Popen[bytes], data: bytes) -> None:
        if f"/proc/{pid}/".encode() in data and len(killed) < times:
            killed.append(child.pid)
            child.kill()
            if len(killed) % 2:  # else it is seen only when it does not answer
                child.wait()
        write(child, data)

    with monkeypatch.context() as patch:
        patch.setattr(reader, "_write", writing)
        yield killed


def test_a_reader_that_is_killed_keeps_no_process_from_being_found(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = node.sleeper("the-one")
    with readers_killed(pid, 1, monkeypatch) as killed:
        assert [one.pid for one in find(node, ProcessMatch(command="the-one")).processes] == [pid]
    assert len(killed) == 1
    with (
        readers_killed(pid, 2, monkeypatch),
        pytest.raises(UnseenError, match="looks for processes and files was killed twice in a row"),
    ):
        find(node, ProcessMatch(command="the-one"))


def test_nothing_is_started_a_second_time_because_a_reader_was_killed(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "service").mkdir()
    service = Service(node, tmp_path / "service")
    step = service.killed(alive_ms=60_000)
    again = node.sleeper(str(service.folder))  # somebody has started it
    with readers_killed(again, 2, monkeypatch), pytest.raises(CannotHealError, match="killed twice in a row"):
        service.platform.undo(step, (), unnoted)
    assert undone(service.platform, step).startswith("already running")
    assert not service.starts()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENFILE])
def test_what_a_reader_is_refused_says_nothing_of_a_process(
    node: Node, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: reader.Reader, pid: int, name: str) -> bytes:
        raise OSError(number, os.strerror(number))

    node.sleeper("the-one")
    monkeypatch.setattr(reader.Reader, "of_process", refused)
    with pytest.raises(UnseenError, match=rf"process \d+ cannot be looked at: {os.strerror(number)}"):
        find(node, ProcessMatch(command="the-one"))


@pytest.mark.parametrize("hangs", [False, True])
def test_a_disk_that_hangs_keeps_no_service_down(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    stuck, answers, fsync = threading.Event(), threading.Event(), os.fsync

    def hanging(fd: int) -> None:
        if stuck.is_set():
            answers.wait(60)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", hanging)
    (tmp_path / "service").mkdir()
    service = Slow(node, tmp_path / "service")

    async def scenario() -> None:
        async with running(service.platform, tmp_path / "state") as agent:
            kill = Kill(match=service.match, signal="SIGTERM", restart=Restart(command=service.argv))
            agent.order(1, kill, 2_000)
            await agent.reports(1, "RUNNING")
            if hangs:
                stuck.set()
            await until(lambda: agent.says(1).startswith("STOPPING"))
            service.may_end()
            try:
                await until(lambda: len(service.starts()) == 2, 25)
            finally:
                stuck.clear()
                answers.set()
            await agent.reports(1, "DONE", 20)

    try:
        asyncio.run(scenario())
    finally:
        service.close()


def test_processes_that_hang_do_not_make_the_end_of_a_program_late(tmp_path: Path) -> None:
    argv = ("/bin/sleep", "600")

    async def scenario() -> None:
        async with running(LinuxPlatform("", [argv]), tmp_path / "state") as agent:
            with contextlib.ExitStack() as stack:
                for n in range(4):
                    stack.enter_context(hung_process(tmp_path / f"dead{n}", f"hung{n}", "setsid"))
                agent.order(1, RunCommand(command=argv, grace_ms=300), 2_000)
                report = await agent.reports(1, "DONE")
            assert report.outcome is Outcome.DONE and report.late_ms < 2_500, report

    asyncio.run(scenario())
