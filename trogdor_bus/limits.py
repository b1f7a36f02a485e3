"""What JSON may hold that each of us can read again. Keepers use it, too: it imports nothing of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping

MAX_DEPTH = 100
"""So deep may the JSON or YAML of a spec or a configuration be nested, and what a program says of itself."""


def is_too_deep(data: object) -> bool:
    """Return whether it is nested too deeply, whatever the interpreter could bear."""
    layer = [data]
    for _ in range(MAX_DEPTH + 1):
        layer = [
            item
            for value in layer
            if isinstance(value, Mapping | list | tuple)
            for item in (value.values() if isinstance(value, Mapping) else value)
        ]
        if not layer:
            return False
    return True


def fits(number: int) -> bool:
    """Return whether a number has 64 bits at most."""
    return -(2**63) <= number < 2**64


def flaw(value: object) -> str:
    """Return why some of us could not read a JSON value, such as "is nested deeper than 100"; "" if all can."""
    return f"is nested deeper than {MAX_DEPTH}" if is_too_deep(value) else _flaw(value)


def _flaw(value: object) -> str:
    if isinstance(value, Mapping):
        return next(filter(None, map(_flaw, (*value, *value.values()))), "")
    if isinstance(value, list):
        return next(filter(None, map(_flaw, value)), "")
    if isinstance(value, int) and not fits(value):
        return "holds a number of more than 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return "holds a number that is none of JSON"
    if isinstance(value, str) and value.encode(errors="ignore").decode() != value:
        return "holds half a character (a lone surrogate)"
    return ""
