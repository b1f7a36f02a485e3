"""What an agent that nobody answers asks people to check."""

from __future__ import annotations

import pytest

from trogdor_bus.agents.contact import likely_causes

KAFKA, ZMQ = "kafka://b1:9092/trogdor", "zmq://10.0.0.1:5560"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            f"{ZMQ} zmq://10.0.0.2:5560",
            "Is it running there (`‹start-coordinator› ‹bind› ADDRESS`), is the address right, does a firewall "
            "block the port",
        ),
        (
            KAFKA,
            "Is it running there (`‹start-coordinator› ‹transport kind=kafka› ...`), are these its brokers and topics",
        ),
        (
            f"{KAFKA} {ZMQ}",
            "Is it running there (`‹start-coordinator› ‹transport kind=kafka+zmq› ...`), is the address right, does a "
            "firewall block the port, are these its brokers and topics",
        ),
    ],
)
def test_the_likely_causes_are_those_of_the_transport(url: str, words: str) -> None:
    assert likely_causes(url) == words
