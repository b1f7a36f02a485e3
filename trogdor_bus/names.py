"""The rules for ids and names that people choose."""

from __future__ import annotations

import unicodedata

from trogdor_bus.errors import SpecError

MAX_NAME_CHARS = 200


def check_name(name: str, what: str, path: str = "$") -> str:
    """Return `name` if it may name a task or a node; SpecError says what is wrong otherwise."""
    if not name:
        raise SpecError(f"the {what} is empty", path=path, remedy="give it a name")
    if len(name) > MAX_NAME_CHARS:
        raise SpecError(f"the {what} has {len(name)} characters", path=path, remedy=f"use at most {MAX_NAME_CHARS}")
    for char in name:
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
            raise SpecError(
                f"the {what} {name!r} holds the control character U+{ord(char):04X}", path=path, remedy="remove it"
            )
    if "/" in name:
        raise SpecError(f"the {what} {name!r} holds a slash", path=path, remedy="use '-' or '.' instead")
    return name


def shown(text: str) -> str:
    """Return what somebody wrote fit for an error: at most 120 characters of it, none that steers a terminal."""
    cut = text if len(text) <= 120 else text[:117] + "..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)
