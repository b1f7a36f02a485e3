"""What nobody foresaw, in the simulation: errors that are planted, and the fuse of a host."""

from __future__ import annotations

from typing import NoReturn

from trogdor_bus.fuse import Crash, Record, begun, crashed


class PlantedError(Exception):
    """An error of which no code of ours knows; `about` is the task at which it comes up, "" for none."""

    def __init__(self, about: str = "") -> None:
        self.about = about
        super().__init__("nobody foresaw this")


class SimFuse:
    """The fuse of one host, whose file survives; the rules are the real ones."""

    def __init__(self) -> None:
        self._record = Record()

    @property
    def aside(self) -> frozenset[str]:
        return frozenset(self._record.aside)

    @property
    def bare(self) -> bool:
        return self._record.bare

    def said(self) -> str:
        return "it crashed again and again" if self._record.blown is not None else ""

    def blow(self, error: BaseException, about: str = "") -> NoReturn:
        raise error

    def start(self, now_ms: int) -> None:
        """Begin a life."""
        self._record = begun(self._record, "boot", now_ms / 1_000)

    def end(self, now_ms: int, about: str) -> None:
        """End a life at what nobody foresaw."""
        self._record = crashed(self._record, Crash(boot_id="boot", at_s=now_ms / 1_000, place="here", about=about))

    def mend(self) -> bool:
        """Let somebody mend what failed; return whether the life that runs does without it, and is to be ended."""
        blown = self._record.blown is not None
        self._record = Record()
        return blown
