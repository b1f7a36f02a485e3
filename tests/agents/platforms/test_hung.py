"""What hangs for ever, as on a dead disk: it is given up, told, and holds up nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

from tests.agents.platforms.hungfs import hung, hung_process
from tests.agents.platforms.nodes import Node
from tests.agents.platforms.running import running
from tests.support import wait_until
from trogdor_bus.actions import ProcessMatch, RunCommand, Suspend
from trogdor_bus.agents.platforms.linux import processes, reader
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.platform import Surroundings
from trogdor_bus.states import Outcome
from trogdor_bus.supervisor import tree


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
