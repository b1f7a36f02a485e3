"""One lab for all end-to-end tests of a worker; each test must leave every node as it found it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support import require_namespaces, wait_until
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.demo import whole
from trogdor_bus.lab.snapshot import NodeState, difference


@pytest.fixture(scope="session")
def made() -> Iterator[tuple[Lab, dict[str, NodeState]]]:
    require_namespaces()
    with Lab(3, f"e{os.getpid()}") as lab:
        yield lab, lab.snapshots()


@pytest.fixture
def lab(made: tuple[Lab, dict[str, NodeState]]) -> Iterator[Lab]:
    """The lab; after the test everybody must reach everybody, and rules, qdiscs and processes be as before."""
    lab, before = made
    yield lab
    for task in [task for task, told in lab.ask("tasks")["tasks"].items() if told["state"] != "DONE"]:
        lab.trogdor("stop", task, "--wait")  # a test that failed half-way must not spoil the next
    wait_until(lambda: lab.matrix().agrees(whole), what="everybody to reach everybody after the test")
    changed = {node: difference(before[node], lab.snapshot(node)) for node in lab.nodes}
    assert not any(changed.values()), f"a node is not as before: {changed}"
