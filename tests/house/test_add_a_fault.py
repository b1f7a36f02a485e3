"""docs/how-to/add-a-fault.md is true: its fault, its test and its entry point work as they stand there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.house.packages import install, python, ran
from tests.house.test_docs import blocks
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.process import Suspend
from trogdor_bus.errors import DuplicateSpecError, SpecError
from trogdor_bus.registry import Registry
from trogdor_bus.spec import wire
from trogdor_bus.topology import Node, Topology

PAGE = "docs/how-to/add-a-fault.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a directory with the page's package, installed as a package manager would."""
    shortest, fault, test = blocks(PAGE, "python")
    (tmp_path / "my_pause.py").write_text(shortest)
    (tmp_path / "my_faults.py").write_text(fault)
    (tmp_path / "test_my_faults.py").write_text(test)
    install(tmp_path, PAGE)
    return tmp_path


@pytest.fixture
def my_faults(package: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("my_faults", package / "my_faults.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_as_short_as_promised(package: Path) -> None:
    assert 20 <= len((package / "my_faults.py").read_text().splitlines()) <= 60
    assert len((package / "my_pause.py").read_text().splitlines()) <= 20


def test_the_shortest_is_a_whole_fault(package: Path) -> None:
    decoded = "import sys, my_pause; from trogdor_bus.registry import Registry; cls = my_pause.PauseFaultSpec\n"
    decoded += "spec = Registry([cls]).decode(cls.example); print(spec.nodes, spec.actions('node1', None))"
    assert python(package, "-c", decoded).startswith("('node1',) (Suspend(")


def test_its_actions_equal_a_literal(my_faults: ModuleType) -> None:
    cls = my_faults.MinorityPauseFaultSpec
    topology = Topology(nodes={name: Node(name=name) for name in ("node1", "node2", "node3", "node4", "node5")})
    spec = Registry([cls]).decode(cls.example)
    targets = spec.targets(topology)
    assert len(targets) == 2 and targets < set(cls.example["nodes"])
    assert targets == Registry([cls]).decode(cls.example).targets(topology)
    for node in targets:
        assert spec.actions(node, topology) == (Suspend(match=ProcessMatch(command="kafka.Kafka")),)
    assert json.loads(wire(spec)) == {"startMs": 0, **cls.example, "class": "my_faults.MinorityPauseFaultSpec"}


def test_it_refuses_what_it_should(my_faults: ModuleType) -> None:
    decode = Registry([my_faults.MinorityPauseFaultSpec]).decode
    with pytest.raises(SpecError, match="nodes: has no minority"):
        decode({"class": "minority-pause", "nodes": ["node1", "node2"], "match": "x"})
    with pytest.raises(SpecError, match="match: is blank"):
        decode({"class": "minority-pause", "nodes": ["node1", "node2", "node3"]})


def test_two_specs_cannot_share_a_name(my_faults: ModuleType) -> None:
    cls = my_faults.MinorityPauseFaultSpec
    other = type("Other", (cls,), {"aliases": ("minority-pause",)}, frozen=True, tag="other.Other")
    with pytest.raises(DuplicateSpecError, match="minority-pause"):
        Registry([cls, other])


def test_the_entry_point_makes_it_known_to_the_command_line(package: Path) -> None:
    told = json.loads(python(package, "-m", "trogdor_bus", "faults", "minority-pause", "--json"))
    assert told["class"] == "my_faults.MinorityPauseFaultSpec"
    valid = python(package, "-m", "trogdor_bus", "validate", json.dumps(told["example"]))
    assert valid.startswith("Valid: my_faults.MinorityPauseFaultSpec")


@pytest.mark.parametrize("words", [("faults", "--json"), ("faults", "noop"), ("validate", '{"class": "noop"}')])
def test_a_package_that_is_broken_keeps_no_other_fault_and_is_said_to_be(package: Path, words: tuple[str, ...]) -> None:
    (package / "my_faults.py").write_text("import a_package_that_is_gone")
    done = ran(package, "-m", "trogdor_bus", *words)
    assert "NoOpTaskSpec" in done.stdout
    assert done.stderr.startswith(
        "warning: the entry point my-faults = my_faults cannot be loaded: ModuleNotFoundError"
    )
    assert done.stderr.endswith("; mend its package, or uninstall it\n") and done.stderr.count("\n") == 1


def test_the_test_on_the_page_passes(package: Path) -> None:
    assert "1 passed" in python(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_faults.py")
