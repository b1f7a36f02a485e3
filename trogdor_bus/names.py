"""The rules for ids and names that people choose."""

from __future__ import annotations

import unicodedata

from trogdor_bus.errors import SpecError
from trogdor_bus.printable import escape

MAX_NAME_CHARS = 200
SHOWN_CHARS = 120
"""So much of a text is shown in an error about it."""
_INVISIBLE = "\u115f\u1160\u2800\u3164\uffa0"
"""What prints as nothing, though Unicode counts it among the letters and symbols."""


def check_name(name: str, what: str, path: str = "$") -> str:
    """Return `name` if it may name a task or a node; SpecError says what is wrong otherwise."""
    return check_tag(check_heard_name(name, what, path), what, path)


def check_tag(text: str, what: str, path: str = "$") -> str:
    """Return `text` if it can be seen, and typed after a command; SpecError says what is wrong otherwise."""
    if not text.strip():
        raise SpecError(f"the {what} is {'blank' if text else 'empty'}", path=path, remedy="give it a name")
    told = _cut(text)
    for char in text:
        if not char.isprintable() or char in _INVISIBLE:
            raise SpecError(
                f"the {what} {told!a} holds U+{ord(char):04X}, which does not print", path=path, remedy="remove it"
            )
    if text != text.strip():
        raise SpecError(f"the {what} {told!r} begins or ends with a blank", path=path, remedy="remove the blank")
    if text.startswith("-"):
        raise SpecError(
            f"the {what} {told!r} begins with '-', as options do", path=path, remedy="begin it with a letter or a digit"
        )
    return text


def check_heard_name(name: str, what: str, path: str = "$") -> str:
    """Return `name` if an agent may have it: those of 0.1 could begin with "-", be blank, or not print."""
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
    """Return what somebody wrote fit for an error: `SHOWN_CHARS` of it at most, none that steers a terminal."""
    return escape(_cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 3]}..."
