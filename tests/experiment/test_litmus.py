"""ChaosEngine documents: those that exist run as they are, and what would mean something else here is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from trogdor_bus.document import read_file
from trogdor_bus.errors import SpecError
from trogdor_bus.experiment import litmus
from trogdor_bus.experiment.litmus_keys import ENV_UNUSED, ENV_USED
from trogdor_bus.faults.experiment import ExperimentSpec
from trogdor_bus.lab.demo import examples as shipped
from trogdor_bus.registry import registry

KILL = {"class": "kafka-kill-leader", "topic": "$stream", "partition": 0, "durationMs": 1_000}
ENV = "spec.experiments.0.spec.components.env"
ENV_PATH = "$.spec.experiments[0].spec.components.env"
RESTART = {"restart": {"found": True}}


def engine(env: dict[str, Any] | None = None, **components: Any) -> dict[str, Any]:
    given = [{"name": name, "value": value} for name, value in (env or {}).items()]
    return {
        "apiVersion": "litmuschaos.io/v1alpha1",
        "kind": "ChaosEngine",
        "metadata": {"name": "kafka-chaos"},
        "spec": {
            "experiments": [{"name": "kafka-broker-pod-failure", "spec": {"components": {"env": given, **components}}}]
        },
    }


def spec(env: dict[str, Any] | None = None, **components: Any) -> dict[str, Any]:
    (found,) = litmus.specs(engine(env, **components))
    return found


def refusal(document: dict[str, Any]) -> SpecError:
    with pytest.raises(SpecError) as caught:
        litmus.specs(document)
    assert caught.value.remedy
    return caught.value


def decoded(found: dict[str, Any]) -> ExperimentSpec:
    result = registry().decode(found)
    assert isinstance(result, ExperimentSpec)
    return result


@pytest.mark.parametrize(
    ("name", "timeout_ms", "unused"),
    [("charts-engine.yaml", 30_000, 16), ("article-2020-engine.yaml", 40_000, 15)],
)
def test_the_documents_of_the_charts_and_the_article_run_as_they_are(name: str, timeout_ms: int, unused: int) -> None:
    path = shipped() / "litmus" / name
    (found,) = litmus.read(read_file(path), str(path))
    assert found["fault"] == {**KILL, "signal": "SIGTERM", "graceMs": 30_000, **RESTART}
    assert (found["chaosMs"], found["intervalMs"], found["intervalMaxMs"]) == (60_000, 20_000, 0)
    assert found["stream"] == {"consumerTimeoutMs": timeout_ms, "replicationFactor": 3}
    assert found["name"] == "kafka-chaos"
    told = found["litmus"]["notUsed"]
    assert {"KAFKA_NAMESPACE", "ZOOKEEPER_SERVICE", "KAFKA_SERVICE", "KAFKA_PORT", "spec.appinfo"} <= set(told)
    assert len(told) == unused == len(set(told))
    read = decoded(found)
    assert read.faults_planned() == 3
    assert read.litmus is not None and read.litmus.not_used == tuple(told)


def test_what_is_left_out_has_litmus_defaults() -> None:
    found = spec()
    assert found["fault"] == {**KILL, "signal": "SIGKILL", **RESTART}
    assert found["stream"] == {"consumerTimeoutMs": 60_000}
    assert (found["chaosMs"], found["intervalMs"], found["rampMs"]) == (60_000, 10_000, 0)
    assert (found["recoveryMs"], found["allow"], found["probes"]) == (180_000, [], [])
    assert found["litmus"] == {
        "engine": "kafka-chaos",
        "experiment": "kafka-broker-pod-failure",
        "instance": "",
        "notUsed": [],
    }
    decoded(found)


@pytest.mark.parametrize("word", ["enable", "enabled", "ENABLED", "Enable", None, ""])
def test_the_stream_is_on(word: str | None) -> None:
    found = spec({"KAFKA_LIVENESS_STREAM": word})
    assert "off" not in found["stream"] and found["fault"]["class"] == "kafka-kill-leader"


@pytest.mark.parametrize("word", ["disable", "disabled", "Disabled"])
def test_the_stream_is_off_and_some_broker_is_killed(word: str) -> None:
    found = spec({"KAFKA_LIVENESS_STREAM": word})
    assert found["stream"] == {"off": True}
    assert found["fault"] == {
        "class": "process-kill",
        "nodes": ["one-of(all)"],
        "match": "kafka.Kafka",
        "durationMs": 1_000,
        "signal": "SIGKILL",
        **RESTART,
    }


@pytest.mark.parametrize(
    ("broker", "node"), [("2", "broker(2)"), ("kafka-2", "broker(2)"), ("my-kafka-10", "broker(10)")]
)
@pytest.mark.parametrize("live", ["enabled", "disabled"])
def test_a_named_broker_is_killed_whoever_leads(broker: str, node: str, live: str) -> None:
    fault = spec({"KAFKA_BROKER": broker, "KAFKA_LIVENESS_STREAM": live})["fault"]
    assert (fault["class"], fault["nodes"]) == ("process-kill", [node])


@pytest.mark.parametrize(
    ("env", "field", "value"),
    [
        ({"TOTAL_CHAOS_DURATION": "120"}, "chaosMs", 120_000),
        ({"TOTAL_CHAOS_DURATION": 120}, "chaosMs", 120_000),
        ({"RAMP_TIME": " 5 "}, "rampMs", 5_000),
        ({"RAMP_TIME": ""}, "rampMs", 0),
        ({"CHAOS_INTERVAL": "15"}, "intervalMs", 15_000),
        ({"CHAOS_INTERVAL": "15-25", "RANDOMNESS": "true"}, "intervalMs", 15_000),
        ({"CHAOS_INTERVAL": "15-25", "RANDOMNESS": True}, "intervalMaxMs", 25_000),
        ({"CHAOS_INTERVAL": "15", "RANDOMNESS": "true"}, "intervalMaxMs", 0),
        ({"STATUS_CHECK_TIMEOUT": "30"}, "recoveryMs", 30_000),
        ({"DEFAULT_HEALTH_CHECK": "false"}, "allow", ["under-replicated"]),
        ({"KAFKA_REPLICATION_FACTOR": "1"}, "stream", {"consumerTimeoutMs": 60_000, "replicationFactor": 1}),
    ],
)
def test_values_are_translated(env: dict[str, Any], field: str, value: object) -> None:
    assert spec(env)[field] == value


def test_waits_may_stand_beside_the_variables() -> None:
    assert spec(statusCheckTimeouts={"delay": 2, "timeout": 60})["recoveryMs"] == 60_000


def test_every_variable_is_known_and_what_is_not_used_is_listed() -> None:
    values = {"CHAOS_INTERVAL": "5", "SEQUENCE": "serial", "KAFKA_LIVENESS_STREAM": "enable", "KAFKA_BROKER": "1"}
    values |= dict.fromkeys(("FORCE", "RANDOMNESS", "DEFAULT_HEALTH_CHECK"), "true")
    found = spec({name: values.get(name, "10") for name in sorted(ENV_USED | ENV_UNUSED)})
    ours = {"SEQUENCE", "PODS_AFFECTED_PERC", "STATUS_CHECK_DELAY", "KAFKA_PORT"}
    assert set(found["litmus"]["notUsed"]) == ENV_UNUSED | ours
    assert {"KAFKA_SASL_AUTH", "KAFKA_LIVENESS_IMAGE", "ZOOKEEPER_PORT", "KAFKA_KIND"} <= ENV_UNUSED


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"KAFKA_LIVENESS_STREAM": "on"}, "KAFKA_LIVENESS_STREAM 'on' is not known"),
        ({"KAFKA_LIVENESS_STREEM": "enable"}, "'KAFKA_LIVENESS_STREEM' is not known"),
        ({"FORCE": "yes"}, "FORCE 'yes' is not known"),
        ({"SEQUENCE": "both"}, "SEQUENCE 'both' is not known"),
        ({"TOTAL_CHAOS_DURATION": "1m"}, "TOTAL_CHAOS_DURATION '1m' is not a whole number"),
        ({"TOTAL_CHAOS_DURATION": "-1"}, "TOTAL_CHAOS_DURATION '-1' is not a whole number"),
        ({"CHAOS_INTERVAL": "5-10"}, "CHAOS_INTERVAL 5-10 is a range"),
        ({"CHAOS_INTERVAL": "10-5", "RANDOMNESS": "true"}, "CHAOS_INTERVAL 10-5 ends before it begins"),
        ({"KAFKA_CONSUMER_TIMEOUT": "30s"}, "KAFKA_CONSUMER_TIMEOUT '30s' is not a whole number"),
        ({"KAFKA_REPLICATION_FACTOR": "three"}, "KAFKA_REPLICATION_FACTOR 'three' is not a whole number"),
        ({"KAFKA_BROKER": "kafka-0-x"}, "KAFKA_BROKER 'kafka-0-x' tells no broker id"),
        ({"KAFKA_PORT": "0"}, "KAFKA_PORT is no port"),
        ({"PODS_AFFECTED_PERC": "101"}, "PODS_AFFECTED_PERC is above 100"),
        ({"FORCE": ["true"]}, "is not a text"),
    ],
)
def test_unknown_names_and_bad_values_are_refused(env: dict[str, Any], message: str) -> None:
    error = refusal(engine(env))
    assert error.message.startswith(message)
    assert error.path.startswith("$.spec.experiments[0].spec.components.env[0]")


def changed(path: str, value: object) -> dict[str, Any]:
    document = engine()
    place: Any = document
    *names, last = path.split(".")
    for name in names:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        ("spec.engineState", "stop", "$.spec.engineState", "asks to stop what runs, not to start something"),
        ("spec.engineState", "pause", "$.spec.engineState", "'pause' is no state"),
        ("spec.enginState", "active", "$.spec", "'enginState' is not known"),
        ("spec.experiments", [], "$.spec.experiments", "names no experiment"),
        ("spec.experiments", {}, "$.spec.experiments", "is not a list"),
        ("spec.experiments.0.name", "pod-delete", "$.spec.experiments[0].name", "'pod-delete' is not known here"),
        ("spec.experiments.0.spec.envs", [], "$.spec.experiments[0].spec", "'envs' is not known"),
        (ENV, [{"nam": "X"}], f"{ENV_PATH}[0]", "'nam' is not known"),
        (ENV, [{"name": "FORCE", "valueFrom": {}}], f"{ENV_PATH}[0]", "only Kubernetes knows where FORCE comes from"),
        (ENV, [{"name": "FORCE", "value": "true"}] * 2, f"{ENV_PATH}[1]", "FORCE is given twice"),
        ("apiVersion", "apps/v1", "$.apiVersion", "'apps' is not Litmus"),
        ("metadata.nam", "x", "$.metadata", "'nam' is not known"),
    ],
)  # fmt: skip
def test_what_is_no_such_engine_is_refused(path: str, value: object, where: str, message: str) -> None:
    error = refusal(changed(path, value))
    assert (error.path, error.message) == (where, message)


def probe(kind: str, mode: str = "Continuous", inputs: dict[str, Any] | None = None, **run: Any) -> dict[str, Any]:
    return {"name": "p", "type": kind, "mode": mode, f"{kind}/inputs": inputs or {}, "runProperties": run}


def with_probe(given: dict[str, Any]) -> dict[str, Any]:
    return changed("spec.experiments.0.spec.probe", [given])


GET = {"url": "http://shop/health", "method": {"get": {"criteria": "==", "responseCode": "204"}}}
RUN = {"probeTimeout": "5s", "interval": 2, "retry": 3, "stopOnFailure": True, "initialDelay": "1s"}


def test_http_and_command_probes_become_ours() -> None:
    (found,) = litmus.specs(with_probe(probe("httpProbe", inputs=GET, **RUN)))
    assert found["probes"] == [
        {
            "name": "p",
            "mode": "continuous",
            "type": "http",
            "url": "http://shop/health",
            "status": 204,
            "timeoutMs": 5_000,
            "intervalMs": 2_000,
            "attempts": 3,
            "halt": True,
        }
    ]
    assert decoded(found).probes[0].halt
    contains = {"command": "echo ok", "comparator": {"type": "string", "criteria": "contains", "value": "ok"}}
    (found,) = litmus.specs(with_probe(probe("cmdProbe", "Edge", contains, stopOnFailure=True)))
    assert found["probes"] == [
        {"name": "p", "mode": "edge", "type": "command", "command": ["sh", "-c", "echo ok"], "contains": "ok"}
    ]
    assert found["litmus"]["notUsed"] == ["probe p: stopOnFailure (it halts only what goes on)"]
    decoded(found)


@pytest.mark.parametrize(
    ("word", "mode"),
    [("SOT", "before"), ("EOT", "after"), ("Edge", "edge"), ("Continuous", "continuous"), ("OnChaos", "during")],
)
def test_every_mode_has_its_own(word: str, mode: str) -> None:
    (found,) = litmus.specs(with_probe(probe("httpProbe", word, GET)))
    assert decoded(found).probes[0].mode == mode


@pytest.mark.parametrize("kind", ["k8sProbe", "promProbe"])
def test_probes_of_kubernetes_and_prometheus_are_listed(kind: str) -> None:
    (found,) = litmus.specs(with_probe(probe(kind, "Edge", {"anything": 1})))
    assert (found["probes"], found["litmus"]["notUsed"]) == ([], [f"probe p ({kind})"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (probe("tcpProbe"), "'tcpProbe' is no type of probe"),
        (probe("httpProbe", "Always", GET), "'Always' is no mode"),
        (probe("httpProbe", "SOT", {**GET, "insecureSkipVerify": True}), "asks for a page whose certificate is not"),
        (probe("httpProbe", "SOT", {"url": "x", "method": {"post": {}}}), "is not a get alone"),
        (probe("httpProbe", "SOT", {**GET, "uri": 1}), "'uri' is not known"),
        (probe("httpProbe", "SOT", {**GET, "method": {"get": {"criteria": ">="}}}), "'>=' cannot be asked here"),
        (probe("httpProbe", "SOT", GET, probeTimeout="soon"), "'soon' is no time"),
        (probe("httpProbe", "SOT", GET, attempt="x"), "'x' is not a whole number"),
        (probe("cmdProbe", "SOT", {}), "is missing"),
        (probe("cmdProbe", "SOT", {"command": "x", "comparator": {"type": "int", "criteria": ">="}}), "int '>='"),
    ],
)
def test_probes_that_cannot_be_asked_are_refused(given: dict[str, Any], message: str) -> None:
    error = refusal(with_probe(given))
    assert error.message.startswith(message)
    assert error.path.startswith("$.spec.experiments[0].spec.probe[0]")


# --- documents --------------------------------------------------------------------------------------------------------


def test_other_documents_beside_the_engine_are_listed() -> None:
    role = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "x"}}
    text = f"---\n{json.dumps(role)}\n---\n{json.dumps(engine())}\n---\n".encode()
    (found,) = litmus.read(text, "x.yaml")
    assert found["litmus"]["notUsed"] == ["the document of kind ServiceAccount"]
    assert len(litmus.read(f"{json.dumps(engine())}\n---\n{json.dumps(engine())}\n".encode(), "x.yaml")) == 2
    assert litmus.read(json.dumps(engine()).encode(), "x.json") == litmus.specs(engine())


def test_our_own_document_is_returned_as_it_stands() -> None:
    path = shipped() / "kafka-leader-kill.yaml"
    (found,) = litmus.read(read_file(path), str(path))
    assert found["class"] == "experiment" and decoded(found).faults_planned() == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"kind: Pod", "holds no ChaosEngine"),
        (b"[]", "an experiment is an object"),
        (b"a: 1\n---\nb: 2", "x.yaml, line"),
    ],
)
def test_what_is_neither_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        litmus.read(text, "x.yaml")
    assert caught.value.message.startswith(message)


NOTHING = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8) | st.just([]) | st.just({}) | st.just([[]])
)


@examples(300)
@given(st.data())
def test_any_change_is_taken_or_refused_in_words(data: st.DataObject) -> None:
    document = copy.deepcopy(engine({"FORCE": "true", "KAFKA_PORT": "9092"}))
    document["spec"]["experiments"][0]["spec"]["probe"] = [probe("httpProbe", "Edge", GET, **RUN)]
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(NOTHING)
    try:
        specs = litmus.specs(document)
        assert all(isinstance(one, dict) and one["class"] == "experiment" for one in specs)
    except SpecError as error:
        assert error.path.startswith("$") and error.message


# --- the interval -----------------------------------------------------------------------------------------------------


def killing(signal: str, **fields: Any) -> ExperimentSpec:
    fault = {"class": "process-kill", "durationMs": 1_000, "nodes": ["a"], "port": 9092, "signal": signal}
    found = registry().decode({"class": "experiment", "fault": fault, **fields})
    assert isinstance(found, ExperimentSpec)
    return found


def test_an_interval_below_the_session_timeout_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(SpecError) as caught:
        litmus.refuse_short_interval(killing("SIGKILL", intervalMs=9_999), 9_000)
    assert caught.value.path == "$.intervalMs"
    assert "broker.session.timeout.ms = 9000 ms" in caught.value.message
    assert "9000 + 1000 = 10000 ms" in caught.value.message
    assert "at least 10 s" in caught.value.remedy


def test_a_long_interval_one_fault_and_a_polite_signal_are_taken() -> None:
    litmus.refuse_short_interval(killing("SIGKILL", intervalMs=10_000), 9_000)
    litmus.refuse_short_interval(killing("SIGTERM", intervalMs=5_000), 9_000)
    litmus.refuse_short_interval(killing("SIGKILL", intervalMs=1_000, maxFaults=1), 9_000)
    quiet = msgspec.structs.replace(killing("SIGKILL"), fault={"class": "noop", "durationMs": 1})
    litmus.refuse_short_interval(quiet, 90_000)


# --- documents of 2019 and 2020 ---------------------------------------------------------------------------------------


def test_components_may_be_the_list_of_variables_itself() -> None:
    document = engine({"TOTAL_CHAOS_DURATION": "20", "KAFKA_BROKER": "kafka-2"})
    expected = litmus.specs(copy.deepcopy(document))
    inside = document["spec"]["experiments"][0]["spec"]
    inside["components"] = inside["components"]["env"]
    assert litmus.specs(document) == expected
    inside["components"] = [{"name": "TOTAL_CHAOS_DURATION", "value": "soon"}]
    assert refusal(document).path == "$.spec.experiments[0].spec.components[0].value"


@pytest.mark.parametrize("mode", [{}, {"mode": ""}, {"mode": None}])
def test_a_probe_without_a_mode_looks_before_and_after(mode: dict[str, Any]) -> None:
    document = engine()
    old = {"name": "p", "type": "httpProbe", "httpProbe/inputs": {"url": "http://a/b", "expectedResponseCode": "204"}}
    document["spec"]["experiments"][0]["spec"]["probe"] = [{**old, **mode}]
    (found,) = litmus.specs(document)
    assert found["probes"] == [{"name": "p", "mode": "edge", "type": "http", "url": "http://a/b", "status": 204}]
    assert "probe p has no mode, and looks before and after (Edge)" in found["litmus"]["notUsed"]
    decoded(found)
