"""The record: what is written is read, and no changed byte passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from trogdor_bus.errors import SpecError
from trogdor_bus.experiment.records import SMALLEST, Corrupt, Record, decode, encode

RUNS = st.text(max_size=40).filter(lambda run: len(run.encode()) <= 255)
RECORDS = st.builds(Record, RUNS, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
SIZES = st.integers(0, 300)


@examples(100)
@given(RECORDS, SIZES)
def test_what_is_written_is_read(record: Record, size: int) -> None:
    data = encode(record, size)
    assert decode(data) == record
    assert len(data) == max(size, SMALLEST + len(record.run.encode()))


@examples(300)
@given(RECORDS, SIZES, st.data())
def test_any_changed_byte_is_found(record: Record, size: int, data: st.DataObject) -> None:
    written = bytearray(encode(record, size))
    place = data.draw(st.integers(0, len(written) - 1))
    written[place] ^= data.draw(st.integers(1, 255))
    assert isinstance(decode(bytes(written)), Corrupt)


@examples(100)
@given(RECORDS, SIZES, st.data())
def test_a_missing_end_is_found(record: Record, size: int, data: st.DataObject) -> None:
    written = encode(record, size)
    assert isinstance(decode(written[: data.draw(st.integers(0, len(written) - 1))]), Corrupt)


@examples(100)
@given(st.binary(max_size=100))
def test_what_is_foreign_is_refused_with_a_reason(data: bytes) -> None:
    read = decode(data)
    assert isinstance(read, Corrupt) and read.why


def test_a_name_that_is_too_long_is_refused() -> None:
    assert decode(encode(Record("r" * 255, 0, 0))) == Record("r" * 255, 0, 0)
    with pytest.raises(SpecError, match="256 bytes"):
        encode(Record("r" * 256, 0, 0))
