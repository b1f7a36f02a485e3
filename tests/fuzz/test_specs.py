"""Whatever stands where a spec should stand: a spec that can be used, or an error that names the field."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from tests.fuzz.judge import decoded, keeps_nothing
from tests.fuzz.mutants import DEEP, TOPOLOGY, mutated, nested, values
from trogdor_bus.cluster import ClusterView, SeenBroker, SeenPartition
from trogdor_bus.errors import RefusedError, SpecError
from trogdor_bus.registry import registry
from trogdor_bus.roles import Places, Scene
from trogdor_bus.spec import TaskSpec, wire

EXAMPLES = {tag: {**cls.example, "class": tag} for tag, cls in registry().by_tag.items()}

SCENE = Scene(
    view=ClusterView(
        brokers={1: SeenBroker(id=1, port=9092)},
        partitions=(SeenPartition(topic="orders", number=0, leader=1, replicas=(1,), in_sync=(1,)),),
        controller=1,
    ),
    places=Places({1: "node1"}),
    topology=TOPOLOGY,
)


def judge(data: object) -> None:
    """Decode; a spec must come back from the wire the same and answer everything that is asked of one."""
    spec = decoded(lambda: registry().decode(data))
    if isinstance(spec, TaskSpec):
        assert registry().decode(json.loads(wire(spec))) == spec
        spec.texts("task")
        for node in ("node1", "nowhere"):
            spec.peers_of(node)
            with contextlib.suppress(SpecError):
                spec.targets(TOPOLOGY)
                spec.actions(node, TOPOLOGY)
        if spec.needs_cluster(TOPOLOGY.nodes):
            with contextlib.suppress(SpecError, RefusedError):
                spec.cluster_wanted(TOPOLOGY.nodes)
                assert not spec.resolved(SCENE)[0].needs_cluster(TOPOLOGY.nodes)
    else:
        assert isinstance(spec, SpecError), f"{type(spec).__name__}: {spec}"
        assert spec.path != "$" or spec.remedy, f"neither field nor remedy: {spec}"


@examples(150)
@given(values)
def test_any_value(data: object) -> None:
    judge(data)


@examples(400)
@given(st.data())
def test_nearly_right(data: st.DataObject) -> None:
    example = EXAMPLES[data.draw(st.sampled_from(sorted(EXAMPLES)))]
    judge(data.draw(mutated(example)))


ODD: dict[str, Any] = {
    "null": None,
    "true": True,
    "minus": -1,
    "big": 10**30,
    "bigger": 10**400,
    "nan": float("nan"),
    "empty": "",
    "digits": "9" * 5_000,
    "surrogate": "\ud800",
    "nul": "\0",
    "object": {},
    "list": [],
    "lists": [[]],
    "nulls": [None],
    "deep": nested(DEEP),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("tag", sorted(EXAMPLES))
def test_every_field_of_every_spec_with_every_odd_value(tag: str, odd: str) -> None:
    for field in msgspec.structs.fields(registry().by_tag[tag]):
        judge({**EXAMPLES[tag], field.encode_name: ODD[odd]})
    judge({"class": ODD[odd]})


BAD: list[object] = [
    {"class": "x" * 1_000},
    {"class": "noop", "y" * 1_000: 1},
    {"class": "noop", "durationMs": nested(DEEP)},
    {"class": "partition", "partitions": [["a", "\ud800"]]},
    {"class": "port-block", "nodes": ["a"], "ports": ["9" * 5_000]},
    {"class": "process-kill", "nodes": ["a"], "match": "x", "restart": [nested(50)]},
    [1] * 10_000,
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_specs_keep_no_memory(number: int) -> None:
    judge(BAD[number])
    keeps_nothing(lambda: registry().decode(BAD[number]))
