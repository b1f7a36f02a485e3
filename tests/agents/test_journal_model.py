"""The journal against a dictionary: any order of writes, crashes, power cuts, damage and full disks."""

from __future__ import annotations

import contextlib
from random import Random
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.agents.simdisk import Crash, CrashPoints, NeverSyncs, NeverSyncsDirectory, SimDisk
from tests.agents.test_journal import entry
from tests.effort import examples
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.errors import HostError

WORKERS = st.sampled_from([1, 2, 3, 2**62])
MOMENTS = 14
"""More primitives than any call passes, before and after each."""
OPS = st.sampled_from(["create", "sync", "rename", "sync_directory", "remove"])
Content = Entry | None
"""None: there is no entry."""


class Journals(RuleBasedStateMachine):
    """A journal, its disk, and what may be on that disk: each worker's entry is one of a few.

    After a call that returned there is one possibility. A call that failed or was cut off may have left the old entry
    or the new one, and only the next look at the disk tells which; from then on it is that one.
    """

    make_disk: type[SimDisk] = SimDisk

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.disk = self.make_disk(Random(seed))
        self.journal = Journal(self.disk)
        self.id, self.lives = self.journal.id, [self.journal.life]
        self.may_be: dict[int, list[Content]] = {}
        self.damaged: dict[int, bytes] = {}
        self.writable = True

    # --- what an agent does -------------------------------------------------------------------------------------------

    @rule(worker=WORKERS, state=st.sampled_from(JournalState), ends_ms=st.integers(-1, 2**62))
    def put(self, worker: int, state: JournalState, ends_ms: int) -> None:
        self._change(worker, entry(worker, state, ends_ms=ends_ms))

    @rule(worker=WORKERS)
    def forget(self, worker: int) -> None:
        self._change(worker, None)

    @rule(worker=WORKERS, new=st.booleans(), moment=st.integers(0, MOMENTS), power=st.booleans())
    def crash_while_writing(self, worker: int, new: bool, moment: int, power: bool) -> None:
        if not self.writable:
            return
        self.disk.points = CrashPoints(moment)
        try:
            self._change(worker, entry(worker, error="half written") if new else None)
        except Crash:
            self._maybe(worker, entry(worker, error="half written") if new else None)
        self._die(power)

    @rule(power=st.booleans())
    def crash(self, power: bool) -> None:
        self._die(power)

    @rule(moment=st.integers(0, MOMENTS), power=st.booleans())
    def crash_while_opening(self, moment: int, power: bool) -> None:
        self.disk.points = CrashPoints(moment)
        with contextlib.suppress(Crash):
            self.lives.append(Journal(self.disk).life)
        self._die(power)

    @rule()
    def read_only(self) -> None:
        """Somebody looks, and from now on cannot write; a look changes nothing."""
        files = self._files()
        self.journal = Journal.read_only(self.disk)
        assert (self.journal.id, self.journal.life) == (self.id, self.lives[-1])
        assert self._files() == files
        self.writable = False
        self._settle()

    @rule()
    def look_from_beside(self) -> None:
        """What another process reads is what was put."""
        self._agrees(Journal.read_only(self.disk).entries)

    # --- what a disk does ---------------------------------------------------------------------------------------------

    @rule(worker=WORKERS, op=OPS, new=st.booleans())
    def io_error(self, worker: int, op: str, new: bool) -> None:
        self.disk.fail(op)
        self._change(worker, entry(worker, error="io") if new else None)
        self.disk.mend()

    @rule(worker=WORKERS)
    def full(self, worker: int) -> None:
        self.disk.full = True
        if self.writable:
            before = self.journal.entries.get(worker)
            with pytest.raises(HostError, match="No space left"):
                self.journal.put(entry(worker, error="full"))
            assert self.journal.entries.get(worker) == before
            assert f"worker-{worker}.json.tmp" not in self.disk.names()
        with pytest.raises(HostError, match="No space left"):
            Journal(self.disk)  # a life that cannot be written down is not begun
        assert Journal.read_only(self.disk).id == self.id
        self.disk.mend()

    @rule(worker=WORKERS, data=st.sampled_from([b"", b"{", b"\0" * 64, b"null", b"\xff", b"[" * 5_000]))
    def damage(self, worker: int, data: bytes) -> None:
        """Something else writes into a file, and it stays so; the running agent does not know yet."""
        name = f"worker-{worker}.json"
        self.disk.create(name, data)
        self.disk.sync(name)
        self.disk.sync_directory()
        self.damaged[worker] = data
        self.may_be.pop(worker, None)
        self._die(power=False)

    @precondition(lambda self: self.damaged)
    @rule()
    def mend(self) -> None:
        """Somebody looked, and removed the broken files, as they were told to."""
        for worker in self.damaged:
            self.disk.remove(f"worker-{worker}.json")
        self.disk.sync_directory()
        self.damaged.clear()
        self._die(power=False)

    # --- what holds at all times --------------------------------------------------------------------------------------

    @invariant()
    def memory_is_the_model(self) -> None:
        self._agrees(self.journal.entries)
        assert sorted(self.journal.broken) == sorted(f"worker-{worker}.json" for worker in self.damaged)
        for worker, data in self.damaged.items():
            assert self.journal.knows(worker) and self.disk.read(f"worker-{worker}.json") == data
        live = {entry.worker for entry in self.journal.live()}
        assert live == {one.worker for one in self.journal.entries.values() if one.state is not JournalState.UNDONE}

    @invariant()
    def lives_grow(self) -> None:
        assert self.lives == sorted(set(self.lives)), "a life was lived twice"
        assert self.journal.id == self.id

    # --- how ----------------------------------------------------------------------------------------------------------

    def _change(self, worker: int, content: Content) -> None:
        """Put or forget. If it succeeds that is what is there; if not, memory is as before and the disk is either."""
        if worker in self.damaged:
            return  # an agent leaves such a worker alone: `knows` says that it was here
        before = dict(self.journal.entries)
        try:
            if content is None:
                self.journal.forget(worker)
            else:
                self.journal.put(content)
        except HostError:
            assert self.journal.entries == before
            if self.writable:
                self._maybe(worker, content)
        else:
            assert self.writable
            assert self.journal.entries.get(worker) == content
            self.may_be[worker] = [content]

    def _maybe(self, worker: int, content: Content) -> None:
        self.may_be.setdefault(worker, [None]).append(content)

    def _die(self, power: bool) -> None:
        """End this life, with or without the power, and begin the next."""
        self.disk.points = CrashPoints()
        if power:
            self.disk.crash()
        self.journal = Journal(self.disk)
        self.writable = True
        self.lives.append(self.journal.life)
        self._settle()

    def _settle(self) -> None:
        self._agrees(self.journal.entries)
        if self.writable:  # a beginning life syncs the directory: what it saw is what stays
            self.may_be = {worker: [one] for worker, one in self.journal.entries.items()}

    def _agrees(self, entries: dict[int, Entry]) -> None:
        assert entries.keys() <= self.may_be.keys(), "an entry that was never put"
        for worker, possible in self.may_be.items():
            assert entries.get(worker) in possible, f"worker {worker} is none of what it may be"

    def _files(self) -> dict[str, bytes]:
        return {name: self.disk.read(name) for name in self.disk.names()}


def test_what_put_returned_from_is_there_and_nothing_else() -> None:
    run_state_machine_as_test(Journals, settings=examples(80, steps=25))


@pytest.mark.parametrize("broken", [NeverSyncs, NeverSyncsDirectory])
def test_a_disk_that_does_not_sync_is_caught(broken: type[SimDisk]) -> None:
    """So would be a journal that forgets to."""

    class Broken(Journals):
        make_disk: Any = broken

    with pytest.raises((AssertionError, HostError)):
        run_state_machine_as_test(Broken, settings=examples(300, shrink=False))
