"""Stops are counted: whatever overlaps, and whoever else stops, continues or ends a process, it ends as without us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.agents.inline import Inline
from tests.agents.platforms.nodes import one_node
from tests.agents.simdisk import Crash, CrashPoints, SimDisk
from tests.agents.stops import Place, RealPlace, Table
from tests.effort import examples
from tests.support import require_namespaces
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.process import Suspend
from trogdor_bus.agents.events import ReadBack
from trogdor_bus.agents.journal import Journal, JournalState
from trogdor_bus.agents.perform import NotInjectedError
from trogdor_bus.errors import CannotHealError
from trogdor_bus.messages import Order
from trogdor_bus.platform import Surroundings
from trogdor_bus.states import Outcome

WORDS = ("600001", "600002")
SOME = st.sets(st.sampled_from(WORDS), min_size=1)
WRITES = ["create", "sync", "rename", "sync_directory"]
MOMENTS = 24
"""More moments than one fault of two processes passes on the disk and among the signals."""


class Stops(RuleBasedStateMachine):
    """`theirs` says of each living process whether it would stand if we had never been there.

    Two things cannot be told apart by anybody and are left out: a stop by somebody else while ours is in force or its
    undo is not sure to be done, and one that comes while we are dead.
    """

    place: Place

    @initialize(standing=st.sets(st.sampled_from(WORDS)), seed=st.integers(0, 2**32))
    def begin(self, standing: set[str], seed: int) -> None:
        self.disk = SimDisk(Random(seed))
        self.theirs: dict[str, bool] = {}
        for word in WORDS:
            if not self.place.lives(word):
                self.place.start(word)
            self.theirs[word] = word in standing
            (self.place.stop if word in standing else self.place.go_on)(word)
        self.next = 0
        self.on: dict[int, set[str]] = {}
        self.asked: dict[int, set[str]] = {}
        self.disturbed: set[str] = set()
        self.unsure: set[str] = set()
        self.continued: set[str] = set()
        self._start()

    # --- the agent --------------------------------------------------------------------------------------------------

    @rule(words=SOME, refused=st.sampled_from([0, 0, 0, 0, 1, 6]), op=st.sampled_from([*[""] * 8, *WRITES]))
    def inject(self, words: set[str], refused: int = 0, op: str = "") -> None:
        """Stop some of them; perhaps signals are refused, or the disk fails."""
        self.place.refuse(refused)
        if op:
            self.disk.fail(op)
            self.unsure |= words  # an intent that could not be written for sure is undone by the next life
        try:
            self._inject(words)
        except NotInjectedError:
            assert refused or op
        self.place.refuse(0)
        self.disk.mend()

    @rule(number=st.integers(0, 5))
    def heal(self, number: int) -> None:
        """Heal any worker, the last first or not."""
        self._heal(number)

    @rule(number=st.integers(0, 5), times=st.sampled_from([1, 3, 6]))
    def heal_without_permission(self, number: int, times: int) -> None:
        """It may be stuck, and is healed later."""
        self.place.refuse(times)
        try:
            self._heal(number)
        except CannotHealError:
            assert times > 2
        self.place.refuse(0)

    @rule(number=st.integers(0, 5))
    def put_back(self, number: int) -> None:
        """What somebody continued is stopped again, as `onDisturbed: reapply` asks for."""
        if self.on:
            worker = sorted(self.on)[number % len(self.on)]
            if self.journal.entries[worker].state is JournalState.APPLIED:
                newcomers = {word for word in self.asked[worker] - self.on[worker] if self._runs(word)}
                self.performer.reapply(worker)
                self.on[worker] |= newcomers
                assert self.performer.look(worker) == ReadBack() or not self._all_live(worker)
                self.disturbed -= self.on[worker]

    @rule(words=SOME, moment=st.integers(0, MOMENTS), when=st.sampled_from(["idle", "injecting", "healing"]))
    def die(self, words: set[str], moment: int, when: str) -> None:
        """The agent dies, and the next one undoes everything."""
        self.disk.points = self.place.points = CrashPoints(moment)
        with contextlib.suppress(Crash, NotInjectedError):
            if when == "injecting":
                self._inject(words)
            elif when == "healing" and self.on:
                self.performer.heal(min(self.on), Outcome.DONE, "")
        self._start()

    # --- somebody else ----------------------------------------------------------------------------------------------

    @rule(word=st.sampled_from(WORDS))
    def they_stop(self, word: str) -> None:
        if self.place.lives(word) and not self._holders(word) and word not in self.unsure:
            self.place.stop(word)
            self.theirs[word] = True

    @rule(word=st.sampled_from(WORDS))
    def they_continue(self, word: str) -> None:
        holders = self._holders(word)
        under_us = self.place.lives(word) and self.theirs[word] and (holders or word in self.unsure)
        if self.place.lives(word):
            self.place.go_on(word)
            self.theirs[word] = False
            if under_us:
                self.continued.add(word)
            if holders:
                self.disturbed.add(word)

    @rule(word=st.sampled_from(WORDS), standing=st.booleans())
    def they_replace(self, word: str, standing: bool) -> None:
        """It ends, and a new one of that name begins, which no earlier fault touches; or it ends for now."""
        if self.place.lives(word):
            self.place.end(word)
            del self.theirs[word]
        else:
            self.place.start(word)
            if standing:
                self.place.stop(word)
            self.theirs[word] = standing
            self.continued.discard(word)
            for words in self.on.values():
                words.discard(word)

    # --- what holds at all times ------------------------------------------------------------------------------------

    @invariant()
    def a_process_stands_as_long_as_anybody_wants_it_to(self) -> None:
        for word, theirs in getattr(self, "theirs", {}).items():
            if not self._holders(word):
                assert self.place.stands(word) is theirs, f"{word} {'stands' if not theirs else 'runs'}"
                self.disturbed.discard(word)
                self.continued.discard(word)
            elif word not in self.disturbed:
                assert self.place.stands(word), f"{word} runs, and {self._holders(word)} hold it"

    def teardown(self) -> None:
        """All faults end, in the order of their ids: every process is as they want it."""
        if hasattr(self, "theirs"):
            for worker in sorted(self.on):
                self.performer.heal(worker, Outcome.DONE, "")
            self.on.clear()
            self.a_process_stands_as_long_as_anybody_wants_it_to()
            assert self.journal.live() == ()

    # --- how --------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.disk.points = self.place.points = CrashPoints()
        self.journal = Journal(self.disk)
        self.performer = Inline(self.journal, self.place.platform, lambda _: None)
        self.performer.recover()
        assert self.journal.live() == ()
        self.on.clear()
        self.unsure.clear()

    def _inject(self, words: set[str]) -> None:
        self.next += 1
        actions = tuple(Suspend(match=ProcessMatch(command=word), required=False) for word in sorted(words))
        order = Order(worker=self.next, task="t", journal="j", remaining_ms=1000, actions=actions)
        self.asked[self.next] = {word for word in words if self.place.lives(word)}
        try:
            self.performer.inject(order, 99, Surroundings())
        except NotInjectedError as error:
            if error.stuck:
                self._half_done(self.next)
            raise
        self.on[self.next] = set(self.asked[self.next])
        self.disturbed -= words

    def _heal(self, number: int) -> None:
        if not self.on:
            return
        worker = sorted(self.on)[number % len(self.on)]
        try:
            self.performer.heal(worker, Outcome.DONE, "")
        except CannotHealError:
            assert self.journal.entries[worker].state is JournalState.STUCK
            self._half_done(worker)
            raise
        # The first that found it running lets it run; those that found it standing would not.
        self.disturbed |= self.on.pop(worker) & self.continued

    def _half_done(self, worker: int) -> None:
        """What is left of a stuck worker it still holds; whether that stands nobody knows."""
        left = {step.do["process"]["pid"] for step in self.journal.entries[worker].steps}
        self.on[worker] = {
            word for word in self.asked[worker] if self.place.lives(word) and self.place.pid(word) in left
        }
        self.disturbed |= self.asked[worker]

    def _holders(self, word: str) -> list[int]:
        return [worker for worker, words in self.on.items() if word in words]

    def _runs(self, word: str) -> bool:
        return self.place.lives(word) and not self.place.stands(word)

    def _all_live(self, worker: int) -> bool:
        return all(self.place.lives(word) for word in self.asked[worker])


def test_any_order_of_faults_ends_as_without_them() -> None:
    with Table().installed() as table:

        class InMemory(Stops):
            place = table

        run_state_machine_as_test(InMemory, settings=examples(300, steps=20))


@pytest.fixture
def stood() -> Iterator[Stops]:
    """A process that stood, and was continued by its owner while a fault of ours held it."""
    with Table().installed() as table:

        class Continued(Stops):
            place = table

        state = Continued()
        state.begin({"600001"}, 0)
        state.inject({"600001"})
        state.they_continue("600001")
        yield state


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_fault_that_comes_after_the_owner_continued_it_takes_back_its_own_stop(
    stood: Stops, order: tuple[int, int]
) -> None:
    stood.inject({"600001"})
    for worker in order:
        stood.performer.heal(worker, Outcome.DONE, "")
    assert not stood.place.stands("600001")


def test_what_was_put_back_after_the_owner_continued_it_is_taken_back(stood: Stops) -> None:
    stood.performer.reapply(1)
    assert stood.place.stands("600001")
    stood.performer.heal(1, Outcome.DONE, "")
    assert not stood.place.stands("600001")


def test_of_three_the_one_in_the_middle_may_end_first(stood: Stops) -> None:
    stood.inject({"600001"})
    stood.inject({"600001"})
    stood.performer.heal(2, Outcome.DONE, "")
    assert stood.place.stands("600001")
    stood.performer.heal(1, Outcome.DONE, "")
    stood.performer.heal(3, Outcome.DONE, "")
    assert not stood.place.stands("600001")


def test_real_processes_end_as_without_any_fault() -> None:
    require_namespaces()
    with one_node() as node:

        class Real(Stops):
            place = RealPlace(node)

        run_state_machine_as_test(Real, settings=examples(15, steps=12, shrink=False))
