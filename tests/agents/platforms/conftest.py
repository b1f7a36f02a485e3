from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agents.platforms.nodes import Node, one_node, two_nodes
from tests.support import require_namespaces


@pytest.fixture(scope="module")
def wire() -> Iterator[tuple[Node, Node]]:
    require_namespaces()
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture
def pair(wire: tuple[Node, Node]) -> Iterator[tuple[Node, Node]]:
    """Two nodes that reach each other, without any rule."""
    yield wire
    for node in wire:
        node.empty()


@pytest.fixture
def fresh_pair() -> Iterator[tuple[Node, Node]]:
    """Two nodes that a test may take apart."""
    require_namespaces()
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture
def node() -> Iterator[Node]:
    """A node with nobody to talk to."""
    require_namespaces()
    with one_node() as alone:
        yield alone
