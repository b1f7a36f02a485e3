"""Envelopes: what the ends of a fan tell each other beside the frame. A frame without one passes as it is.

    0xF5 "fan"   2 bytes, big-endian   header (JSON)   frame
    MARK         length of the header

No UTF-8 text has the byte 0xF5, so no frame of the protocol begins with it.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.errors import BusError
from trogdor_bus.names import shown

MARK = b"\xf5fan"

_Name = Annotated[str, msgspec.Meta(max_length=1000)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Report(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """From an agent, around each frame: who it is, which of its links this one is, and how each of them does.

    `life` grows with each start of the agent (ms, its wall clock), `sent_ms` within a life. `ages_ms` has, for each
    link, how long ago the newest frame left that was echoed there; None for never.
    """

    node: _Name
    life: _Number
    sent_ms: _Number
    on: _Name
    ages_ms: Annotated[dict[_Name, _Number | None], msgspec.Meta(max_length=64)]


class Echo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """From the coordinator, on the link on which a report came: that it did. It has no frame."""

    life: _Number
    sent_ms: _Number


class Asked(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """From a client, around each request: which client, and which of its requests."""

    client: _Name
    number: _Number


Header = TypeVar("Header", Report, Echo, Asked)


def wrap(header: Report | Echo | Asked, frame: bytes = b"") -> bytes:
    """Return the frame in an envelope."""
    text = msgspec.json.encode(header)
    return b"".join((MARK, len(text).to_bytes(2, "big"), text, frame))


def unwrap(data: bytes, kind: type[Header]) -> tuple[Header | None, bytes]:
    """Return the header, None if there is none, and the frame; BusError for a broken envelope."""
    if not data.startswith(MARK):
        return None, data
    begin = len(MARK) + 2
    end = begin + int.from_bytes(data[len(MARK) : begin], "big")
    if len(data) < end:
        raise BusError("an envelope of the fan is cut short")
    try:
        return msgspec.json.decode(data[begin:end], type=kind), data[end:]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BusError(f"an envelope of the fan cannot be read: {shown(str(error))}") from None


def too_large(data: bytes) -> bool:
    """Return whether no link carries that."""
    return len(data) > MAX_FRAME_BYTES
