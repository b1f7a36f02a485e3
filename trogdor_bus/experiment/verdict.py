"""The verdict: what everything that is known of an experiment comes to, and why. Pure.

Stopped, if somebody stopped it. Else Error, if the experiment broke, a fault was not proven effective, or something
that it asks was never answered. Else Fail, if a promise was broken. Pass only otherwise. Whatever the verdict, every
broken promise that was found is among the reasons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

import msgspec

from trogdor_bus.experiment.result import HELD_ROLE, UNKNOWN, FaultWindow, Gap, Listed, Reason, Result, Verdict
from trogdor_bus.names import shown
from trogdor_bus.spec import Evidence as Proof

KINDS: Mapping[str, Verdict] = {
    "stopped": "Stopped",
    "broke": "Error",
    "no-fault": "Error",
    "not-proven": "Error",
    "not-effective": "Error",
    "not-audited": "Error",
    "no-records": "Error",
    "probe-not-run": "Error",
    "lost": "Fail",
    "corrupted": "Fail",
    "duplicated": "Fail",
    "reordered": "Fail",
    "gap": "Fail",
    "producer": "Fail",
    "recovery": "Fail",
    "probe": "Fail",
    "clean": "Pass",
}
"""The verdict that a reason of each kind leads to, the weightier first."""
ORDER: tuple[Verdict, ...] = ("Stopped", "Error", "Fail", "Pass")
_NAMED = 10


def judged(result: Result) -> Result:
    """Return the result with its verdict and the reasons for it."""
    verdict, reasons = judge(result)
    return msgspec.structs.replace(result, verdict=verdict, reasons=reasons)


def judge(result: Result) -> tuple[Verdict, tuple[Reason, ...]]:
    """Return the verdict on a result (whose own verdict does not count), and its reasons, the weightiest first."""
    reasons = (*_stopped(result), *_errors(result), *_failures(result))
    found = {KINDS[reason.kind] for reason in reasons}
    if not found:
        return "Pass", (Reason(kind="clean", text=_clean(result)),)
    return next(verdict for verdict in ORDER if verdict in found), reasons


def _stopped(result: Result) -> Iterator[Reason]:
    if result.stopped:
        yield Reason(kind="stopped", text=f"it was stopped in the step {result.phase or 'start'}: {result.stopped}")


def _errors(result: Result) -> Iterator[Reason]:
    error = result.error_output
    if error.code or error.reason:
        step = f" in the step {result.fail_step}" if result.fail_step else ""
        yield Reason(kind="broke", text=f"the experiment broke{step}: {error.reason or error.code}")
    if result.faults and not result.limits.proof:
        named = ", ".join(get_args(Proof))
        text = "whether its faults took effect is not proven: nothing is known that would show it for their class"
        yield Reason(kind="not-proven", text=f"{text}; name it in the experiment's evidence, one or more of {named}")
    yield from _ineffective(result)
    if result.stopped or error.code or error.reason:
        return  # what is missing is missing for that reason
    if not result.faults and not result.halted:
        yield Reason(kind="no-fault", text="no fault was injected, so nothing was tested")
    if result.limits.stream and result.findings is None:
        yield Reason(kind="not-audited", text="the stream was not read again in full, so a loss could not be seen")
    if result.limits.stream and result.findings is not None and result.findings.acked == 0:
        sent = _records(result.findings.sent)
        yield Reason(kind="no-records", text=f"of {sent} sent none was acknowledged, so there was nothing to lose")
    for probe in result.probes:
        if probe.passed is None and not result.halted:
            text = f"probe {probe.name} ({probe.type}, {probe.mode}) never looked"
            text = f"{text}: {probe.text}" if probe.text else text
            yield Reason(kind="probe-not-run", text=text, about=f"probe {probe.name}")


def _ineffective(result: Result) -> Iterator[Reason]:
    for fault in result.faults:
        missing = [f"{one.kind}: {one.text or 'not seen'}" for one in fault.evidence if not one.held]
        if fault.error:
            missing.insert(0, fault.error)
        elif result.limits.proof and not _cut_short(result) and all(one.kind == HELD_ROLE for one in fault.evidence):
            missing.append("nobody looked")
        if missing:
            text = f"fault {fault.number}{_on(fault)} is not proven to have taken effect: {'; '.join(missing)}"
            yield Reason(kind="not-effective", text=text, about=f"fault {fault.number}")


def _cut_short(result: Result) -> bool:
    """Return whether it ended before all was looked at, which is told for itself."""
    return bool(result.stopped or result.halted or result.error_output.code or result.error_output.reason)


def _failures(result: Result) -> Iterator[Reason]:
    yield from _broken_promises(result)
    yield from _gap(result)
    if result.producer_error:
        yield Reason(kind="producer", text=f"the producer met a fatal error: {result.producer_error}")
    for fault in result.faults:
        if fault.missed:
            limit = _ms(result.limits.recovery_ms)
            text = f"after fault {fault.number}{_on(fault)} the cluster was not whole within {limit}: {fault.missed}"
            yield Reason(kind="recovery", text=text, about=f"fault {fault.number}")
    for probe in result.probes:
        if probe.passed is False:
            text = f"probe {probe.name} ({probe.type}, {probe.mode}) failed: {probe.text or 'it gave no reason'}"
            yield Reason(kind="probe", text=text, about=f"probe {probe.name}")


def _broken_promises(result: Result) -> Iterator[Reason]:
    found = result.findings
    if found is None:
        return
    acked = f"of {found.acked} acknowledged records"
    if found.lost.count:
        text = f"{found.lost.count} {acked} are lost: they are not in the full re-read{_numbers(found.lost)}"
        yield Reason(kind="lost", text=text)
    if found.corrupted.count:
        text = f"{found.corrupted.count} of {found.sent} sent records came back corrupted"
        yield Reason(kind="corrupted", text=f"{text}{_numbers(found.corrupted)}")
    if found.duplicated.count and result.limits.idempotent:
        text = f"{found.duplicated.count} of {found.sent} sent records stand in the topic twice or more"
        yield Reason(kind="duplicated", text=f"{text}, though the producer is idempotent{_numbers(found.duplicated)}")
    if found.reordered.count and result.limits.idempotent:
        text = f"{found.reordered.count} {acked} stand behind later ones"
        yield Reason(kind="reordered", text=f"{text}, though the producer is idempotent{_numbers(found.reordered)}")


def _gap(result: Result) -> Iterator[Reason]:
    limit = result.limits.consumer_timeout_ms
    too_long = sorted((gap for gap in result.gaps if gap.ms > limit), key=lambda gap: -gap.ms)
    if not too_long:
        return
    text = f"no record of the stream came for {_ms(too_long[0].ms)}, which is more than consumerTimeoutMs = {limit}"
    others = f"; {len(too_long) - 1} more gaps were longer than that" if len(too_long) > 1 else ""
    yield Reason(kind="gap", text=f"{text}: {gap_words(too_long[0], result)}{others}")


def gap_words(gap: Gap, result: Result) -> str:
    """Return where and when a gap was, and which faults were in force during it."""
    start, end = (since(at_ms, result) for at_ms in (gap.start_ms, gap.end_ms))
    overlapped = [fault for fault in result.faults if overlap_ms(gap, fault) > 0]
    during = [
        f"{_ms(overlap_ms(gap, fault))} of it during fault {fault.number}{_on(fault)}, "
        f"{since(fault.start_ms, result)} to {since(fault.end_ms, result)}"
        for fault in sorted(overlapped, key=lambda fault: -overlap_ms(gap, fault))[:_NAMED]
    ]
    return f"partition {gap.partition}, {start} to {end}, {'; '.join(during) or _no_fault(gap, result)}"


def _no_fault(gap: Gap, result: Result) -> str:
    ended = [fault for fault in result.faults if UNKNOWN != fault.end_ms <= gap.start_ms]
    if not ended:
        return "while no fault was in force, nor had been"
    last = max(ended, key=lambda fault: fault.end_ms)
    return f"while no fault was in force; fault {last.number} had ended {_ms(gap.start_ms - last.end_ms)} before"


def overlap_ms(gap: Gap, fault: FaultWindow) -> int:
    """Return how long (ms) the gap and the fault were at the same time; a fault without an end goes on."""
    end_ms = gap.end_ms if fault.end_ms == UNKNOWN else fault.end_ms
    return max(0, min(gap.end_ms, end_ms) - max(gap.start_ms, fault.start_ms))


def since(at_ms: int, result: Result) -> str:
    """Return a moment as seconds since the experiment's start, such as "12.3 s"."""
    if at_ms == UNKNOWN:
        return "the end"
    return f"{(at_ms - max(0, result.started_ms)) / 1000:.1f} s"


