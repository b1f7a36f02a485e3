"""Who and where a coordinator is, and its settings: what the machine is told at its start."""

from __future__ import annotations

import hashlib

import msgspec

from trogdor_bus.platform import ProcessIdentity


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The coordinator's settings, ms. `lease_ms` is what its agents use unless told otherwise."""

    beat_ms: int = 1_000
    lease_ms: int = 30_000


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Who and where this coordinator is: `me` is a uuid made at each start.

    `addresses` and `ports` are where it listens, `machine` are all addresses of the machine where it runs. `cluster` is
    where it looks for the Kafka cluster under test, "" for none.
    """

    me: str
    process: ProcessIdentity | None = None
    addresses: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    machine: tuple[str, ...] = ()
    url: str = ""
    cluster: str = ""

    def first_worker(self) -> int:
        """Return where the worker ids of this start begin: far from any other's, even on a copy of the store."""
        return int.from_bytes(hashlib.blake2b(self.me.encode(), digest_size=8).digest()) >> 2
