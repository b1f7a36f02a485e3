"""The shipped examples are specs that work as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trogdor_bus.document import parse, read_file
from trogdor_bus.faults.network import NetworkPartitionFaultSpec
from trogdor_bus.faults.process import ProcessStopFaultSpec
from trogdor_bus.lab.demo import examples
from trogdor_bus.lab.echo import PORT
from trogdor_bus.registry import registry, tag_of
from trogdor_bus.spec import wire

README_EXAMPLE = """
    {
        "class": "org.apache.kafka.trogdor.fault.NetworkPartitionFaultSpec",
        "startMs": 1000,
        "durationMs": 30000,
        "partitions": [["node1", "node2"], ["node3"]]
    }
"""


SPECS = sorted(path for path in examples().iterdir() if path.is_file())


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_every_example_is_a_spec(path: Path) -> None:
    spec = registry().decode(parse(read_file(path), str(path)))
    assert spec.longest_ms() > 0
    assert json.loads(wire(spec))["class"] == tag_of(type(spec))


def test_the_partition_is_that_of_trogdors_readme() -> None:
    text = (examples() / "partition.json").read_text()
    without_header = "\n".join(line for line in text.splitlines() if not line.startswith("//"))
    assert without_header.split() == README_EXAMPLE.split()
    assert isinstance(registry().decode(json.loads(without_header)), NetworkPartitionFaultSpec)


def test_the_process_stop_meets_the_service_of_a_lab() -> None:
    path = examples() / "process-stop.json"
    spec = registry().decode(parse(read_file(path), str(path)))
    assert isinstance(spec, ProcessStopFaultSpec)
    assert (spec.nodes, spec.port) == (("node3",), PORT)
