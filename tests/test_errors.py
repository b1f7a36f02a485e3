"""Errors are printed on terminals: whatever they quote, they steer none."""

from __future__ import annotations

import pytest

from trogdor_bus.errors import BusError, SpecError
from trogdor_bus.registry import registry


def test_what_steers_a_terminal_is_spelled_out() -> None:
    assert str(BusError("a\x1b[31m\u202eb\ud800\tc\nnext line, né")) == "a\\x1b[31m\\u202eb\\ud800\\tc\nnext line, né"


def test_an_error_that_quotes_a_spec_is_harmless() -> None:
    name = "\U00018cd6\u202e"
    with pytest.raises(SpecError) as caught:
        registry().decode({"class": "partition", "partitions": [[name], [name]]})
    assert str(caught.value).isprintable()
