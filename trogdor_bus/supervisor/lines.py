"""What a child says, in bounds: lines that are cut, of which so many are passed on."""

from __future__ import annotations

MOST_LINE = 64 * 1024
"""So many bytes of a line are read; the rest of it is dropped."""


class Lines:
    """Splits what a pipe says into lines."""

    def __init__(self) -> None:
        self._begun, self._skips = b"", False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their ends."""
        *whole, rest = data.split(b"\n")
        found = []
        for part in whole:
            if not self._skips:
                found.append((self._begun + part)[:MOST_LINE])
            self._begun, self._skips = b"", False
        if not self._skips:
            self._begun += rest
        if len(self._begun) > MOST_LINE:
            found.append(self._begun[:MOST_LINE])
            self._begun, self._skips = b"", True
        return found

    def rest(self) -> list[bytes]:
        """Return the line that has no end, once, if there is one."""
        begun, self._begun = self._begun, b""
        return [begun] if begun else []


class Allowance:
    """Lets `burst` lines through at once, and `rate` more each second; counts those that it does not."""

    def __init__(self, burst: int, rate: int) -> None:
        self._burst, self._rate = burst, rate
        self._left, self._at_s, self.dropped = float(burst), 0.0, 0

    def take(self, now_s: float) -> bool:
        """Return whether one more may pass now."""
        if self._at_s:
            self._left = min(self._burst, self._left + self._rate * (now_s - self._at_s))
        self._at_s = now_s
        if self._left < 1:
            self.dropped += 1
            return False
        self._left -= 1
        return True
