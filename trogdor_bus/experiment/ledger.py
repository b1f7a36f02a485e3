"""What was sent and what became of each, and what was read. All times are epoch ms on the stream's own clock."""

from __future__ import annotations

from typing import Literal

import msgspec

from trogdor_bus.experiment.records import Record

State = Literal["acked", "indeterminate", "failed", "open"]
NOTHING_MS = -1
NO_OFFSET = -1


class Sent(msgspec.Struct, frozen=True, gc=False):
    """One send.

    `open`: nothing is known yet. `acked`: the brokers acknowledged it, at `acked_ms`, as `offset` of its partition (-1
    if they did not say). `indeterminate`: it may have been written, or not. `failed`: it surely was not. `error` is
    why it was not acknowledged.
    """

    number: int
    partition: int
    sent_ms: int
    state: State = "open"
    acked_ms: int = NOTHING_MS
    offset: int = NO_OFFSET
    error: str = ""


class Read(msgspec.Struct, frozen=True, gc=False):
    """One record as it was read; `record` is None if it could not be decoded, and `why` says why."""

    partition: int
    offset: int
    read_ms: int
    record: Record | None = None
    why: str = ""


class Ledger:
    """Every send of a run, in order of their numbers, which count from 0. One thread writes; any may read."""

    def __init__(self) -> None:
        self._sent: list[Sent] = []
        self.acked = self.indeterminate = self.failed = 0

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def open(self) -> int:
        """Return of how many nothing is known yet."""
        return len(self._sent) - self.acked - self.indeterminate - self.failed

    def hand_over(self, partition: int, sent_ms: int) -> int:
        """Note that a record is handed over, and return its number."""
        self._sent.append(Sent(len(self._sent), partition, sent_ms))
        return len(self._sent) - 1

    def acknowledge(self, number: int, acked_ms: int, offset: int = NO_OFFSET) -> None:
        """Note that the brokers acknowledged an open one."""
        self._close(number, state="acked", acked_ms=acked_ms, offset=offset)
        self.acked += 1

    def doubt(self, number: int, error: str) -> None:
        """Note that an open one may have been written, or not."""
        self._close(number, state="indeterminate", error=error)
        self.indeterminate += 1

    def fail(self, number: int, error: str) -> None:
        """Note that an open one surely was not written."""
        self._close(number, state="failed", error=error)
        self.failed += 1

    def doubt_open(self, error: str) -> None:
        """Note of all that are open that they may have been written, or not."""
        for one in self._sent:
            if one.state == "open":
                self.doubt(one.number, error)

    def sent(self) -> list[Sent]:
        """Return every send as it is known now, in order of numbers."""
        return self._sent.copy()

    def _close(self, number: int, *, state: State, acked_ms: int = -1, offset: int = -1, error: str = "") -> None:
        one = self._sent[number]
        assert one.state == "open", f"record {number} is {one.state} already"
        self._sent[number] = Sent(number, one.partition, one.sent_ms, state, acked_ms, offset, error)
