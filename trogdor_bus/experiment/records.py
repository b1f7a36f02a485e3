"""The record of the liveness stream: it says which it is, and shows whether a byte of it has changed.

    bytes      what
    0-3        MAGIC
    4-7        CRC-32 (zlib's) of everything after it
    8-15       number, from 0
    16-23      when it was handed over, epoch ms
    24         length of the run's name, in bytes
    25-        the run's name, then zeros up to the record's size

All numbers are unsigned and big endian.
"""

from __future__ import annotations

import struct
import sys
import zlib
from typing import NamedTuple

from trogdor_bus.errors import SpecError

MAGIC = b"TBLS"
MAX_RUN_BYTES = 255
_HEAD = struct.Struct(">4sI")
_BODY = struct.Struct(">QQB")
SMALLEST = _HEAD.size + _BODY.size
"""Bytes of a record whose run has no name."""


class Record(NamedTuple):
    """One record: of which run, its number within it, and when it was handed over in epoch ms."""

    run: str
    number: int
    sent_ms: int


class Corrupt(NamedTuple):
    """Bytes that are no record, and why not."""

    why: str


def encode(record: Record, size: int = 0) -> bytes:
    """Return the record as `size` bytes, or more if it needs more; SpecError if the run's name is too long."""
    run = record.run.encode()
    if len(run) > MAX_RUN_BYTES:
        raise SpecError(f"the run's name has {len(run)} bytes", remedy=f"use at most {MAX_RUN_BYTES}")
    body = _BODY.pack(record.number, record.sent_ms, len(run)) + run
    body = body.ljust(size - _HEAD.size, b"\0")
    return _HEAD.pack(MAGIC, zlib.crc32(body)) + body


def decode(data: bytes) -> Record | Corrupt:
    """Return the record, or why it is none: one changed byte is always found, other damage but for a case in 2^32."""
    if len(data) < SMALLEST:
        return Corrupt(f"{len(data)} bytes are too few")
    magic, checksum = _HEAD.unpack_from(data)
    if magic != MAGIC:
        return Corrupt("it does not begin as a record does")
    if zlib.crc32(memoryview(data)[_HEAD.size :]) != checksum:
        return Corrupt("its checksum is wrong")
    number, sent_ms, length = _BODY.unpack_from(data, _HEAD.size)
    run = data[SMALLEST : SMALLEST + length]
    try:
        return Record(sys.intern(run.decode()), number, sent_ms)
    except UnicodeDecodeError:
        return Corrupt("its run has no name that can be read")
