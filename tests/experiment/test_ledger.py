"""The ledger: every send has one outcome, and the counts are those of the list."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from trogdor_bus.experiment.ledger import Ledger, Sent


def test_what_became_of_each() -> None:
    ledger = Ledger()
    assert [ledger.hand_over(number % 2, 100 + number) for number in range(4)] == [0, 1, 2, 3]
    ledger.acknowledge(1, 150, 7)
    ledger.doubt(0, "timed out")
    ledger.fail(3, "too large")
    assert ledger.sent() == [
        Sent(0, 0, 100, "indeterminate", error="timed out"),
        Sent(1, 1, 101, "acked", 150, 7),
        Sent(2, 0, 102, "open"),
        Sent(3, 1, 103, "failed", error="too large"),
    ]
    ledger.doubt_open("the end")
    assert ledger.sent()[2] == Sent(2, 0, 102, "indeterminate", error="the end")
    with pytest.raises(AssertionError, match="record 1 is acked already"):
        ledger.fail(1, "twice")


@examples(100)
@given(st.lists(st.sampled_from(["acked", "indeterminate", "failed", "open"]), max_size=30), st.booleans())
def test_the_counts_are_those_of_the_list(outcomes: list[str], ends: bool) -> None:
    ledger = Ledger()
    for outcome in outcomes:
        number = ledger.hand_over(0, 0)
        match outcome:
            case "acked":
                ledger.acknowledge(number, 1)
            case "indeterminate":
                ledger.doubt(number, "?")
            case "failed":
                ledger.fail(number, "!")
    if ends:
        ledger.doubt_open("the end")
    found = Counter(one.state for one in ledger.sent())
    assert (ledger.acked, ledger.indeterminate, ledger.failed, ledger.open) == (
        found["acked"],
        found["indeterminate"],
        found["failed"],
        found["open"],
    )
    assert len(ledger) == len(outcomes) and not (ends and ledger.open)
