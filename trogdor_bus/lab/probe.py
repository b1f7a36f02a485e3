"""Who reaches whom: a round trip between every two members, over every protocol, measured at once.

A socket stays in the namespace in which it was made, so one short-lived thread makes those of all members and then
waits for all of them together.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from trogdor_bus.lab.echo import PORT
from trogdor_bus.lab.namespaces import Member, enter

WAYS = ("tcp4", "tcp6", "udp4", "udp6", "ping4", "ping6")
SERVICE = ("tcp4", "tcp6", "udp4", "udp6")
PING = ("ping4", "ping6")
TIMEOUT_MS = 300
_BATCH = 600  # sockets open at once, below the usual limit of 1024


class Matrix(msgspec.Struct, frozen=True):
    """For every source and target, the ways (of those `asked`) that made a round trip."""

    ways: dict[str, dict[str, tuple[str, ...]]]
    asked: tuple[str, ...] = WAYS

    def reached(self, source: str, target: str) -> frozenset[str]:
        """Return the ways by which `source` reached `target`."""
        return frozenset(self.ways[source][target])

    def pairs(self) -> list[tuple[str, str]]:
        """Return every (source, target)."""
        return [(source, target) for source, row in self.ways.items() for target in row]

    def agrees(self, expected: Callable[[str, str], Iterable[str]]) -> bool:
        """Tell whether every pair was reached in exactly the expected ways."""
        return all(self.reached(*pair) == frozenset(expected(*pair)) for pair in self.pairs())


def measure(members: Sequence[Member], ways: Sequence[str] = WAYS, timeout_ms: int = TIMEOUT_MS) -> Matrix:
    """Return who reaches whom now; what has not answered within `timeout_ms` counts as not reached."""

    def from_everywhere() -> list[tuple[str, str, str]]:
        wanted = [(one, other, way) for one in members for other in members if one is not other for way in ways]
        reached = []
        for first in range(0, len(wanted), _BATCH):
            reached += _round_trips(wanted[first : first + _BATCH], timeout_ms)
        return reached

    with ThreadPoolExecutor(max_workers=1) as thread:
        reached = thread.submit(from_everywhere).result()
    rows: dict[str, dict[str, tuple[str, ...]]] = {
        one.name: {other.name: () for other in members if other is not one} for one in members
    }
    for source, target, way in reached:
        rows[source][target] += (way,)
    ordered = {one: {other: tuple(sorted(found)) for other, found in row.items()} for one, row in rows.items()}
    return Matrix(ordered, tuple(ways))


class RoundTrip:
    """One question to an echo service, or one ping, and whether the answer came."""

    def __init__(self, way: str, address: str, port: int = PORT) -> None:
        """Make the socket in the thread's namespace; nothing is sent yet."""
        self.way, self.answered = way, False
        self._peer = (address, port if way[:-1] in ("tcp", "udp") else 0)
        self._token = os.urandom(8)
        self._heard = b""
        version6 = way.endswith("6")
        protocol = (socket.IPPROTO_ICMPV6 if version6 else socket.IPPROTO_ICMP) if way.startswith("ping") else 0
        kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "ping": socket.SOCK_RAW}[way[:-1]]
        self.socket = socket.socket(socket.AF_INET6 if version6 else socket.AF_INET, kind, protocol)
        self.socket.setblocking(False)

    def begin(self) -> int:
        """Send or dial; return the selector event to wait for, 0 if the attempt failed at once."""
        try:
            if self.way.startswith("tcp"):
                self.socket.connect_ex(self._peer)
                return selectors.EVENT_WRITE
            self.socket.connect(self._peer)
            self.socket.send(self._echo_request() if self.way.startswith("ping") else self._token)
        except OSError:
            return 0
        return selectors.EVENT_READ

    def go_on(self, event: int) -> int:
        """Do what the socket is ready for; return the next event to wait for, 0 at the end."""
        try:
            if event & selectors.EVENT_WRITE:
                self.socket.send(self._token)
                return selectors.EVENT_READ
            data = self.socket.recv(65536)
        except OSError:
            return 0
        self._heard = (self._heard if self.way.startswith("tcp") else b"") + data
        self.answered = self._token in self._heard
        return 0 if self.answered or not data else selectors.EVENT_READ

    def _echo_request(self) -> bytes:
        if self.way == "ping6":  # the kernel fills in the checksum
            return struct.pack("!BBHHH", 128, 0, 0, 0, 1) + self._token
        body = struct.pack("!HH", 0, 1) + self._token
        total = 0x0800 + sum(struct.unpack(f"!{len(body) // 2}H", body))
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        return struct.pack("!BBH", 8, 0, ~total & 0xFFFF) + body


def finish(trips: Iterable[RoundTrip], timeout_ms: int = TIMEOUT_MS) -> None:
    """Run the round trips together until all are answered or failed, at most `timeout_ms`; closes their sockets."""
    deadline = time.monotonic() + timeout_ms / 1000
    all_trips = list(trips)
    with selectors.DefaultSelector() as selector:
        for trip in all_trips:
            if event := trip.begin():
                selector.register(trip.socket, event, trip)
        while selector.get_map() and (left_s := deadline - time.monotonic()) > 0:
            for key, ready in selector.select(left_s):
                if event := key.data.go_on(ready):
                    selector.modify(key.fileobj, event, key.data)
                else:
                    selector.unregister(key.fileobj)
    for trip in all_trips:
        trip.socket.close()


def _round_trips(wanted: Sequence[tuple[Member, Member, str]], timeout_ms: int) -> list[tuple[str, str, str]]:
    entered = ""
    trips: dict[tuple[str, str, str], RoundTrip] = {}
    for source, target, way in wanted:
        if entered != source.namespace:
            enter(source.namespace)
            entered = source.namespace
        address = target.ipv6 if way.endswith("6") else target.ipv4
        trips[source.name, target.name, way] = RoundTrip(way, address)
    finish(trips.values(), timeout_ms)
    return [key for key, trip in trips.items() if trip.answered]
