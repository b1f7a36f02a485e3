"""The result as JUnit XML: one suite, a case for each thing that can go wrong by itself.

A broken promise is a failure, a broken experiment an error, and what was not looked at is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Literal
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from trogdor_bus.experiment.result import UNKNOWN, FaultWindow, Reason, Result
from trogdor_bus.experiment.verdict import KINDS

# What XML 1.0 cannot hold, escaped or not (production 2, "Char").
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
GAP, AUDIT = ("gap", "producer"), ("lost", "corrupted", "duplicated", "reordered", "not-audited", "no-records")
Outcome = Literal["passed", "failure", "error", "skipped"]


def document(result: Result) -> bytes:
    """Return the result as a JUnit XML document in UTF-8."""
    suites = Element("testsuites")
    name = result.name or result.id
    suite = SubElement(suites, "testsuite", name=legal(f"trogdor-bus experiment {name}"))
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for case, seconds, outcome, text in _cases(result):
        counts["tests"] += 1
        element = SubElement(suite, "testcase", classname=legal(f"experiment.{name}"), name=legal(case))
        element.set("time", f"{seconds:.3f}")
        if outcome == "passed":
            continue
        counts[{"failure": "failures", "error": "errors"}.get(outcome, "skipped")] += 1
        told = SubElement(element, outcome, message=legal(text.partition("\n")[0]))
        if outcome != "skipped":
            told.set("type", result.verdict)
            told.text = legal(text)
    for key, value in counts.items():
        suite.set(key, str(value))
        suites.set(key, str(value))
    suite.set("time", f"{_seconds(result.started_ms, result.ended_ms):.3f}")
    if 0 <= result.started_ms < 10**14:
        suite.set("timestamp", datetime.fromtimestamp(result.started_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    out = SubElement(suite, "system-out")
    out.text = legal("\n".join((f"verdict: {result.verdict}", *(reason.text for reason in result.reasons))))
    indent(suites)
    return bytes(tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _cases(result: Result) -> Iterator[tuple[str, float, Outcome, str]]:
    """Yield name, seconds, outcome and text of each case; every reason stands in exactly one."""
    ended = bool(result.stopped or result.error_output.code or result.error_output.reason)
    early = result.fail_step == "pre-check"
    broke = _of(result, ("broke",))
    yield ("pre-check", 0, *_outcome(broke if early else (), passed=True))
    whole = (*_of(result, ("stopped", "no-fault", "not-proven")), *(() if early else broke))
    yield ("experiment", _seconds(result.started_ms, result.ended_ms), *_outcome(whole, passed=True))
    audited = result.findings is not None
    yield ("stream audit", 0, *_outcome(_of(result, AUDIT), passed=audited, why=_unaudited(result)))
    measured = bool(result.gaps)
    yield ("stream gap", 0, *_outcome(_of(result, GAP), passed=measured, why=_unmeasured(result)))
    for fault in result.faults:
        name = f"fault {fault.number}"
        reasons = [one for one in _of(result, ("not-effective",)) if one.about == name]
        line = f"{name}: {fault.target}" if fault.target else name
        yield (line, _seconds(fault.start_ms, fault.end_ms), *_outcome(reasons, passed=True))
    late = _of(result, ("recovery",))
    awaited = [fault for fault in result.faults if fault.recovered_ms != UNKNOWN]
    why = "no fault was followed by a recovery"
    yield ("recovery", _longest(awaited), *_outcome(late, passed=bool(awaited), why=why))
    for probe in result.probes:
        own = [one for one in _of(result, ("probe", "probe-not-run")) if one.about == f"probe {probe.name}"]
        why = "it never looked" + (": the experiment ended before" if ended or result.halted else "")
        yield (f"probe {probe.name}", 0, *_outcome(own, passed=probe.passed is True, why=why))


def _of(result: Result, kinds: Iterable[str]) -> tuple[Reason, ...]:
    return tuple(reason for reason in result.reasons if reason.kind in set(kinds))


def _outcome(reasons: Iterable[Reason], *, passed: bool, why: str = "") -> tuple[Outcome, str]:
    found = list(reasons)
    if found:
        failed = all(KINDS[reason.kind] == "Fail" for reason in found)
        return "failure" if failed else "error", "\n".join(reason.text for reason in found)
    return ("passed", "") if passed else ("skipped", why)


def _unaudited(result: Result) -> str:
    return "there was no full re-read" if result.limits.stream else "there was no stream"


def _unmeasured(result: Result) -> str:
    return "no gap was measured" if result.limits.stream else "there was no stream"


def _longest(faults: Iterable[FaultWindow]) -> float:
    return max((fault.recovered_ms for fault in faults), default=0) / 1000


def _seconds(start_ms: int, end_ms: int) -> float:
    return max(0, end_ms - start_ms) / 1000 if UNKNOWN not in (start_ms, end_ms) else 0.0


def legal(text: str) -> str:
    """Return the text with what XML cannot hold written as an escape."""
    return _ILLEGAL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
