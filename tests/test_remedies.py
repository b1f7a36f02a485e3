"""Remedies in texts: what is written is read, words are put in, and nothing that anybody writes breaks it."""

from __future__ import annotations

import json
import logging
from string import Formatter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trogdor_bus import errors, logs
from trogdor_bus.cli.telling import said_json, said_parts
from trogdor_bus.cli.wording import WORDS, said
from trogdor_bus.client import _raised
from trogdor_bus.errors import RefusedError, SpecError, TrogdorBusError
from trogdor_bus.exits import report
from trogdor_bus.experiment.result import Reason, Result
from trogdor_bus.messages import Reply, decode, encode
from trogdor_bus.remedies import CODES, Remedy, remedies_in, worded
from trogdor_bus.states import Disturbance, TaskRow, WorkerRow

FIELDS = st.dictionaries(st.from_regex("[a-z]{1,8}", fullmatch=True), st.text(), max_size=3)
REMEDIES = st.builds(Remedy, st.sampled_from(sorted(CODES)), FIELDS)


def test_a_text_can_be_read_as_it_stands() -> None:
    text = f"node a is aborted until `{Remedy('resume')}`; or `{Remedy('forget', {'node': 'a b'})}`"
    assert text == 'node a is aborted until `‹resume›`; or `‹forget node="a b"›`'
    assert said(text) == "node a is aborted until `trogdor-bus resume`; or `trogdor-bus forget a b --force`"


@given(before=st.text(), remedy=REMEDIES, after=st.text())
def test_what_is_written_is_read(before: str, remedy: Remedy, after: str) -> None:
    assert remedy in remedies_in(f"{before.replace('‹', '')}{remedy}{after}")


@given(remedy=REMEDIES)
def test_words_take_the_place_of_a_remedy_and_of_nothing_else(remedy: Remedy) -> None:
    template = WORDS[remedy.code]
    names = [name for _, name, _, _ in Formatter().parse(template) if name]
    told = said(f"a {remedy} z")
    assert told.startswith(f"a {template.partition('{')[0].rstrip()}") and told.endswith(" z")
    assert all(remedy.fields.get(name, "").rstrip() in told for name in names)


@given(st.text(alphabet='‹› ="\\abu-d8:{}resume', max_size=30))
def test_nothing_that_anybody_writes_breaks_it(text: str) -> None:
    remedies_in(text)
    assert "‹" in text or said(text) == text
    assert worded(text, {}) == text


def test_what_nobody_has_words_for_stays_as_it_stands() -> None:
    text = "do ‹something-new to=it›, or ‹resume›"
    assert said(text) == "do ‹something-new to=it›, or trogdor-bus resume"
    assert remedies_in(text) == (Remedy("resume"),)
    assert said('‹show id="\\ud8"›') == '‹show id="\\ud8"›'


GIVEN = {"match": "run ‹force› x", "text": "‹force›", "error": ["‹force›"]}
"""What somebody gave."""


def test_json_tells_our_texts_in_words_and_what_people_gave_as_it_is() -> None:
    raw = msgspec.Raw(
        b'{"a": 1e400, "text":"\\u2039force\\u203a \xe2\x80\xb9force\xe2\x80\xba", "c": 12345678901234567890123}'
    )
    task = TaskRow(id="‹force›", original=raw, spec=raw, error="until `‹resume›`", allow=("‹force›",))
    worker = WorkerRow(
        id=7,
        node="‹node›",
        status="‹force›",
        progress=raw,
        warnings=("‹force›", "none"),
        disturbed=(Disturbance(1, "‹force›"),),
    )
    told = said_json({"task": task, "workers": (worker,), "error": "‹force›", "id": "‹force›", "givenUp": ["‹force›"]})
    assert told.count(bytes(raw)) == 3
    assert json.loads(told)["task"] == {
        **json.loads(encode(task)),
        "error": "until `trogdor-bus resume`",
    }
    found = json.loads(told)["workers"][0]
    assert (found["node"], found["status"], found["warnings"]) == ("‹node›", "--force", ["--force", "none"])
    assert found["disturbed"][0]["text"] == "--force"
    assert {name: json.loads(told)[name] for name in ("error", "id", "givenUp")} == {
        "error": "--force",
        "id": "‹force›",
        "givenUp": ["--force"],
    }
    assert said_json(row := TaskRow(id="a", error="ä")) == encode(row)


def test_the_spec_in_a_result_is_what_somebody_gave() -> None:
    result = Result(id="x", name="‹force›", spec=GIVEN, reasons=(Reason(kind="fault", text="`‹resume›`"),))
    told = said_parts(result)
    assert (told.spec, told.name, told.reasons[0].text) == (GIVEN, "‹force›", "`trogdor-bus resume`")


@pytest.mark.parametrize(
    "error",
    [
        RefusedError("it would cut the coordinator; `‹force›` allows it"),
        SpecError("no such ‹node›", path="$.nodes[0]", remedy="`‹nodes›` lists the nodes"),
        errors.NotNowError("nobody is it now"),
    ],
)
def test_an_error_carries_its_remedies_over_the_wire(error: TrogdorBusError) -> None:
    reply: Reply = decode(encode(Reply.refusing(error)), Reply)
    assert reply.remedies == error.remedies
    raised = _raised(reply)
    assert (type(raised), str(raised), raised.remedies) == (type(error), str(error), error.remedies)


def test_remedies_of_an_error() -> None:
    error = SpecError("no such ‹node›", remedy="`‹nodes›` lists the nodes, ‹nodes›")
    assert error.remedies == (Remedy("node"), Remedy("nodes"))


@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_is_reported_in_words(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    error = SpecError("no such ‹node›", path="$.x", remedy="`‹nodes›` lists the nodes")
    assert report(error, WORDS, as_json=as_json) == 2
    told = capsys.readouterr().err
    if as_json:
        assert '"message": "no such --node"' in told and '"remedy": "`trogdor-bus nodes` lists the nodes"' in told
    else:
        assert told == "error: x: no such --node (`trogdor-bus nodes` lists the nodes)\n"


@pytest.mark.parametrize("form", [logs._Human, logs._Json])
def test_a_log_tells_remedies_in_the_words_it_is_given(form: type[logs._Human] | type[logs._Json]) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "cannot: %s", (RefusedError("until `‹resume›`"),), None)
    assert "cannot: until `trogdor-bus resume`" in form(WORDS).format(record)
