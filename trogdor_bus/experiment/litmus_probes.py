"""The probes of a ChaosEngine, as an experiment's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trogdor_bus.errors import SpecError
from trogdor_bus.experiment.litmus_keys import mapping, sort_out, whole
from trogdor_bus.names import shown

MODES = {"SOT": "before", "EOT": "after", "Edge": "edge", "Continuous": "continuous", "OnChaos": "during"}
NO_MODE = "Edge"
"""That of a probe without a mode, as documents of 2020 have it."""
HTTP, COMMAND, ELSEWHERE = "httpProbe", "cmdProbe", ("k8sProbe", "promProbe", "sloProbe")
OLD_STATUS = "expectedResponseCode"
"""What documents of 2020 have in place of `method`."""
RUN = {"probeTimeout", "interval", "retry", "attempt", "probePollingInterval", "stopOnFailure"}
RUN_UNUSED = {"evaluationTimeout", "initialDelay", "initialDelaySeconds", "verbosity"}
EQUAL = '[ "$(sh -c "$1")" = "$2" ]'
"""A shell's word for: the command prints exactly this (but for line ends at its end)."""
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "": 1000}


def translated(given: list[Any], path: str, unused: list[str]) -> list[dict[str, Any]]:
    """Return the probes as JSON objects; those of Kubernetes and Prometheus are named in `unused`."""
    probes = []
    for number, one in enumerate(given):
        where = f"{path}[{number}]"
        probe = mapping(one, where)
        kind, name = probe.get("type"), str(probe.get("name", ""))
        if kind in ELSEWHERE:
            unused.append(f"probe {shown(name)} ({kind})")
        elif kind in (HTTP, COMMAND):
            probes.append(_probe(probe, str(kind), name, where, unused))
        else:
            remedy = f"one of {', '.join((HTTP, COMMAND, *ELSEWHERE))}"
            raise SpecError(f"'{shown(str(kind))}' is no type of probe", path=f"{where}.type", remedy=remedy)
    return probes


def _probe(probe: Mapping[str, Any], kind: str, name: str, path: str, unused: list[str]) -> dict[str, Any]:
    inputs, properties = f"{kind}/inputs", "runProperties"
    sort_out(probe, {"name", "type", "mode", inputs, properties}, {"data"}, path, unused)
    mode = MODES.get(str(probe.get("mode") or NO_MODE))
    if not probe.get("mode"):
        unused.append(f"probe {shown(name)} has no mode, and looks before and after (Edge)")
    if mode is None:
        remedy = f"one of {', '.join(MODES)}"
        raise SpecError(f"'{shown(str(probe.get('mode')))}' is no mode", path=f"{path}.mode", remedy=remedy)
    given = mapping(probe.get(inputs), f"{path}.{inputs}")
    asked = _http if kind == HTTP else _command
    run = mapping(probe.get(properties), f"{path}.{properties}")
    return {
        "name": name,
        "mode": mode,
        **asked(given, f"{path}.{inputs}", f"probe {shown(name)}", unused),
        **_run(run, f"{path}.{properties}", mode, f"probe {shown(name)}", unused),
    }


def _http(given: Mapping[str, Any], path: str, what: str, unused: list[str]) -> dict[str, Any]:
    sort_out(given, {"url", "method", "insecureSkipVerify", OLD_STATUS}, {"responseTimeout"}, path, unused)
    if str(given.get("insecureSkipVerify", False)).lower() != "false":
        message = "asks for a page whose certificate is not checked"
        raise SpecError(message, path=f"{path}.insecureSkipVerify", remedy="use an address that it holds for")
    if OLD_STATUS in given and "method" not in given:
        status = whole(given[OLD_STATUS], f"{path}.{OLD_STATUS}")
        return {"type": "http", "url": str(given.get("url", "")), "status": status}
    method = mapping(given.get("method"), f"{path}.method")
    if set(method) != {"get"}:
        raise SpecError("is not a get alone", path=f"{path}.method", remedy="only get can be asked here")
    get = mapping(method["get"], f"{path}.method.get")
    sort_out(get, {"criteria", "responseCode"}, set(), f"{path}.method.get", unused)
    if get.get("criteria", "==") != "==":
        criteria = shown(str(get["criteria"]))
        raise SpecError(f"'{criteria}' cannot be asked here", path=f"{path}.method.get.criteria", remedy="only == can")
    status = whole(get.get("responseCode", 200), f"{path}.method.get.responseCode")
    return {"type": "http", "url": str(given.get("url", "")), "status": status}


def _command(given: Mapping[str, Any], path: str, what: str, unused: list[str]) -> dict[str, Any]:
    sort_out(given, {"command", "comparator", "source"}, set(), path, unused)
    if given.get("source") not in (None, "", "inline"):
        unused.append(f"{what}: source (the command runs where the coordinator does)")
    command = str(given.get("command", ""))
    if not command.strip():
        raise SpecError("is missing", path=f"{path}.command", remedy="give the command")
    comparator = mapping(given.get("comparator"), f"{path}.comparator")
    sort_out(comparator, {"type", "criteria", "value"}, set(), f"{path}.comparator", unused)
    words, value = ["sh", "-c", command], str(comparator.get("value", ""))
    kind, criteria = str(comparator.get("type", "string")), str(comparator.get("criteria", ""))
    if not comparator:
        return {"type": "command", "command": words}
    if kind == "string" and criteria == "contains":
        return {"type": "command", "command": words, "contains": value}
    if criteria in ("equal", "==") and kind in ("string", "int"):
        return {"type": "command", "command": ["sh", "-c", EQUAL, "probe", command, value]}
    remedy = "say contains or equal of type string, or == of type int; or compare within the command"
    message = f"{shown(kind)} '{shown(criteria)}' cannot be compared here"
    raise SpecError(message, path=f"{path}.comparator.criteria", remedy=remedy)


def _run(run: Mapping[str, Any], path: str, mode: str, what: str, unused: list[str]) -> dict[str, Any]:
    sort_out(run, RUN, RUN_UNUSED, path, unused)
    found: dict[str, Any] = {}
    if "probeTimeout" in run:
        found["timeoutMs"] = _ms(run["probeTimeout"], f"{path}.probeTimeout")
    for key in ("interval", "probePollingInterval"):  # between the attempts, and between the looks of one that goes on
        goes_on = mode in ("continuous", "during")
        if key in run and (goes_on or key == "interval"):
            found["intervalMs"] = _ms(run[key], f"{path}.{key}")
    for key in ("retry", "attempt"):
        if key in run:
            found["attempts"] = max(1, whole(run[key], f"{path}.{key}"))
    if str(run.get("stopOnFailure", False)).lower() == "true":
        if mode in ("continuous", "during"):
            found["halt"] = True
        else:
            unused.append(f"{what}: stopOnFailure (it halts only what goes on)")
    return found


def _ms(value: Any, path: str) -> int:
    found = None if isinstance(value, bool) else re.fullmatch(r"([0-9]{1,9})(ms|s|m|h|)", str(value))
    if not found:
        raise SpecError(f"'{shown(str(value))}' is no time", path=path, remedy="give seconds, or such as 500ms or 5s")
    return int(found[1]) * _UNITS[found[2]]
