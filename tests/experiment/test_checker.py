"""The audit on histories with planted loss, duplicates, swaps and corruption: all found, none invented."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from trogdor_bus.experiment.checker import Findings, audit
from trogdor_bus.experiment.ledger import Read, Sent, State
from trogdor_bus.experiment.records import Corrupt, Record, decode, encode

RUN = "run-1"
ACKED = ("kept", "kept", "kept", "kept", "lost", "duplicated", "corrupted", "misplaced", "misdated")
FATES = ("indeterminate absent", "indeterminate once", "indeterminate twice", "open absent", "open once", "failed")
STRANGERS = ("other run", "never sent", "junk")


def sent_ms(number: int) -> int:
    return 1_000_000 + 10 * number


def good(number: int, run: str = RUN) -> bytes:
    return encode(Record(run, number, sent_ms(number)), 64)


def spoiled(number: int, random: Random) -> bytes:
    data = bytearray(good(number))
    data[random.randrange(len(data))] ^= random.randint(1, 255)
    return bytes(data)


def reads(logs: Iterable[Iterable[bytes]]) -> list[Read]:
    """Read logs, one for each partition, as the stream does."""
    found = []
    for partition, log in enumerate(logs):
        for offset, data in enumerate(log):
            match decode(data):
                case Corrupt(why):
                    found.append(Read(partition, offset, 0, None, why))
                case record:
                    found.append(Read(partition, offset, 0, record))
    return found


@dataclass
class History:
    """Sends, what the topic holds afterwards, and what the audit must find."""

    partitions: int
    sent: list[Sent] = field(default_factory=list)
    log: list[list[bytes]] = field(default_factory=list)
    planted: dict[str, set[int]] = field(default_factory=dict)
    strangers: int = 0

    def numbers(self, kind: str) -> tuple[int, ...]:
        return tuple(sorted(self.planted.get(kind, ())))


PLANTED = {
    "lost": ("lost",),
    "duplicated": ("duplicated",),
    "corrupted": ("corrupted",),
    "misplaced": ("corrupted",),
    "misdated": ("corrupted",),
    "indeterminate once": ("found",),
    "open once": ("found",),
    "indeterminate twice": ("found", "duplicated"),
}
"""What the audit must say of a record of each fate."""
MANY = ("duplicated", "indeterminate twice")
Item = tuple[int, bytes]
"""Bytes, and the number of the record that was acknowledged there, or -1."""


def state_of(fate: str) -> State:
    states: tuple[State, ...] = ("indeterminate", "open", "failed")
    return next((state for state in states if fate.startswith(state)), "acked")


def copies(number: int, fate: str, random: Random) -> list[Item]:
    match fate:
        case "kept" | "indeterminate once" | "open once":
            return [(number, good(number))]
        case _ if fate in MANY:
            return [(number, good(number))] * random.randint(2, 3)
        case "corrupted":
            return [(number, spoiled(number, random))]
        case "misplaced":
            return [(-1, good(number))]
        case "misdated":
            return [(-1, encode(Record(RUN, number, sent_ms(number) + 1), 64))]
    return []


def disturb(log: list[Item], random: Random) -> None:
    start = random.randint(0, len(log))
    part = log[start : start + random.randint(0, 5)]
    random.shuffle(part)
    log[start : start + len(part)] = part


def build(fates: list[str], partitions: int, random: Random, *, disorder: bool, strangers: list[str]) -> History:
    """Make a history in which each record has its fate; the copies stand in order, or are shuffled here and there."""
    items: list[list[Item]] = [[] for _ in range(partitions)]
    for number, fate in enumerate(fates):
        items[(number + (fate == "misplaced")) % partitions] += copies(number, fate, random)
    for kind in strangers:
        data = {"other run": good(0, "run-2"), "never sent": good(len(fates) + 7), "junk": b"hello"}[kind]
        log = random.choice(items)
        log.insert(random.randint(0, len(log)), (-1, data))
    for log in items if disorder else []:
        disturb(log, random)
        for item in [item for item in log if item[0] >= 0 and fates[item[0]] in MANY]:
            log.insert(random.randint(log.index(item) + 1, len(log)), item)
    places = {number: offset for log in items for offset, (number, _) in reversed([*enumerate(log)])}
    history = History(partitions, log=[[data for _, data in log] for log in items], strangers=len(strangers))
    for number, fate in enumerate(fates):
        mine, state = number % partitions, state_of(fate)
        nowhere = random.choice([-1, len(items[mine]) + number])
        offset = places.get(number, nowhere) if state == "acked" else -1
        history.sent.append(Sent(number, mine, sent_ms(number), state, offset=offset))
        for kind in PLANTED.get(fate, ()):
            history.planted.setdefault(kind, set()).add(number)
    history.planted["reordered"] = {number for log in items for number in behind(log, history.sent, fates)}
    return history


def behind(log: list[Item], sent: list[Sent], fates: list[str]) -> list[int]:
    """Return the definition of `reordered`, literally."""
    in_order = [
        number
        for number in dict.fromkeys(number for number, _ in log if number >= 0)
        if sent[number].state == "acked" and fates[number] != "corrupted"
    ]
    return [number for at, number in enumerate(in_order) if any(before > number for before in in_order[:at])]


@st.composite
def histories(draw: st.DrawFn, fates: tuple[str, ...] = ACKED + FATES, *, disorder: bool = True) -> History:
    partitions = draw(st.integers(1, 4))
    possible = [fate for fate in fates if fate != "misplaced" or partitions > 1]
    return build(
        draw(st.lists(st.sampled_from(possible), max_size=60)),
        partitions,
        draw(st.randoms(use_true_random=False)),
        disorder=disorder and draw(st.booleans()),
        strangers=draw(st.lists(st.sampled_from(STRANGERS), max_size=3)) if disorder else [],
    )


def expected(history: History, idempotent: bool) -> Findings:
    states = [one.state for one in history.sent]
    return Findings(
        idempotent=idempotent,
        sent=len(states),
        acked=states.count("acked"),
        indeterminate=states.count("indeterminate") + states.count("open"),
        failed=states.count("failed"),
        read=sum(map(len, history.log)),
        lost=history.numbers("lost"),
        corrupted=history.numbers("corrupted"),
        duplicated=history.numbers("duplicated"),
        reordered=history.numbers("reordered"),
        indeterminate_found=history.numbers("found"),
    )


@examples(600)
@given(histories(), st.booleans(), st.randoms(use_true_random=False))
def test_what_is_planted_is_found_and_nothing_else(history: History, idempotent: bool, random: Random) -> None:
    reread = reads(history.log)
    random.shuffle(reread)
    found = audit(history.sent, reread, run=RUN, idempotent=idempotent)
    assert len(found.foreign) == history.strangers
    assert len(found.notes) == len(found.corrupted)
    wanted = expected(history, idempotent)
    assert (wanted.foreign, wanted.notes) == ((), ())
    assert type(found)(**{**_fields(found), "foreign": (), "notes": ()}) == wanted


def _fields(found: Findings) -> dict[str, object]:
    return {name: getattr(found, name) for name in found.__struct_fields__}


@examples(200)
@given(histories(("kept", *FATES[:2], "open absent", "open once", "failed"), disorder=False))
def test_a_sound_history_is_found_sound(history: History) -> None:
    found = audit(history.sent, reads(history.log), run=RUN, idempotent=True)
    assert not found.broken and found == expected(history, True)
    assert found.sent == found.acked + found.indeterminate + found.failed


@examples(200)
@given(histories(("kept",), disorder=False), st.data())
def test_a_truncated_log_loses_exactly_its_end(history: History, data: st.DataObject) -> None:
    keep = [data.draw(st.integers(0, len(log))) for log in history.log]
    gone = {one.number for one in history.sent if one.offset >= keep[one.partition]}
    found = audit(
        history.sent, reads(log[:end] for log, end in zip(history.log, keep, strict=True)), run=RUN, idempotent=False
    )
    assert set(found.lost) == gone and found.lost == tuple(sorted(found.lost))
    assert len(found.lost) == found.acked - found.read
    assert found.broken == bool(gone)
    assert not (found.corrupted or found.duplicated or found.reordered or found.foreign)


@examples(200)
@given(st.integers(1, 3), st.integers(2, 30), st.data())
def test_a_swap_is_found(partitions: int, each: int, data: st.DataObject) -> None:
    history = build(["kept"] * partitions * each, partitions, Random(0), disorder=False, strangers=[])
    mine, at = data.draw(st.integers(0, partitions - 1)), data.draw(st.integers(0, each - 2))
    log = history.log[mine]
    log[at], log[at + 1] = log[at + 1], log[at]
    found = audit(history.sent, reads(history.log), run=RUN, idempotent=True)
    assert found.reordered == (at * partitions + mine,)  # the lower number, which now stands behind the higher one
    assert found.broken and not (found.lost or found.corrupted or found.duplicated or found.foreign)


def sends(*states: State) -> list[Sent]:
    return [Sent(number, 0, sent_ms(number), state) for number, state in enumerate(states)]


def test_nothing_sent_and_nothing_read_is_sound() -> None:
    found = audit([], [], run=RUN, idempotent=True)
    assert found == Findings(idempotent=True) and not found.broken


def test_without_idempotence_duplicates_and_reordering_are_counted_but_not_held_against_it() -> None:
    log = [[good(1), good(0), good(1)]]
    for idempotent in (True, False):
        found = audit(sends("acked", "acked"), reads(log), run=RUN, idempotent=idempotent)
        assert (found.duplicated, found.reordered, found.lost) == ((1,), (0,), ())
        assert found.broken is idempotent


def test_a_record_that_timed_out_may_come_late_but_not_twice() -> None:
    late = audit(sends("indeterminate", "acked"), reads([[good(1), good(0)]]), run=RUN, idempotent=True)
    assert not late.broken and late.indeterminate_found == (0,)
    twice = audit(sends("indeterminate", "acked"), reads([[good(0), good(1), good(0)]]), run=RUN, idempotent=True)
    assert twice.broken and twice.duplicated == (0,)


def test_a_place_that_was_acknowledged_twice_tells_nothing_about_what_cannot_be_decoded_there() -> None:
    """The first was truncated by an unclean election, and the second took its offset: both are lost."""
    both = [Sent(number, 0, sent_ms(number), "acked", offset=0) for number in (0, 1)]
    found = audit(both, reads([[b"?"]]), run=RUN, idempotent=False)
    assert (found.lost, found.corrupted, len(found.foreign)) == ((0, 1), (), 1)


def test_a_record_that_is_read_twice_at_one_place_is_one_record() -> None:
    found = audit(sends("acked"), [*reads([[good(0)]]), *reads([[good(0)]])], run=RUN, idempotent=True)
    assert not found.broken and found.read == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (good(0, "run-2"), "partition 0, offset 0: record 0 of run 'run-2'"),
        (good(3), "partition 0, offset 0: record 3 of this run, which was never handed over"),
        (good(0), "partition 0, offset 0: record 0 of this run, which was never handed over"),
        (b"hello", "partition 0, offset 0: no record: 5 bytes are too few"),
    ],
)
def test_what_is_not_ours_is_told_and_not_held_against_kafka(data: bytes, words: str) -> None:
    found = audit(sends("failed"), reads([[data]]), run=RUN, idempotent=True)
    assert found.foreign == (words,) and not found.broken


def test_a_corrupted_record_is_told_with_its_place() -> None:
    sent = [Sent(0, 0, sent_ms(0), "acked", offset=0), Sent(1, 0, sent_ms(1), "acked", offset=1)]
    found = audit(sent, reads([[good(0), good(1)[:-1] + b"x"]]), run=RUN, idempotent=False)
    assert found.broken and found.corrupted == (1,) and found.lost == ()
    assert found.notes == ("partition 0, offset 1: record 1 stood there: its checksum is wrong",)
