"""Where a coordinator sits, and what it tells people."""

from __future__ import annotations

import logging

import pytest

from trogdor_bus.coordinator.seat import greeting, reachable_at
from trogdor_bus.host import local_addresses

KAFKA = "kafka://b1:9092,b2:9092/trogdor"
KEYS = "agents elsewhere need the keys: `‹export-keys›` here, `‹import-keys›` there"


def test_what_faults_must_spare() -> None:
    ports = (7000, 7001, 7002, 7003)
    assert reachable_at("zmq://127.0.0.1:7000") == (("127.0.0.1",), ports)
    assert reachable_at(f"{KAFKA} zmq://[::1]:7000") == (("::1",), ports)
    assert reachable_at("zmq://0.0.0.0:7000") == (local_addresses(), ports)
    assert reachable_at(KAFKA) == ((), ())
    assert reachable_at("memory://x") == ((), ())
    assert reachable_at("zmq://no.such.host.invalid:7000") == ((), ports)


def test_the_words_of_each_transport() -> None:
    def said(url: str, *addresses: str, keys: bool = True) -> list[str]:
        return [text for _, text in greeting(url, addresses, keys=keys)]

    zmq = "zmq://10.0.0.1:7000"
    assert said(zmq, "127.0.0.1") == [
        "reachable from this machine only (port 7000 to 7003); ‹bind› ADDRESS lets others in"
    ]
    assert said(zmq, "10.0.0.1", "fd00::1") == [
        "elsewhere, type: ‹start-agent› ‹node› NAME ‹coordinator› 10.0.0.1:7000",
        "elsewhere, type: ‹start-agent› ‹node› NAME ‹coordinator› [fd00::1]:7000",
        KEYS,
    ]
    brokers = "‹bootstrap› b1:9092,b2:9092"
    assert said(KAFKA) == [f"elsewhere, type: ‹start-agent› ‹node› NAME ‹transport kind=kafka› {brokers}", KEYS]
    assert said(f"{KAFKA} {zmq}", "127.0.0.1")[1] == said(KAFKA)[0], "nobody elsewhere can dial it"
    assert said(f"{KAFKA}-2?config=/etc/client.properties {zmq}", "10.0.0.1") == [
        f"elsewhere, type: ‹start-agent› ‹node› NAME ‹transport kind=kafka+zmq› {brokers} ‹kafka-config› FILE "
        "‹topic-prefix› trogdor-2 ‹coordinator› 10.0.0.1:7000",
        KEYS,
    ]


@pytest.mark.parametrize(
    ("url", "who"),
    [
        ("zmq://127.0.0.1:7000", "reaches these ports"),
        (KAFKA, "writes to these topics"),
        (f"{KAFKA} zmq://127.0.0.1:7000", "reaches these ports or writes to these topics"),
    ],
)
def test_without_keys_it_says_who_is_root(url: str, who: str) -> None:
    *_, last = greeting(url, reachable_at(url)[0], keys=False)
    assert last == (logging.WARNING, f"‹insecure›: whoever {who} is root on every node")
