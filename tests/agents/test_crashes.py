"""Whatever dies, and whenever: the fault goes away, nothing is performed twice, and what is foreign stays."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from functools import partial
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agents.inline import Inline
from tests.agents.model import FOREIGN, Machine, order
from tests.agents.simdisk import Crash, CrashPoints, NeverSyncs, NeverSyncsDirectory, SimDisk
from trogdor_bus.actions import Peer
from trogdor_bus.actions.network import BlockFrom
from trogdor_bus.agents.events import ReadBack
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.agents.perform import NotInjectedError, Performer
from trogdor_bus.errors import CannotHealError, HostError, TrogdorBusError
from trogdor_bus.platform import Step, Surroundings
from trogdor_bus.states import Outcome

Script = tuple[tuple[str, int], ...]
Cuts = tuple[bool, bool, bool]

ONE: Script = (("inject", 1), ("heal", 1), ("forget", 1))
FOLLOWED: Script = (("inject", 1), ("drift", 1), ("heal", 1), ("forget", 1))
TWO: Script = (("inject", 1), ("inject", 2), ("heal", 1), ("forget", 1), ("heal", 2), ("forget", 2))


class World:
    """A machine, a disk, and the agents that live and die on them."""

    disk_class: type[SimDisk] = SimDisk
    journal_class: type[Journal] = Journal
    performer_class: type[Performer] = Performer

    def __init__(self, seed: int) -> None:
        self.disk = self.disk_class(Random(seed))
        self.machine = Machine()
        self.offered: set[int] = set()
        self.forgotten: set[int] = set()
        self.lives: list[int] = []
        self.points(-1)

    def points(self, at: int) -> None:
        """The next run dies at moment number `at` from now on; -1 for never."""
        self.disk.points = self.machine.points = CrashPoints(at)

    def start(self) -> None:
        """Begin a life: open, recover; nothing of ours is left after that."""
        journal = self.journal_class(self.disk, new_id=lambda: "j")
        self.lives.append(journal.life)
        self.performer = Inline(journal, self.machine, lambda _: None, self.performer_class)
        self.performer.recover()
        self.check_clean("after recover")

    def act(self, verb: str, worker: int) -> None:
        """Do one thing as the agent's machine would ask for it."""
        if verb == "inject" and worker in self.forgotten:
            return  # an id is forgotten only when the coordinator no longer wants it, and is never used again
        if verb == "inject":
            self.offered.add(worker)
            self.performer.inject(order(worker), 99, Surroundings())
            expected = {f"rule-{worker}", "stopped-7"}
            assert expected <= self.machine.effects, "what was injected is not there"
        elif verb == "drift":
            self.performer.reapply(worker, (Peer("n2", ("10.90.0.2",)), Peer("n3", ("10.90.0.3",))))
        elif verb == "heal":
            self.performer.heal(worker, Outcome.DONE, "")
        else:
            self.forgotten.add(worker)
            self.performer.forget(worker)
        for entry in self.performer.journal.live():
            if entry.state is JournalState.APPLIED:
                assert self.performer.look(entry.worker) == ReadBack(), "somebody else's fault was disturbed"
        self.check_once()

    def offer_again(self) -> None:
        """The coordinator has heard nothing and still wants its workers; heal what starts only now."""
        for worker in sorted(self.offered - self.forgotten):
            try:
                self.act("inject", worker)
            except NotInjectedError:
                continue
            self.act("heal", worker)
        self.check_clean("after offering again")

    def check_clean(self, when: str) -> None:
        assert self.machine.effects == FOREIGN, f"{when}: {sorted(self.machine.effects ^ FOREIGN)}"
        self.check_once()
        assert self.lives == sorted(set(self.lives)), self.lives

    def check_once(self) -> None:
        assert set(self.machine.done.values()) <= {1}, "performed twice"


def play(world: World, script: Script, at: int) -> bool:
    """Live once, to the end or to moment number `at`; return whether the end came early."""
    world.points(at)
    try:
        world.start()
        for verb, worker in script:
            world.act(verb, worker)
        world.offer_again()
    except Crash:
        return True
    finally:
        world.points(-1)
    return False


def explore(make_world: type[World], script: Script, seeds: range) -> int:
    """Die at every moment of the first life and at every moment of the second; return the number of histories.

    Each death is one of the process, which loses nothing, or of the machine, which loses what was not synced.
    """
    histories = 0
    for seed, cut, cut_again in itertools.product(seeds, (False, True), (False, True)):
        for first in itertools.count():
            for second in itertools.count():
                died, died_again, _ = history(make_world(seed), script, (first, second, -1), (cut, cut_again, False))
                histories += 1
                if not died_again:
                    break
            if not died:
                break
    return histories


def history(world: World, script: Script, moments: tuple[int, int, int], cuts: Cuts) -> tuple[bool, ...]:
    """Live three lives, up to the given moments; return which of them ended early."""
    deaths: list[bool] = []
    for actions, at, power_cut in zip((script, (), ()), moments, cuts, strict=True):
        try:
            deaths.append(play(world, actions, at))
        except TrogdorBusError as error:
            raise AssertionError(f"lives up to {moments}: {error!r}") from error
        if deaths[-1] and power_cut:
            world.disk.crash()
    return tuple(deaths)


