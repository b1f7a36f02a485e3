"""Litmus' ChaosEngine documents of kafka-broker-pod-failure, as experiments.

What only Kubernetes or ZooKeeper understands is listed in the experiment; an unknown key and a bad value of a known one
are refused. Names and defaults are those of litmus-go; see docs/reference/experiments.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from trogdor_bus.document import parse, parse_all
from trogdor_bus.errors import SpecError
from trogdor_bus.experiment.litmus_keys import (
    COMPONENTS_UNUSED,
    ENGINE_UNUSED,
    ENV_UNUSED,
    ENV_USED,
    METADATA_UNUSED,
    mapping,
    sequence,
    sort_out,
    whole,
)
from trogdor_bus.experiment.litmus_probes import translated
from trogdor_bus.faults.experiment import ExperimentSpec
from trogdor_bus.names import shown
from trogdor_bus.roles import STREAM

KIND, EXPERIMENT = "ChaosEngine", "kafka-broker-pod-failure"
FAULT_MS = 1_000
"""How long a broker is down before it is started again: Kubernetes starts a deleted pod at once."""
GRACE_MS = 30_000
"""After what time Kubernetes ends a pod that does not end by itself."""
BROKER_PROCESS = "kafka.Kafka"


def read(text: bytes, source: str) -> list[dict[str, Any]]:
    """Return the specs in a text, as JSON objects: our own as it stands, or one for each experiment of a ChaosEngine.

    SpecError names the field and the remedy. The specs are not checked by the registry.
    """
    values = parse_all(text, source)
    if not is_engine(values):
        value = parse(text, source)
        if not isinstance(value, dict):
            raise SpecError("an experiment is an object", remedy='write {"class": "experiment", ...}')
        return [value]
    engines = [value for value in values if isinstance(value, dict) and value.get("kind") == KIND]
    if not engines:
        raise SpecError(f"holds no {KIND}", path="$.kind", remedy=f"give a document of kind {KIND}")
    others = [shown(f"{one.get('kind')}") for one in values if isinstance(one, dict) and one.get("kind") != KIND]
    return [
        spec for engine in engines for spec in specs(engine, not_used=[f"the document of kind {k}" for k in others])
    ]


def is_engine(values: Iterable[Any]) -> bool:
    """Return whether these documents are Litmus', or another's of Kubernetes, and none is a spec of ours."""
    found = [value for value in values if isinstance(value, dict)]
    return any("kind" in value for value in found) and not any("class" in value for value in found)


def specs(engine: Mapping[str, Any], *, not_used: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return a spec for each experiment of a ChaosEngine, as a JSON object; SpecError as `read`."""
    unused = list(not_used)
    sort_out(engine, {"apiVersion", "kind", "metadata", "spec"}, {"status"}, "$", unused)
    group, _, _ = str(engine.get("apiVersion", "litmuschaos.io/")).partition("/")
    if group != "litmuschaos.io":
        raise SpecError(f"'{shown(group)}' is not Litmus", path="$.apiVersion", remedy="litmuschaos.io/v1alpha1")
    metadata, body = mapping(engine.get("metadata"), "$.metadata"), mapping(engine.get("spec"), "$.spec")
    sort_out(metadata, {"name", "generateName"}, METADATA_UNUSED, "$.metadata", unused)
    sort_out(body, {"engineState", "experiments"}, ENGINE_UNUSED, "$.spec", unused)
    state = body.get("engineState", "active")
    if state == "stop":
        raise SpecError(
            "asks to stop what runs, not to start something",
            path="$.spec.engineState",
            remedy="`‹stop›` ends an experiment; to run this one say active",
        )
    if state != "active":
        raise SpecError(
            f"'{shown(str(state))}' is no state", path="$.spec.engineState", remedy="say active, or nothing"
        )
    experiments = sequence(body.get("experiments"), "$.spec.experiments")
    if not experiments:
        raise SpecError("names no experiment", path="$.spec.experiments", remedy=f"list {EXPERIMENT}")
    name = str(metadata.get("name") or metadata.get("generateName") or "")
    return [
        _experiment(mapping(one, path), name, path, [*unused])
        for path, one in ((f"$.spec.experiments[{number}]", one) for number, one in enumerate(experiments))
    ]


