"""The state directory of an agent after something wrote into it: what can be read is, the rest is named and kept."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agents.simdisk import SimDisk
from tests.agents.test_journal import entry
from tests.effort import examples
from tests.fuzz.judge import decoded, keeps_nothing
from tests.fuzz.mutants import DEEP, SPLINTERS, mangled, mutated, values, written
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.heal import SURROUNDINGS, AgentNote, heal
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.platforms.linux import operations
from trogdor_bus.agents.platforms.linux.chains import Chain, OwnedChains, Rule, Table
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.operations import read, step
from trogdor_bus.agents.platforms.linux.operations.blocks import Block, Unblock
from trogdor_bus.agents.platforms.linux.operations.freezes import Freeze, Thaw
from trogdor_bus.errors import HostError
from trogdor_bus.platform import ProcessIdentity

WHERE = NamespaceIdentity("boot", "77", "/run/netns/x")
CHAIN = "TB-0123456789abcdef"
WHO = ProcessIdentity("boot", 2**22, 99)
BLOCK = step(
    Block(
        WHERE,
        (Table("/usr/sbin/iptables-nft", (Chain(CHAIN, "INPUT", (Rule(source="10.0.0.1", source_ports=(1, 2)),)),)),),
    ),
    Unblock(WHERE, (OwnedChains("/usr/sbin/iptables-nft", (CHAIN,)),)),
)
FREEZE = step(Freeze(WHO, "java", False), Thaw(WHO, "java", False))
GOOD = entry(1, steps=(BLOCK, FREEZE), warnings=("w",))


def disk_with(**files: bytes) -> SimDisk:
    disk = SimDisk(Random(1))
    old = Journal(disk)
    old.put(entry(2))
    for name, data in files.items():
        disk.create(name.replace("_", "-") + ".json", data)
    return disk


def test_the_files_that_are_mutated_are_real() -> None:
    disk = disk_with(worker_1=msgspec.json.encode(GOOD))
    assert Journal(disk).entries == {1: GOOD, 2: entry(2)}
    assert (read(BLOCK.do), read(FREEZE.undo)) == (_typed(BLOCK.do), Thaw(WHO, "java", False))


def _typed(operation: Any) -> Any:
    return msgspec.convert(operation, operations.KINDS.ours[operation["op"]])


def judge_entry(data: bytes) -> None:
    disk = disk_with(worker_1=data)
    for _ in range(2):
        journal = decoded(lambda: Journal(disk))
        assert isinstance(journal, Journal)
        assert journal.knows(1) and journal.entries[2] == entry(2)
        assert journal.broken == (() if 1 in journal.entries else ("worker-1.json",))
        assert disk.read("worker-1.json") == data
    if 1 in journal.entries:
        journal.put(journal.entries[1])  # what was read can be written again, and says the same
        assert Journal.read_only(disk).entries == journal.entries
        for one in journal.entries[1].steps:
            decoded(lambda: read(one.do))  # noqa: B023
            decoded(lambda: read(one.undo))  # noqa: B023


@examples(250)
@given(st.data())
def test_entries_with_broken_bytes(data: st.DataObject) -> None:
    judge_entry(data.draw(mangled(msgspec.json.encode(GOOD))))


@examples(250)
@given(st.data())
def test_entries_with_broken_values(data: st.DataObject) -> None:
    judge_entry(written(data.draw(mutated(json.loads(msgspec.json.encode(GOOD))))))


IDENTITY = b'{"id": "0123456789abcdef0123456789abcdef", "life": 7}'
odd_identities = st.one_of(
    mangled(IDENTITY),
    mutated(json.loads(IDENTITY)).map(written),
    st.sampled_from(
        [
            b'{"id": "", "life": 7}',
            b'{"id": "x", "life": 18446744073709551615}',
            b'{"id": "x", "life": 9223372036854775807}',
            b'{"id": "x", "life": 4294967296}',
            b'{"id": "x", "life": -5}',
            b'{"id": "' + b"x" * 5_000 + b'", "life": 1}',
            b'{"id": "a\\u0000/../b", "life": 1}',
        ]
    ),
)


@examples(300)
@given(odd_identities)
def test_identities(data: bytes) -> None:
    disk = disk_with(journal=data)
    first = decoded(lambda: Journal(disk))
    assert isinstance(first, Journal), first
    assert first.entries == {2: entry(2)}
    assert 0 < len(first.id) <= 200 and first.id.isprintable()
    assert 0 < first.life < 2**31, "the counter of beats is made of it"
    second = Journal(disk)
    assert (second.id, second.life) == (first.id, first.life + 1)
    assert second.broken == first.broken
    if first.broken:
        assert disk.read(first.broken[0]) == data


@examples(150)
@given(st.one_of(mangled(b'{"id": "abc"}'), mutated({"id": "abc"}).map(written), st.sampled_from(SPLINTERS)))
def test_latches(data: bytes) -> None:
    """A latch that cannot be read is one all the same."""
    disk = disk_with(latch=data)
    journal = decoded(lambda: Journal(disk))
    assert isinstance(journal, Journal) and journal.entries == {2: entry(2)}
    assert journal.latch


@examples(300)
@given(st.data())
def test_operations(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from([BLOCK.do, BLOCK.undo, FREEZE.do, FREEZE.undo]))
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        value = msgspec.json.decode(written(data.draw(mutated(good) | values)))
        found = decoded(lambda: read(value))
        if isinstance(found, Exception):
            assert isinstance(found, HostError)
        else:
            assert read(json.loads(msgspec.json.encode(found))) == found


NOTES = [
    b"",
    b"{",
    b"[]",
    b'{"platform": 5}',
    b'{"platform": "nowhere"}',
    b'{"attach": "x:y"}',
    msgspec.json.encode(AgentNote(platform="basic", attach="netns:x")),
]


@examples(60)
@given(st.data())
def test_a_dry_heal_of_a_damaged_directory(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Dry: it says what it would do, and acts on nothing."""
    directory = tmp_path_factory.mktemp("state")
    disk = FileDisk(directory)
    try:
        Journal(disk)
        (directory / "worker-1.json").write_bytes(
            data.draw(mangled(msgspec.json.encode(GOOD)) | st.just(msgspec.json.encode(GOOD)))
        )
        (directory / SURROUNDINGS).write_bytes(data.draw(st.sampled_from(NOTES)))
        decoded(lambda: heal(directory, dry_run=True), readable=False)
    finally:
        disk.close()


@pytest.mark.parametrize("note", [b'{"platform":"\xff"}', b'{"x":' + b"[" * DEEP], ids=["bytes", "deep"])
def test_an_agents_note_that_cannot_be_read_does_not_keep_anybody_from_healing(tmp_path: Path, note: bytes) -> None:
    (tmp_path / SURROUNDINGS).write_bytes(note)
    assert decoded(lambda: heal(tmp_path, dry_run=True)) == (["nothing to undo"], 0)


BAD = [b"", b"{", b"\xff", b"[" * DEEP, msgspec.json.encode(GOOD)[:-30], msgspec.json.encode(entry(1, v=99))]


def test_bad_files_keep_no_memory() -> None:
    disks = [disk_with(worker_1=data, journal=data) for data in BAD]
    keeps_nothing(lambda: [Journal.read_only(disk) for disk in disks])
