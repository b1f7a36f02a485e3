"""Being told to end, once: the first signal unwinds what runs, later ones leave the cleaning up alone."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """We were told to end."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        super().__init__(number.name)


class Interrupts:
    """As a context manager, turns the first SIGINT, SIGTERM or SIGHUP into `Interrupted` and ignores the others.

    `first` is that signal, also if it came too late to interrupt anything. `last`: the process ends after it, and what
    is left of it is not interrupted either.
    """

    def __init__(self, *, last: bool = False) -> None:
        self.first: signal.Signals | None = None
        self._last = last
        self._closed = False
        self._before: list[tuple[signal.Signals, object]] = []

    def close(self) -> None:
        """Ignore signals from now on: what follows must not be interrupted."""
        self._closed = True

    def __enter__(self) -> Interrupts:
        self._before = [(number, signal.signal(number, self._told)) for number in SIGNALS]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in [] if self._last and self.first else self._before:
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def _told(self, number: int, frame: FrameType | None) -> None:
        self.first = self.first or signal.Signals(number)
        if not self._closed:
            self._closed = True
            raise Interrupted(signal.Signals(number))


def wait() -> NoReturn:
    """Do nothing until a signal says to end."""
    while True:
        signal.pause()
