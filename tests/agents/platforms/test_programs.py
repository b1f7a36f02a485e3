"""Programs that an agent runs while a task lasts, in a whole agent with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.agents.driver import order
from tests.agents.inline import Inline
from tests.agents.platforms.nodes import from_journal, undone
from tests.agents.platforms.running import Running, running, until
from tests.supervisor.kept import DEEP, LEADERLESS, has_lost_its_main_thread
from tests.support import wait_until
from trogdor_bus.actions.program import RunCommand
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.journal import Journal, JournalState
from trogdor_bus.agents.platforms.linux.operations import read
from trogdor_bus.agents.platforms.linux.operations.programs import End, Hold
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.errors import HostError, NotYetError, RefusedError
from trogdor_bus.host import identity
from trogdor_bus.platform import Step, Surroundings
from trogdor_bus.registry import registry
from trogdor_bus.states import Outcome
from trogdor_bus.supervisor import tree
from trogdor_bus.topology import Topology


def command(script: str, *words: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script, *words)


class Life:
    """A life of an agent that may run these commands."""

    def __init__(self, *allowed: tuple[str, ...]) -> None:
        self.platform = LinuxPlatform("", allowed)

    def prepared(self, action: RunCommand) -> list[Step]:
        return from_journal(self.platform.prepare(1, action, Surroundings(task="t1"), ()))


def mark(steps: list[Step]) -> str:
    end = read(steps[0].undo)
    assert isinstance(end, End)
    return end.mark


def left(steps: list[Step]) -> list[int]:
    return tree.of_child(mark(steps), 0, tree.living())


def begun(life: Life, argv: tuple[str, ...], grace_ms: int = 0) -> list[Step]:
    """Run a command and return its steps as they are on disk then."""
    hold, release = life.prepared(RunCommand(command=argv, grace_ms=grace_ms))
    undo = life.platform.do(hold)
    assert undo is not None
    hold = Step(hold.do, undo)
    life.platform.do(release)
    return [hold, release]


# --- who may run what -------------------------------------------------------------------------------------------------


def test_a_command_that_is_not_listed_word_for_word_is_refused_with_a_remedy() -> None:
    with pytest.raises(
        RefusedError, match=r"may not run the command \['/bin/sh', '-c', 'true', 'x'\]; list exactly that"
    ):
        Life(command("true")).prepared(RunCommand(command=command("true", "x")))


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ((), "Unable to start process: No command specified"),
        (("no-such-program-of-ours",), "Unable to start process: 'no-such-program-of-ours' does not exist"),
        (("/etc/passwd",), "Unable to start process: '/etc/passwd' does not exist on this machine or cannot be exec"),
        (("/",), "Unable to start process: '/' does not exist on this machine or cannot be executed"),
    ],
)
def test_what_is_no_program_is_said_in_trogdors_words(argv: tuple[str, ...], why: str) -> None:
    with pytest.raises(HostError) as raised:
        Life(argv).prepared(RunCommand(command=argv))
    assert str(raised.value).startswith(why)


def test_what_cannot_be_run_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    life = Life((str(broken),))
    hold, release = life.prepared(RunCommand(command=(str(broken),)))
    undo = life.platform.do(hold)
    assert undo is not None
    with pytest.raises(HostError, match=r"Unable to start process: .*broken: its interpreter .* does not exist"):
        life.platform.do(release)
    assert undone(life.platform, Step(hold.do, undo)) == ""
    assert left([hold]) == []


# --- the steps --------------------------------------------------------------------------------------------------------


def test_who_it_is_is_on_disk_before_it_runs(tmp_path: Path) -> None:
    argv = command("exec sleep 3600")
    seen: list[object] = []

    class Looking(LinuxPlatform):
        def do(self, step: Step) -> dict[str, object] | None:
            if step.do["op"] == "release":
                (entry,) = Journal.read_only(FileDisk(tmp_path, make=False)).entries.values()
                end = read(entry.steps[0].undo)
                assert isinstance(end, End) and end.process is not None
                assert end.process == identity(end.process.pid)
                seen.append((entry.state, tree.mark_of(end.process.pid)[0] == end.mark))
            return super().do(step)

    performer = Inline(Journal(FileDisk(tmp_path)), Looking("", [argv]))
    performer.inject(order(actions=(RunCommand(command=argv, grace_ms=0),)), 2**40, Surroundings(task="t1"))
    assert seen == [(JournalState.INTENDED, True)]
    while True:
        try:
            performer.heal(1, Outcome.DONE, "")
            break
        except NotYetError:
            pass


def test_a_later_life_ends_what_hides_from_it_though_its_keeper_is_dead() -> None:
    clean = """exec env -i sh -c 'sleep 3600 & exec sleep 3600'"""
    life = Life(command(clean))
    steps = begun(life, command(clean))
    end = read(steps[0].undo)
    assert isinstance(end, End) and end.process is not None
    session = end.process.pid
    wait_until(lambda: not tree.mark_of(session)[0], what="it to drop its mark")
    members = lambda: [pid for pid, kin in tree.living().items() if kin.session == session]  # noqa: E731
    wait_until(lambda: len(members()) == 2, what="both to run")
    for pid in [pid for pid in left(steps) if tree.mark_of(pid)[1]]:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(members()) == 1, what="the child to go with its keeper")
    later = Life()
    assert later.platform.residue(steps[0], ()) == (f"process {members()[0]} of sh is still there",)
    assert undone(later.platform, steps[0]) == ""
    assert members() == [] and later.platform.residue(steps[0], ()) == ()


def test_what_a_person_would_type_works() -> None:
    script = "setsid sleep 3600 & exec sleep 3600"
    life = Life(command(script))
    steps = begun(life, command(script))
    wait_until(lambda: len(left(steps)) == 3, what="all to run")
    assert os.system(life.platform.by_hand(steps[0])) == 0
    wait_until(lambda: not left(steps), what="all to be gone")
    assert undone(life.platform, steps[0]) == ""


def test_what_a_person_types_ends_what_hides_below_a_keeper_that_stands() -> None:
    argv = (sys.executable, "-c", f"{DEEP}time.sleep(3600)")
    life = Life(argv)
    steps = begun(life, argv)
    (keeper,) = [pid for pid in left(steps) if tree.mark_of(pid)[1]]
    wait_until(lambda: len(tree.below([keeper], tree.living())) == 3, what="all to run")
    below = tree.below([keeper], tree.living())
    os.kill(keeper, signal.SIGSTOP)
    assert os.system(life.platform.by_hand(steps[0])) == 0
    wait_until(lambda: not {keeper, *below} & tree.living().keys(), what="all to be gone")
    assert undone(life.platform, steps[0]) == ""


@pytest.mark.parametrize("stands", [False, True])
def test_what_a_person_types_ends_also_who_has_lost_its_main_thread(stands: bool) -> None:
    argv = (sys.executable, "-c", f"import os\nif not os.fork(): os.setsid()\n{LEADERLESS}")
    life = Life(argv)
    steps = begun(life, argv)
    wait_until(lambda: sum(map(has_lost_its_main_thread, left(steps))) == 2, what="the end of both main threads")
    (keeper,) = [pid for pid in left(steps) if tree.mark_of(pid)[1]]
    os.kill(keeper, signal.SIGSTOP if stands else signal.SIGKILL)
    assert os.system(life.platform.by_hand(steps[0])) == 0
    wait_until(lambda: not left(steps), what="all to be gone")
    assert undone(life.platform, steps[0]) == ""


def test_what_is_left_of_programs_that_are_due_at_once_is_looked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    argv, looks, living = command("exec sleep 3600"), list[None](), tree.living
    life = Life(argv)
    steps = [begun(life, argv)[0] for _ in range(5)]
    assert [undone(life.platform, one) for one in steps] == [""] * 5
    assert len({life.platform.lane("residue", one) for one in steps}) == 1
    assert len({life.platform.lane("undo", one) for one in steps}) == 5, "none waits for another"
    monkeypatch.setattr(tree, "living", lambda **asked: looks.append(None) or living(**asked))
    assert life.platform.residue_many([(one, ()) for one in steps]) == [()] * 5 and len(looks) == 1


def test_another_boot_has_nothing_to_end() -> None:
    life = Life(command("true"))
    hold, _ = life.prepared(RunCommand(command=command("true")))
    other = Step(hold.do, {**hold.undo, "boot_id": "another"})
    assert "gone" in life.platform.undo(other, (), lambda _: None)
    assert life.platform.residue(other, ()) == ()


def test_the_task_and_the_workload_are_in_the_line_that_it_reads() -> None:
    life = Life(command("true"))
    hold, _ = life.prepared(RunCommand(command=command("true")))
    operation = read(hold.do)
    assert isinstance(operation, Hold) and operation.input == '{"id":"t1","workload":null}\n'


# --- a whole agent ----------------------------------------------------------------------------------------------------


def test_a_program_that_ends_ends_its_worker_promptly_with_what_it_said(tmp_path: Path) -> None:
    argv = command('read line; sleep 0.3; echo "{\\"status\\": $line}"; exit "$0"', "4")

    async def scene() -> None:
        async with running(LinuxPlatform("", [argv]), tmp_path / "state") as agent:
            agent.order(1, RunCommand(command=argv), 60_000)
            await agent.reports(1, "RUNNING")
            began = time.monotonic()
            report = await agent.reports(1, "DONE")
            assert time.monotonic() - began < 1.5
            assert (report.outcome, report.error) == (Outcome.FAILED, "exited with return code 4")
            assert json.loads(bytes(report.progress)) == {"id": "t1", "workload": None}
            assert report.disturbed == ()

    asyncio.run(scene())


def test_a_program_that_succeeds_is_done(tmp_path: Path) -> None:
    argv = command("exit 0")

    async def scene() -> None:
        async with running(LinuxPlatform("", [argv]), tmp_path / "state") as agent:
            agent.order(1, RunCommand(command=argv), 60_000)
            report = await agent.reports(1, "DONE")
            assert (report.outcome, report.error, report.warnings) == (Outcome.DONE, "", ())

    asyncio.run(scene())


def test_a_program_runs_until_its_task_ends_and_has_its_grace_while_others_have_their_turn(tmp_path: Path) -> None:
    slow = command(
        'trap \'sleep 1; echo "{\\"status\\": 2}"; exit 9\' TERM; echo \'{"status": 1}\'; while :; do sleep 0.05; done'
    )
    quick = command("exec sleep 3600")

    async def scene() -> None:
        async with running(LinuxPlatform("", [slow, quick]), tmp_path / "state") as agent:
            agent.order(1, RunCommand(command=slow, grace_ms=20_000), 60_000)
            agent.order(2, RunCommand(command=quick, grace_ms=20_000), 60_000)
            await until(lambda: said(agent, 1) == 1)
            agent.stop(1)
            await until(lambda: "may take its time to end" in agent.says(1))
            agent.stop(2)
            second = await agent.reports(2, "DONE")
            assert agent.says(1).startswith("STOPPING"), "it still has its time"
            first = await agent.reports(1, "DONE")
            assert (first.outcome, first.error, second.outcome) == (Outcome.DONE, "", Outcome.DONE)

    asyncio.run(scene())


def test_a_keeper_that_is_killed_is_a_failure_and_nothing_is_left(tmp_path: Path) -> None:
    argv = command("setsid sleep 3600 & exec sleep 3600")

    async def scene() -> None:
        async with running(LinuxPlatform("", [argv]), tmp_path / "state") as agent:
            agent.order(1, RunCommand(command=argv), 60_000)
            await agent.reports(1, "RUNNING")
            steps = list(agent.performer.journal.entries[1].steps)
            await until(lambda: len(left(steps)) == 3)
            (keeper,) = [pid for pid in left(steps) if tree.mark_of(pid)[1]]
            os.kill(keeper, signal.SIGKILL)
            report = await agent.reports(1, "DONE")
            assert (report.outcome, report.error) == (Outcome.FAILED, "its keeper was killed, and so was it")
            assert left(steps) == []

    asyncio.run(scene())


def test_a_keeper_that_stands_still_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trogdor_bus.supervisor.children.KILL_S", 0.5)
    argv = command("trap '' TERM; while :; do sleep 0.05; done")

    async def scene() -> None:
        async with running(LinuxPlatform("", [argv]), tmp_path / "state") as agent:
            agent.order(1, RunCommand(command=argv, grace_ms=100), 60_000)
            await agent.reports(1, "RUNNING")
            steps = list(agent.performer.journal.entries[1].steps)
            (keeper,) = [pid for pid in left(steps) if tree.mark_of(pid)[1]]
            os.kill(keeper, signal.SIGSTOP)
            agent.stop(1)
            report = await agent.reports(1, "DONE")
            assert (report.outcome, report.error) == (Outcome.DONE, "")
            assert left(steps) == []

    asyncio.run(scene())


EXAMPLE = """#!/usr/bin/env python3
import json, sys, time
workload = json.loads(sys.stdin.readline())["workload"]
print("Starting external_trogdor_command_example with this message: " + workload["message"], flush=True)
print(json.dumps({"status": "running"}), flush=True)
time.sleep(workload["delayMs"] / 1000)
print(json.dumps({"status": "exiting after %s delayMs" % workload["delayMs"]}), flush=True)
"""
"""What Trogdor's own example does (tests/bin/external_trogdor_command_example.py)."""


