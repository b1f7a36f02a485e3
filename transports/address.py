"""Where a bus is: `SCHEME://HOST[:PORT]` taken apart, and host names made addresses."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from trogdor_bus.errors import BusError


def parse(url: str, default_port: int, ports: int) -> tuple[str, int]:
    """Return the host and the first of `ports` ports in a row of `SCHEME://HOST[:PORT]`; BusError if it is no such."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", default_port if parts.port is None else parts.port
    except ValueError as error:
        raise BusError(f"{url!r} is no address ({error}): write HOST:PORT, and an IPv6 address in brackets") from None
    if not host:
        raise BusError(f"{url!r} names no host: write HOST:PORT")
    if not 1 <= port <= 65536 - ports:
        raise BusError(f"port {port} is out of range: the bus takes {ports} ports in a row from 1 to 65535")
    return host, port


def resolve(host: str) -> tuple[str, ...]:
    """Return the IP addresses (text) of a host; BusError if there is none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BusError(f"cannot find the address of {host!r} ({reason}): check the name, or give an address") from None
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def address_and_port(address: str, port: int) -> str:
    """Return the text of an address and a port, as in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