def _experiment(given: Mapping[str, Any], engine: str, path: str, unused: list[str]) -> dict[str, Any]:
    sort_out(given, {"name", "spec"}, {"rank"}, path, unused)
    if given.get("name") != EXPERIMENT:
        name = shown(str(given.get("name", "")))
        raise SpecError(f"'{name}' is not known here", path=f"{path}.name", remedy=f"only {EXPERIMENT} is")
    body = mapping(given.get("spec"), f"{path}.spec")
    sort_out(body, {"components", "probe"}, set(), f"{path}.spec", unused)
    inside, listed = f"{path}.spec.components", isinstance(body.get("components"), list)
    components = {} if listed else mapping(body.get("components"), inside)
    sort_out(components, {"env", "statusCheckTimeouts"}, COMPONENTS_UNUSED, inside, unused)
    if listed:  # of 2019 and 2020: the variables themselves
        env = _Env(sequence(body["components"], inside), inside, unused)
    else:
        env = _Env(sequence(components.get("env"), f"{inside}.env"), f"{inside}.env", unused)
    waits = mapping(components.get("statusCheckTimeouts"), f"{inside}.statusCheckTimeouts")
    sort_out(waits, {"timeout"}, {"delay"}, f"{inside}.statusCheckTimeouts", unused)
    probes = sequence(body.get("probe"), f"{path}.spec.probe")
    spec = _spec(env, whole(waits["timeout"], f"{inside}.statusCheckTimeouts.timeout") if "timeout" in waits else None)
    spec["name"] = engine
    spec["probes"] = translated(probes, f"{path}.spec.probe", unused)
    source = {"engine": engine, "experiment": EXPERIMENT, "instance": env.text("INSTANCE_ID"), "notUsed": unused}
    return {"class": "experiment", **spec, "litmus": source}


def _spec(env: _Env, status_timeout_s: int | None) -> dict[str, Any]:
    low, high = env.interval_s()
    live = env.word(
        "KAFKA_LIVENESS_STREAM", {"enable": True, "enabled": True, "disable": False, "disabled": False}, True
    )
    stream: dict[str, Any] = (
        {"consumerTimeoutMs": env.number("KAFKA_CONSUMER_TIMEOUT", 60_000)} if live else {"off": True}
    )
    if replicas := env.number("KAFKA_REPLICATION_FACTOR", 0):
        stream["replicationFactor"] = replicas
    healthy = env.switch("DEFAULT_HEALTH_CHECK", default=True)
    env.word("SEQUENCE", {"serial": 1, "parallel": 1}, 1)
    if env.number("PODS_AFFECTED_PERC", 0) > 100:
        raise env.error("PODS_AFFECTED_PERC", "is above 100", "give a percentage")
    env.number("STATUS_CHECK_DELAY", 0)
    if env.number("KAFKA_PORT", 1) not in range(1, 65_536):
        raise env.error("KAFKA_PORT", "is no port", "give one of 1 to 65535")
    recovery_s = env.number("STATUS_CHECK_TIMEOUT", 180 if status_timeout_s is None else status_timeout_s)
    return {
        "fault": _fault(env, live=bool(live)),
        "chaosMs": env.number("TOTAL_CHAOS_DURATION", 60) * 1000,
        "intervalMs": low * 1000,
        "intervalMaxMs": high * 1000 if high > low else 0,
        "rampMs": env.number("RAMP_TIME", 0) * 1000,
        "recoveryMs": recovery_s * 1000,
        "stream": stream,
        "allow": [] if healthy else ["under-replicated"],
    }


