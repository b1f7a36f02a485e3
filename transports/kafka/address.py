"""Where a Kafka bus is: `kafka://HOST:PORT[,HOST:PORT...]/PREFIX[?config=FILE]`, percent-encoded if need be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from trogdor_bus.errors import BusError
from trogdor_bus.transports.address import address_and_port
from trogdor_bus.transports.address import parse as parse_server

DEFAULT_PORT = 9092
DEFAULT_PREFIX = "trogdor"
LEGAL_PREFIX = re.compile(r"[a-zA-Z0-9._-]{1,200}")
FORM = "write kafka://HOST:PORT[,HOST:PORT...]/PREFIX[?config=FILE]"


@dataclass(frozen=True)
class Address:
    """Brokers to ask first (`HOST:PORT`), what topics' names begin with, and a file of librdkafka properties."""

    servers: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX
    config: Path | None = None

    @property
    def bootstrap(self) -> str:
        """Return the brokers as Kafka's tools take them."""
        return ",".join(self.servers)

    def topic(self, name: str) -> str:
        """Return the full name of one of our topics."""
        return f"{self.prefix}.{name}"

    def __str__(self) -> str:
        return f"Kafka at {self.bootstrap} (topics {self.prefix}.*)"


def parse(url: str) -> Address:
    """Return the address; BusError if it is none."""
    rest, _, query = url.removeprefix("kafka://").partition("?")
    brokers, _, prefix = rest.partition("/")
    prefix = unquote(prefix) or DEFAULT_PREFIX
    if not LEGAL_PREFIX.fullmatch(prefix):
        raise BusError(f"{prefix!r} cannot begin a topic's name: use at most 200 of a-z, A-Z, 0-9, '.', '_' and '-'")
    config = None
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key != "config" or not value or "\0" in value:
            raise BusError(f"{url!r} says {key}={value}, which means nothing here: {FORM}")
        config = Path(value)
    return Address(tuple(_server(text) for text in unquote(brokers).split(",")), prefix, config)


def _server(text: str) -> str:
    if not text or set(text) & set("@/ "):
        raise BusError(f"{text!r} is no broker: {FORM}")
    return address_and_port(*parse_server(f"kafka://{text}", DEFAULT_PORT, 1))
