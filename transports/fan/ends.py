"""The ends of agents, clients and monitors of a fan."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from functools import partial
from pathlib import Path

from trogdor_bus.bus import MAX_FRAME_BYTES, AgentBus, ClientBus, MonitorBus, OnFrame, OnTopic
from trogdor_bus.errors import BusError, NoCoordinatorError
from trogdor_bus.platform import Endpoint
from trogdor_bus.transports import transport
from trogdor_bus.transports.fan.coordinator import ALIVE_MS
from trogdor_bus.transports.fan.envelope import Asked, Echo, Report, too_large, unwrap, wrap
from trogdor_bus.transports.fan.links import Link, Links, log

REPEAT_S = 1.0
"""How long a request goes unanswered before it is repeated on every link."""
LOOK_S = 0.1
"""How often a waiting request looks for links that were opened meanwhile."""
LAST_WORDS_S = 0.2
"""How long after a request's time the links may take to say what their trouble was."""
MAX_SEEN = 4096


class FanAgent:
    """An agent's end of several links."""

    def __init__(self, url: str, node: str, keys: Path | None) -> None:
        self._node = node
        self._life, self._begun_s = time.time_ns() // 1_000_000, time.monotonic()
        self._echoed_ms: dict[str, int] = {}
        self._answering: list[str] | None = None
        self._links: Links[AgentBus] = Links(url, lambda one: transport(one).open_agent(one, node, keys))
        self._links.open()

    def receive(self, on_snapshot: OnFrame) -> None:
        """Begin to deliver the frames for this node, of every link."""
        self._on_snapshot = on_snapshot
        self._links.begin(lambda link, end: end.receive(partial(self._take, link)))

    def send(self, frame: bytes) -> None:
        """Send a frame to the coordinator on every link, with how each of them does."""
        if too_large(frame):
            log.warning("dropped a frame of %d bytes: the bus carries at most %d", len(frame), MAX_FRAME_BYTES)
            return
        now_ms = self._now_ms()
        ages_ms = {
            link.name: now_ms - self._echoed_ms[link.name] if link.name in self._echoed_ms else None
            for link in self._links.all
        }
        for link, end in self._links.opened():
            report = Report(node=self._node, life=self._life, sent_ms=now_ms, on=link.name, ages_ms=ages_ms)
            wrapped = wrap(report, frame)
            end.send(frame if too_large(wrapped) else wrapped)
        self._tell(ages_ms, now_ms)

    def control(self) -> tuple[Endpoint, ...]:
        """Return the addresses and ports of the control traffic of every link."""
        return tuple(dict.fromkeys(endpoint for _, end in self._links.opened() for endpoint in end.control()))

    def trouble(self) -> str:
        """Return "" if some link has none, else the trouble of each."""
        troubles = {link.name: self._trouble(link) for link in self._links.all}
        return "; ".join(f"{name}: {text}" for name, text in troubles.items()) if all(troubles.values()) else ""

    def close(self) -> None:
        """Close every link."""
        self._links.close()

    def _take(self, link: Link[AgentBus], data: bytes) -> None:
        if self._links.closed:
            return
        try:
            echo, frame = unwrap(data, Echo)
        except BusError as error:
            log.warning("a frame on link %s was dropped: %s", link.name, error)
            return
        if echo is None:
            self._on_snapshot(frame)
        elif echo.life == self._life:
            self._echoed_ms[link.name] = max(self._echoed_ms.get(link.name, 0), echo.sent_ms)

    def _tell(self, ages_ms: dict[str, int | None], now_ms: int) -> None:
        """Log which links answer, when that has changed."""
        answering = [name for name, age_ms in ages_ms.items() if age_ms is not None and age_ms < ALIVE_MS]
        if answering == self._answering or (now_ms < ALIVE_MS and len(answering) < len(ages_ms)):
            return
        if answering or self._answering:
            level = log.info if len(answering) == len(ages_ms) else log.warning
            silent = [link for link in self._links.all if link.name not in answering]
            why = "".join(f"; {link.name} is silent ({self._trouble(link) or 'no echo'})" for link in silent)
            level("the coordinator answers on %s%s", ", ".join(answering) or "no link", why)
        self._answering = answering

    def _trouble(self, link: Link[AgentBus]) -> str:
        return link.why_closed() if link.end is None else link.end.trouble()

    def _now_ms(self) -> int:
        return int((time.monotonic() - self._begun_s) * 1000)


