"""The verdict: Pass only if nothing else, nothing found is ever hidden, and every reason has its numbers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given

from tests.effort import examples
from tests.experiment.results import BROKEN, LIMITS, START_MS, clean, fault, found, listed, results
from trogdor_bus.experiment.result import (
    EXIT_CODES,
    ErrorOutput,
    Evidence,
    Gap,
    Limits,
    ProbeResult,
    Result,
    StreamFindings,
    decode,
    encode,
)
from trogdor_bus.experiment.verdict import KINDS, ORDER, gap_words, judge, judged, overlap_ms

WHITE = ("lost", "corrupted", "duplicated", "reordered", "gap", "producer", "recovery", "probe")


def texts(result: Result) -> dict[str, str]:
    return {reason.kind: reason.text for reason in judge(result)[1]}


def gap(start_ms: int, ms: int, partition: int = 0) -> Gap:
    return Gap(partition=partition, start_ms=START_MS + start_ms, end_ms=START_MS + start_ms + ms)


def test_nothing_wrong_is_a_pass_with_its_numbers() -> None:
    verdict, (reason,) = judge(clean())
    assert (verdict, reason.kind) == ("Pass", "clean")
    assert reason.text == (
        "2 faults took effect; 6000 records were acknowledged and all were read again; the longest gap was 9.2 s "
        "(consumerTimeoutMs = 20000): partition 0, 10.1 s to 19.3 s, 4.9 s of it during fault 1 (node1), "
        "10.0 s to 15.0 s"
    )


LATE = "stream-0 has 1 of 3 replicas in sync"
PROBE = ProbeResult(name="page", type="http", mode="edge", passed=False, text="status 503, not 200")
UNSEEN = ProbeResult(name="page", type="http", mode="after", text="it never looked")
NOT_HELD = (Evidence(kind="leader-moved", held=False, text="the leader is still broker 1, of epoch 5"),)


@pytest.mark.parametrize(
    ("result", "verdict", "kind", "text"),
    [
        (
            found(clean(), lost=listed(3)),
            "Fail",
            "lost",
            "3 of 6000 acknowledged records are lost: they are not in the full re-read (0, 1, 2)",
        ),
        (
            found(clean(), lost=listed(250)),
            "Fail",
            "lost",
            "250 of 6000 acknowledged records are lost: "
            "they are not in the full re-read (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)",
        ),
        (found(clean(), corrupted=listed(1)), "Fail", "corrupted", "1 of 6020 sent records came back corrupted (0)"),
        (
            found(clean(), duplicated=listed(1)),
            "Fail",
            "duplicated",
            "1 of 6020 sent records stand in the topic twice or more, though the producer is idempotent (0)",
        ),
        (
            found(clean(), reordered=listed(1)),
            "Fail",
            "reordered",
            "1 of 6000 acknowledged records stand behind later ones, though the producer is idempotent (0)",
        ),
        (
            clean(producer_error="_FENCED: the producer id is gone"),
            "Fail",
            "producer",
            "the producer met a fatal error: _FENCED: the producer id is gone",
        ),
        (
            clean(faults=(fault(1, missed=LATE),)),
            "Fail",
            "recovery",
            f"after fault 1 (node1) the cluster was not whole within 60.0 s: {LATE}",
        ),
        (clean(probes=(PROBE,)), "Fail", "probe", "probe page (http, edge) failed: status 503, not 200"),
        (clean(probes=(UNSEEN,)), "Error", "probe-not-run", "probe page (http, after) never looked: it never looked"),
        (clean(faults=()), "Error", "no-fault", "no fault was injected, so nothing was tested"),
        (
            clean(findings=None),
            "Error",
            "not-audited",
            "the stream was not read again in full, so a loss could not be seen",
        ),
        (
            clean(findings=StreamFindings(sent=9)),
            "Error",
            "no-records",
            "of 9 records sent none was acknowledged, so there was nothing to lose",
        ),
        (
            clean(faults=(fault(1, evidence=NOT_HELD),)),
            "Error",
            "not-effective",
            "fault 1 (node1) is not proven to have taken effect: "
            "leader-moved: the leader is still broker 1, of epoch 5",
        ),
        (
            clean(limits=msgspec.structs.replace(LIMITS, proof=False), faults=(fault(1, evidence=()),)),
            "Error",
            "not-proven",
            "whether its faults took effect is not proven: nothing is known that would show it for their class; name "
            "it in the experiment's evidence, one or more of process-stopped, leader-moved, controller-moved, "
            "isr-shrank, cut-off",
        ),
        (
            clean(faults=(fault(1), fault(2, evidence=(Evidence(kind="held-role", held=True),)))),
            "Error",
            "not-effective",
            "fault 2 (node2) is not proven to have taken effect: nobody looked",
        ),
        (
            clean(faults=(fault(1, error="it did not hold to its end: chain gone (1.2 s in)", evidence=()),)),
            "Error",
            "not-effective",
            "fault 1 (node1) is not proven to have taken effect: it did not hold to its end: chain gone (1.2 s in)",
        ),
        (
            clean(faults=(fault(1, error="node1 was not heard of"),)),
            "Error",
            "not-effective",
            "fault 1 (node1) is not proven to have taken effect: node1 was not heard of",
        ),
        (
            clean(error_output=BROKEN, fail_step="pre-check"),
            "Error",
            "broke",
            "the experiment broke in the step pre-check: orders-0 has 2 of 3 replicas in sync",
        ),
        (clean(error_output=ErrorOutput(code="TIMEOUT")), "Error", "broke", "the experiment broke: TIMEOUT"),
        (
            clean(stopped="somebody said stop", phase="faults"),
            "Stopped",
            "stopped",
            "it was stopped in the step faults: somebody said stop",
        ),
    ],
)
def test_one_thing_wrong_is_the_only_reason(result: Result, verdict: str, kind: str, text: str) -> None:
    assert judge(result)[0] == verdict
    assert texts(result) == {kind: text}


def test_without_idempotence_duplicates_and_reordering_are_not_held_against_it() -> None:
    odd = found(clean(limits=Limits(idempotent=False)), duplicated=listed(5), reordered=listed(5))
    assert judge(odd)[0] == "Pass"
    assert judge(found(odd, lost=listed(1)))[0] == "Fail"
    assert judge(found(odd, corrupted=listed(1)))[0] == "Fail"


def test_without_a_stream_nothing_is_audited() -> None:
    verdict, (reason,) = judge(clean(limits=Limits(stream=False), findings=None, gaps=()))
    assert (verdict, reason.text) == (
        "Pass",
        "2 faults took effect, and everything that was looked at held; no stream was written",
    )


def test_a_gap_of_exactly_the_timeout_is_allowed() -> None:
    assert judge(clean(gaps=(gap(0, LIMITS.consumer_timeout_ms),)))[0] == "Pass"
    assert judge(clean(gaps=(gap(0, LIMITS.consumer_timeout_ms + 1),)))[0] == "Fail"


def test_a_gap_names_the_fault_that_it_overlaps_most() -> None:
    told = texts(clean(gaps=(gap(0, 900), gap(12_000, 21_000, 3), gap(40_000, 20_500))))["gap"]
    assert told == (
        "no record of the stream came for 21.0 s, which is more than consumerTimeoutMs = 20000: partition 3, "
        "12.0 s to 33.0 s, 3.0 s of it during fault 1 (node1), 10.0 s to 15.0 s; "
        "3.0 s of it during fault 2 (node2), 30.0 s to 35.0 s; 1 more gaps were longer than that"
    )


@pytest.mark.parametrize(
    ("start_ms", "words"),
    [
        (15_500, "while no fault was in force; fault 1 had ended 500 ms before"),
        (40_000, "while no fault was in force; fault 2 had ended 5.0 s before"),
        (0, "while no fault was in force, nor had been"),
    ],
)
def test_a_gap_outside_of_all_faults_says_so(start_ms: int, words: str) -> None:
    assert gap_words(gap(start_ms, 1_000), clean()).endswith(words)


def test_a_fault_that_has_not_ended_goes_on() -> None:
    assert overlap_ms(gap(50_000, 1_000), fault(1, end_ms=-1)) == 1_000
    assert "10.0 s to the end" in gap_words(gap(50_000, 1_000), clean(faults=(fault(1, end_ms=-1),)))


@pytest.mark.parametrize("why", [{"stopped": "by hand"}, {"error_output": BROKEN}])
def test_what_ended_early_is_not_blamed_for_what_is_missing(why: dict[str, Any]) -> None:
    assert len(judge(clean(**why, findings=None, faults=(), probes=(UNSEEN,)))[1]) == 1


def test_a_probe_that_ended_it_is_a_failure() -> None:
    halted = clean(halted="page", faults=(), probes=(PROBE, msgspec.structs.replace(UNSEEN, name="later")))
    assert judge(halted)[0] == "Fail"


@pytest.mark.parametrize("worse", [{"stopped": "by hand"}, {"error_output": BROKEN}])
def test_data_loss_is_never_hidden(worse: dict[str, Any]) -> None:
    verdict, reasons = judge(found(clean(**worse), lost=listed(2)))
    assert verdict in ("Stopped", "Error")
    assert [reason.kind for reason in reasons][-1] == "lost"


@examples(300)
@given(results)
def test_properties(result: Result) -> None:
    verdict, reasons = judge(result)
    kinds = [reason.kind for reason in reasons]
    assert reasons and all(reason.text for reason in reasons)
    assert verdict == next(one for one in ORDER if one in {KINDS[kind] for kind in kinds})
    assert kinds == sorted(kinds, key=lambda kind: list(KINDS).index(kind)) or verdict != "Pass"
    assert (verdict == "Stopped") == bool(result.stopped)
    assert (verdict == "Pass") == (kinds == ["clean"])
    if verdict == "Pass":
        assert result.faults or result.halted
        assert all(one.held for fault in result.faults for one in fault.evidence)
        assert all(probe.passed or (probe.passed is None and result.halted) for probe in result.probes)
        assert result.findings is not None or not result.limits.stream
        assert all(gap.ms <= result.limits.consumer_timeout_ms for gap in result.gaps)
    if result.findings:
        assert ("lost" in kinds) == (result.findings.lost.count > 0)
        assert ("corrupted" in kinds) == (result.findings.corrupted.count > 0)
    assert judge(judged(result)) == (verdict, reasons), "its own verdict does not count"


@examples(100)
@given(results)
def test_a_result_is_json_and_comes_back(result: Result) -> None:
    assert decode(encode(judged(result))) == judged(result)


def test_every_verdict_has_its_exit_code() -> None:
    assert set(EXIT_CODES) == set(ORDER) == set(KINDS.values())
    assert set(WHITE) == {kind for kind, verdict in KINDS.items() if verdict == "Fail"}
