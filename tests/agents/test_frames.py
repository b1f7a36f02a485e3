"""A beat always fits into a frame, and tells of every worker."""

from __future__ import annotations

import msgspec
import pytest

from trogdor_bus.agents.frames import MOST_BYTES, frame_of
from trogdor_bus.messages import UNTOLD, Beat, Report, decode, encode
from trogdor_bus.states import WorkerState

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
