"""Addresses as people write them."""

from __future__ import annotations

import pytest

from trogdor_bus.cli.options import bus_url, join_address, parse_address
from trogdor_bus.errors import SpecError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("node1", "node1", 5560),
        ("node1:7000", "node1", 7000),
        ("10.0.0.1", "10.0.0.1", 5560),
        ("::1", "::1", 5560),
        ("[::1]", "::1", 5560),
        ("[fd00::1]:7000", "fd00::1", 7000),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert parse_address(join_address(host, port)) == (host, port)
    assert bus_url("zmq", host, port) == f"zmq://{join_address(host, port)}"


@pytest.mark.parametrize(
    "text", ["", ":", "a:", "a:0", "a:65533", "a:1x", "[::1", "[::1]7", "a:b:c", "a b", "a/b", "a@b", "a:٣"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(SpecError):
        bus_url("zmq", *parse_address(text))
