"""A record as we read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from confluent_kafka import Message


class Record(NamedTuple):
    """The topic's full name, key, headers and value; None is a tombstone."""

    topic: str
    key: bytes
    fields: Mapping[str, bytes]
    value: bytes | None


def record_of(message: Message) -> Record:
    """Return what a message without error holds."""
    headers = cast(list[tuple[str, bytes | None]], message.headers() or [])
    fields = {name: text for name, text in headers if text is not None}
    return Record(message.topic() or "", message.key() or b"", fields, message.value())
