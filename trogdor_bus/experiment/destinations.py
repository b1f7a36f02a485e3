"""Where the coordinator's host may be made to connect by whoever sends an experiment: its probes, its Kafka cluster."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

import msgspec

from trogdor_bus.errors import RefusedError, SpecError

OPTION = "‹allow-probe›"
_METADATA = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "192.0.0.192", "fd00:ec2::254")))
"""Where clouds tell machines their secrets, beside the link-local addresses."""


class Destinations(msgspec.Struct, frozen=True, kw_only=True):
    """What may be reached: what somebody `typed`, the cluster's `brokers` (HOST:PORT), its nodes.

    `hosts` are addresses and configured host names of the nodes, each with all its ports. `loopback`: whoever may ask
    is on the coordinator's own machine, and reaches its loopback addresses anyway.
    """

    typed: tuple[str, ...] = ()
    brokers: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    loopback: bool = False

    def usable(self, host: str, port: int, addresses: Iterable[str]) -> list[str]:
        """Return those of the addresses that `host` has, which may be reached; RefusedError with a remedy for none."""
        given = list(addresses)
        found = [address for address in given if self._allows(host, port, _ip(address))]
        if given and not found:
            place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            where = place if given[0] == host else f"{place} ({given[0]})"
            raise RefusedError(
                f"{where} is no node of this cluster and no broker of its Kafka, so the coordinator does not connect "
                f"there for an experiment; start it with {OPTION} {place}"
            )
        return found

    def check_literal(self, host: str, port: int) -> None:
        """Raise RefusedError for an address that may not be reached; a name is looked up only when it is used."""
        try:
            address = str(ipaddress.ip_address(host))
        except ValueError:
            return
        self.usable(host, port, [address])

    def check_brokers(self, bootstrap: str) -> None:
        """Raise RefusedError if one of these brokers (HOST:PORT,...) may not be reached; it waits for DNS."""
        for host, port in map(parsed, bootstrap.split(",")):
            try:
                infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError:
                continue  # nobody connects there
            self.usable(host, port, [str(info[4][0]) for info in infos])

    def _allows(self, host: str, port: int, ip: IPv4Address | IPv6Address) -> bool:
        if any(_matches(rule, host, port, ip) for rule in self.typed):
            return True
        if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in _METADATA:
            return False
        if self.loopback and ip.is_loopback:
            return True
        if any(_matches(broker, host, port, ip) for broker in self.brokers):
            return True
        return not ip.is_loopback and any(_matches(_quoted(one), host, port, ip) for one in self.hosts)


def check_rule(rule: str) -> str:
    """Return a rule that says where experiments may connect; SpecError for anything else."""
    remedy = "write HOST, HOST:PORT, a network such as 10.1.0.0/16, or '*' for everything"
    if rule != "*" and "/" in rule:
        try:
            ipaddress.ip_network(rule)
        except ValueError:
            raise SpecError(f"{OPTION} {rule!r} is no network", remedy=remedy) from None
    elif rule != "*":
        host, port = _parts(rule)
        if not re.fullmatch(r"[A-Za-z0-9_.:-]+", host) or not 0 <= port <= 65535:
            raise SpecError(f"{OPTION} {rule!r} names no host", remedy=remedy)
    return rule


def parsed(place: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT or [::1]:PORT."""
    host, _, port = place.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _matches(rule: str, host: str, port: int, ip: IPv4Address | IPv6Address) -> bool:
    """Return whether a rule is of this port (or names none), and of this address, or of the host's very name."""
    if rule == "*":
        return True
    if "/" in rule:
        return ip in ipaddress.ip_network(rule)
    named, only = _parts(rule)
    if only and only != port:
        return False
    try:
        return _ip(named) == ip
    except ValueError:
        return named.casefold().rstrip(".") == host.casefold().rstrip(".")


def _parts(rule: str) -> tuple[str, int]:
    """Return host and port of a rule, 0 for every port; -1 for what is none."""
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+))(?::([0-9]{1,5}))?", rule)
    if found is None:
        return (rule, 0) if rule.count(":") > 1 else (rule, -1)
    return found[1] or found[2], int(found[3] or 0)


def _quoted(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _ip(text: str) -> IPv4Address | IPv6Address:
    ip = ipaddress.ip_address(text.partition("%")[0])
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip
