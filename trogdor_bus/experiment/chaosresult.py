"""The result as Litmus tells it: a ChaosResult document, its history counted on from the one before."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from trogdor_bus.document import parse
from trogdor_bus.errors import SpecError
from trogdor_bus.experiment.result import UNKNOWN, FaultWindow, Reason, Result
from trogdor_bus.logs import escape
from trogdor_bus.registry import registry

NOTHING = "N/A"
MODES = {"before": "SOT", "after": "EOT", "edge": "Edge", "continuous": "Continuous", "during": "OnChaos"}
TYPES = {"http": "httpProbe", "command": "cmdProbe", "kafka": "kafkaProbe", "tcp": "tcpProbe"}
CODES = {"command": "CMD_PROBE_FAILURE", "http": "HTTP_PROBE_FAILURE"}
COUNTERS = {"Pass": "passedRuns", "Fail": "failedRuns", "Stopped": "stoppedRuns"}
STEPS = {
    "no-fault": "fault",
    "not-proven": "fault",
    "not-effective": "fault",
    "not-audited": "full re-read",
    "no-records": "liveness stream",
    "lost": "full re-read",
    "corrupted": "full re-read",
    "duplicated": "full re-read",
    "reordered": "full re-read",
    "gap": "liveness stream",
    "producer": "liveness stream",
    "recovery": "recovery",
    "probe": "probes",
    "probe-not-run": "probes",
}
"""Where a reason arose, if the experiment did not end there."""


def document(result: Result, former: bytes | None = None) -> dict[str, Any]:
    """Return the ChaosResult as a JSON-like value; `former` is the text of the one of the run before, None without."""
    litmus = result.spec.get("litmus") or {}
    engine = litmus.get("engine") or result.name or result.id
    experiment, instance = litmus.get("experiment") or _fault_name(result), litmus.get("instance") or ""
    name = "-".join(part for part in (engine, experiment, instance) if part)
    history = _counters(former, name)
    if result.verdict in COUNTERS:
        history[COUNTERS[result.verdict]] += 1
    told: dict[str, Any] = {
        "apiVersion": "litmuschaos.io/v1alpha1",
        "kind": "ChaosResult",
        "metadata": {"name": name},
        "spec": {"engine": engine, "experiment": experiment, "instance": instance},
        "status": {
            "experimentStatus": _status(result),
            "probeStatuses": [
                {
                    "name": probe.name,
                    "type": TYPES.get(probe.type, probe.type),
                    "mode": MODES.get(probe.mode, probe.mode),
                    "status": {
                        "verdict": {True: "Passed", False: "Failed", None: NOTHING}[probe.passed],
                        "description": probe.text,
                    },
                }
                for probe in result.probes
            ],
            "history": {**history, "targets": _targets(result)},
        },
    }
    return {key: _printable(value) for key, value in told.items()}


def text(value: Mapping[str, Any]) -> bytes:
    """Return a JSON-like value as YAML that `trogdor_bus.document` reads back the same."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.allow_unicode, yaml.width = False, True, 1 << 20
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.representer.ignore_aliases = lambda *_: True
    out = io.BytesIO()
    yaml.dump(value, out)
    return out.getvalue()


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _status(result: Result) -> dict[str, Any]:
    failed = any(probe.passed is False for probe in result.probes)
    phase = {"Error": "Error", "Stopped": "Stopped"}.get(result.verdict, "Completed")
    if result.verdict == "Fail" and failed:
        phase = "Completed_With_Probe_Failure"
    status: dict[str, Any] = {
        "phase": phase,
        "verdict": result.verdict,
        "failStep": NOTHING,
        "probeSuccessPercentage": _percentage(result),
    }
    if result.verdict != "Pass":
        first = result.reasons[0] if result.reasons else Reason(kind="broke", text="no reason is known")
        step = result.fail_step or STEPS.get(first.kind, "") or result.phase or NOTHING
        code = _code(result, first)
        reason = {"errorCode": code, "phase": step, "reason": first.text, "target": first.about}
        status["failStep"] = step
        status["errorOutput"] = {
            "errorCode": code,
            "reason": json.dumps({key: value for key, value in reason.items() if value}, ensure_ascii=False),
        }
    return status


def _code(result: Result, first: Reason) -> str:
    if first.kind == "stopped":
        return "EXPERIMENT_ABORTED"
    if first.kind == "broke":
        return result.error_output.code or "GENERIC_ERROR"
    if first.kind in ("not-effective", "not-proven"):
        return "CHAOS_INJECT_ERROR"
    if first.kind == "probe":
        types = {f"probe {probe.name}": probe.type for probe in result.probes}
        return CODES.get(types.get(first.about, ""), "STATUS_CHECKS_ERROR")
    known = {"no-fault": "TARGET_SELECTION_ERROR", "not-audited": "GENERIC_ERROR", "probe-not-run": "GENERIC_ERROR"}
    return known.get(first.kind, "STATUS_CHECKS_ERROR")


def _percentage(result: Result) -> str:
    if result.verdict == "Error":
        return "0"
    if not result.probes:
        return "100" if result.verdict == "Pass" else "0"
    passed = sum(probe.passed is True for probe in result.probes)
    return str(passed * 100 // len(result.probes))


def _fault_name(result: Result) -> str:
    try:
        return registry().lookup((result.spec.get("fault") or {}).get("class")).aliases[0]
    except (SpecError, IndexError):
        return "experiment"


def _counters(former: bytes | None, name: str) -> dict[str, int]:
    counters = dict.fromkeys(COUNTERS.values(), 0)
    if former is None:
        return counters
    try:
        found = parse(former, "chaosresult.yaml")
        if found["metadata"]["name"] != name:
            return counters
        history = found["status"]["history"]
    except (SpecError, KeyError, TypeError):
        return counters
    for key in counters:
        value = history.get(key) if isinstance(history, dict) else None
        counters[key] = value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
    return counters


def _targets(result: Result) -> list[dict[str, str]]:
    targets: dict[str, str] = {}
    for fault in result.faults:
        targets[fault.target] = _fate(fault)
    return [{"name": name, "kind": "broker", "chaosStatus": fate} for name, fate in targets.items() if name]


def _fate(fault: FaultWindow) -> str:
    if fault.error:
        return "targeted"
    return "injected" if fault.end_ms == UNKNOWN else "reverted"