def test_trogdors_example_runs_as_trogdor_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "tests" / "bin" / "external_trogdor_command_example.py"
    program.parent.mkdir(parents=True)
    program.write_text(EXAMPLE)
    program.chmod(0o755)
    words = ["./tests/bin/external_trogdor_command_example.py"]
    spec = registry().decode(
        {
            "class": "org.apache.kafka.trogdor.workload.ExternalCommandSpec",
            "durationMs": 10_000_000,
            "commandNode": "n1",
            "command": words,
            "workload": {"message": "Hello", "delayMs": 1200},
        }
    )
    (action,) = spec.actions("n1", Topology(nodes={}))
    assert isinstance(action, RunCommand)

    async def scene() -> None:
        async with running(LinuxPlatform("", [words]), tmp_path / "state") as agent:
            agent.order(1, action, 60_000)
            await until(lambda: said(agent, 1) == "running")
            report = await agent.reports(1, "DONE")
            assert (report.outcome, report.error) == (Outcome.DONE, "")
            assert json.loads(bytes(report.progress)) == "exiting after 1200 delayMs"

    asyncio.run(scene())


def said(agent: Running, worker: int) -> object:
    return next((json.loads(bytes(one.progress)) for one in agent.bus.beats[-1].reports if one.worker == worker), None)


def test_what_is_late_after_its_grace_is_told(tmp_path: Path) -> None:
    argv = command("exec sleep 3600")

    async def scenario() -> None:
        async with running(LinuxPlatform("", [argv]), tmp_path / "state") as agent:
            agent.order(1, RunCommand(command=argv, grace_ms=200), 3_000)
            await agent.reports(1, "RUNNING")
            (keeper,) = [pid for pid in left(list(agent.performer.journal.entries[1].steps)) if tree.mark_of(pid)[1]]
            os.kill(keeper, signal.SIGSTOP)
            told = await agent.reports(1, "DONE", 30)
            assert told.late_ms > 3_000 and told.outcome is Outcome.LATE, (told.late_ms, told.outcome)

    asyncio.run(scenario())
