from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from tests.agents.simdisk import Crash, CrashPoints, NeverSyncs, NeverSyncsDirectory, SimDisk
from trogdor_bus.agents.disk import Disk, FileDisk
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Step
from trogdor_bus.spec import Texts

SPEC = b'{"class":"a.b.C","startMs":1e3,"big":123456789012345678901234567890,"text":"\\u00e9\\/"}'


def entry(worker: int, state: JournalState = JournalState.APPLIED, **fields: object) -> Entry:
    base = Entry(
        worker=worker,
        task="t",
        state=state,
        boot_id="boot",
        ends_ms=5,
        spec=msgspec.Raw(SPEC),
        texts=Texts("a", "b", "c", "d"),
        steps=(Step({"do": worker}, {"undo": worker}),),
    )
    return msgspec.structs.replace(base, **fields)


@pytest.fixture(params=["real", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return FileDisk(tmp_path / "state") if request.param == "real" else SimDisk(Random(1))


def test_what_is_put_is_there_in_the_next_life(disk: Disk) -> None:
    first = Journal(disk)
    first.put(entry(1))
    first.put(entry(2, JournalState.STUCK, residue=("a rule",), warnings=("w",), error="e"))
    first.put(entry(1, JournalState.UNDONE))
    second = Journal(disk)
    assert second.entries == first.entries
    assert second.entries == {
        1: entry(1, JournalState.UNDONE),
        2: entry(2, JournalState.STUCK, residue=("a rule",), warnings=("w",), error="e"),
    }
    assert bytes(second.entries[1].spec) == SPEC
    assert (second.id, second.life) == (first.id, first.life + 1)
    assert len(first.id) == 32 and first.life == 1


def test_live_and_held_leave_out_the_undone(disk: Disk) -> None:
    journal = Journal(disk)
    for worker, state in enumerate(JournalState):
        journal.put(entry(worker, state))
    live = [one.worker for one in journal.live()]
    assert live == [worker for worker, state in enumerate(JournalState) if state is not JournalState.UNDONE]
    assert journal.held(excluding=[1]) == tuple(entry(worker).steps[0] for worker in live if worker != 1)


def test_memory_holds_what_another_life_would_read(disk: Disk) -> None:
    journal = Journal(disk)
    journal.put(entry(1, steps=(Step({"ports": (1, 2)}, {"set": {3}}),)))
    assert journal.entries[1].steps == (Step({"ports": [1, 2]}, {"set": [3]}),)
    assert Journal.read_only(disk).entries == journal.entries


@pytest.mark.parametrize("value", [object(), "\ud800"])
def test_a_step_that_json_cannot_carry_is_refused_before_anything_is_written(disk: Disk, value: object) -> None:
    journal = Journal(disk)
    with pytest.raises(HostError, match="worker 1 cannot be written as JSON"):
        journal.put(entry(1, steps=(Step({}, {"x": value}),)))
    assert journal.entries == {} and disk.names() == ("journal.json",)


def test_forget_is_for_good_and_can_be_repeated(disk: Disk) -> None:
    journal = Journal(disk)
    journal.put(entry(1, JournalState.UNDONE))
    journal.forget(1)
    journal.forget(1)
    assert journal.entries == {} and Journal(disk).entries == {} and disk.names() == ("journal.json",)


def test_read_only_changes_nothing(disk: Disk) -> None:
    journal = Journal(disk)
    journal.put(entry(1))
    disk.create("worker-2.json.tmp", b"half")
    before = disk.names()
    tool = Journal.read_only(disk)
    assert (tool.id, tool.life, tool.entries) == (journal.id, journal.life, journal.entries)
    with pytest.raises(HostError, match="for reading only"):
        tool.put(entry(2))
    with pytest.raises(HostError, match="for reading only"):
        tool.forget(1)
    assert disk.names() == before and Journal.read_only(disk).life == journal.life


def test_read_only_on_an_empty_disk_has_no_id(disk: Disk) -> None:
    assert (Journal.read_only(disk).id, disk.names()) == ("", ())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        msgspec.json.encode(entry(1))[:-20],
        msgspec.json.encode(entry(1)).replace(b'"steps":', b'"steps":7,"was":'),
        msgspec.json.encode(entry(1, v=2)),
        msgspec.json.encode(entry(7)),
    ],
    ids=["empty", "brace", "binary", "null", "deep", "cut", "state", "newer", "other-id"],
)
def test_a_broken_entry_is_kept_and_known_and_the_others_live(disk: Disk, data: bytes) -> None:
    Journal(disk).put(entry(2))
    disk.create("worker-1.json", data)
    for _ in range(2):
        journal = Journal(disk)
        assert journal.broken == ("worker-1.json",)
        assert journal.knows(1) and journal.knows(2) and not journal.knows(3) and not journal.knows(7)
        assert journal.entries == {2: entry(2)}
    assert disk.read("worker-1.json") == data