def test_one_worker_and_two_deaths_anywhere() -> None:
    assert explore(World, ONE, range(3)) > 5_000


def test_one_worker_that_follows_the_addresses_of_its_peers_and_two_deaths_anywhere() -> None:
    assert explore(World, FOLLOWED, range(1)) > 2_000


def test_two_overlapping_workers_and_two_deaths_anywhere() -> None:
    assert explore(World, TWO, range(1)) > 10_000


class LateIntent(Journal):
    """Writes the intent after the do."""

    def write(self, entry: Entry) -> Entry:
        return entry if entry.state is JournalState.INTENDED else super().write(entry)


class Amnesia(Journal):
    """Performs what it has performed before."""

    def knows(self, worker: int) -> bool:
        return False


class Selfish(Journal):
    """Undoes without regard to what others hold."""

    def held(self, excluding: Collection[int] = ()) -> tuple[Step, ...]:
        return ()


class Volatile(Journal):
    """Counts its lives in memory only."""

    def _replace(self, name: str, data: bytes) -> None:
        if name != "journal.json":
            super()._replace(name, data)


class EarlyUndone(Performer):
    """Writes "undone" before the undo."""

    async def heal(self, worker: int, outcome: Outcome, error: str, *last: Any, **more: Any) -> tuple[str, ...]:
        entry = self.journal.entries[worker]
        if entry.state is not JournalState.UNDONE:
            self.journal.put(msgspec.structs.replace(entry, state=JournalState.UNDONE))
        self.journal.entries[worker] = entry
        return await super().heal(worker, outcome, error, *last, **more)


class LateStep(Performer):
    """Blocks what is new without writing its undo down first."""

    async def _follow(self, worker: int, drift: tuple[Peer, ...]) -> None:
        action, held = BlockFrom(peers=drift), partial(self._held, worker)
        for step in (await self._hands.prepare(worker, action, Surroundings(), held)).steps:
            await self._hands.do(step)


class Resigned(Performer):
    """Leaves what an earlier life did."""

    async def recover(self, *, wait: bool = False) -> tuple[str, ...]:
        return ()


@pytest.mark.parametrize(
    "broken", [NeverSyncs, NeverSyncsDirectory, LateIntent, LateStep, Amnesia, Selfish, Volatile, EarlyUndone, Resigned]
)
def test_that_these_tests_can_fail(broken: type[SimDisk] | type[Journal] | type[Performer]) -> None:
    class BrokenWorld(World):
        disk_class = broken if issubclass(broken, SimDisk) else SimDisk
        journal_class = broken if issubclass(broken, Journal) else Journal
        performer_class = broken if issubclass(broken, Performer) else Performer

    with pytest.raises(AssertionError):
        explore(BrokenWorld, FOLLOWED if broken is LateStep else TWO, range(3))


WORKERS = st.integers(1, 3)
EVENTS = st.one_of(
    st.tuples(st.just("inject"), WORKERS),
    st.tuples(st.just("heal"), WORKERS),
    st.tuples(st.just("forget"), WORKERS),
    st.tuples(st.sampled_from(["kill", "power cut"]), st.just(0)),
    st.tuples(st.just("die after"), st.integers(0, 60)),
    st.tuples(st.sampled_from(["create", "sync", "rename", "sync_directory", "remove"]), st.integers(1, 6)),
    st.tuples(st.sampled_from(["full", "not full"]), st.just(0)),
    st.tuples(st.sampled_from(["prepare", "do", "undo", "residue"]), st.integers(0, 4)),
)


class Stormy(World):
    """A world where the disk and the machine fail as well: what goes wrong must be said, and must not last."""

    def open(self) -> None:
        """Begin a life; on a disk that cannot be written, undo all the same and try again with a good disk."""
        try:
            self.start()
        except HostError:
            Inline(Journal.read_only(self.disk), self.machine, lambda _: None).recover()
            self.check_clean("after recovery without a disk")
            self.disk.mend()
            self.start()

    def happen(self, verb: str, number: int) -> None:
        if verb in ("inject", "heal", "forget"):
            try:
                self.act(verb, number)
            except CannotHealError:
                assert self.performer.journal.entries[number].state is JournalState.STUCK
            except TrogdorBusError:
                pass
        elif verb in ("kill", "power cut"):
            raise Crash(verb)
        elif verb == "die after":
            self.points(number)
        elif verb in ("full", "not full"):
            self.disk.full = verb == "full"
        elif verb in ("prepare", "do", "undo", "residue"):
            self.machine.failures[verb] = [None, *[HostError(f"{verb} failed")] * number]
        else:
            self.disk.fail(verb, number)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.lists(EVENTS, max_size=25), st.integers(0, 1000), st.booleans())
def test_any_history_ends_clean(events: list[tuple[str, int]], seed: int, power_cuts: bool) -> None:
    world = Stormy(seed)
    world.open()
    for verb, number in events:
        try:
            world.happen(verb, number)
        except Crash:
            world.points(-1)
            world.machine.failures.clear()
            if power_cuts or verb == "power cut":
                world.disk.crash()
            world.open()
    world.points(-1)
    world.machine.failures.clear()
    world.open()
    world.offer_again()
