"""The part of the long suites that is run: TROGDOR_PART=2/4 is the second of four, and the four are all of it.

Nothing is left out for good: what is marked `core` is in every part, and everything else in exactly one, by a hash of
its name. CI runs one part, which its tree chooses (`.ci/part`); without TROGDOR_PART all is run.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import NamedTuple

VARIABLE = "TROGDOR_PART"


class Part(NamedTuple):
    """The `number`th of `of` parts, from 1 on; the first of one is everything."""

    number: int = 1
    of: int = 1

    def has(self, name: str) -> bool:
        """Return whether what has that name is in this part; it is in exactly one."""
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % self.of == self.number - 1

    def of_range(self, size: int) -> range:
        """Return this part of the numbers below `size`, which are all in some part, as nearly equal as can be."""
        return range(size * (self.number - 1) // self.of, size * self.number // self.of)


WHOLE = Part()


def parse(text: str) -> Part:
    """Return the part that a text such as 2/4 names, everything if it is empty; ValueError with the form."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    part = Part(*map(int, found.groups())) if found else WHOLE
    if (text and not found) or not 1 <= part.number <= part.of:
        raise ValueError(f"{VARIABLE}={text} names no part; the second of four is 2/4")
    return part


def asked() -> Part:
    """Return the part that the environment asks for."""
    return parse(os.environ.get(VARIABLE, ""))