@pytest.mark.parametrize("data", [b"", b"{}", b'{"id": 5, "life": 1}', b"\x00" * 40])
def test_a_broken_identity_is_set_aside_and_the_journal_is_a_new_one(disk: Disk, data: bytes) -> None:
    old = Journal(disk)
    old.put(entry(1))
    disk.create("journal.json", data)
    assert Journal.read_only(disk).broken == ("journal.json",)
    new = Journal(disk)
    assert new.id not in ("", old.id) and new.life == 1 and new.entries == old.entries
    again = Journal(disk)
    assert (again.id, again.life) == (new.id, 2)
    assert new.broken == again.broken == (f"journal.json.{new.id}.broken",)
    assert disk.read(new.broken[0]) == data


def test_an_unreadable_entry_does_not_stop_the_agent(disk: Disk, tmp_path: Path) -> None:
    Journal(disk)
    if isinstance(disk, SimDisk):
        disk.create("worker-1.json", b"")
        disk.fail("read", 1)
    else:
        (tmp_path / "state" / "worker-1.json").symlink_to("/etc/hostname")
    assert Journal(disk).broken == ("worker-1.json",)


def test_an_unreadable_identity_does(disk: Disk, tmp_path: Path) -> None:
    Journal(disk)
    if isinstance(disk, SimDisk):
        disk.fail("read", 1)
    else:
        disk.remove("journal.json")
        (tmp_path / "state" / "journal.json").mkdir()
    with pytest.raises(HostError):
        Journal(disk)


def test_a_latch_is_kept_over_lives_until_it_is_dropped(disk: Disk) -> None:
    journal = Journal(disk)
    assert journal.latch == ""
    journal.keep_latch("L1")
    journal.keep_latch("L2")
    assert (journal.latch, Journal(disk).latch, Journal.read_only(disk).latch) == ("L2", "L2", "L2")
    with pytest.raises(HostError, match="for reading only"):
        Journal.read_only(disk).keep_latch("")
    journal.keep_latch("")
    journal.keep_latch("")
    assert (journal.latch, Journal(disk).latch, disk.names()) == ("", "", ("journal.json",))


@pytest.mark.parametrize("data", [b"", b"{}", b'{"id":""}', b'{"id":5}', b"\xff", b"[" * 100_000])
def test_a_latch_that_cannot_be_read_is_one(disk: Disk, data: bytes) -> None:
    disk.create("latch.json", data)
    journal = Journal(disk)
    assert (journal.latch, journal.broken) == ("unreadable", ())
    journal.keep_latch("")
    assert Journal(disk).latch == ""


def test_a_latch_whose_file_is_no_file_is_one(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path)
    (tmp_path / "latch.json").symlink_to("/etc/hostname")
    assert Journal(disk).latch == "unreadable"


@pytest.mark.parametrize("op", ["create", "sync", "rename", "sync_directory"])
def test_a_latch_that_cannot_be_written_counts_for_this_life(op: str) -> None:
    disk = SimDisk(Random(1))
    journal = Journal(disk)
    disk.fail(op)
    with pytest.raises(HostError, match=op):
        journal.keep_latch("L1")
    assert journal.latch == "L1"
    journal.keep_latch("L1")
    assert Journal(disk).latch == "L1"


def test_a_latch_on_a_full_disk_leaves_no_half_file() -> None:
    disk = SimDisk(Random(1))
    journal = Journal(disk)
    disk.full = True
    with pytest.raises(HostError, match="No space left"):
        journal.keep_latch("L1")
    assert (journal.latch, disk.names()) == ("L1", ("journal.json",))


def test_a_latch_that_was_kept_survives_a_power_cut_and_one_that_was_dropped_does_not() -> None:
    for seed in range(50):
        disk = SimDisk(Random(seed))
        journal = Journal(disk)
        journal.keep_latch("L1")
        disk.crash()
        assert Journal(disk).latch == "L1"
        journal.keep_latch("")
        disk.crash()
        assert Journal(disk).latch == ""


def test_leftovers_are_removed_at_open_and_foreign_files_are_not(disk: Disk) -> None:
    for name in ("worker-1.json.tmp", "journal.json.tmp", "latch.json.tmp", "notes.tmp", "lock"):
        disk.create(name, b"")
    assert Journal(disk).entries == {}
    assert disk.names() == ("journal.json", "lock", "notes.tmp")


