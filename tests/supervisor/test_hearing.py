"""What a child says, in bounds: lines, how many are logged, and when a status is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
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


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("[" * 500 + "]" * 500, "is nested deeper than 100"),
        ("[" * 101 + "0" + "]" * 101, "is nested deeper than 100"),
        (str(2**64), "holds a number of more than 64 bits"),
        (f'{{"n": [{-(2**63) - 1}]}}', "holds a number of more than 64 bits"),
        ("[1e999]", "holds a number that is none of JSON"),
        ("NaN", "holds a number that is none of JSON"),
        (r'{"\ud800": 1}', "holds half a character (a lone surrogate)"),
        (r'["\udcff"]', "holds half a character (a lone surrogate)"),
    ],
)
def test_a_status_that_some_could_not_read_is_dropped_with_the_reason(status: str, why: str) -> None:
    told: list[dict[str, Any]] = []
    hearing = Hearing(told.append)
    hearing.stdout(b'{"status": %s}\n' % status.encode())
    hearing.tell(100.0)
    assert told == [{"log": f"a status {why}, and is dropped"}]


@pytest.mark.parametrize("status", ["[" * 100 + "0" + "]" * 100, str(2**64 - 1), str(-(2**63)), r'"\ud83d\ude00"'])
def test_a_status_may_be_as_deep_and_as_large_as_a_spec(status: str) -> None:
    told: list[dict[str, Any]] = []
    hearing = Hearing(told.append)
    hearing.stdout(b'{"status": %s}\n' % status.encode())
    hearing.tell(100.0)
    assert told == [{"status": json.loads(status)}]


def test_null_is_no_error_and_an_empty_text_is_the_end_without_one() -> None:
    told: list[dict[str, Any]] = []
    Hearing(told.append).stdout(b'{"error": null}\n{"error": ""}\n')
    assert told == [{"error": ""}]


def test_texts_are_such_as_json_can_carry() -> None:
    told: list[dict[str, Any]] = []
    deep = "[" * 500 + "]" * 500
    Hearing(told.append).stdout(b'{"log": "a\\udcff", "error": "b\\ud800"}\n{"log": %s}\n' % deep.encode())
    assert told == [{"log": "a?"}, {"error": "b?"}, {"log": "JSON that is nested too deeply"}]


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
