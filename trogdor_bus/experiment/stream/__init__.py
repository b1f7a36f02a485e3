"""The liveness stream: one topic, one long-lived producer at a steady rate, and an auditor that reads it all."""

from __future__ import annotations

import time

import msgspec

from trogdor_bus.clock import Clock, SteadyWallClock
from trogdor_bus.errors import HostError
from trogdor_bus.experiment.ledger import Read, Sent
from trogdor_bus.experiment.stream.auditor import Auditor
from trogdor_bus.experiment.stream.reread import Reread
from trogdor_bus.experiment.stream.settings import Access, Acks, StreamSettings
from trogdor_bus.experiment.stream.writer import Writer

__all__ = ["Access", "Acks", "Stream", "StreamCounts", "StreamSettings"]

NOBODY = "trogdor-bus-stream"
"""The group of consumers that are assigned; it has no members and no offsets."""


class StreamCounts(msgspec.Struct, frozen=True, kw_only=True):
    """A stream as it stands: sends and what became of them, deliveries (those to the group apart).

    `last_delivery_ms` is by partition, epoch ms, -1 if there was none. `late_ms`: how long this process kept a record
    waiting at worst. `trouble`: what the clients complained about since something last worked, "" if nothing.
    """

    sent: int = 0
    acked: int = 0
    indeterminate: int = 0
    failed: int = 0
    open: int = 0
    delivered: int = 0
    last_delivery_ms: tuple[int, ...] = ()
    group_delivered: int = 0
    late_ms: int = 0
    trouble: str = ""


class Stream:
    """Sends to a topic, which is its own, and reads it; SpecError if librdkafka refuses the settings.

    The records go to the partitions in turn, and are handed over whether the brokers answer or not. `clock` gives all
    times, epoch ms.
    """

    def __init__(
        self,
        access: Access,
        topic: str,
        partitions: int,
        settings: StreamSettings,
        run: str,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.topic, self.partitions, self.settings, self.run = topic, partitions, settings, run
        self.clock = clock or SteadyWallClock()
        self._access = access
        self._writer = Writer(access, topic, partitions, settings, run, clock=self.clock)
        self._auditor = Auditor(settings.consumer(access, NOBODY), topic, partitions, self.clock)
        self._group: Auditor | None = None
        if settings.group:
            grouped = settings.consumer(access, topic, commits=True)
            self._group = Auditor(grouped, topic, partitions, self.clock, by_group=True)

    def start(self, timeout_s: float = 15.0) -> None:
        """Return when the topic has leaders, is read, and sending has begun; HostError in words, and it is stopped."""
        deadline_s = time.monotonic() + timeout_s
        try:
            self._writer.find_topic(timeout_s)
            for auditor in self._auditors():
                auditor.start()
            if not self._auditor.wait_ready(max(0.0, deadline_s - time.monotonic())):
                why = self._auditor.broken or self._auditor.troubles.last or "there is no answer"
                raise HostError(f"topic {self.topic} cannot be read within {timeout_s:g} s: {why}")
        except HostError:
            self.stop(0)
            raise
        self._writer.start()

    def stop(self, flush_s: float = 10.0) -> None:
        """Send no more, wait for answers, then for deliveries of what was acknowledged, each for at most `flush_s`."""
        self._writer.stop(flush_s)
        wanted = self._writer.last_offsets()
        for auditor in self._auditors():
            auditor.stop(wanted, flush_s)

    def counts(self) -> StreamCounts:
        """Return how it stands; of any thread."""
        ledger = self._writer.ledger
        acked, indeterminate, failed = ledger.acked, ledger.indeterminate, ledger.failed
        sent = len(ledger)  # after the others, of which it is never less than the sum
        return StreamCounts(
            sent=sent,
            acked=acked,
            indeterminate=indeterminate,
            failed=failed,
            open=sent - acked - indeterminate - failed,
            delivered=len(self._auditor.delivered),
            last_delivery_ms=tuple(self._auditor.last_ms),
            group_delivered=len(self._group.delivered) if self._group is not None else 0,
            late_ms=self._writer.late_ms,
            trouble=self._writer.troubles.last or self._auditor.troubles.last,
        )

    @property
    def fatal(self) -> str:
        """Return why the producer can do no more (a fatal error of librdkafka's), "" while it can."""
        return self._writer.troubles.fatal

    @property
    def broken(self) -> str:
        """Return why the stream itself cannot be trusted (a thread of ours died or hangs), "" if it can."""
        return self._writer.broken or next((one.broken for one in self._auditors() if one.broken), "")

    def sent(self) -> list[Sent]:
        """Return every send as it is known now, in order of numbers."""
        return self._writer.ledger.sent()

    def delivered(self) -> list[Read]:
        """Return everything that the auditor has read, in order of reading."""
        return self._auditor.delivered.copy()

    def group_delivered(self) -> list[Read]:
        """Return everything that the group has read, in order of reading; empty without a group."""
        return self._group.delivered.copy() if self._group is not None else []

    def reread(self, timeout_s: float) -> list[Read]:
        """Return everything in the topic, read anew from offset 0 to the end offsets, which are taken first.

        HostError in words if that is not done in time, or if the log no longer begins at 0.
        """
        settings = self.settings.consumer(self._access, NOBODY, reset="error")
        return Reread(settings, self.topic, self.partitions, self.clock, timeout_s).read()

    def _auditors(self) -> list[Auditor]:
        return [self._auditor] if self._group is None else [self._auditor, self._group]
