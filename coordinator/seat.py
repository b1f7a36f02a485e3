"""Where a coordinator sits, by the URL of its bus: what faults must spare, and what it tells people at its start."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from logging import INFO, WARNING
from urllib.parse import SplitResult, urlsplit

from trogdor_bus.config import CoordinatorSettings
from trogdor_bus.experiment.destinations import Destinations
from trogdor_bus.host import addresses_of, local_addresses
from trogdor_bus.messages import NodeRow
from trogdor_bus.remedies import Remedy

PORTS = 4


def reachable_at(url: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the coordinator's own addresses and TCP ports, () on a bus on which nobody dials it."""
    for part in (urlsplit(one) for one in url.split(" ")):
        if part.scheme == "zmq" and part.port:
            return _addresses(part.hostname or ""), tuple(range(part.port, part.port + PORTS))
    return (), ()


def allowed(settings: CoordinatorSettings, addresses: tuple[str, ...], nodes: Iterable[NodeRow]) -> Destinations:
    """Return where experiments may have this coordinator's host connect; `addresses` are where it is dialled."""
    rows = list(nodes)
    return Destinations(
        typed=settings.allow_probes,
        brokers=tuple(filter(None, settings.cluster.split(","))),
        hosts=tuple({one for row in rows for one in (*row.addresses, row.hostname) if one}),
        loopback=bool(addresses) and all(ipaddress.ip_address(one).is_loopback for one in addresses),
    )


def greeting(url: str, addresses: tuple[str, ...], *, keys: bool) -> Iterator[tuple[int, str]]:
    """Return what people should read at the start, each line with its logging level."""
    links = {part.scheme: part for part in (urlsplit(one) for one in url.split(" "))}
    outside = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
    agent = " ".join(["‹start-agent› ‹node› NAME", *_kafka_options(links, dialled=bool(outside))])
    reached = []
    if (zmq := links.get("zmq")) is not None and zmq.port:
        reached.append("reaches these ports")
        if not outside:
            last = zmq.port + PORTS - 1
            yield INFO, f"reachable from this machine only (port {zmq.port} to {last}); ‹bind› ADDRESS lets others in"
        for address in outside:
            host = f"[{address}]" if ":" in address else address
            yield INFO, f"elsewhere, type: {agent} ‹coordinator› {host}:{zmq.port}"
    if "kafka" in links:
        reached.append("writes to these topics")
        if not outside:
            yield INFO, f"elsewhere, type: {agent}"
    if not keys:
        yield WARNING, f"‹insecure›: whoever {' or '.join(reached)} is root on every node"
    elif outside or "kafka" in links:
        yield INFO, "agents elsewhere need the keys: `‹export-keys›` here, `‹import-keys›` there"


def _kafka_options(links: Mapping[str, SplitResult], *, dialled: bool) -> list[str]:
    """Return the options that say which Kafka it is, as an agent is started with them; [] without Kafka."""
    kafka = links.get("kafka")
    if kafka is None:
        return []
    prefix = kafka.path.strip("/")
    return [
        str(Remedy("transport", {"kind": "kafka+zmq" if dialled else "kafka"})),
        f"‹bootstrap› {kafka.netloc}",
        *(["‹kafka-config› FILE"] if kafka.query else []),
        *([f"‹topic-prefix› {prefix}"] if prefix != "trogdor" else []),
    ]


def _addresses(host: str) -> tuple[str, ...]:
    if host in ("", "*", "0.0.0.0", "::"):  # noqa: S104 (only compared)
        return local_addresses()
    return addresses_of(host)
