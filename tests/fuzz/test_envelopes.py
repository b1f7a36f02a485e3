"""Envelopes of strangers around frames: a header of ours, none, or a BusError; never anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from tests.fuzz.judge import decoded, keeps_nothing
from tests.fuzz.mutants import DEEP, mangled, mutated, written
from trogdor_bus.errors import BusError
from trogdor_bus.transports.fan.envelope import MARK, Asked, Echo, Report, unwrap, wrap

REAL: list[tuple[Any, bytes]] = [
    (Report(node="n1", life=2**62, sent_ms=7, on="zmq", ages_ms={"kafka": None, "zmq": 900}), b'{"v":1}'),
    (Echo(life=1, sent_ms=7), b""),
    (Asked(client="c" * 32, number=3), b'{"request":"nodes"}'),
]


def framed(header: bytes, frame: bytes = b"") -> bytes:
    return MARK + len(header).to_bytes(2, "big") + header + frame


def judge(data: bytes, kind: Any) -> None:
    found = decoded(lambda: unwrap(data, kind))
    if isinstance(found, Exception):
        assert isinstance(found, BusError)
    else:
        header, frame = found
        assert data.endswith(frame)
        assert (header is None) == (not data.startswith(MARK))
        if header is not None:
            assert unwrap(wrap(header, frame), kind) == (header, frame)


@examples(250)
@given(st.data())
def test_broken_bytes(data: st.DataObject) -> None:
    header, frame = data.draw(st.sampled_from(REAL))
    judge(data.draw(mangled(wrap(header, frame))), type(header))


@examples(250)
@given(st.data())
def test_broken_headers(data: st.DataObject) -> None:
    header, frame = data.draw(st.sampled_from(REAL))
    _, _, text = wrap(header).partition(MARK)
    text = written(data.draw(mutated(json.loads(text[2:]))))
    judge(framed(text[:65535], frame), type(header))


@examples(200)
@given(st.binary(max_size=40), st.sampled_from([Report, Echo, Asked]))
def test_anything(data: bytes, kind: Any) -> None:
    judge(data, kind)
    judge(MARK + data, kind)


@pytest.mark.parametrize("kind", [Report, Echo, Asked])
def test_deep_headers_keep_nothing(kind: Any) -> None:
    keeps_nothing(lambda: unwrap(framed(b'{"node":' + b"[" * DEEP), kind))


def test_a_header_has_bounds() -> None:
    for fields in (
        {"node": "n" * 1001},
        {"on": "n" * 1001},
        {"agesMs": {str(number): 1 for number in range(65)}},
        {"life": -1},
        {"life": 2**62 + 1},
        {"sentMs": 1.5},
    ):
        fitting = {"node": "n1", "life": 1, "sentMs": 1, "on": "zmq", "agesMs": {}}
        assert unwrap(framed(json.dumps(fitting).encode()), Report)[0] is not None
        with pytest.raises(BusError, match="cannot be read"):
            unwrap(framed(json.dumps(fitting | fields).encode()), Report)