def _fault(env: _Env, *, live: bool) -> dict[str, Any]:
    killed = env.switch("FORCE", default=True)
    kill: dict[str, Any] = {"durationMs": FAULT_MS, "signal": "SIGKILL" if killed else "SIGTERM"}
    kill |= {} if killed else {"graceMs": GRACE_MS}
    kill["restart"] = {"found": True}
    broker = env.text("KAFKA_BROKER")
    if not broker and live:
        return {"class": "kafka-kill-leader", "topic": STREAM, "partition": 0, **kill}
    found = re.fullmatch(r"(?:.*-)?(\d{1,9})", broker)
    if broker and found is None:
        remedy = "give the broker's id, or a pod's name that ends in it, such as kafka-2"
        raise env.error("KAFKA_BROKER", f"'{shown(broker)}' tells no broker id", remedy)
    node = f"broker({found[1]})" if found else "one-of(all)"
    return {"class": "process-kill", "nodes": [node], "match": BROKER_PROCESS, **kill}


def refuse_short_interval(spec: ExperimentSpec, session_timeout_ms: int) -> None:
    """Raise SpecError if the next fault would come before the cluster has noticed that a broker was killed."""
    fault = spec.fault_spec()
    if getattr(fault, "signal", "") != "SIGKILL" or spec.faults_planned() < 2:
        return
    least = session_timeout_ms + fault.duration_ms
    if spec.interval_ms < least:
        raise SpecError(
            f"{spec.interval_ms} ms are too short after a SIGKILL: a new leader comes only after "
            f"broker.session.timeout.ms = {session_timeout_ms} ms, and the fault itself lasts {fault.duration_ms} ms: "
            f"{session_timeout_ms} + {fault.duration_ms} = {least} ms",
            path="$.intervalMs",
            remedy=f"make it (CHAOS_INTERVAL) at least {-(-least // 1000)} s, or use SIGTERM (FORCE=false)",
        )


class _Env:
    """The variables of an experiment, as texts."""

    def __init__(self, given: list[Any], path: str, unused: list[str]) -> None:
        self._values: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        for number, one in enumerate(given):
            where = f"{path}[{number}]"
            entry = mapping(one, where)
            sort_out(entry, {"name", "value", "valueFrom"}, set(), where, unused)
            name = str(entry.get("name", ""))
            sort_out({name: 0}, ENV_USED, ENV_UNUSED, where, unused)
            if name in self._paths:
                raise SpecError(f"{name} is given twice", path=where, remedy="keep one")
            self._paths[name] = f"{where}.value"
            if name in ENV_USED and "valueFrom" in entry:
                raise SpecError(f"only Kubernetes knows where {name} comes from", path=where, remedy="give a value")
            self._values[name] = _text(entry.get("value"), f"{where}.value")
        unused += [
            name for name in ("SEQUENCE", "PODS_AFFECTED_PERC", "STATUS_CHECK_DELAY", "KAFKA_PORT") if self.text(name)
        ]

    def error(self, name: str, message: str, remedy: str) -> SpecError:
        return SpecError(f"{name} {message}", path=self._paths.get(name, "$"), remedy=remedy)

    def text(self, name: str) -> str:
        return self._values.get(name, "").strip()

    def number(self, name: str, default: int) -> int:
        text = self.text(name)
        if text and not re.fullmatch(r"[0-9]{1,9}", text):
            raise self.error(name, f"'{shown(text)}' is not a whole number", "give digits only")
        return int(text) if text else default

    def word(self, name: str, words: Mapping[str, Any], default: Any) -> Any:
        text = self.text(name)
        if text and text.lower() not in words:
            raise self.error(name, f"'{shown(text)}' is not known", f"say {' or '.join(words)}")
        return words[text.lower()] if text else default

    def switch(self, name: str, *, default: bool) -> bool:
        return bool(self.word(name, {"true": True, "false": False}, default))

    def interval_s(self) -> tuple[int, int]:
        name, drawn = "CHAOS_INTERVAL", self.switch("RANDOMNESS", default=False)
        found = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", self.text(name))
        if not found:
            seconds = self.number(name, 10)
            return seconds, seconds
        low, high = int(found[1]), int(found[2])
        if not drawn:
            raise self.error(name, f"{low}-{high} is a range", "give one number, or say RANDOMNESS=true")
        if high < low:
            raise self.error(name, f"{low}-{high} ends before it begins", "put the shorter one first")
        return low, high


def _text(value: Any, path: str) -> str:
    if isinstance(value, dict | list):
        raise SpecError("is not a text", path=path, remedy="put it in quotes")
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
