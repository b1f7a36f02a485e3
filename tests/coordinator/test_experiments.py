"""The programs of experiments, as real processes that speak the pipe, die in the middle, or do not listen."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.coordinator.driver import Cluster
from tests.experiment.speaker import SLEEP_S
from tests.support import async_wait_until, at_once, wait_until
from trogdor_bus.cluster import ClusterView
from trogdor_bus.coordinator import experiments
from trogdor_bus.coordinator.commands import Commands, answer
from trogdor_bus.coordinator.events import DestroyRequested, Event, Sighting
from trogdor_bus.coordinator.experiments import Experiments, Program, UnderTest
from trogdor_bus.errors import HostError, NotFoundError
from trogdor_bus.experiment.pipe import Begin, Ended
from trogdor_bus.messages import ExperimentInfo, GetExperiment
from trogdor_bus.states import Outcome, TaskState
from trogdor_bus.supervisor import children, tree

FAULT = {"class": "port-block", "durationMs": 5_000, "nodes": ["a"], "ports": [9092]}
SPEAKER = (sys.executable, "-m", "tests.experiment.speaker")


class Site(Cluster):
    """A machine whose experiments are real programs."""

    def __init__(self, directory: Path) -> None:
        super().__init__(under_test="kafka:9092")
        self.open(directory)

    def open(self, directory: Path) -> None:
        self.programs = Experiments(
            directory,
            UnderTest(bootstrap="kafka:9092"),
            probe_commands=False,
            answer=lambda frame, parent: answer(self.commands, frame, parent),
            handle=self._give,
            now_ms=lambda: self.now,
            broken=self._broke,
        )
        self.commands = Commands(self.api, look=self._look, told=self.programs.told)

    def _broke(self, error: BaseException, about: str) -> None:
        raise AssertionError(f"nobody foresaw this, at {about}") from error

    def give(self, event: Event) -> list[str]:
        before = len(self.experiments)
        told = super().give(event)
        for effect in self.experiments[before:]:
            self.programs.perform(effect)
        looks, self.looks = self.looks, []
        for look in looks:
            self.show(Sighting(view=ClusterView()), look)
        return told

    def run(self, name: str, task: str = "x") -> None:
        self.create(task, "experiment", name=name, fault=FAULT, durationMs=0)

    async def ended(self, task: str = "x") -> None:
        await async_wait_until(lambda: self.task(task).state is TaskState.DONE, 30, "the end of the experiment")

    def info(self, task: str = "x", **fields: Any) -> ExperimentInfo:
        """Return how an experiment goes; inside the loop only while that is in memory, outside also from its file."""
        work = self.commands.execute(GetExperiment(id=task, **fields))
        in_loop = asyncio._get_running_loop() is not None
        found: ExperimentInfo = (at_once(work) if in_loop else asyncio.run(work)).result
        return found


Play = Callable[[Site], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Play], Site]:
    monkeypatch.setattr(experiments, "PROGRAM", SPEAKER)

    def played(act: Play) -> Site:
        async def run() -> Site:
            site = Site(tmp_path / "experiments")
            try:
                await act(site)
            finally:
                await site.programs.close()
            return site

        return asyncio.run(run())

    return played


def texts(info: ExperimentInfo) -> list[str]:
    return [line.text for line in info.lines]


def test_a_program_tells_and_ends_and_its_result_is_a_file_of_its_owner(
    play: Callable[[Play], Site], tmp_path: Path
) -> None:
    async def act(site: Site) -> None:
        site.run("passes")
        assert site.info().progress.phase == "starting"
        await site.ended()

    site = play(act)
    assert (site.task("x").outcome, site.task("x").error) == (Outcome.DONE, "")
    info = site.info(with_result=True)
    assert (info.verdict, info.progress.phase, info.progress.topic, info.progress.sent) == (
        "Pass",
        "passes",
        "own-topic",
        1,
    )
    assert texts(info) == ["one", "two"] and texts(site.info(after=1)) == ["two"]
    result = json.loads(bytes(info.result))
    assert (result["spec"], result["bootstrap"], len(result["large"])) == ("x", "kafka:9092", 300_000)
    assert bytes(site.info().result) == b"null"
    file = tmp_path / "experiments" / "x.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["x.json"]
    site.open(file.parent)  # as the next coordinator finds it
    assert site.info(with_result=True) == info
    file.write_bytes(b"{")
    with pytest.raises(HostError, match="is damaged; remove it"):
        site.info()


def test_it_asks_as_a_client_does_and_errors_arrive(play: Callable[[Play], Site]) -> None:
    async def act(site: Site) -> None:
        site.run("asks")
        await site.ended()

    assert play(act).task("x").error == "NotFoundError: No task with ID \"nothing\" exists. ['a', 'b', 'c']"


def test_its_faults_are_its_own(play: Callable[[Play], Site]) -> None:
    async def act(site: Site) -> None:
        site.run("fault")
        await site.ended()

    site = play(act)
    assert site.task("x-f1").parent == "x"
    assert site.task("x-f1").state is TaskState.STOPPING


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dies-by-itself", ["ended with exit status 3 before it had a verdict", "it said last:", "the disk is full"]),
        ("dies-by-a-signal", ["was killed by SIGSEGV before it had a verdict", "its topic own-topic is left"]),
        ("dies-in-a-frame", ["the pipe ended in the middle of a frame"]),
        ("babbles", ["what came through the pipe is no frame"]),
    ],
)
def test_one_that_dies_has_failed_in_words_and_its_faults_are_stopped(
    play: Callable[[Play], Site], name: str, said: list[str]
) -> None:
    async def act(site: Site) -> None:
        site.run(name)
        await site.ended()

    site = play(act)
    task = site.task("x")
    assert task.outcome is Outcome.FAILED
    assert all(words in task.error for words in said), task.error
    assert site.info().verdict == "Error"
    if name != "babbles":
        assert site.task("x-f1").state is TaskState.STOPPING


def test_one_that_cannot_be_started_has_failed(play: Callable[[Play], Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "PROGRAM", ("/nowhere/python",))

    async def act(site: Site) -> None:
        site.run("passes")
        await site.ended()

    assert "its program cannot be started" in play(act).task("x").error


@pytest.mark.parametrize("result", [b'{"verdict":"\xff"}', b'{"x":' + b"[" * 100_000, b"[]"])
def test_a_result_that_cannot_be_read_is_no_success(result: bytes) -> None:
    async def answer(frame: bytes, parent: str) -> bytes:
        return b""

    program = Program(Begin(id="x", spec=msgspec.Raw(b"{}")), answer, lambda: 5)
    program._ended = Ended(outcome=Outcome.DONE, result=msgspec.Raw(result))
    assert program.kept().verdict == "Error"


def test_a_stop_is_told_and_waited_for(play: Callable[[Play], Site]) -> None:
    async def act(site: Site) -> None:
        site.run("stops")
        await async_wait_until(lambda: texts(site.info()), 30)
        site.stop("x")
        assert site.task("x").state is TaskState.STOPPING
        await site.ended()

    site = play(act)
    assert (site.task("x").outcome, site.task("x").error) == (Outcome.CANCELLED, "Stopped: somebody stopped it")
    assert json.loads(bytes(site.info(with_result=True).result))["stopped"] == "somebody stopped it"


def test_a_stop_before_it_could_listen_is_told_too(play: Callable[[Play], Site]) -> None:
    async def act(site: Site) -> None:
        site.run("stops")
        site.stop("x")
        await site.ended()

    assert play(act).task("x").outcome is Outcome.CANCELLED


def test_one_that_does_not_listen_is_killed(play: Callable[[Play], Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "END_S", 0.2)

    async def act(site: Site) -> None:
        site.run("deaf")
        await async_wait_until(lambda: texts(site.info()), 30)
        site.stop("x")
        await site.ended()

    task = play(act).task("x")
    assert task.outcome is Outcome.FAILED and "was killed by SIGKILL" in task.error


def test_one_that_is_destroyed_ends_and_leaves_nothing_and_its_id_is_free(
    play: Callable[[Play], Site], tmp_path: Path
) -> None:
    async def act(site: Site) -> None:
        site.run("stops")
        await async_wait_until(lambda: texts(site.info()), 30)
        site.give(DestroyRequested("x"))
        site.programs.forget("x")  # as the shell does when it hears DropTask
        with pytest.raises(NotFoundError):
            site.info()
        site.run("passes")
        await site.ended()

    site = play(act)
    assert (site.task("x").outcome, site.info().verdict) == (Outcome.DONE, "Pass")


def test_the_end_of_the_coordinator_is_the_end_of_its_programs(
    play: Callable[[Play], Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "GONE_S", 2.0)
    pids: list[int] = []

    async def act(site: Site) -> None:
        site.run("stops")
        site.run("deaf", "y")
        await async_wait_until(lambda: texts(site.info()) and texts(site.info("y")), 30)
        pids.extend(program._child.identity.pid for program, _ in site.programs._running.values() if program._child)

    site = play(act)
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert {site.task(name).state for name in ("x", "y")} == {TaskState.RUNNING}, "the next coordinator says the rest"


@pytest.mark.parametrize("ends", ["the experiment", "the coordinator"])
def test_a_keeper_that_somebody_has_frozen_holds_up_no_end(
    play: Callable[[Play], Site], monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(experiments, "END_S", 0.2)
    monkeypatch.setattr(experiments, "GONE_S", 2.0)
    monkeypatch.setattr(children, "KILL_S", 0.3)
    marks: list[str] = []

    async def act(site: Site) -> None:
        site.run("deaf")
        await async_wait_until(lambda: texts(site.info()), 30)
        program = site.programs._programs["x"]
        assert program._child is not None
        marks.append(program._mark)
        os.kill(program._child.keeper, signal.SIGSTOP)
        if ends == "the experiment":
            site.stop("x")
            await site.ended()
            assert "its program was killed with its keeper" in site.task("x").error

    play(act)
    wait_until(lambda: not tree.of_child(marks[0], 0, tree.living()), what="all of it to be gone")


def test_an_id_may_be_as_long_as_any(play: Callable[[Play], Site]) -> None:
    name = "ä" * 200

    async def act(site: Site) -> None:
        site.run("passes", name)
        await site.ended(name)

    site = play(act)
    assert (site.task(name).error, site.info(name).verdict) == ("", "Pass")


def test_tasks_that_are_no_experiments(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.create("t")
    with pytest.raises(NotFoundError, match="task t is no experiment; `‹show id=t›` shows it"):
        cluster.ask(GetExperiment(id="t"))
    with pytest.raises(NotFoundError, match='No task with ID "u" exists'):
        cluster.ask(GetExperiment(id="u"))


def marked_sleepers(mark: str) -> list[int]:
    marked = tree.of_child(mark, 0, tree.living())
    return [pid for pid in marked if f"sleep\0{SLEEP_S}" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.parametrize("ends", ["killed", "gives up"])
def test_what_its_probes_have_started_dies_with_it(play: Callable[[Play], Site], ends: str) -> None:
    async def act(site: Site) -> None:
        site.run("dies-over-its-probes")
        program = site.programs._programs["x"]
        await async_wait_until(lambda: len(marked_sleepers(program._mark)) == 2, 20, "the probe, and what it started")
        if ends == "killed":
            program.kill()
        else:
            site.stop("x")
        await site.ended()
        assert marked_sleepers(program._mark) == []

    play(act)