@pytest.mark.parametrize("op", ["create", "sync", "rename", "sync_directory"])
def test_put_fails_whole(op: str) -> None:
    disk = SimDisk(Random(1))
    journal = Journal(disk)
    journal.put(entry(1, JournalState.INTENDED))
    disk.fail(op)
    with pytest.raises(HostError, match=op):
        journal.put(entry(1, JournalState.APPLIED))
    assert journal.entries == {1: entry(1, JournalState.INTENDED)}
    assert disk.names() == ("journal.json", "worker-1.json")
    assert Journal(disk).entries[1].state in (JournalState.INTENDED, JournalState.APPLIED)


def test_a_full_disk_keeps_no_half_file() -> None:
    disk = SimDisk(Random(1))
    journal = Journal(disk)
    disk.full = True
    with pytest.raises(HostError, match="No space left"):
        journal.put(entry(1))
    assert disk.names() == ("journal.json",)
    with pytest.raises(HostError, match="No space left"):
        Journal(disk)
    assert Journal.read_only(disk).id == journal.id


@pytest.mark.parametrize("op", ["remove", "sync_directory"])
def test_forget_that_fails_is_remembered_and_can_be_repeated(op: str) -> None:
    disk = SimDisk(Random(1))
    journal = Journal(disk)
    journal.put(entry(1, JournalState.UNDONE))
    disk.fail(op)
    with pytest.raises(HostError, match=op):
        journal.forget(1)
    assert journal.knows(1)
    journal.forget(1)
    assert Journal(disk).entries == {}


def lives_after_power_cuts(make_disk: type[SimDisk], seed: int) -> None:
    """Open with a power cut at every point: no life is seen twice and the id never changes once it was seen."""
    random = Random(seed)
    disk = make_disk(random)
    seen: list[tuple[str, int]] = []
    for at in [*range(16), *range(16)]:
        disk.points = CrashPoints(at)
        try:
            journal = Journal(disk)
            seen.append((journal.id, journal.life))
            journal.put(entry(1))
        except Crash:
            pass
        disk.crash()
    ids, lives = {one for one, _ in seen}, [life for _, life in seen]
    assert len(ids) == 1 and lives == sorted(set(lives)) and len(lives) > 8, seen


def test_no_life_is_lived_twice() -> None:
    for seed in range(50):
        lives_after_power_cuts(SimDisk, seed)


@pytest.mark.parametrize("broken", [NeverSyncs, NeverSyncsDirectory])
def test_that_test_can_fail(broken: type[SimDisk]) -> None:
    with pytest.raises((AssertionError, HostError)):
        for seed in range(50):
            lives_after_power_cuts(broken, seed)


def test_a_journal_that_cannot_be_begun_begins_as_soon_as_it_can_be_written(disk: Disk, tmp_path: Path) -> None:
    first = Journal(disk)
    first.put(entry(1))
    disk = Full(disk)
    with pytest.raises(HostError, match="full"):
        Journal(disk)
    journal = Journal.to_begin(disk)
    assert (journal.id, journal.life, journal.begun) == (first.id, 2, False)
    assert journal.entries == first.entries
    for write in (journal.begin, lambda: journal.put(entry(2)), lambda: journal.forget(1)):
        with pytest.raises(HostError, match="full"):
            write()
    assert journal.entries == first.entries
    disk.full = False
    journal.put(entry(2))
    assert (journal.life, journal.begun) == (2, True)
    again = Journal(disk)
    assert (again.id, again.life, sorted(again.entries)) == (first.id, 3, [1, 2])


def test_without_an_id_on_disk_there_is_nothing_to_begin(disk: Disk) -> None:
    with pytest.raises(HostError, match="there is no journal yet"):
        Journal.to_begin(disk)


class Full:
    """A disk that takes nothing while it is full."""

    def __init__(self, disk: Disk) -> None:
        self.full, self._disk = True, disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def create(self, name: str, data: bytes) -> None:
        if self.full:
            raise HostError("the disk is full")
        self._disk.create(name, data)


def test_what_cannot_be_read_is_read_again(disk: Disk) -> None:
    number = 2**61 + 7  # as coordinators number them
    whole = f"worker-{number}.json"
    Journal(disk).put(entry(number))
    good = disk.read(whole)
    for name, data in ((whole, b'{"task":"mine","state":"of tomorrow"}'), ("worker-x.json", b"?")):
        disk.create(name, data)
    journal = Journal(disk)
    disk.create(whole, b"?")  # whose it is was read at the start: the disk may hang by now
    assert {name: journal.task_of(worker) for worker, name in journal.unreadable.items()} == {
        whole: "mine",
        "worker-x.json": "of-worker-x",
    }
    assert [journal.read_again(worker) for worker in sorted(journal.unreadable)] == ["worker-x.json", whole]
    assert journal.knows(number)
    disk.create(whole, good)
    disk.remove("worker-x.json")
    assert [journal.read_again(worker) for worker in sorted(journal.unreadable)] == ["", ""]
    assert (journal.unreadable, journal.broken, journal.entries) == ({}, (), {number: entry(number)})
