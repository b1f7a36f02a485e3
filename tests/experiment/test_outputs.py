"""The files: each can be read by what they are for, whatever the texts in them hold."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from tests.experiment.results import BROKEN, START_MS, clean, fault, found, listed, results
from trogdor_bus.document import parse
from trogdor_bus.errors import HostError
from trogdor_bus.experiment import chaosresult, junit, outputs, page, result
from trogdor_bus.experiment.charts import charts, nice, shown_ms
from trogdor_bus.experiment.result import Bin, Limits, ProbeResult, Result
from trogdor_bus.experiment.verdict import KINDS, judged

HOSTILE = "<script>alert(1)</script>'\"&\x1b[31m\x00\uffff"


def chaos(found: Result, former: bytes | None = None) -> dict[str, Any]:
    return chaosresult.document(judged(found), former)


def status(found: Result) -> dict[str, Any]:
    given: dict[str, Any] = chaos(found)["status"]["experimentStatus"]
    return given


# --- ChaosResult ------------------------------------------------------------------------------------------------------


def test_a_pass_in_litmus_words() -> None:
    litmus = {"engine": "kafka-chaos", "experiment": "kafka-broker-pod-failure", "instance": "a1"}
    assert chaos(clean(spec={"litmus": litmus})) == {
        "apiVersion": "litmuschaos.io/v1alpha1",
        "kind": "ChaosResult",
        "metadata": {"name": "kafka-chaos-kafka-broker-pod-failure-a1"},
        "spec": litmus,
        "status": {
            "experimentStatus": {
                "phase": "Completed",
                "verdict": "Pass",
                "failStep": "N/A",
                "probeSuccessPercentage": "100",
            },
            "probeStatuses": [
                {
                    "name": "page",
                    "type": "httpProbe",
                    "mode": "Edge",
                    "status": {"verdict": "Passed", "description": "2 of 2 looks were good"},
                }
            ],
            "history": {
                "passedRuns": 1,
                "failedRuns": 0,
                "stoppedRuns": 0,
                "targets": [
                    {"name": "node1", "kind": "broker", "chaosStatus": "reverted"},
                    {"name": "node2", "kind": "broker", "chaosStatus": "reverted"},
                ],
            },
        },
    }


def test_without_litmus_it_is_named_after_the_experiment_and_its_fault() -> None:
    assert chaos(clean())["metadata"]["name"] == "kill the leader-noop"
    assert chaos(clean(name="", spec={}))["metadata"]["name"] == "kill-the-leader-1-experiment"


PROBE = ProbeResult(name="page", type="http", mode="continuous", passed=False, text="status 503")
UNSEEN = ProbeResult(name="later", type="tcp", mode="after")


@pytest.mark.parametrize(
    ("given", "phase", "step", "percentage", "code"),
    [
        (found(clean(), lost=listed(1)), "Completed", "full re-read", "100", "STATUS_CHECKS_ERROR"),
        (found(clean(probes=()), lost=listed(1)), "Completed", "full re-read", "0", "STATUS_CHECKS_ERROR"),
        (clean(probes=(PROBE,)), "Completed_With_Probe_Failure", "probes", "0", "HTTP_PROBE_FAILURE"),
        (clean(error_output=BROKEN, fail_step="pre-check"), "Error", "pre-check", "0", "STATUS_CHECKS_ERROR"),
        (clean(faults=(fault(1, error="no"),)), "Error", "fault", "0", "CHAOS_INJECT_ERROR"),
        (clean(stopped="by hand", phase="faults", probes=(UNSEEN,)), "Stopped", "faults", "0", "EXPERIMENT_ABORTED"),
        (clean(faults=()), "Error", "fault", "0", "TARGET_SELECTION_ERROR"),
    ],
)
def test_what_went_wrong_in_litmus_words(given: Result, phase: str, step: str, percentage: str, code: str) -> None:
    told = status(given)
    assert (told["phase"], told["failStep"], told["probeSuccessPercentage"]) == (phase, step, percentage)
    assert told["errorOutput"]["errorCode"] == code
    reason = json.loads(told["errorOutput"]["reason"])
    assert reason["errorCode"] == code and reason["reason"] == judged(given).reasons[0].text


def test_the_history_counts_on_over_runs() -> None:
    former: bytes | None = None
    lost, stopped = found(clean(), lost=listed(1)), clean(stopped="by hand")
    for one in (clean(), lost, lost, stopped, clean(error_output=BROKEN), clean()):
        former = chaosresult.text(chaos(one, former))
    history = parse(former or b"", "x.yaml")["status"]["history"]
    assert (history["passedRuns"], history["failedRuns"], history["stoppedRuns"]) == (2, 2, 1)


@pytest.mark.parametrize(
    "former",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"metadata: 5",
        b"metadata: {name: kill the leader-noop}",
        b"metadata: {name: kill the leader-noop}\nstatus: {history: {passedRuns: x, failedRuns: -1}}",
        b"metadata: {name: another}\nstatus: {history: {passedRuns: 7}}",
    ],
)
def test_a_former_document_that_is_none_is_passed_over(former: bytes) -> None:
    history = chaos(clean(), former)["status"]["history"]
    assert (history["passedRuns"], history["failedRuns"], history["stoppedRuns"]) == (1, 0, 0)


def test_a_target_that_was_not_hit_was_targeted_and_one_without_an_end_is_injected() -> None:
    faults = (fault(1, error="no"), fault(2, end_ms=-1), fault(3, target=""))
    targets = chaos(clean(faults=faults))["status"]["history"]["targets"]
    assert [target["chaosStatus"] for target in targets] == ["targeted", "injected"]


@examples(150)
@given(results)
def test_the_document_is_yaml_that_reads_back(given: Result) -> None:
    document = chaos(given)
    assert parse(chaosresult.text(document), "x.yaml") == document


# --- JUnit ------------------------------------------------------------------------------------------------------------


def cases(given: Result) -> dict[str, str]:
    """Return what became of each case, as a reader of JUnit sees it."""
    root = ElementTree.fromstring(junit.document(judged(given)))
    (suite,) = root
    found: dict[str, str] = {}
    for case in suite.iter("testcase"):
        (*kinds,) = (child.tag for child in case)
        assert case.attrib["name"] not in found
        found[case.attrib["name"]] = kinds[0] if kinds else "passed"
    for attribute, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[attribute]) == list(found.values()).count(kind)
    assert int(suite.attrib["tests"]) == len(found)
    return found


def test_a_pass_passes_every_case() -> None:
    assert cases(clean()) == dict.fromkeys(
        ("pre-check", "experiment", "stream audit", "stream gap", "fault 1: node1", "fault 2: node2", "recovery",
         "probe page"), "passed"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "different"),
    [
        (found(clean(), lost=listed(1)), {"stream audit": "failure"}),
        (clean(faults=(fault(1, error="no"), fault(2))), {"fault 1: node1": "error"}),
        (clean(faults=(fault(1), fault(2, missed="late", recovered_ms=-1))), {"recovery": "failure"}),
        (clean(error_output=BROKEN, fail_step="pre-check"), {"pre-check": "error"}),
        (clean(error_output=BROKEN, fail_step="faults"), {"experiment": "error"}),
        (clean(stopped="by hand"), {"experiment": "error"}),
        (
            clean(limits=Limits(stream=False), findings=None, gaps=()),
            {"stream audit": "skipped", "stream gap": "skipped"},
        ),
        (clean(findings=None), {"stream audit": "error"}),
    ],
)
def test_a_failure_an_error_and_what_was_skipped(given: Result, different: dict[str, str]) -> None:
    assert {name: outcome for name, outcome in cases(given).items() if outcome != "passed"} == different


@examples(200)
@given(results)
def test_it_is_xml_and_every_reason_stands_in_one_case(given: Result) -> None:
    told = judged(given)
    root = ElementTree.fromstring(junit.document(told))
    bad = [child for case in root.iter("testcase") for child in case if child.tag in ("failure", "error")]
    assert sum(len((child.text or "").split("\n")) for child in bad) >= len(bad)
    assert bool(bad) == (told.verdict != "Pass")
    lines = "".join(child.text or "" for child in bad)
    for reason in told.reasons:
        text = re.sub("\r\n?", "\n", junit.legal(reason.text))
        assert KINDS[reason.kind] == "Pass" or lines.count(text) >= 1


# --- the page ---------------------------------------------------------------------------------------------------------


class Seen(HTMLParser):
    """What a browser would make of a page: its tags, its texts, and what it would load."""

    VOID = ("meta", "rect", "line", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def seen(given: Result) -> Seen:
    return Seen(page.document(judged(given)).decode())


def test_the_page_tells_the_verdict_first_and_loads_nothing() -> None:
    found_page = seen(clean())
    assert not found_page.tags & {"script", "img", "link", "iframe", "object", "embed", "form", "a", "base"}
    assert not found_page.attributes & {"src", "href", "srcset", "action", "onload", "onclick"}
    text = page.document(judged(clean())).decode()
    assert not re.search(r"https?:|url\(|@import", text)
    assert "svg" in found_page.tags
    words = [one.strip() for one in found_page.texts if one.strip()]
    assert words.index("Pass") < words.index("Faults") < words.index("Latencies")


def test_empty_states_are_told() -> None:
    texts = " ".join(seen(Result(id="x", error_output=BROKEN)).texts)
    for words in ("Nothing was measured over time", "No fault was injected", "was not read again in full", "No change"):
        assert words in texts
    assert "There was no stream" in " ".join(seen(Result(id="x", limits=Limits(stream=False))).texts)


def test_hostile_texts_stay_texts() -> None:
    hostile = clean(
        name=HOSTILE,
        id=HOSTILE,
        stopped=HOSTILE,
        cluster_id=HOSTILE,
        faults=(fault(1, target=HOSTILE, line=HOSTILE, missed=HOSTILE, error=HOSTILE),),
        probes=(ProbeResult(name=HOSTILE, type=HOSTILE, mode=HOSTILE, text=HOSTILE),),
        warnings=(HOSTILE,),
        not_used_here=(HOSTILE,),
        timeouts={HOSTILE: 1},
        spec={"name": HOSTILE},
    )
    assert "script" not in seen(hostile).tags
    assert cases(hostile)["experiment"] == "error"
    assert parse(chaosresult.text(chaos(hostile)), "x.yaml") == chaos(hostile)


@examples(150)
@given(results)
def test_the_page_is_whole_whatever_it_tells(given: Result) -> None:
    assert "script" not in seen(given).tags


# --- the charts -------------------------------------------------------------------------------------------------------


def test_a_bin_without_a_value_interrupts_the_line() -> None:
    def one(number: int, ms: float) -> Bin:
        return Bin(start_ms=START_MS + 1000 * number, end_ms=START_MS + 1000 * number + 1000, produce_p99_ms=ms)

    _, latency = charts(clean(bins=tuple(one(number, ms) for number, ms in enumerate((1, 1, -1, 1, -1)))))
    acknowledged, auditor = latency.lines
    assert acknowledged.path.count("M") == 2 and acknowledged.path.count("L") == 1
    assert auditor.path == ""


def test_faults_are_shaded_and_leaders_marked() -> None:
    for chart in charts(clean()):
        first, second = chart.windows
        assert (first.text, second.text) == ("1", "2")
        assert 0 < first.at < first.at + first.width < second.at
        assert [mark.text for mark in chart.marks] == ["1→2", "2→3"]
        assert all(chart.left <= mark.at <= chart.right for mark in chart.marks)


@examples(200)
@given(st.floats(1e-3, 1e12))
def test_ticks_are_few_and_reach_the_top(top: float) -> None:
    ticks = nice(top)
    assert 2 <= len(ticks) <= 7 and ticks[0] == 0 and ticks[-1] >= top * (1 - 1e-9)


@examples(200)
@given(results)
def test_everything_stays_in_the_chart(given: Result) -> None:
    for chart in charts(given):
        for x, y in re.findall(r"[ML]([\d.e+-]+) ([\d.e+-]+)", "".join(line.path for line in chart.lines)):
            assert chart.left <= float(x) <= chart.right and chart.top <= float(y) <= chart.bottom
        for window in (*chart.windows, *chart.marks):
            assert chart.left <= window.at <= chart.right and math.isfinite(window.width)


@pytest.mark.parametrize(
    ("ms", "text"),
    [(-1, "–"), (0, "0 ms"), (3.25, "3.2 ms"), (9_400, "9.4 s"), (60_000, "60 s"), (303_000, "5 min 3 s")],
)
def test_times_are_short(ms: float, text: str) -> None:
    assert shown_ms(ms) == text


# --- the directory ----------------------------------------------------------------------------------------------------


def test_four_files_and_nothing_else_and_history_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    names = {"result.json", "chaosresult.yaml", "junit.xml", "report.html"}
    for number in (1, 2):
        written = outputs.write(judged(clean()), directory)
        assert {path.name for path in written} == names == {path.name for path in directory.iterdir()}
        assert (
            parse((directory / "chaosresult.yaml").read_bytes(), "x.yaml")["status"]["history"]["passedRuns"] == number
        )
    assert result.decode((directory / "result.json").read_bytes()) == judged(clean())
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o644}


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"cannot write to .*file"):
        outputs.write(judged(clean()), tmp_path / "file" / "x")
    (tmp_path / "junit.xml").mkdir()
    with pytest.raises(HostError, match=r"cannot write .*junit\.xml"):
        outputs.write(judged(clean()), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_result_of_a_later_version_can_be_read() -> None:
    data = json.loads(result.encode(clean()))
    assert result.decode(json.dumps({**data, "more": 1}).encode()) == clean()
    with pytest.raises(msgspec.ValidationError):
        result.decode(b'{"id": 5}')
