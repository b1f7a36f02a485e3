"""Where the coordinator's host may be made to connect."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from trogdor_bus.errors import RefusedError, SpecError
from trogdor_bus.experiment.destinations import Destinations, check_rule, parsed
from trogdor_bus.experiment.pipe import Begin
from trogdor_bus.experiment.runner import Runner
from trogdor_bus.registry import registry

CLUSTER = Destinations(
    typed=("grafana:3000", "10.9.0.0/16", "[fd00::9]:80", "169.254.1.1"),
    brokers=("kafka1:9092", "127.0.0.1:19092", "[::1]:19092"),
    hosts=("10.0.0.1", "fd00::1", "node2.example", "127.0.0.1", "169.254.169.254"),
)


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("10.0.0.1", 8080, "10.0.0.1"),
        ("any.name", 1, "10.0.0.1"),
        ("any.name", 1, "::ffff:10.0.0.1"),
        ("FD00::0:1", 80, "fd00::1"),
        ("NODE2.example.", 9092, "10.0.0.77"),
        ("kafka1", 9092, "10.5.5.5"),
        ("localhost", 19092, "127.0.0.1"),
        ("grafana", 3000, "192.0.2.1"),
        ("x", 1, "10.9.200.1"),
        ("fd00::9", 80, "fd00::9"),
        ("169.254.1.1", 80, "169.254.1.1"),
    ],
)
def test_the_cluster_and_what_was_typed_may_be_reached(host: str, port: int, address: str) -> None:
    assert CLUSTER.usable(host, port, [address]) == [address]
    assert Destinations(typed=("*",)).usable(host, port, [address]) == [address]


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("169.254.169.254", 80, "169.254.169.254"),  # although an agent announced it
        ("node2.example", 80, "169.254.169.254"),  # a name that was turned
        ("fd00:ec2::254", 80, "fd00:ec2::254"),
        ("fe80::1", 80, "fe80::1%eth0"),
        ("0.0.0.0", 80, "0.0.0.0"),
        ("localhost", 2375, "127.0.0.1"),  # although an agent announced it
        ("kafka1", 22, "10.5.5.5"),
        ("grafana", 3001, "192.0.2.1"),
        ("example.com", 443, "93.184.216.34"),
        ("10.0.0.2", 80, "10.0.0.2"),
    ],
)
def test_everything_else_is_refused_with_the_option_that_allows_it(host: str, port: int, address: str) -> None:
    with pytest.raises(RefusedError, match="start it with ‹allow-probe›") as caught:
        CLUSTER.usable(host, port, [address])
    place = str(caught.value).rpartition("‹allow-probe› ")[2]
    again = Destinations(typed=(check_rule(place),))
    assert again.usable(host, port, [address]) == [address]


def test_only_the_addresses_that_may_be_reached_are_tried() -> None:
    assert CLUSTER.usable("x", 1, ["10.0.0.1", "10.0.0.2"]) == ["10.0.0.1"]
    assert CLUSTER.usable("nobody", 1, []) == []


def test_loopback_is_for_those_who_are_there_anyway() -> None:
    assert Destinations(loopback=True).usable("localhost", 80, ["127.0.0.1", "::1"]) == ["127.0.0.1", "::1"]
    with pytest.raises(RefusedError):
        Destinations().usable("localhost", 80, ["127.0.0.1"])


def test_a_cluster_that_an_experiment_names_is_checked_too() -> None:
    Destinations(hosts=("10.0.0.1",)).check_brokers("10.0.0.1:9092")
    with pytest.raises(RefusedError, match=r"10\.0\.0\.2:9092"):
        Destinations(hosts=("10.0.0.1",)).check_brokers("10.0.0.1:9092,10.0.0.2:9092")
    with pytest.raises(RefusedError, match=r"\[::1\]:9092"):
        Destinations().check_brokers("[::1]:9092")


def test_where_an_experiment_goes_is_told_by_its_spec() -> None:
    fault = {"class": "port-block", "nodes": "a", "ports": 1, "durationMs": 1}
    probes = [
        {"name": "a", "type": "http", "url": "https://shop/x"},
        {"name": "b", "type": "http", "url": "http://[::1]:81/"},
        {"name": "c", "type": "tcp", "address": "b:9"},
        {"name": "d", "type": "http", "url": "http://x:99999/"},
        {"name": "e", "type": "kafka"},
    ]
    spec = registry().decode({"class": "experiment", "fault": fault, "bootstrap": "k:1,l:2", "probes": probes})
    assert spec.places() == ("k:1", "l:2", "shop:443", "[::1]:81", "b:9")  # type: ignore[attr-defined]
    assert [parsed(place) for place in ("b:9", "[::1]:81")] == [("b", 9), ("::1", 81)]


@pytest.mark.parametrize("rule", ["", "a b", "a:x", "a:99999", "10.0.0.0/99", "http://a", ":80", "[::1"])
def test_what_names_no_place_is_refused(rule: str) -> None:
    with pytest.raises(SpecError, match="‹allow-probe›"):
        check_rule(rule)


@pytest.mark.parametrize("rule", ["a", "a.b-c:80", "10.0.0.1", "10.0.0.0/8", "::1", "[::1]:80", "*"])
def test_what_may_be_typed(rule: str) -> None:
    assert check_rule(rule) == rule


def test_the_program_asks_no_brokers_that_may_not_be_reached() -> None:
    fault = {"class": "port-block", "nodes": "a", "ports": 1, "durationMs": 1}
    spec = registry().decode({"class": "experiment", "fault": fault, "bootstrap": "127.0.0.1:9092"})
    pipe: Any = None

    async def access(to: Destinations) -> str:
        runner = Runner(Begin(id="x", spec=msgspec.Raw(b"{}"), destinations=to), spec, pipe)  # type: ignore[arg-type]
        return str(runner._access())

    with pytest.raises(RefusedError, match="‹allow-probe›"):
        asyncio.run(access(Destinations()))
    assert "127.0.0.1:9092" in asyncio.run(access(Destinations(loopback=True)))
