"""How a fault ended is told by a last look directly before its undo: on real rules, processes and namespaces."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.agents.inline import Inline
from tests.agents.platforms.nodes import Node, end, known
from trogdor_bus.actions import Action, ProcessMatch
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.actions.process import Suspend
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.events import ReadBack
from trogdor_bus.agents.journal import Journal
from trogdor_bus.messages import Order
from trogdor_bus.platform import Surroundings
from trogdor_bus.states import Outcome

Pair = tuple[Node, Node]
PORT = 9092


class Agent:
    """A performer on a node, with its journal on a real disk."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.performer = Inline(Journal(FileDisk(directory)), node.platform)

    def inject(self, *actions: Action) -> None:
        order = Order(worker=1, task="t", journal="j", remaining_ms=60_000, actions=actions)
        self.performer.inject(order, 60_000, Surroundings())

    def heal(self) -> tuple[Outcome, str, ReadBack]:
        """Undo it as done, and return how it ended, as the disk has it, and what the last look found."""
        seen: list[ReadBack] = []
        self.performer.heal(1, Outcome.DONE, "", 2_000, seen.append)
        entry = self.performer.journal.entries[1]
        return entry.outcome, entry.error, seen[0]


def block(ports: int = PORT) -> BlockPorts:
    return BlockPorts(ports=(ports,))


def test_rules_that_somebody_flushed_since_the_last_look_did_not_hold_to_their_end(pair: Pair, tmp_path: Path) -> None:
    here, _ = pair
    agent = Agent(here, tmp_path)
    agent.inject(block())
    assert agent.performer.look(1) == ReadBack(dropped=0)
    here.empty()
    outcome, error, _ = agent.heal()
    assert outcome is Outcome.DISTURBED
    assert error.startswith("it did not hold to its end: firewall rules were reloaded: chain TB-")
    assert error.endswith("(2.0 s in)")
    assert here.rules() == here.rules("ip6tables") == ""


@pytest.mark.parametrize("met", [False, True])
def test_the_last_look_counts_what_the_rules_dropped(pair: Pair, tmp_path: Path, met: bool) -> None:
    here, there = pair
    agent = Agent(here, tmp_path)
    agent.inject(block())
    with here.listen(here.v4, PORT), here.listen(here.v6, PORT):
        for address in (here.v4, here.v6) if met else ():
            assert not there.connects(address, PORT)
        outcome, error, last = agent.heal()
    assert (outcome, error) == (Outcome.DONE, "")
    assert last.dropped is not None and (last.dropped >= 2) is met and (last.dropped == 0) is not met


def test_a_namespace_that_vanishes_while_the_fault_is_to_hold_is_a_disturbed_end(
    fresh_pair: Pair, tmp_path: Path
) -> None:
    here, _ = fresh_pair
    agent = Agent(here, tmp_path)
    agent.inject(block())
    subprocess.run(["ip", "netns", "del", here.name], check=True)
    outcome, error, last = agent.heal()
    told = (
        "it did not hold to its end: the network namespace is gone: it has no name and no process any more (2.0 s in)"
    )
    assert (outcome, error, last.dropped) == (Outcome.DISTURBED, told, None)


def test_a_process_that_ends_while_it_is_to_stand_is_a_disturbed_end(node: Node, tmp_path: Path) -> None:
    pid = node.sleeper("ends-while-it-stands")
    agent = Agent(node, tmp_path)
    agent.inject(Suspend(match=ProcessMatch(command="ends-while-it-stands")))
    end(known(pid))
    outcome, error, _ = agent.heal()
    assert (outcome, error.endswith("ended (2.0 s in)")) == (Outcome.DISTURBED, True), error


def test_nobody_to_stop_is_a_fault_that_met_nothing(node: Node, tmp_path: Path) -> None:
    agent = Agent(node, tmp_path)
    agent.inject(Suspend(match=ProcessMatch(java="no.such.Main"), required=False))
    outcome, error, _ = agent.heal()
    assert outcome is Outcome.DISTURBED
    assert error.startswith("it met nothing: no process matches"), error
