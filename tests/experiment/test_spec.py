"""The experiment's document: what cannot be meant is refused, with the field and the remedy."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from trogdor_bus.errors import SpecError
from trogdor_bus.faults.experiment import SLACK_MS, ExperimentSpec
from trogdor_bus.faults.stream import MAX_TOPIC_CHARS, RUN_CHARS
from trogdor_bus.registry import registry
from trogdor_bus.spec import wire
from trogdor_bus.topology import Node, Topology

FAULT = {"class": "process-stop", "durationMs": 5_000, "nodes": ["node1"], "port": 9092}


def decode(**fields: Any) -> ExperimentSpec:
    spec = registry().decode({"class": "experiment", "fault": FAULT, **fields})
    assert isinstance(spec, ExperimentSpec)
    return spec


def stream(**fields: Any) -> ExperimentSpec:
    return decode(stream=fields)


def probe(**fields: Any) -> dict[str, Any]:
    return {"name": "p", "type": "tcp", **fields}


def refusal(**fields: Any) -> SpecError:
    with pytest.raises(SpecError) as caught:
        decode(**fields)
    return caught.value


def test_it_has_no_nodes_and_is_an_experiment() -> None:
    spec = decode()
    assert spec.is_experiment and not registry().decode({"class": "noop"}).is_experiment
    assert spec.targets(Topology(nodes={"node1": Node(name="node1")})) == frozenset()
    assert registry().decode(json.loads(wire(spec))) == spec


def test_all_steps_together_are_bounded_with_their_arithmetic() -> None:
    spec = decode(rampMs=1_000, baselineMs=2_000, chaosMs=30_000, quietMs=3_000, recoveryMs=4_000)
    assert spec.total_ms() == 2 * 1_000 + 2_000 + 30_000 + 5_000 + 2 * 4_000 + 3_000 + 30_000 + SLACK_MS
    assert spec.longest_ms() == spec.total_ms()
    assert decode(durationMs=10_000_000).longest_ms() == 10_000_000
    short = refusal(durationMs=1_000)
    assert short.path == "$.durationMs" and "chaosMs 60000 + fault.durationMs 5000" in short.message
    looks = decode(probes=[probe(address="b:1", mode="edge", attempts=3, timeoutMs=100, intervalMs=50)])
    assert looks.total_ms() == decode().total_ms() + 2 * 3 * 150


@pytest.mark.parametrize(
    ("chaos_ms", "interval_ms", "most", "planned"),
    [
        (60_000, 20_000, 0, 3),
        (60_000, 25_000, 0, 3),
        (60_000, 60_000, 0, 1),
        (6_000, 7_000, 0, 1),
        (60_000, 20_000, 2, 2),
    ],
)
def test_faults_begin_at_each_interval_below_the_whole(
    chaos_ms: int, interval_ms: int, most: int, planned: int
) -> None:
    assert decode(chaosMs=chaos_ms, intervalMs=interval_ms, maxFaults=most).faults_planned() == planned


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"fault": None}, "$.fault", "is missing"),
        ({"fault": []}, "$.fault", "expected object, got array"),
        ({"fault": {"durationMs": 1}}, "$.fault.class", "the field is missing"),
        ({"fault": {"class": "process-stpo"}}, "$.fault.class", "unknown class 'process-stpo'"),
        ({"fault": {**FAULT, "prot": 1}}, "$.fault.prot", "unknown field"),
        ({"fault": {**FAULT, "nodes": []}}, "$.fault.nodes", "names no node"),
        ({"fault": {**FAULT, "startMs": 5}}, "$.fault.startMs", "is not for a fault of an experiment"),
        ({"fault": {**FAULT, "durationMs": 0}}, "$.fault.durationMs", "is missing"),
        ({"fault": {"class": "experiment", "fault": FAULT}}, "$.fault.class", "is an experiment itself"),
        ({"chaosMs": 0}, "$.chaosMs", "leaves no time for a fault"),
        ({"chaosMs": 10**12}, "$.chaosMs", "expected int <= 604800000"),
        ({"intervalMs": 0}, "$.intervalMs", "is not a time"),
        ({"intervalMs": 4_999}, "$.intervalMs", "the next fault would begin after 4999 ms, while this one still lasts"),
        ({"intervalMs": 9_000, "intervalMaxMs": 8_000}, "$.intervalMaxMs", "is below intervalMs = 9000 ms"),
        ({"maxFaults": -1}, "$.maxFaults", "expected int >= 0"),
        ({"evidence": ["leader-move"]}, "$.evidence[0]", "invalid enum value 'leader-move'"),
        ({"allow": ["all"]}, "$.allow[0]", "invalid enum value 'all'"),
        ({"name": "a/b"}, "$.name", "the name 'a/b' holds a slash"),
        ({"bootstrap": "broker1"}, "$.bootstrap", "is not a list of HOST:PORT"),
        ({"config": "client.properties"}, "$.config", "is not an absolute path"),
        ({"stream": {"rate": 0}}, "$.stream.rate", "expected int >= 1"),
        ({"stream": {"ratee": 1}}, "$.stream.ratee", "unknown field"),
        ({"stream": {"acks": "2"}}, "$.stream.acks", "invalid enum value '2'"),
        ({"stream": {"acks": "1", "idempotent": True}}, "$.stream.idempotent", "an idempotent producer needs acks all"),
        ({"stream": {"minInSync": 4}}, "$.stream.minInSync", "4 of 3 replicas can never be in sync"),
        ({"stream": {"topicPrefix": "a b"}}, "$.stream.topicPrefix", "cannot begin the name of a topic"),
        ({"stream": {"topicPrefix": "__a"}}, "$.stream.topicPrefix", "cannot begin the name of a topic"),
        ({"stream": {"topicPrefix": "a" * 250}}, "$.stream.topicPrefix", "cannot begin the name of a topic"),
        ({"stream": {"deliveryTimeoutMs": 4_999}}, "$.stream.requestTimeoutMs", "a request may take longer"),
        (
            {"stream": {"retentionMs": 60_000}},
            "$.stream.retentionMs",
            "records are kept for 60000 ms, but all are read",
        ),
        ({"probes": [probe()]}, "$.probes[0].address", "is missing"),
        ({"probes": [probe(address="b")]}, "$.probes[0].address", "is not HOST:PORT"),
        ({"probes": [probe(address="b:1", url="http://x")]}, "$.probes[0].url", "is for type http"),
        ({"probes": [probe(address="b:1", topic="t")]}, "$.probes[0].topic", "is for type kafka"),
        ({"probes": [probe(address="b:1", contains="t")]}, "$.probes[0].contains", "is for types http and command"),
        ({"probes": [probe(address="b:1", halt=True)]}, "$.probes[0].halt", "a probe of mode edge halts nothing"),
        ({"probes": [probe(address="b:1")] * 2}, "$.probes[0].name", "two probes are named p"),
        ({"probes": [{"name": "p", "type": "http", "url": "ftp://x"}]}, "$.probes[0].url", "is no address of a page"),
        (
            {"probes": [{"name": "p", "type": "command", "command": [" "]}]},
            "$.probes[0].command[0]",
            "names no program",
        ),
        ({"probes": [{"name": "p", "type": "kafka", "group": "g"}]}, "$.probes[0].maxLag", "group and maxLag"),
        ({"probes": [{"name": "", "type": "kafka"}]}, "$.probes[0].name", "the name is empty"),
        ({"probes": [{"type": "kafka"}]}, "$.probes[0].name", "the field is missing"),
        ({"litmus": {"engine": "x"}}, "$.litmus.experiment", "is missing"),
        ({"litmus": {"engin": "x"}}, "$.litmus.engin", "unknown field"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], path: str, message: str) -> None:
    error = refusal(**fields)
    assert error.path == path
    assert error.message.startswith(message)


def test_one_long_fault_may_last_longer_than_its_interval() -> None:
    assert decode(intervalMs=1_000, maxFaults=1).faults_planned() == 1


def test_acks_and_idempotence_fit() -> None:
    assert stream().stream.is_idempotent
    assert not stream(acks="1").stream.is_idempotent
    assert not stream(acks="0", idempotent=False).stream.is_idempotent
    assert not stream(idempotent=False).stream.is_idempotent


@pytest.mark.parametrize(("replicas", "least"), [(3, 2), (5, 4), (1, 1), (2, 1)])
def test_the_least_in_sync_follows_the_replicas(replicas: int, least: int) -> None:
    assert stream(replicationFactor=replicas).stream.least_in_sync == least
    assert stream(replicationFactor=replicas, minInSync=1).stream.least_in_sync == 1


def test_a_run_id_fits_behind_the_longest_prefix() -> None:
    prefix = "a" * (MAX_TOPIC_CHARS - RUN_CHARS)
    assert stream(topicPrefix=prefix).stream.topic_prefix == prefix


def test_the_streams_topic_stands_wherever_the_fault_names_it() -> None:
    fault = {**FAULT, "nodes": ["x"], "match": "of $stream-0", "port": None}
    spec = decode(fault=fault)
    assert spec.fault_on("t1")["match"] == "of t1-0"
    assert spec.fault["match"] == "of $stream-0", "the spec itself stays as it is"
    error = refusal(fault=fault, stream={"off": True})
    assert (error.path, error.message) == ("$.stream.off", "$stream stands for no topic")
    kafka = {"name": "p", "type": "kafka", "topic": "$stream"}
    assert refusal(probes=[kafka], stream={"off": True}).path == "$.stream.off"
    assert decode(probes=[kafka]).probes[0].topic == "$stream"


def test_evidence_follows_the_fault_unless_it_is_named() -> None:
    assert decode().evidence_wanted() == ("process-stopped",)
    assert decode(evidence=["isr-shrank"]).evidence_wanted() == ("isr-shrank",)
    assert decode(fault={"class": "noop", "durationMs": 1}).evidence_wanted() == ()
    unproven = {cls.aliases[0] for cls in registry().by_tag.values() if not cls.proven_by}
    other = {"noop", "command", "external-command", "experiment", "kafka-rolling-restart"}
    assert unproven == other, "each fault has what proves it"


FUZZ = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@examples(200)
@given(st.sampled_from(["fault", "stream", "probes", "chaosMs", "evidence", "litmus", "durationMs", "name"]), FUZZ)
def test_it_is_accepted_or_refused_in_words(field: str, value: Any) -> None:
    try:
        spec = decode(**{field: value})
    except SpecError as error:
        assert error.path.startswith("$")
    else:
        assert registry().decode(json.loads(wire(spec))).longest_ms() == spec.longest_ms()


def test_a_fault_that_goes_round_has_no_nodes_and_no_intervals() -> None:
    fault = {key: value for key, value in FAULT.items() if key != "nodes"}
    spec = decode(fault=fault, eachOf=["all", "node9"], chaosMs=3_600_000, intervalMs=1)
    assert spec.faults_planned() == 1
    assert spec.fault_on("t") == {**fault, "nodes": ["all", "node9"]}
    assert spec.fault_on("t", "node9") == {**fault, "nodes": ["node9"]}
    assert refusal(eachOf=["all"]).path == "$.fault.nodes"
    assert refusal(fault=fault, eachOf=["all"], maxFaults=2).path == "$.maxFaults"
    assert refusal(fault={"class": "kafka-kill-leader", "durationMs": 1, "topic": "t"}, eachOf=["all"]).path == (
        "$.fault.nodes"
    )
