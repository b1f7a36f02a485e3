"""What a child says, in bounds: lines, how many are logged, and when a status is told."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as some

from trogdor_bus.supervisor.hearing import BURST, STATUS_S, Hearing
from trogdor_bus.supervisor.lines import MOST_LINE, Allowance, Lines


@given(some.lists(some.binary(max_size=20)), some.integers(1, 7))
def test_lines_are_the_same_however_they_come(lines: list[bytes], part: int) -> None:
    text = b"\n".join(lines)
    splitter, found = Lines(), list[bytes]()
    for start in range(0, len(text), part):
        found += splitter.feed(text[start : start + part])
    whole = text.split(b"\n")
    assert found + splitter.rest() == (whole if whole[-1] else whole[:-1])
    assert splitter.rest() == []


def test_a_long_line_is_cut_once_and_the_next_one_is_whole() -> None:
    splitter, found = Lines(), list[bytes]()
    for _ in range(40):
        found += splitter.feed(b"x" * (MOST_LINE // 10))
    found += splitter.feed(b"\nnext\n")
    assert [len(line) for line in found] == [MOST_LINE, 4]


def test_an_allowance_lets_a_burst_through_and_counts_the_rest() -> None:
    allowance = Allowance(burst=3, rate=2)
    assert [allowance.take(10.0) for _ in range(5)] == [True, True, True, False, False]
    assert allowance.dropped == 2
    assert [allowance.take(11.0) for _ in range(3)] == [True, True, False]


def test_a_status_is_told_at_intervals_the_latest_one_and_before_an_error() -> None:
    told: list[dict[str, Any]] = []
    hearing = Hearing(told.append)
    hearing.stdout(b'{"status": 1}\n')
    hearing.tell(100.0)
    hearing.stdout(b'{"status": 2}\n{"status": 3}\n')
    hearing.tell(100.0 + STATUS_S / 2)
    assert told == [{"status": 1}]
    assert 0 < (hearing.due_s(100.0 + STATUS_S / 2) or 0) <= STATUS_S
    hearing.tell(100.0 + STATUS_S)
    assert told[1:] == [{"status": 3}] and hearing.due_s(200.0) is None
    hearing.stdout(b'{"status": null, "error": "boom"}\n')
    hearing.stdout(b'{"error": "again"}\n' * 1_000)
    assert told[2:] == [{"status": None}, {"error": "boom"}]


def test_while_nobody_reads_nothing_is_logged_and_the_status_waits() -> None:
    told: list[dict[str, Any]] = []
    hearing = Hearing(told.append)
    hearing.full = True
    for _ in range(BURST):
        hearing.stdout(b'plain\n{"status": 1}\n')
        hearing.stderr(b"trouble\n")
        hearing.tell(100.0)
    assert told == []
    hearing.full = False
    hearing.tell(101.0)
    assert told == [{"status": 1}, {"log": f"{2 * BURST} lines were not logged"}]