def _clean(result: Result) -> str:
    faults = f"{len(result.faults)} fault{'s' if len(result.faults) != 1 else ''} took effect"
    found = result.findings
    if not result.limits.stream or found is None:
        return f"{faults}, and everything that was looked at held; no stream was written"
    return f"{faults}; {_records(found.acked)} were acknowledged and all were read again; {_longest(result)}"


def _longest(result: Result) -> str:
    if not result.gaps:
        return "no gap was measured"
    longest = max(result.gaps, key=lambda gap: gap.ms)
    limit = f"consumerTimeoutMs = {result.limits.consumer_timeout_ms}"
    return f"the longest gap was {_ms(longest.ms)} ({limit}): {gap_words(longest, result)}"


def _on(fault: FaultWindow) -> str:
    return f" ({shown(fault.target)})" if fault.target else ""


def _numbers(listed: Listed) -> str:
    if not listed.first:
        return ""
    dots = ", ..." if listed.count > _NAMED else ""
    return f" ({', '.join(shown(str(one)) for one in listed.first[:_NAMED])}{dots})"


def _records(count: int) -> str:
    return f"{count} record{'' if count == 1 else 's'}"


def _ms(ms: int) -> str:
    return f"{ms} ms" if ms < 1000 else f"{ms / 1000:.1f} s"
