"""Peers of another version of the protocol: refused in words, and shown."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from tests.coordinator.driver import START_MS, Cluster
from tests.coordinator.test_core import Core
from trogdor_bus.coordinator.events import StrangerHeard, Ticked
from trogdor_bus.coordinator.fleet import KEEP_SILENT_MS
from trogdor_bus.errors import NotFoundError
from trogdor_bus.messages import NodeRow
from trogdor_bus.topology import Node

OLD = "the agent speaks version 1 of the protocol, this coordinator version 2: upgrade the agent"
NEW = "the agent speaks version 3 of the protocol, this coordinator version 2: upgrade this coordinator"


def frame(version: int, node: str = "x", **fields: Any) -> bytes:
    """Return a beat of another version, in which nothing else than who it is need be readable."""
    told = {"v": version, "node": node, "journal": "j-x", "counter": "?", "version": "0.1.0", "reports": 7, **fields}
    return msgspec.json.encode(told)


def row(one: Core, node: str = "x") -> NodeRow:
    return one.cluster.machine.fleet.nodes[node].row


@pytest.mark.parametrize(("version", "told"), [(1, OLD), (3, NEW)])
def test_the_row_of_a_node_says_that_its_agent_speaks_another_version(version: int, told: str) -> None:
    one = Core()
    one.core.hear(frame(version))
    one.core.flush()
    found = row(one)
    assert (found.alive, found.version, found.note) == (False, "0.1.0", f"its agent is refused: {told}")
    assert found == next(node for node in one.core.api.nodes() if node.name == "x")


def test_it_is_said_once_and_goes_when_that_agent_is_silent_or_upgraded(caplog: pytest.LogCaptureFixture) -> None:
    one = Core()
    with caplog.at_level(logging.INFO, "trogdor_bus.coordinator"):
        for _ in range(5):
            one.core.hear(frame(1))
            one.core.flush()
    assert [record.message for record in caplog.records] == [f"node x: its agent is refused: {OLD}"]
    one.cluster.now += 10_000
    one.core.tick()
    assert row(one).note == "its agent is silent"
    one.core.hear(frame(1))
    one.core.flush()
    assert OLD in row(one).note
    one.cluster.beat("x")
    assert (row(one).alive, row(one).note) == (True, "")


def test_it_does_not_disturb_the_agent_that_is_heard_under_that_name() -> None:
    one = Core()
    before = row(one, "a")
    one.core.hear(frame(1, "a"))
    one.core.flush()
    assert row(one, "a") == before
    assert one.cluster.machine.view.seq > 0


def test_an_agent_that_was_replaced_by_an_old_one_is_shown_once_it_is_silent() -> None:
    cluster = Cluster("a")
    for _ in range(5):
        cluster.now += 1_000
        cluster.give(StrangerHeard("a", "j-a", "0.1.0", OLD))
        cluster.give(Ticked())
    found = cluster.machine.fleet.nodes["a"].row
    assert (found.alive, OLD in found.note) == (False, True)


def test_an_abort_proves_nothing_of_a_node_whose_agent_is_not_heard() -> None:
    cluster = Cluster("a")
    cluster.give(StrangerHeard("x", "j-x", "0.1.0", OLD))
    cluster.beat("left", leaving=True)
    cluster.now += 5_000
    cluster.give(StrangerHeard("left", "j-left", "0.1.0", OLD))
    told = {one.node: one.state for one in cluster.api.proof("latch").nodes}
    assert told["x"] == told["left"] == "silent"


def test_a_name_that_is_not_configured_gets_no_row() -> None:
    cluster = Cluster("a", configured={"a": Node(name="a")})
    cluster.give(StrangerHeard("x", "j-x", "0.1.0", OLD))
    assert list(cluster.machine.fleet.nodes) == ["a"]
    assert any("not in the configuration" in text and OLD in text for text in cluster.texts)
    cluster.give(StrangerHeard("bad\nname", "j-x", "0.1.0", OLD))
    assert list(cluster.machine.fleet.nodes) == ["a"]


def test_a_node_that_was_never_heard_otherwise_is_forgotten_in_the_end() -> None:
    cluster = Cluster("a")
    cluster.give(StrangerHeard("x", "j-x", "0.1.0", OLD))
    cluster.now += KEEP_SILENT_MS + 10_000
    cluster.give(Ticked())
    assert "x" not in cluster.machine.fleet.nodes
    assert cluster.now > START_MS
    with pytest.raises(NotFoundError):
        cluster.api.forget_node("x")


def test_an_agent_of_another_version_gets_a_word_now_and_then_so_that_it_can_say_so() -> None:
    one = Core()
    one.said.clear()
    for _ in range(25):
        one.cluster.now += 1_000
        one.core.hear(frame(1))
        one.core.flush()
    assert one.said.count("x") == 3


def test_a_word_to_an_agent_of_another_version_is_what_any_agent_of_that_node_would_be_told() -> None:
    cluster = Cluster("a")
    cluster.create("t")
    cluster.now += 20_000
    cluster.give(Ticked())
    cluster.give(StrangerHeard("a", "j-a", "0.1.0", OLD))
    assert cluster.orders("a") == [("t", True)]
    cluster.give(StrangerHeard("x", "j-x", "0.1.0", OLD))
    assert (cluster.published["x"].orders, cluster.published["x"].echo) == ((), None)
