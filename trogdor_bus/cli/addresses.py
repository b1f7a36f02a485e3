"""Addresses as people write them."""

from __future__ import annotations

import ipaddress
import re

from trogdor_bus.errors import SpecError

DEFAULT_PORT = 5560
MAX_PORT = 65532
"""The bus takes four ports in a row."""
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"

_HOST = re.compile(r"[A-Za-z0-9_.-]+")
_BROKER = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_PREFIX = re.compile(r"(?!-)[A-Za-z0-9._-]{1,200}")
_REMEDY = f"write HOST or HOST:PORT, such as 10.0.0.1:{DEFAULT_PORT} or [::1]:{DEFAULT_PORT}"


def parse_addresses(text: str) -> list[tuple[str, int]]:
    """Return host and port of each of several addresses with commas between; SpecError if one is none, or twice."""
    found = [parse_address(part.strip()) for part in text.split(",")]
    for place in found:
        if found.count(place) > 1:
            raise SpecError(f"the address {join_address(*place)} is given twice", remedy="name each coordinator once")
    return found


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST, HOST:PORT, ::1 or [::1]:PORT; SpecError for a port that is none."""
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if rest or not closed:
            port = rest.removeprefix(":") if rest.startswith(":") else "?"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= MAX_PORT):
        raise SpecError(f"the port of the address {text!r} is not a number from 1 to {MAX_PORT}", remedy=_REMEDY)
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def zmq_url(host: str, port: int) -> str:
    """Return the URL of a coordinator on ZeroMQ; SpecError for no address."""
    if not (host == "*" or (_is_ipv6(host) if ":" in host else _HOST.fullmatch(host))):
        raise SpecError(f"{host!r} is not an address", remedy=_REMEDY)
    return f"zmq://{join_address(host, port)}"


def bound(text: str) -> str:
    """Return the address after --bind; SpecError if a port is given with it."""
    host = text[1:].partition("]")[0] if text.startswith("[") else text
    if (text.startswith("[") and not text.endswith("]")) or text.count(":") == 1:
        raise SpecError(f"--bind {text!r} is more than an address", remedy="give the port as --port")
    return host


def check_brokers(text: str, option: str) -> str:
    """Return the addresses of brokers if they are some; SpecError tells to give `option`."""
    if not text:
        raise SpecError("the bus is Kafka, but where is it?", remedy=f"give {option}")
    for part in text.split(","):
        found = _BROKER.fullmatch(part)
        if not (found and 1 <= int(found[1]) <= 65535):
            raise SpecError(f"{part!r} is not the address of a broker", remedy="write HOST:PORT, with commas between")
    return text


def check_prefix(text: str) -> str:
    """Return what the names of topics begin with; SpecError if Kafka knows no such topics."""
    if not _PREFIX.fullmatch(text) or text in (".", ".."):
        remedy = "use at most 200 letters, digits, '.', '_' and '-', not '-' first"
        raise SpecError(f"no topic begins with {text!r}", remedy=remedy)
    return text


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
