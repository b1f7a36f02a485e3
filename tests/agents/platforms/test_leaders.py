"""Moving leadership, with a program that stands for the one that asks a cluster; tests/kafka has the real one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.agents.platforms.nodes import from_journal, undone
from trogdor_bus.actions.kafka import MoveLeader
from trogdor_bus.agents.platforms.linux import leaders
from trogdor_bus.agents.platforms.linux.operations import read
from trogdor_bus.agents.platforms.linux.operations.leads import LeadBack
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.cluster import Move
from trogdor_bus.errors import CannotHealError, HostError, NotYetError
from trogdor_bus.platform import Step, Surroundings

ACTION = MoveLeader(topic="orders", partition=1, bootstrap="kafka:9092", config="/etc/it's", to=2)
MOVE = Move(topic="orders", partition=1, found=(1, 2, 3), leader=1, to=2)
_T = TypeVar("_T")
FAKE = """
import json, pathlib, sys
folder, verb = pathlib.Path(sys.argv[1]), sys.argv[2]
with open(folder / "asked", "a") as file:
    file.write(json.dumps([verb, json.load(sys.stdin)]) + "\\n")
answer = json.loads((folder / "answers").read_text())[verb]
sys.exit(answer) if isinstance(answer, str) else print(json.dumps(answer))
"""


class Cluster:
    """What answers, verb by verb: a text is an error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answers: dict[str, Any] = {
            "plan": {"topic": "orders", "partition": 1, "found": [1, 2, 3], "leader": 1, "to": 2},
            "move": {"leader": 2, "epoch": 2, "changed": True, "why": "moved"},
            "restore": {"leader": 1, "epoch": 3, "changed": True, "why": "restored"},
            "look": {"left": ""},
        }
        self.answer()
        (folder / "fake.py").write_text(FAKE)

    def answer(self, **answers: Any) -> None:
        self._answers |= answers
        (self._folder / "answers").write_text(json.dumps(self._answers))

    def asked(self) -> list[Any]:
        return [json.loads(line) for line in (self._folder / "asked").read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path)
    monkeypatch.setattr(leaders, "PROGRAM", (sys.executable, str(tmp_path / "fake.py"), str(tmp_path)))
    return made


@pytest.fixture
def here() -> LinuxPlatform:
    return LinuxPlatform()


def prepare(platform: LinuxPlatform) -> Step:
    (step,) = from_journal(in_the_end(lambda: platform.prepare(1, ACTION, Surroundings(), [])))
    return step


def in_the_end(work: Callable[[], _T]) -> _T:
    """Return what it returns when it no longer says "not yet"."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return work()
        except NotYetError:
            assert time.monotonic() < deadline


def test_the_undo_is_what_was_found_and_the_same_program_does_and_undoes(cluster: Cluster, here: LinuxPlatform) -> None:
    step = prepare(here)
    assert read(step.undo) == LeadBack("kafka:9092", "/etc/it's", MOVE)
    assert in_the_end(lambda: here.do(step)) is None
    assert here.disturbance(step) == ""
    another = LinuxPlatform()
    assert undone(another, step) == ""
    assert another.residue(step, []) == ()
    how = {"bootstrap": "kafka:9092", "config": "/etc/it's"}
    moving = {"move": {"topic": "orders", "partition": 1, "found": [1, 2, 3], "leader": 1, "to": 2}}
    assert cluster.asked() == [
        ["plan", {**how, "topic": "orders", "partition": 1, "to": 2, "withinMs": leaders.LOOK_MS}],
        ["move", {**how, **moving, "withinMs": leaders.MOVE_MS}],
        ["restore", {**how, **moving, "withinMs": leaders.MOVE_MS}],
        ["look", {**how, **moving, "withinMs": leaders.LOOK_MS}],
    ]


def test_why_the_cluster_does_not_is_said_in_its_words(cluster: Cluster, here: LinuxPlatform) -> None:
    step = prepare(here)
    cluster.answer(plan="broker 2 leads it already", move="nobody answers")
    with pytest.raises(HostError, match=r"^broker 2 leads it already$"):
        prepare(here)
    with pytest.raises(HostError, match=r"^nobody answers$"):
        in_the_end(lambda: here.do(step))
    cluster.answer(plan={"topic": "orders"})
    with pytest.raises(HostError, match="answered strangely"):
        prepare(here)


def test_what_was_restored_already_and_what_arrived_later_is_told(cluster: Cluster, here: LinuxPlatform) -> None:
    step = prepare(here)
    cluster.answer(restore={"changed": False, "why": "as it was"}, look={"left": "another order"})
    assert undone(here, step) == "as it was"
    assert here.residue(step, []) == ("another order",)


def test_a_cluster_that_does_not_answer_is_asked_once_in_a_while_for_others_wait(
    cluster: Cluster, here: LinuxPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = prepare(here)
    cluster.answer(restore="nobody answers", look="nobody answers")
    for _ in range(3):
        with pytest.raises(CannotHealError, match=r"^nobody answers$"):
            undone(here, step)
    assert here.residue(step, []) == (), "it is told already"
    assert [verb for verb, _ in cluster.asked()] == ["plan", "restore"]
    cluster.answer(restore={"changed": True, "why": "restored"}, look={"left": ""})
    monkeypatch.setattr(leaders.time, "monotonic", lambda: 1e9)  # type: ignore[attr-defined]
    assert undone(here, step) == ""
    assert here.residue(step, []) == ()


def test_a_person_can_type_the_undo(cluster: Cluster, here: LinuxPlatform) -> None:
    typed = here.by_hand(prepare(here))
    assert subprocess.run(["sh", "-c", typed], capture_output=True, text=True, check=True).stdout
    verb, order = cluster.asked()[-1]
    assert (verb, order["move"]["found"], order["config"]) == ("restore", [1, 2, 3], "/etc/it's")


def test_the_program_is_ours() -> None:
    ran = subprocess.run([*leaders.PROGRAM, "plan"], input=b"{}", capture_output=True, cwd="/", check=False)
    assert (ran.returncode, b"this is no order" in ran.stderr) == (1, True)
