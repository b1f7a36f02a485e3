"""Gaps, percentiles, phases and bins against their definitions."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from trogdor_bus.experiment.ledger import Read, Sent
from trogdor_bus.experiment.records import Record
from trogdor_bus.experiment.result import Percentiles, PhaseLatencies
from trogdor_bus.experiment.series import (
    MOST_BINS,
    NOTHING_MS,
    Gap,
    bins,
    gaps,
    latencies,
    nearest_rank,
    percentiles,
)


class Window(NamedTuple):
    start_ms: int
    end_ms: int


def read(partition: int, read_ms: int, number: int = 0, sent_ms: int = 0) -> Read:
    return Read(partition, number, read_ms, Record("run", number, sent_ms))


def ranks(count: int, p50_ms: int, p99_ms: int, p999_ms: int) -> Percentiles:
    return Percentiles(count=count, p50_ms=p50_ms, p99_ms=p99_ms, p999_ms=p999_ms)


MOMENTS = st.integers(0, 2000)
READS = st.lists(st.builds(read, st.integers(0, 2), MOMENTS, st.integers(0, 20), MOMENTS), max_size=40)
WINDOWS = st.lists(st.builds(lambda a, b: Window(min(a, b), max(a, b)), MOMENTS, MOMENTS), max_size=4)


def test_gaps_count_from_the_start_of_the_watch_to_its_end() -> None:
    assert gaps([read(0, 110), read(0, 140)], 2, 100, 200) == [
        Gap(1, 100, 200, 100),
        Gap(0, 140, 200, 60),
        Gap(0, 110, 140, 30),
        Gap(0, 100, 110, 10),
    ]
    assert gaps([read(0, 99), read(0, 201)], 1, 100, 200) == [Gap(0, 100, 200, 100)]
    assert gaps([read(0, 110), read(0, 140)], 2, 100, 200, most=1) == [Gap(1, 100, 200, 100)]


@examples(200)
@given(READS, MOMENTS, MOMENTS)
def test_gaps_fill_the_watch_and_hold_no_delivery(delivered: list[Read], start_ms: int, length_ms: int) -> None:
    end_ms = start_ms + length_ms
    found = gaps(delivered, 3, start_ms, end_ms)
    assert [gap.ms for gap in found] == sorted((gap.ms for gap in found), reverse=True)
    for partition in range(3):
        own = [gap for gap in found if gap.partition == partition]
        assert sum(gap.ms for gap in own) == length_ms
        for gap in own:
            assert gap.ms == gap.end_ms - gap.start_ms
            inside = [
                one for one in delivered if one.partition == partition and gap.start_ms < one.read_ms < gap.end_ms
            ]
            assert not inside


@pytest.mark.parametrize(
    ("window", "overlaps"),
    [((0, 99), False), ((0, 100), True), ((120, 120), True), ((0, 500), True), ((200, 300), True), ((201, 300), False)],
)
def test_a_gap_overlaps_what_shares_a_moment_with_it(window: tuple[int, int], overlaps: bool) -> None:
    windows = (Window(*window),)
    assert Gap(0, 100, 200, 100).overlaps(windows) == (windows if overlaps else ())


def test_percentiles_of_a_hundred_and_of_nothing() -> None:
    assert percentiles(range(100, 0, -1)) == ranks(100, 50, 99, 100)
    assert percentiles(range(1, 10_001)) == ranks(10_000, 5000, 9900, 9990)
    assert percentiles([7]) == ranks(1, 7, 7, 7)
    assert percentiles([]) == ranks(0, NOTHING_MS, NOTHING_MS, NOTHING_MS)


@examples(200)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=300), st.integers(1, 1000))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(times: list[int], permille: int) -> None:
    found = nearest_rank(sorted(times), permille)
    enough = [one for one in times if 1000 * sum(other <= one for other in times) >= permille * len(times)]
    assert found == min(enough)


def phase_of(at_ms: int, windows: list[Window]) -> str:
    if any(one.start_ms <= at_ms <= one.end_ms for one in windows):
        return "during"
    return "after" if any(one.start_ms <= at_ms for one in windows) else "before"


@examples(300)
@given(READS, WINDOWS)
def test_each_record_counts_once_in_the_phase_in_which_it_was_sent(
    delivered: list[Read], windows: list[Window]
) -> None:
    first = {one.record.number: one for one in reversed(delivered) if one.record}
    for found in latencies([], delivered, windows):
        mine = [one for one in first.values() if one.record and phase_of(one.record.sent_ms, windows) == found.phase]
        assert found.end_to_end == percentiles(one.read_ms - one.record.sent_ms for one in mine if one.record)


def test_latencies_by_phase() -> None:
    sent = [Sent(n, 0, at, "acked", at + took) for n, (at, took) in enumerate([(10, 1), (100, 5), (150, 6), (201, 2)])]
    sent.append(Sent(4, 0, 120, "indeterminate", error="timed out"))
    delivered = [read(0, 13, 0, 10), read(0, 400, 2, 150), read(0, 999, 2, 150), Read(0, 9, 500, None, "corrupt")]
    assert latencies(sent, delivered, [Window(100, 200)]) == (
        PhaseLatencies(phase="before", produce=ranks(1, 1, 1, 1), end_to_end=ranks(1, 3, 3, 3)),
        PhaseLatencies(phase="during", produce=ranks(2, 5, 6, 6), end_to_end=ranks(1, 250, 250, 250)),
        PhaseLatencies(phase="after", produce=ranks(1, 2, 2, 2), end_to_end=Percentiles()),
    )


def test_bins() -> None:
    sent = [Sent(n, 0, n * 100, "acked", n * 100 + 10) for n in range(25)] + [Sent(25, 0, 900, "failed")]
    delivered = [read(0, n * 100 + 20, n, n * 100) for n in range(25)]
    first, second, last = bins(sent, delivered, 0, 2500)
    assert (first.start_ms, first.end_ms, second.end_ms, last.start_ms, last.end_ms) == (0, 1000, 2000, 2000, 2500)
    assert {(one.acked, one.delivered) for one in (first, second, last)} == {(10.0, 10.0)}
    assert {(one.produce_p99_ms, one.end_to_end_p99_ms) for one in (first, second, last)} == {(10, 20)}
    (empty,) = bins([], [], 0, 500)
    assert (empty.acked, empty.produce_p99_ms, empty.end_to_end_p99_ms) == (0, NOTHING_MS, NOTHING_MS)
    assert bins([], [], 5, 5) == ()


@examples(100)
@given(READS, st.integers(0, 10**7), st.integers(1, 10**7))
def test_bins_cover_the_watch_and_are_few(delivered: list[Read], start_ms: int, length_ms: int) -> None:
    found = bins([], delivered, start_ms, start_ms + length_ms)
    assert len(found) <= MOST_BINS
    assert sum(one.end_ms - one.start_ms for one in found) == length_ms
    first = {one.record.number: one.read_ms for one in reversed(delivered) if one.record}
    count = sum(one.delivered * (one.end_ms - one.start_ms) / 1000 for one in found)
    assert round(count) == sum(start_ms <= at < start_ms + length_ms for at in first.values())
