"""What nobody foresaw, in the simulation: errors that are planted, and the fuse of a host."""

from __future__ import annotations

from trogdor_bus.fuse import ENDS, WITHIN_S


class PlantedError(Exception):
    """An error of which no code of ours knows; `about` is the task at which it comes up, "" for none."""

    def __init__(self, about: str = "") -> None:
        self.about = about
        super().__init__("nobody foresaw this")


class SimFuse:
    """The fuse of one host, whose file survives; the life that `start` begins may be one without what failed."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, str]] = []
        self.aside: set[str] = set()
        self.blown = False

    def start(self, now: int) -> str:
        """Begin a life; return why it does without something, "" if it does not."""
        last = self._ends[-ENDS:]
        recent = [at for at, _ in last if now - at <= WITHIN_S * 1_000]
        self.blown = len(recent) == ENDS
        self.aside = {about for _, about in last if about} if self.blown else set()
        if self.blown:
            self._ends.clear()
        return "it ended three times" if self.blown else ""

    def end(self, now: int, about: str) -> None:
        """Note an end."""
        self._ends.append((now, about))

    def mend(self) -> bool:
        """Let somebody mend what failed; return whether the life that runs does without it, and is to be ended."""
        self._ends.clear()
        return self.blown
