"""What a child says: lines of JSON on standard output, anything else on either stream. What is told of it is bounded.

A line of standard output that is an object may hold `status` (any JSON, the latest counts), `log` and `error` (null is
none, "" is the end without one: so it is in Trogdor).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from trogdor_bus.limits import flaw, is_too_deep
from trogdor_bus.supervisor.lines import Allowance, Lines

MOST_STATUS = 16 * 1024
"""So many bytes may a status have; a longer one is dropped, and that is told."""
MOST_LOGGED = 2_000
"""So many characters of a line are logged."""
BURST, PER_S = 100, 20
"""So many lines are logged at once, and so many more each second; others are counted."""
STATUS_S = 0.25
"""How often a status, and what was not logged, is told at most."""


class Hearing:
    """Hears one child, and says what is to be known: {"status": ...}, {"log": ...}, {"stderr": ...}, {"error": ...}.

    While `full`, whoever is told does not read: then nothing is logged, and the status waits.
    """

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say, self.full = say, False
        self._out, self._err = Lines(), Lines()
        self._allowance = Allowance(BURST, PER_S)
        self._status: Any = ()
        self._told_s, self._failed = 0.0, False

    def stdout(self, data: bytes) -> None:
        """Take in standard output; b"" is its end."""
        for line in self._out.feed(data) if data else self._out.rest():
            self._line(line)

    def stderr(self, data: bytes) -> None:
        """Take in standard error; b"" is its end."""
        for line in self._err.feed(data) if data else self._err.rest():
            self._log("stderr", line)

    def due_s(self, now_s: float) -> float | None:
        """Return how long what is held back may wait."""
        if self._status == () and not self._allowance.dropped:
            return None
        return max(0.01, self._told_s + STATUS_S - now_s) if not self.full else STATUS_S

    def tell(self, now_s: float, *, at_once: bool = False) -> None:
        """Say what was held back, if its time has come."""
        if not at_once and (self.full or now_s - self._told_s < STATUS_S):
            return
        self._told_s = now_s
        if self._status != ():
            self._say({"status": self._status})
            self._status = ()
        if dropped := self._allowance.dropped:
            self._allowance.dropped = 0
            self._say({"log": f"{dropped} lines were not logged"})

    def _line(self, line: bytes) -> None:
        word = _object(line)
        if word is None:
            self._log("log", line)
            return
        if "status" in word:
            self._take_status(word["status"])
        if "log" in word:
            self._log("log", _text(word["log"]))
        if word.get("error") is not None and not self._failed:  # the first one counts
            self._failed = True
            self.tell(time.monotonic(), at_once=True)
            self._say({"error": _text(word["error"])[:MOST_LOGGED]})

    def _take_status(self, status: Any) -> None:
        if why := flaw(status):
            self._log("log", f"a status {why}, and is dropped")
        elif (size := len(json.dumps(status))) > MOST_STATUS:
            self._log("log", f"a status of {size} bytes is dropped: {MOST_STATUS} are the most")
        else:
            self._status = status

    def _log(self, what: str, text: str | bytes) -> None:
        if self.full:
            self._allowance.dropped += 1
        elif self._allowance.take(time.monotonic()):
            text = text[:MOST_LOGGED]
            self._say({what: text if isinstance(text, str) else text.decode(errors="replace")})


def _object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a line is, None if it is none."""
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        return dict(json.loads(line))
    except (ValueError, RecursionError):
        return None


def _text(value: Any) -> str:
    """Return a value as a text that JSON can carry."""
    if is_too_deep(value):
        return "JSON that is nested too deeply"
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace").decode()
