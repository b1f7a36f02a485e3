"""The audit: what was sent, against everything that a full re-read of the topic found. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from trogdor_bus.experiment.ledger import Read, Sent
from trogdor_bus.experiment.records import Record


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit found. Counts, and numbers of records in increasing order, each once.

    `sent` = `acked` + `indeterminate` + `failed`: what became of the sends; one of which nothing is known counts as
    indeterminate. `read`: how many records the topic holds, whosesoever.

    `lost`: acknowledged, and the topic holds no copy, not even a corrupted one.
    `corrupted`: sent, and the topic holds something else instead: at the offset that was acknowledged for this record
    alone what cannot be decoded (its checksum is wrong), or anywhere a record of that number that stands in another
    partition, or tells another time, than the one that was sent.
    `duplicated`: acknowledged or indeterminate, and the topic holds more than one good copy.
    `reordered`: acknowledged, and in its partition its first copy stands behind the first copy of an acknowledged
    record with a higher number. (Numbers are global; those of one partition are handed over in increasing order.)
    `indeterminate_found`: indeterminate, and the topic holds it: allowed, once.
    `foreign`: a line for each record of another run, or of this run with a number that was never handed over, or that
    cannot be decoded where no acknowledged record is known to stand.
    `notes`: a line for each corrupted record: where it is and what is wrong.

    Without idempotence duplicates and reordering are what Kafka lets happen: counted, but not held against it.
    """

    idempotent: bool
    sent: int = 0
    acked: int = 0
    indeterminate: int = 0
    failed: int = 0
    read: int = 0
    lost: tuple[int, ...] = ()
    corrupted: tuple[int, ...] = ()
    duplicated: tuple[int, ...] = ()
    reordered: tuple[int, ...] = ()
    indeterminate_found: tuple[int, ...] = ()
    foreign: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def broken(self) -> bool:
        """Return whether a promise of Kafka's was broken."""
        return bool(self.lost or self.corrupted or (self.idempotent and (self.duplicated or self.reordered)))


def audit(sent: Iterable[Sent], reread: Iterable[Read], *, run: str, idempotent: bool) -> Findings:
    """Return what the re-read of the whole topic, in any order, says about the sends of a run."""
    ledger = {one.number: one for one in sent}
    states = Counter("indeterminate" if one.state == "open" else one.state for one in ledger.values())
    log = [read for _, read in sorted({(read.partition, read.offset): read for read in reread}.items())]
    good, corrupted, foreign = _sorted_out(ledger, log, run)
    copies = Counter(one.number for one in good)
    there = copies.keys() | corrupted.keys()
    acked = {number for number, one in ledger.items() if one.state == "acked"}
    return Findings(
        idempotent=idempotent,
        sent=len(ledger),
        acked=states["acked"],
        indeterminate=states["indeterminate"],
        failed=states["failed"],
        read=len(log),
        lost=tuple(sorted(acked - there)),
        corrupted=tuple(sorted(corrupted)),
        duplicated=tuple(sorted(number for number, count in copies.items() if count > 1)),
        reordered=tuple(sorted(_reordered(one for one in good if one.state == "acked"))),
        indeterminate_found=tuple(sorted(there - acked)),
        foreign=tuple(foreign),
        notes=tuple(note for _, note in sorted(corrupted.items())),
    )


def _sorted_out(ledger: dict[int, Sent], log: Iterable[Read], run: str) -> tuple[list[Sent], dict[int, str], list[str]]:
    """Return the sends of the good records in the order of the log, a note for each corrupted one, and the foreign."""
    good: list[Sent] = []
    corrupted: dict[int, str] = {}
    foreign: list[str] = []
    standing = _standing(ledger.values())
    for read in log:
        where = f"partition {read.partition}, offset {read.offset}"
        record = read.record
        if record is None:
            number = standing.get((read.partition, read.offset))
            if number is None:
                foreign.append(f"{where}: no record: {read.why}")
            else:
                corrupted[number] = f"{where}: record {number} stood there: {read.why}"
        elif record.run != run:
            foreign.append(f"{where}: record {record.number} of run {record.run!r}")
        elif (one := ledger.get(record.number)) is None or one.state == "failed":
            foreign.append(f"{where}: record {record.number} of this run, which was never handed over")
        elif wrong := _wrong(one, read.partition, record):
            corrupted[record.number] = f"{where}: record {record.number}: {wrong}"
        else:
            good.append(one)
    return good, corrupted, foreign


def _standing(sent: Iterable[Sent]) -> dict[tuple[int, int], int]:
    """Return which record was acknowledged at each partition and offset, without places where several were."""
    acked = [one for one in sent if one.state == "acked"]
    there = Counter((one.partition, one.offset) for one in acked)
    return {place: one.number for one in acked if there[place := (one.partition, one.offset)] == 1}


def _wrong(one: Sent, partition: int, record: Record) -> str:
    if partition != one.partition:
        return f"it was sent to partition {one.partition}"
    if record.sent_ms != one.sent_ms:
        return f"it says that it was sent at {record.sent_ms}, it was at {one.sent_ms}"
    return ""


def _reordered(log: Iterable[Sent]) -> Iterator[int]:
    """Yield the numbers whose first copy stands behind a higher one's in its partition."""
    highest: dict[int, int] = {}
    seen: set[int] = set()
    for one in log:
        if one.number in seen:
            continue
        seen.add(one.number)
        if one.number < highest.get(one.partition, -1):
            yield one.number
        else:
            highest[one.partition] = one.number
