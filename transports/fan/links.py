"""The links of a fan: each opened in a thread, and again later where that cannot be done now."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar
from urllib.parse import urlsplit

from trogdor_bus.errors import BusError, ConflictError, RefusedError, SpecError, TakenError, TrogdorBusError

RETRY_S = 2.0
"""How long after a link could not be opened it is tried again."""
PATIENCE_S = 0.2
"""How long the other links are waited for when the first one is open."""
NO_GO = (TakenError, SpecError, ConflictError, RefusedError)
"""What a coordinator does not begin with: another one is there, or a person must mend something."""

log = logging.getLogger("trogdor_bus.transports.fan")


class Closable(Protocol):
    """Any end of a bus."""

    def close(self) -> None:
        """Let go of everything."""
        ...


End = TypeVar("End", bound=Closable)


class Link(Generic[End]):
    """One link: its name for people, its URL, and its end once it is open, else why it is not."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url
        self.end: End | None = None
        self.error: TrogdorBusError | None = None
        self.opening = True
        self.said = ""

    def why_closed(self) -> str:
        """Return why the link is not open yet."""
        return str(self.error) if self.error else f"{self.url} is still being opened"


def names(urls: Sequence[str]) -> list[str]:
    """Return how people call each link: its scheme, with its address where several have one scheme."""
    schemes = [url.partition("://")[0] for url in urls]
    several = Counter(schemes)
    return [
        scheme if several[scheme] == 1 else f"{scheme} {urlsplit(url).netloc}"
        for scheme, url in zip(schemes, urls, strict=True)
    ]


class Links(Generic[End]):
    """All links of one end of a fan, opened by `opener` from their URLs. After `begin` new ones come in the loop."""

    def __init__(self, url: str, opener: Callable[[str], End]) -> None:
        urls = url.split(" ")
        if len(set(urls)) < len(urls):
            raise BusError(f"one URL is given twice: {url}")
        self.all: list[Link[End]] = [Link(name, one) for name, one in zip(names(urls), urls, strict=True)]
        self.closed = False
        self._opener = opener
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_open: Callable[[Link[End], End], None] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def open(self, patience_s: float = PATIENCE_S, no_go: tuple[type[TrogdorBusError], ...] = ()) -> None:
        """Open what can be opened: all, or within `patience_s` at least one; the error of the links if it is none.

        An error of a kind in `no_go` closes everything, and is raised.
        """
        until = time.monotonic() + patience_s
        for link in self.all:
            self._try(link)
        with self._changed:
            while any(link.opening for link in self.all):
                left = until - time.monotonic()
                if self.opened() and left <= 0:
                    break
                self._changed.wait(left if left > 0 else None)
        errors = [link.error for link in self.all if link.error]
        fatal = next((error for error in errors if isinstance(error, no_go)), None)
        if fatal is None and self.opened():
            return
        self.close()
        if fatal is not None or len({str(error) for error in errors}) == 1:
            raise fatal or errors[0]
        raise BusError("; ".join(f"{link.name}: {link.error}" for link in self.all))

    def begin(self, on_open: Callable[[Link[End], End], None]) -> None:
        """Hand over every link that is open, now or later, in the running loop."""
        with self._changed:
            self._loop, self._on_open = asyncio.get_running_loop(), on_open
            settled = [link for link in self.all if not link.opening]
        for link in settled:
            self._settle(link)

    def opened(self) -> list[tuple[Link[End], End]]:
        """Return the links that are open, with their ends."""
        return [(link, link.end) for link in self.all if link.end is not None]

    def close(self) -> None:
        """Close every end, and open no more."""
        with self._changed:
            if self.closed:
                return
            self.closed = True
            ends = [end for _, end in self.opened()]
        for timer in self._timers.values():
            timer.cancel()
        with contextlib.ExitStack() as stack:
            for end in ends:
                stack.callback(end.close)

    def _try(self, link: Link[End]) -> None:
        link.opening = True
        threading.Thread(target=self._open, args=(link,), name=f"opening {link.url}", daemon=True).start()

    def _open(self, link: Link[End]) -> None:
        end, failed = None, None
        try:
            end = self._opener(link.url)
        except TrogdorBusError as error:
            failed = error
        except Exception as error:  # a bug in one transport must not cost the other links
            log.exception("link %s: internal error", link.name)
            failed = BusError(f"internal error: {error!r}")
        with self._changed:
            link.opening, link.error = False, failed
            late = self.closed
            if not late:
                link.end = end
            loop = self._loop
            self._changed.notify_all()
        if late and end is not None:
            end.close()
        elif loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._settle, link)

    def _settle(self, link: Link[End]) -> None:
        if self.closed or self._loop is None or self._on_open is None:
            return
        if link.end is not None:
            if link.said:
                log.info("link %s is open", link.name)
            self._on_open(link, link.end)
            return
        if link.why_closed() != link.said:
            link.said = link.why_closed()
            log.warning("link %s is left out: %s; trying again each %g s", link.name, link.said, RETRY_S)
        self._timers[link.name] = self._loop.call_later(RETRY_S, self._try, link)
