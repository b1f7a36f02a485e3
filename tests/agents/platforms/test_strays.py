"""Chains of nobody in a real network namespace: told with what removes them, and those of other agents are not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.inline import Inline
from tests.agents.platforms.nodes import Node
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents.disk import FileDisk, Lock, lock
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.platforms.linux import owners
from trogdor_bus.messages import Order
from trogdor_bus.platform import Surroundings
from trogdor_bus.states import Outcome


class Neighbour:
    """An agent of another state directory in the namespace of a node, as far as its journal and its lock go."""

    def __init__(self, directory: Path, node: Node) -> None:
        self.directory, self._held = directory, lock(directory)
        self.performer = Inline(Journal(FileDisk(directory)), node.platform)

    def block(self) -> None:
        action = BlockPorts(ports=(9,), protocol="tcp", direction="in")
        order = Order(worker=1, task="t", journal="j", remaining_ms=60_000, actions=(action,))
        self.performer.inject(order, 2**40, Surroundings())

    def die(self) -> None:
        self._held.close()


@pytest.fixture
def neighbour(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Neighbour]:
    monkeypatch.setattr(owners, "DIRECTORY", tmp_path / "agents")
    made = Neighbour(tmp_path / "neighbour", node)
    node.platform.strays((), str(made.directory))  # as its agent does at its start
    yield made


def test_what_another_agent_holds_is_not_nobodys_while_it_runs(
    node: Node, neighbour: Neighbour, tmp_path: Path
) -> None:
    me = str(tmp_path / "me")
    assert node.platform.strays((), me) == ()
    neighbour.block()
    (entry,) = neighbour.performer.journal.live()
    assert node.platform.strays((), me) == ()
    assert node.platform.strays(entry.steps, str(neighbour.directory)) == (), "nor to itself"
    neighbour.die()
    dead = node.platform.strays((), me)
    assert dead and all(f"‹heal directory={neighbour.directory}›" in line for line in dead)
    neighbour.performer.heal(1, Outcome.DONE, "")
    assert node.platform.strays((), me) == ()


def test_what_is_in_no_journal_is_told_with_what_a_person_types_and_stays(
    node: Node, neighbour: Neighbour, tmp_path: Path
) -> None:
    me = str(tmp_path / "me")
    neighbour.block()
    for name in neighbour.directory.glob("worker-*"):
        name.unlink()
    before = node.rules()
    found = node.platform.strays((), me)
    assert found and all("is in no journal that can be read; by hand: " in line for line in found)
    assert node.rules() == before, "nobody removes it"
    for line in found:
        subprocess.run(["sh", "-ec", line.partition("by hand: ")[2]], check=True, timeout=20)
    assert node.platform.strays((), me) == ()
    assert node.rules() == node.rules("ip6tables") == ""


def test_a_chain_with_another_name_is_somebody_elses(node: Node, neighbour: Neighbour, tmp_path: Path) -> None:
    for chain in ("TB-mine", "TB-0123456789ABCDEF", "MINE"):
        node.run("iptables", "-N", chain)
    assert node.platform.strays((), str(tmp_path / "me")) == ()


def test_a_state_directory_that_is_gone_is_not_kept_in_mind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "DIRECTORY", tmp_path / "agents")
    gone, here = tmp_path / "gone", tmp_path / "here"
    for directory in (gone, here):
        directory.mkdir(mode=0o700)
        owners.register(str(directory))
    assert [owner.directory for owner in owners.others(str(here))] == [str(gone)]
    gone.rmdir()
    owners.register(str(here))
    assert list(owners.others(str(here))) == []
    held: Lock = lock(here)
    (owner,) = owners.others("another")
    assert owner.runs
    held.close()
    (owner,) = owners.others("another")
    assert not owner.runs
