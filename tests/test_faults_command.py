"""Programs as tasks: our words, Trogdor's words, and that both ask for the same."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from trogdor_bus.actions.program import RunCommand
from trogdor_bus.errors import SpecError
from trogdor_bus.registry import registry
from trogdor_bus.spec import TaskSpec, wire
from trogdor_bus.topology import Topology

TROGDORS = "org.apache.kafka.trogdor.workload.ExternalCommandSpec"
SAMPLE = {
    "class": TROGDORS,
    "startMs": 0,
    "durationMs": 10000000,
    "commandNode": "node0",
    "command": ["./tests/bin/external_trogdor_command_example.py"],
    "workload": {
        "class": "org.apache.kafka.trogdor.workload.ProduceBenchSpec",
        "message": "Hello world",
        "delayMs": 2000,
    },
}
"""Trogdor's tests/spec/external_command.json."""


def decoded(**fields: Any) -> TaskSpec:
    return registry().decode({"class": TROGDORS, "durationMs": 1000, **fields})


def asked(spec: TaskSpec) -> RunCommand:
    (node,) = spec.targets(Topology(nodes={}))
    (action,) = spec.actions(node, Topology(nodes={}))
    assert isinstance(action, RunCommand)
    return action


def test_trogdors_sample_is_taken_and_written_as_it_was() -> None:
    spec = registry().decode(SAMPLE)
    assert wire(spec) == json.dumps(SAMPLE, separators=(",", ":")).encode()
    action = asked(spec)
    assert spec.targets(Topology(nodes={})) == {"node0"}
    assert (action.command, action.grace_ms) == (("./tests/bin/external_trogdor_command_example.py",), 5_000)
    assert json.loads(bytes(action.workload)) == SAMPLE["workload"]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({}, '"workload":null'),
        ({"workload": None}, '"workload":null'),
        ({"commandNode": "n", "command": "true"}, '"commandNode":"n","command":["true"],"workload":null'),
        ({"workload": ""}, '"workload":""'),
        ({"workload": 0, "shutdownGracePeriodMs": 0}, '"workload":0,"shutdownGracePeriodMs":0'),
        (
            {"workload": {"empty": "", "list": [], "map": {}, "null": None, "deep": [{"x": ""}]}},
            '"workload":{"empty":"","list":[],"map":{},"null":null,"deep":[{"x":""}]}',
        ),
        ({"workload": {}}, '"workload":null'),
        ({"workload": []}, '"workload":null'),
        ({"shutdownGracePeriodMs": None}, '"workload":null'),
    ],
)
def test_what_is_any_json_is_written_as_trogdor_writes_it(given: dict[str, Any], written: str) -> None:
    spec = decoded(**given)
    assert wire(spec).decode() == f'{{"class":"{TROGDORS}","startMs":0,"durationMs":1000,{written}}}'
    assert registry().decode(json.loads(wire(spec))) == spec


@pytest.mark.parametrize(
    ("given_ms", "grace_ms"), [(None, 5_000), (0, 0), (-1, 0), (1, 1), (60_001, 60_000), (2**31 - 1, 60_000)]
)
def test_trogdors_grace_is_an_int_of_which_a_minute_counts(given_ms: int | None, grace_ms: int) -> None:
    assert asked(decoded(commandNode="n", command=["true"], shutdownGracePeriodMs=given_ms)).grace_ms == grace_ms


def test_both_words_ask_for_the_same() -> None:
    theirs = decoded(commandNode="n", command=["run", "x"], workload=[1], shutdownGracePeriodMs=7)
    ours = registry().decode(
        {"class": "command", "durationMs": 1, "nodes": ["n"], "command": ["run", "x"], "workload": [1], "graceMs": 7}
    )
    assert asked(ours) == asked(theirs) == RunCommand(command=("run", "x"), workload=msgspec.Raw(b"[1]"), grace_ms=7)
    assert asked(ours).describe() == (
        "run run x while the task lasts",
        "send SIGTERM to it, and SIGKILL to what is left of it 7 ms later",
    )


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"nodes": [], "command": ["x"]}, "$.nodes"),
        ({"nodes": ["n"], "command": []}, "$.command"),
        ({"nodes": ["n"], "command": [" "]}, "$.command"),
        ({"nodes": ["n"], "command": ["x"], "graceMs": -1}, "$.graceMs"),
        ({"nodes": ["n"], "command": ["x"], "graceMs": 60_001}, "$.graceMs"),
        ({"nodes": ["n"], "command": ["x"], "environment": {}}, "$.environment"),
    ],
)
def test_our_words_are_strict(given: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as raised:
        registry().decode({"class": "command", "durationMs": 1, **given})
    assert (raised.value.path == path and raised.value.remedy) or path in ("$.graceMs",)


def test_trogdors_empty_command_is_taken_and_fails_where_it_would_run() -> None:
    assert asked(decoded(commandNode="n")).command == ()


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), 2**64, -(2**63) - 1, {1: 2}, [{"x": [{None: 1}]}], "\0", "\ud800"]
)
@pytest.mark.parametrize("name", ["command", "external-command"])
def test_a_workload_is_json_that_everybody_can_read(name: str, bad: Any) -> None:
    where = {"nodes": ["n"]} if name == "command" else {"commandNode": "n"}
    spec = {"class": name, "durationMs": 1, "command": ["x"], **where}
    with pytest.raises(SpecError):
        registry().decode({**spec, "workload": {"deep": bad}})
    for good in ({}, [], "", None, 2**64 - 1, -(2**63), 0.5, {"a": {"b": [[], {}, None, ""]}}):
        taken = registry().decode({**spec, "workload": good})
        assert registry().decode(json.loads(wire(taken))) == taken
