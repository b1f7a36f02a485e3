"""JSON for people and machines: our own texts in the words of the command line, what people gave as it is."""

from __future__ import annotations

from typing import Any

import msgspec

from trogdor_bus.cli.wording import said

TEXTS = frozenset(
    {
        "chosen",
        "description",
        "dirty",
        "error",
        "failed",
        "givenUp",
        "given_up",
        "halted",
        "left_out",
        "line",
        "losses",
        "missed",
        "not_used_here",
        "note",
        "notes",
        "producer_error",
        "reason",
        "residue",
        "status",
        "stopped",
        "strays",
        "summary",
        "text",
        "trouble",
        "unproven",
        "warnings",
    }
)
"""The fields whose texts are ours, in Structs and in what the command line makes of them."""
GIVEN = frozenset({"spec"})
"""The fields of Structs that hold what somebody gave."""
_MARK = "‹".encode()


def said_json(value: Any) -> bytes:
    """Return Structs, or anything made of them, as JSON: our texts as the command line says them, all else as it is."""
    plain = msgspec.json.encode(value)
    return msgspec.json.encode(said_parts(value)) if _MARK in plain else plain


def said_parts(value: Any) -> Any:
    """Return Structs, or anything made of them, with our texts as the command line says them."""
    if isinstance(value, msgspec.Struct):
        fields = ((name, getattr(value, name)) for name in value.__struct_fields__ if name not in GIVEN)
        return msgspec.structs.replace(value, **{name: _said(name, field) for name, field in fields})
    if isinstance(value, dict):
        return {name: _said(name, field) for name, field in value.items()}
    return type(value)(map(said_parts, value)) if type(value) in (list, tuple) else value


def _said(name: str, field: Any) -> Any:
    if name in TEXTS and isinstance(field, str):
        return said(field)
    if name in TEXTS and type(field) in (list, tuple):
        return type(field)(said(one) if isinstance(one, str) else said_parts(one) for one in field)
    return said_parts(field)
