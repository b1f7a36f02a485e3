"""The coordinator's end of a fan: every request once, every answer on each link on which it was asked, echoes."""

from __future__ import annotations

import time
from collections import OrderedDict
from functools import partial
from pathlib import Path

from trogdor_bus.bus import MAX_FRAME_BYTES, Answer, BusBrokers, CoordinatorBus, OnFrame, OnRequest
from trogdor_bus.errors import BusError
from trogdor_bus.transports import transport
from trogdor_bus.transports.fan.envelope import Asked, Echo, Report, too_large, unwrap, wrap
from trogdor_bus.transports.fan.links import NO_GO, Link, Links, log

OPEN_S = 6.0
"""How long a coordinator waits for its slowest link, once one is open."""
ALIVE_MS = 3_500
"""A link is alive if a frame that left an agent within this time was echoed on it."""
FORGET_MS = 60_000
"""What an agent that is gone, or has one link only by now, told of its links is forgotten after this time."""
KEEP_S = 30.0
MAX_KEPT = 4096
MAX_KEPT_BYTES = 8 * MAX_FRAME_BYTES
"""Answers are kept for so long, at most so many of so many bytes, to be given again when the question is repeated."""
MAX_ANSWERS = 16
MAX_NODES = 10_000
MAX_COMPLAINTS = 10


class _Question:
    """A request that was delivered: who waits for its answer, or the answer."""

    def __init__(self, now_s: float) -> None:
        self.asked_s = now_s
        self.waiting: list[Answer] = []
        self.reply: bytes | None = None

    def ask(self, answer: Answer) -> None:
        """Give the answer, now or when it is there."""
        if self.reply is not None:
            answer(self.reply)
        elif len(self.waiting) < MAX_ANSWERS:
            self.waiting.append(answer)


class _Told:
    """What an agent told last of its links, and on which of them it was ever heard."""

    def __init__(self) -> None:
        self.stamp = (-1, -1)
        self.ages_ms: dict[str, int | None] = {}
        self.since_ms = self.at_ms = 0
        self.heard_on: set[str] = set()

    def hear(self, report: Report, now_ms: int) -> None:
        """Take in a report, unless a newer one is here already."""
        stamp = (report.life, report.sent_ms)
        if stamp < self.stamp and now_ms - self.at_ms < ALIVE_MS:
            return
        if report.life != self.stamp[0]:
            self.since_ms = now_ms
        if stamp != self.stamp:
            self.stamp, self.ages_ms, self.at_ms = stamp, report.ages_ms, now_ms
        self.heard_on = (self.heard_on | {report.on}) & report.ages_ms.keys()

    def links(self, now_ms: int) -> dict[str, bool]:
        """Return each link and whether it is alive; a link is called dead only when that can be known.

        Of several links of one scheme those that lead elsewhere, to another coordinator's address, are left out.
        """
        fresh, known = now_ms - self.at_ms < ALIVE_MS, now_ms - self.since_ms >= ALIVE_MS
        found_schemes = {name.partition(" ")[0] for name in self.heard_on}
        states = {}
        for name, age_ms in self.ages_ms.items():
            alive = fresh and age_ms is not None and age_ms < ALIVE_MS
            ours = name in self.heard_on or name.partition(" ")[0] not in found_schemes
            if ours and (alive or known):
                states[name] = alive
        return states


class FanCoordinator:
    """The coordinator's end of one or several links."""

    def __init__(self, url: str, keys: Path | None) -> None:
        self._told: OrderedDict[str, _Told] = OrderedDict()
        self._questions: OrderedDict[tuple[str, int], _Question] = OrderedDict()
        self._kept_bytes = 0
        self._complaints = 0
        self._links: Links[CoordinatorBus] = Links(url, lambda one: transport(one).open_coordinator(one, keys))
        self._links.open(OPEN_S, NO_GO)

    def receive(self, on_beat: OnFrame, on_request: OnRequest) -> None:
        """Begin to deliver: beats of every link, and requests once each, with the way to answer on every link."""
        self._on_beat, self._on_request = on_beat, on_request
        self._links.begin(
            lambda link, end: end.receive(partial(self._take_beat, link, end), partial(self._take_request, link))
        )

    def publish(self, node: str, frame: bytes) -> None:
        """Send a frame to whoever listens under that name, on every link."""
        if self._fits(frame):
            for _, end in self._links.opened():
                end.publish(node, frame)

    def announce(self, topic: str, frame: bytes) -> None:
        """Send a frame to every monitor, on every link."""
        if self._fits(frame):
            for _, end in self._links.opened():
                end.announce(topic, frame)

    def links(self) -> dict[str, dict[str, bool]]:
        """Return, for each node whose agent has several links, each link and whether frames go both ways on it."""
        now_ms = _now_ms()
        for node in [node for node, told in self._told.items() if now_ms - told.at_ms > FORGET_MS]:
            del self._told[node]
        return {node: told.links(now_ms) for node, told in self._told.items()}

    def brokers(self) -> BusBrokers | None:
        """Return what the only link says of the brokers that carry it; None if there is another link as well."""
        return self._links.opened()[0][1].brokers() if len(self._links.all) == 1 else None

    def close(self) -> None:
        """Close every link."""
        self._links.close()

    def _take_beat(self, link: Link[CoordinatorBus], end: CoordinatorBus, data: bytes) -> None:
        if self._links.closed:
            return
        try:
            report, frame = unwrap(data, Report)
        except BusError as error:
            self._complain(link, error)
            return
        if report is not None:
            end.publish(report.node, wrap(Echo(life=report.life, sent_ms=report.sent_ms)))
            told = self._told.setdefault(report.node, _Told())
            told.hear(report, _now_ms())
            if len(self._told) > MAX_NODES:
                self._told.popitem(last=False)
        self._on_beat(frame)

    def _take_request(self, link: Link[CoordinatorBus], data: bytes, answer: Answer) -> None:
        if self._links.closed:
            return
        try:
            asked, frame = unwrap(data, Asked)
        except BusError as error:
            self._complain(link, error)
            return
        if asked is None:
            self._on_request(frame, answer)
            return
        key, now_s = (asked.client, asked.number), time.monotonic()
        known = self._questions.get(key)
        if known is not None:
            known.ask(answer)
            return
        question = self._questions[key] = _Question(now_s)
        self._forget(now_s)
        question.ask(answer)
        self._on_request(frame, partial(self._answer, question, key))

    def _answer(self, question: _Question, key: tuple[str, int], reply: bytes) -> None:
        """Answer on every link on which it was asked; only the first answer counts."""
        if question.reply is not None:
            return
        question.reply = reply
        waiting, question.waiting = question.waiting, []
        for answer in waiting:
            answer(reply)
        if self._questions.get(key) is question:
            self._kept_bytes += len(reply)
            self._forget(time.monotonic())

    def _forget(self, now_s: float) -> None:
        """Forget the oldest questions: those that nobody repeats any more, or too many."""
        while self._questions:
            question = next(iter(self._questions.values()))
            many = len(self._questions) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES
            if not many and now_s - question.asked_s < KEEP_S:
                return
            self._questions.popitem(last=False)
            self._kept_bytes -= len(question.reply or b"")

    def _fits(self, frame: bytes) -> bool:
        if too_large(frame):
            log.warning("dropped a frame of %d bytes: the bus carries at most %d", len(frame), MAX_FRAME_BYTES)
            return False
        return True

    def _complain(self, link: Link[CoordinatorBus], error: BusError) -> None:
        self._complaints += 1
        if self._complaints <= MAX_COMPLAINTS:
            log.warning("a frame on link %s was dropped: %s", link.name, error)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
