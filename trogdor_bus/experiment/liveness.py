"""The experiment's own topic and the stream on it: made, started, stopped, audited, deleted."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

from trogdor_bus.clock import Clock
from trogdor_bus.errors import HostError, TrogdorBusError
from trogdor_bus.experiment import series
from trogdor_bus.experiment.checker import audit
from trogdor_bus.experiment.ledger import Read, Sent
from trogdor_bus.experiment.result import (
    UNKNOWN,
    Bin,
    FaultWindow,
    Gap,
    Listed,
    PhaseLatencies,
    StreamFindings,
    Topic,
)
from trogdor_bus.experiment.stream import Stream, StreamCounts, StreamSettings
from trogdor_bus.faults.stream import StreamSpec
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.topics import Topics

FLOWS_S = 30.0
MOST_GAPS = 100


def new_run() -> str:
    """Return a fresh run id, which tells when it was made: 20261129t024643-3f2a9c."""
    return f"{time.strftime('%Y%m%dt%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


class Liveness:
    """The topic of a run, and its stream."""

    def __init__(self, access: Access, spec: StreamSpec, run: str, clock: Clock) -> None:
        self.topic = f"{spec.topic_prefix}{run}"
        self.findings: StreamFindings | None = None
        self.foreign: tuple[str, ...] = ()
        self.is_made = False
        self._access, self._spec, self._run, self._clock = access, spec, run, clock
        self._stream: Stream | None = None
        self._start_ms = self._end_ms = UNKNOWN

    async def make_topic(self) -> None:
        """Make the topic; ConflictError or HostError if that is not possible."""
        spec = self._spec
        settings = {
            "min.insync.replicas": str(spec.least_in_sync),
            "unclean.leader.election.enable": "true" if spec.unclean else "false",
            "retention.ms": str(spec.retention_ms),
            "retention.bytes": "-1",
            "cleanup.policy": "delete",
        }
        self.is_made = True  # from now on it may be there
        await asyncio.to_thread(self._create, settings)

    async def start(self) -> None:
        """Write and read, and return once a record of every partition has come; HostError if none comes in time."""
        spec = self._spec
        settings = StreamSettings(
            rate=spec.rate,
            record_bytes=spec.record_bytes,
            acks=spec.acks,
            idempotent=spec.is_idempotent,
            request_timeout_ms=spec.request_timeout_ms,
            delivery_timeout_ms=spec.delivery_timeout_ms,
            group=spec.group,
        )
        stream = Stream(self._access, self.topic, spec.partitions, settings, self._run, clock=self._clock)
        self._stream = stream
        await asyncio.to_thread(stream.start)
        deadline_s = time.monotonic() + FLOWS_S
        while min(stream.counts().last_delivery_ms, default=UNKNOWN) < 0:
            if time.monotonic() > deadline_s:
                counts = stream.counts()
                trouble = stream.broken or counts.trouble or "nobody says why"
                sent = f"{counts.acked} of {counts.sent} records are acknowledged"
                raise HostError(f"the stream does not flow after {FLOWS_S:g} s: {sent}: {trouble}")
            await asyncio.sleep(0.05)
        self._start_ms = self._clock.now_ms()

    async def stop(self, flush_s: float) -> None:
        """Write no more, and wait so long for what is under way; harmless without a stream."""
        if self._stream is None or self._end_ms != UNKNOWN:
            return
        self._end_ms = self._clock.now_ms()
        await asyncio.to_thread(self._stream.stop, flush_s)

    async def audit(self, timeout_s: float) -> None:
        """Read everything again, and hold it against what was sent; HostError if it cannot all be read in time."""
        if self._stream is None:
            return
        reread = await asyncio.to_thread(self._stream.reread, timeout_s)
        found = audit(self._stream.sent(), reread, run=self._run, idempotent=self._spec.is_idempotent)
        self.foreign = found.foreign
        self.findings = StreamFindings(
            sent=found.sent,
            acked=found.acked,
            indeterminate=found.indeterminate,
            indeterminate_found=len(found.indeterminate_found),
            failed=found.failed,
            read=found.read,
            lost=Listed.of(found.lost),
            corrupted=Listed.of(found.corrupted),
            duplicated=Listed.of(found.duplicated),
            reordered=Listed.of(found.reordered),
            foreign=Listed.of(found.foreign),
        )

    async def delete_topic(self, timeout_s: float, *, keep: bool) -> Topic:
        """Delete the topic, and return what became of it."""
        if not self.is_made or keep:
            return Topic(name=self.topic if self.is_made else "")
        try:
            async with asyncio.timeout(timeout_s + 1):
                await asyncio.to_thread(self._delete, timeout_s)
        except (TimeoutError, TrogdorBusError) as error:
            why = str(error) or f"it is still there after {timeout_s:g} s"
            return Topic(name=self.topic, error=f"{why}; `‹remove-topics›` removes it later")
        return Topic(name=self.topic, deleted=True)

    # --- what it was like ---------------------------------------------------------------------------------------------

    def counts(self) -> StreamCounts:
        """Return how the stream stands."""
        return self._stream.counts() if self._stream else StreamCounts()

    def gap_ms(self) -> int:
        """Return how long nothing has come on the partition that is silent longest, 0 while nothing is measured."""
        if self._start_ms == UNKNOWN or self._end_ms != UNKNOWN:
            return 0
        return max(0, self._clock.now_ms() - min(self.counts().last_delivery_ms, default=self._clock.now_ms()))

    @property
    def fatal(self) -> str:
        """Return why the producer can do no more, "" while it can."""
        return self._stream.fatal if self._stream else ""

    @property
    def broken(self) -> str:
        """Return why the stream itself cannot be trusted, "" if it can."""
        return self._stream.broken if self._stream else ""

    def notes(self) -> tuple[str, ...]:
        """Return what is told apart."""
        if not self._spec.group:
            return ()
        counts = self.counts()
        return (f"the consumer group got {counts.group_delivered} records, the auditor {counts.delivered}",)

    def gaps(self) -> tuple[Gap, ...]:
        """Return the longest gaps, longest first."""
        if self._start_ms == UNKNOWN:
            return ()
        found = series.gaps(self._delivered(), self._spec.partitions, self._start_ms, self._until_ms(), most=MOST_GAPS)
        return tuple(Gap(partition=gap.partition, start_ms=gap.start_ms, end_ms=gap.end_ms) for gap in found)

    def latencies(self, windows: Sequence[FaultWindow]) -> tuple[PhaseLatencies, ...]:
        """Return the latencies before, during and after the faults."""
        closed = [one for one in windows if one.end_ms != UNKNOWN]
        return series.latencies(self._sent(), self._delivered(), closed)

    def bins(self) -> tuple[Bin, ...]:
        """Return throughput and latency over time."""
        if self._start_ms == UNKNOWN:
            return ()
        return series.bins(self._sent(), self._delivered(), self._start_ms, self._until_ms())

    def _until_ms(self) -> int:
        return self._clock.now_ms() if self._end_ms == UNKNOWN else self._end_ms

    def _sent(self) -> list[Sent]:
        return self._stream.sent() if self._stream else []

    def _delivered(self) -> list[Read]:
        return self._stream.delivered() if self._stream else []

    def _create(self, settings: dict[str, str]) -> None:
        with Topics(self._access) as topics:
            topics.create(self.topic, self._spec.partitions, self._spec.replication_factor, settings)

    def _delete(self, timeout_s: float) -> None:
        with Topics(self._access) as topics:
            topics.delete(self.topic, timeout_s)
