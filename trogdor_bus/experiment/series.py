"""What a stream was like over time: gaps, latencies, throughput. Pure; all times are epoch ms on the stream's clock."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

import msgspec

from trogdor_bus.experiment.ledger import NOTHING_MS, Read, Sent
from trogdor_bus.experiment.result import Bin, Percentiles, Phase, PhaseLatencies

SHORTEST_BIN_MS = 1000
MOST_BINS = 600
PHASES: tuple[Phase, ...] = ("before", "during", "after")


class Span(Protocol):
    """Anything that begins and ends: the window of a fault, for one."""

    @property
    def start_ms(self) -> int:
        """When it begins."""
        ...

    @property
    def end_ms(self) -> int:
        """When it ends."""
        ...


AnySpan = TypeVar("AnySpan", bound=Span)


class Gap(msgspec.Struct, frozen=True, gc=False):
    """A time, `ms` long, in which nothing of a partition was delivered."""

    partition: int
    start_ms: int
    end_ms: int
    ms: int

    def overlaps(self, windows: Iterable[AnySpan]) -> tuple[AnySpan, ...]:
        """Return those of the windows that have a moment in common with the gap, their first and last included."""
        return tuple(one for one in windows if one.start_ms <= self.end_ms and self.start_ms <= one.end_ms)


def gaps(delivered: Iterable[Read], partitions: int, start_ms: int, end_ms: int, *, most: int = 100) -> list[Gap]:
    """Return the `most` longest gaps of a watch, longest first; of equal ones the earliest.

    A gap is the time between two consecutive deliveries of a partition, or from the start of the watch to its first, or
    from its last to the end. Deliveries outside the watch do not count. Corrupted and foreign records do: they came.
    """
    times: list[list[int]] = [[start_ms] for _ in range(partitions)]
    for read in delivered:
        if start_ms <= read.read_ms <= end_ms:
            times[read.partition].append(read.read_ms)
    found = (
        Gap(partition, begin, end, end - begin)
        for partition, moments in enumerate(times)
        for begin, end in pairwise([*sorted(moments), end_ms])
    )
    return heapq.nsmallest(most, found, key=lambda gap: (-gap.ms, gap.start_ms, gap.partition))


def percentiles(times_ms: Iterable[int]) -> Percentiles:
    """Return the percentiles of times in any order."""
    ordered = sorted(times_ms)
    p50_ms, p99_ms, p999_ms = (nearest_rank(ordered, permille) for permille in (500, 990, 999))
    return Percentiles(count=len(ordered), p50_ms=p50_ms, p99_ms=p99_ms, p999_ms=p999_ms)


def nearest_rank(ordered: Sequence[int], permille: int) -> int:
    """Return the ceil(permille / 1000 * n)-th of n values in increasing order; NOTHING_MS if there are none."""
    return ordered[(permille * len(ordered) + 999) // 1000 - 1] if ordered else NOTHING_MS


def latencies(sent: Iterable[Sent], delivered: Iterable[Read], windows: Iterable[Span]) -> tuple[PhaseLatencies, ...]:
    """Return the latencies before, during and after the faults, in this order; each record by when it was sent.

    `before`: sent before the first window begins. `during`: sent inside a window, its first and last moment included.
    `after`: sent later than that, between two windows or after the last. Without windows all is before.
    """
    when = _Phases(windows)
    produce: dict[Phase, list[int]] = {phase: [] for phase in PHASES}
    end_to_end: dict[Phase, list[int]] = {phase: [] for phase in PHASES}
    for one in sent:
        if one.state == "acked":
            produce[when.of(one.sent_ms)].append(one.acked_ms - one.sent_ms)
    for _, sent_ms, took_ms in _arrivals(delivered):
        end_to_end[when.of(sent_ms)].append(took_ms)
    return tuple(
        PhaseLatencies(phase=phase, produce=percentiles(produce[phase]), end_to_end=percentiles(end_to_end[phase]))
        for phase in PHASES
    )


def bins(sent: Iterable[Sent], delivered: Iterable[Read], start_ms: int, end_ms: int) -> tuple[Bin, ...]:
    """Return the watch cut into equal bins of at least a second, at most 600 of them; the last may be shorter.

    A record counts in the bin in which it was acknowledged, or first delivered; a bin ends where the next begins.
    """
    width_ms = max(SHORTEST_BIN_MS, -(-(end_ms - start_ms) // MOST_BINS))
    edges = [*range(start_ms, end_ms, width_ms), end_ms]
    produce: list[list[int]] = [[] for _ in edges[1:]]
    end_to_end: list[list[int]] = [[] for _ in edges[1:]]
    for one in sent:
        if one.state == "acked" and start_ms <= one.acked_ms < end_ms:
            produce[(one.acked_ms - start_ms) // width_ms].append(one.acked_ms - one.sent_ms)
    for read_ms, _, took_ms in _arrivals(delivered):
        if start_ms <= read_ms < end_ms:
            end_to_end[(read_ms - start_ms) // width_ms].append(took_ms)
    return tuple(
        Bin(
            start_ms=begin,
            end_ms=end,
            acked=1000 * len(acked) / (end - begin),
            delivered=1000 * len(arrived) / (end - begin),
            produce_p99_ms=nearest_rank(sorted(acked), 990),
            end_to_end_p99_ms=nearest_rank(sorted(arrived), 990),
        )
        for (begin, end), acked, arrived in zip(pairwise(edges), produce, end_to_end, strict=True)
    )


def _arrivals(delivered: Iterable[Read]) -> Iterator[tuple[int, int, int]]:
    """Yield of each record that could be decoded, when it was first read, when it was sent, and the time between."""
    seen: set[int] = set()
    for read in delivered:
        if read.record is not None and read.record.number not in seen:
            seen.add(read.record.number)
            yield read.read_ms, read.record.sent_ms, read.read_ms - read.record.sent_ms


class _Phases:
    """Tells the phase of a moment."""

    def __init__(self, windows: Iterable[Span]) -> None:
        ordered = sorted((one.start_ms, one.end_ms) for one in windows)
        self._starts = [start for start, _ in ordered]
        self._ends: list[int] = []
        """Up to which moment the windows that began so far last, the longest of them."""
        for _, end in ordered:
            self._ends.append(max(end, self._ends[-1]) if self._ends else end)

    def of(self, at_ms: int) -> Phase:
        """Return the phase."""
        begun = bisect_right(self._starts, at_ms)
        if not begun:
            return "before"
        return "during" if at_ms <= self._ends[begun - 1] else "after"