class FanClient:
    """A client's end of several links."""

    def __init__(self, url: str, keys: Path | None) -> None:
        self._name, self._number = secrets.token_hex(16), 0
        self._begun = False
        self._links: Links[ClientBus] = Links(url, lambda one: transport(one).open_client(one, keys))
        self._links.open()

    async def request(self, frame: bytes, timeout_s: float) -> bytes:
        """Return the first answer of any link, having asked on all, and each second again.

        NoCoordinatorError, with the trouble of each link, if there is none in time; BusError if the frame is too large.
        """
        if self._links.closed:
            raise BusError("the bus is closed")
        self._number += 1
        wrapped = wrap(Asked(client=self._name, number=self._number), frame)
        if too_large(wrapped):
            room = MAX_FRAME_BYTES - len(wrapped) + len(frame)
            raise BusError(f"the request has {len(frame)} bytes, the bus carries at most {room}")
        if not self._begun:
            self._begun = True
            self._links.begin(lambda link, end: None)
        return await _Asking(self._links, wrapped, timeout_s).answer()

    def close(self) -> None:
        """Close every link; requests still waiting end with BusError."""
        self._links.close()


class _Asking:
    """One request on its way."""

    def __init__(self, links: Links[ClientBus], frame: bytes, timeout_s: float) -> None:
        self._links, self._frame, self._timeout_s = links, frame, timeout_s
        self._loop = asyncio.get_running_loop()
        self._deadline_s = self._loop.time() + timeout_s
        self._tries: dict[asyncio.Task[bytes], Link[ClientBus]] = {}
        self._asked_s: dict[str, float] = {}
        self._troubles: dict[str, str] = {}

    async def answer(self) -> bytes:
        """Return the first answer."""
        try:
            while (left_s := self._deadline_s - self._loop.time()) > 0:
                self._ask(left_s)
                await self._listen(min(left_s, LOOK_S))
                if (reply := self._reap()) is not None:
                    return reply
            await self._listen(LAST_WORDS_S)
            if (reply := self._reap()) is not None:
                return reply
        finally:
            for task in self._tries:
                task.cancel()
            await asyncio.gather(*self._tries, return_exceptions=True)
        raise NoCoordinatorError(
            f"no coordinator answered on any of {len(self._links.all)} links within {self._timeout_s:g} s"
            + "".join(f"\n  {link.name}: {self._trouble(link)}" for link in self._links.all)
        )

    def _ask(self, left_s: float) -> None:
        """Ask on every open link on which that was not done within the last second."""
        now_s = self._loop.time()
        timeout_s = round(left_s, 1) if self._asked_s else self._timeout_s
        for link, end in self._links.opened():
            if now_s - self._asked_s.get(link.name, -REPEAT_S) >= REPEAT_S:
                self._asked_s[link.name] = now_s
                self._tries[asyncio.ensure_future(end.request(self._frame, timeout_s))] = link

    async def _listen(self, seconds: float) -> None:
        """Wait until some link has an answer or an error, at most so long."""
        if self._tries:
            await asyncio.wait(self._tries, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(seconds)

    def _reap(self) -> bytes | None:
        """Return an answer if there is one; keep what went wrong on each link."""
        for task in [task for task in self._tries if task.done()]:
            link, error = self._tries.pop(task), task.exception()
            if error is None:
                return task.result()
            if not isinstance(error, BusError):
                raise error
            self._troubles.setdefault(link.name, str(error))
        if self._links.closed:
            raise BusError("the bus was closed before the answer came")
        return None

    def _trouble(self, link: Link[ClientBus]) -> str:
        return self._troubles.get(link.name) or (link.why_closed() if link.end is None else "silent")


class FanMonitor:
    """A monitor's end of several links."""

    def __init__(self, url: str, keys: Path | None) -> None:
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._links: Links[MonitorBus] = Links(url, lambda one: transport(one).open_monitor(one, keys))
        self._links.open()

    def receive(self, on_topic: OnTopic) -> None:
        """Begin to deliver (topic, frame) of all that is announced, the same one once."""

        def take(topic: str, frame: bytes) -> None:
            digest = hashlib.blake2b(topic.encode(errors="replace") + b"\0" + frame, digest_size=16).digest()
            if self._links.closed or digest in self._seen:
                return
            self._seen[digest] = None
            if len(self._seen) > MAX_SEEN:
                self._seen.popitem(last=False)
            on_topic(topic, frame)

        self._links.begin(lambda link, end: end.receive(take))

    def close(self) -> None:
        """Close every link."""
        self._links.close()
