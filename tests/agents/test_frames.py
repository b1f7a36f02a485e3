"""A beat always fits into a frame, and tells of every worker."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from trogdor_bus.agents.frames import MOST_BYTES, frame_of
from trogdor_bus.messages import UNTOLD, Beat, Report, decode, encode
from trogdor_bus.states import Disturbance, Outcome, WorkerState

SPEC = msgspec.Raw(b'{"command":["' + b"x" * 960_000 + b'"]}')


def beat(counter: int, *reports: Report, strays: tuple[str, ...] = ()) -> Beat:
    return Beat(node="a", journal="j", counter=counter, reports=reports, strays=strays)


def described(count: int) -> list[Report]:
    return [Report(worker=number, task=f"t{number}", state=WorkerState.RUNNING, spec=SPEC) for number in range(count)]


def test_what_fits_is_sent_as_it_is() -> None:
    for one in (beat(1), beat(2, *described(8))):
        assert frame_of(one) == encode(one)


@pytest.mark.parametrize("count", [9, 10, 25])
def test_specs_that_do_not_fit_follow_with_the_next_beats(count: int) -> None:
    told: set[int] = set()
    for counter in range(100, 100 + count):
        frame = frame_of(beat(counter, *described(count)))
        assert len(frame) <= MOST_BYTES
        found = decode(frame, Beat)
        assert [report.worker for report in found.reports] == list(range(count))
        with_spec = {report.worker for report in found.reports if report.spec != UNTOLD}
        assert len(with_spec) == 8
        told |= with_spec
    assert told == set(range(count))


def test_long_texts_are_cut_before_a_beat_is_lost() -> None:
    lines = tuple(f"{number} " + "r" * 5_000 for number in range(40))
    reports = [
        Report(worker=number, task="t", state=WorkerState.STUCK, error="e" * 9_000, residue=lines, by_hand=lines)
        for number in range(50)
    ]
    frame = frame_of(beat(1, *reports, strays=lines))
    assert len(frame) <= MOST_BYTES
    found = decode(frame, Beat)
    assert len(found.reports) == 50 and found.strays == ("0 " + "r" * 3_998 + "... (cut)", "and 39 more")
    first = found.reports[0]
    assert first.error == "e" * 4_000 + "... (cut)" and first.state is WorkerState.STUCK
    assert first.by_hand == found.strays


def kept(found: Report) -> tuple[object, ...]:
    """Return what a beat tells of a worker however large it is."""
    marks = found.error, found.residue, found.by_hand, found.warnings, found.disturbed
    return found.worker, found.task, found.state, found.outcome, found.remaining_ms, found.late_ms, *map(bool, marks)


def check(one: Beat) -> Beat:
    """Check what must hold of any frame of a beat, and return what it tells."""
    frame = frame_of(one)
    assert len(frame) <= MOST_BYTES
    found: Beat = decode(frame, Beat)
    assert list(map(kept, found.reports)) == list(map(kept, one.reports))
    assert (bool(found.trouble), bool(found.strays)) == (bool(one.trouble), bool(one.strays))
    assert (found.latch, found.stamp, found.broker) == (one.latch, one.stamp, one.broker)
    return found


CHARS = st.sampled_from(["x", "é", "日", "😀", "\x01", '"'])


@examples(30)
@given(data=st.data())
def test_whatever_an_agent_has_to_say_fits_into_a_frame(data: st.DataObject) -> None:
    count = data.draw(st.sampled_from([0, 1, 3, 300, 2_000]))
    total = 1_500_000 // max(count, 1)

    def text() -> str:
        return data.draw(CHARS) * data.draw(st.sampled_from([0, 1, total // 50, total // 3, total]))

    def lines() -> tuple[str, ...]:
        return (text(),) * data.draw(st.sampled_from([0, 1, 3]))

    like = Report(
        worker=0,
        task=data.draw(CHARS) * 50,
        state=data.draw(st.sampled_from(WorkerState)),
        outcome=data.draw(st.sampled_from(Outcome)),
        status=text(),
        error=text(),
        warnings=lines(),
        residue=lines(),
        by_hand=lines(),
        disturbed=tuple(Disturbance(1, line) for line in lines()),
        remaining_ms=7,
        late_ms=8,
    )
    reports = tuple(msgspec.structs.replace(like, worker=number) for number in range(count))
    check(
        Beat(
            node="a",
            journal="j",
            counter=data.draw(st.integers(0, 5)),
            reports=reports,
            latch="L",
            broker=7,
            addresses=data.draw(st.sampled_from([(), ("10.0.0.1",), ("1" * 9_000_000,), ("10.0.0.1",) * 900_000])),
            trouble=text(),
            strays=data.draw(st.sampled_from([(), ("x" * 9_000_000,), ("chain of nobody",) * 600_000])),
        )
    )


LONG = "x" * 9_000_000
"""Fits into no frame."""


@pytest.mark.parametrize(
    "make",
    [
        lambda like, one: msgspec.structs.replace(like, trouble=LONG),
        lambda like, one: msgspec.structs.replace(like, strays=(LONG,), reports=()),
        lambda like, one: msgspec.structs.replace(like, addresses=("10.0.0.1", LONG)),
        lambda like, one: msgspec.structs.replace(
            like, reports=(msgspec.structs.replace(one, disturbed=(Disturbance(1, LONG),)),)
        ),
    ],
)
def test_each_long_text_is_cut(make: Callable[[Beat, Report], Beat]) -> None:
    one = Report(worker=1, task="t", state=WorkerState.RUNNING)
    found = check(make(beat(1, one), one))
    assert found.addresses in ((), ("10.0.0.1",))


def test_of_what_was_disturbed_the_gravest_is_told() -> None:
    found = (
        Disturbance(1, "a", mended=True),
        Disturbance(2, "b", unseen=True),
        Disturbance(3, LONG),
        Disturbance(4, "d", mended=True),
    )
    (report,) = check(beat(1, Report(worker=1, task="t", state=WorkerState.DONE, disturbed=found))).reports
    assert [(one.after_ms, one.mended, one.unseen) for one in report.disturbed] == [(3, False, False)]


def test_a_beat_that_is_a_little_too_large_is_cut_only_a_little() -> None:
    reports = (
        Report(worker=number, task="t", state=WorkerState.STUCK, error="日" * 5_000, residue=("é" * 5_000,))
        for number in range(700)
    )
    found = check(beat(1, *reports, strays=("s",)))
    assert found.reports[0].error == "日" * 1_000 + "... (cut)" and found.strays == ("s",)
