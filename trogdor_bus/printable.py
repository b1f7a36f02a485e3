"""Texts that steer no terminal: what is not printable, such as U+202E or an escape sequence, is spelled out."""

from __future__ import annotations

import json
from collections.abc import Sequence


def escape(text: str) -> str:
    """Return `text` with everything that is not printable, line ends included, written as an escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def escape_lines(text: str) -> str:
    """Return `text` with everything that is not printable written as an escape, but for the ends of its lines."""
    return "\n".join(map(escape, text.split("\n")))


def escape_json(text: str) -> str:
    """Return a JSON document that says the same, in which what is not printable stands as an escape of JSON."""
    if all(map(str.isprintable, text.split("\n"))):
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def cut(text: str, most: int) -> str:
    """Return a text of at most about so many characters; one that is cut says so."""
    return text if len(text) <= most else f"{text[:most]}... (cut)"


def cut_lines(lines: Sequence[str], most: int) -> tuple[str, ...]:
    """Return the first of some lines, of about so many characters together; it is said how many are left out."""
    kept: list[str] = []
    for line in lines:
        if most <= 0:
            return (*kept, f"and {len(lines) - len(kept)} more")
        kept.append(cut(line, most))
        most -= len(line)
    return tuple(kept)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
