"""Lanes: what hangs holds up its own lane only, undos come first, and what waits together is done together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trogdor_bus.agents.lanes import SOON, All, Call, Job, Lanes, Pause, Within, carry_out, first, run
from trogdor_bus.agents.threads import run_in_lanes, within
from trogdor_bus.errors import HostError


class World:
    """Lanes whose calls are carried out when the test says so, and timers that ring when it says so."""

    def __init__(self) -> None:
        self.lanes = Lanes(self._carry, lambda seconds, go_on: self.timers.append((seconds, go_on)))
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.under_way: dict[str, Sequence[Call[Any]]] = {}
        self.ended: dict[str, Any] = {}

    def begin(self, name: str, job: Job[Any], key: object = None) -> None:
        self.lanes.begin(job, lambda outcome: self.ended.__setitem__(name, outcome), key)

    def soon(self) -> None:
        """Let the timers ring that were set for now."""
        while any(not seconds for seconds, _ in self.timers):
            now = [go_on for seconds, go_on in self.timers if not seconds]
            self.timers = [timer for timer in self.timers if timer[0]]
            for go_on in now:
                go_on()

    def wake(self) -> None:
        """Let all pauses end."""
        late, self.timers = self.timers, []
        for _, go_on in late:
            go_on()
        self.soon()

    def carried(self, lane: str) -> int:
        """Carry out what a lane is at; return how many calls that were."""
        calls = self.under_way.pop(lane)
        self.lanes.carried(lane, carry_out(calls))
        self.soon()
        return len(calls)

    def _carry(self, lane: str, calls: Sequence[Call[Any]]) -> None:
        assert lane not in self.under_way, "two batches of one lane at a time"
        self.under_way[lane] = calls


@pytest.fixture
def world() -> World:
    return World()


async def calls(*wanted: Call[Any]) -> list[Any]:
    return [await call for call in wanted]


def noting(done: list[str], what: str) -> Callable[[], str]:
    def work() -> str:
        done.append(what)
        return what

    return work


def test_a_lane_that_hangs_holds_up_no_other(world: World) -> None:
    world.begin("hangs", calls(Call("a", lambda: 1)))
    world.begin("behind", calls(Call("a", lambda: 2)))
    world.begin("beside", calls(Call("b", lambda: 3), Call("b", lambda: 4)))
    world.soon()
    assert set(world.under_way) == {"a", "b"}
    world.carried("b")
    world.carried("b")
    assert world.ended == {"beside": [3, 4]}
    assert not world.lanes.idle()
    world.carried("a")
    world.carried("a")
    assert world.ended == {"beside": [3, 4], "hangs": [1], "behind": [2]}
    assert world.lanes.idle()


@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=8))
def test_undos_come_first_and_by_when_they_are_due_and_the_rest_in_order(dues: list[int | None]) -> None:
    world, done = World(), list[str]()
    for number, due in enumerate(dues):
        world.begin(str(number), calls(Call("a", noting(done, str(number)), SOON if due is None else first(due))))
    world.soon()
    while world.under_way:
        assert world.carried("a") == 1
    undos = sorted((due, number) for number, due in enumerate(dues) if due is not None)
    rest = [number for number, due in enumerate(dues) if due is None]
    assert done == [str(number) for number in (*(number for _, number in undos), *rest)]


def test_what_waits_in_a_lane_at_the_same_time_is_done_together_and_each_gets_its_own(world: World) -> None:
    together = list[Sequence[int]]()

    def many(numbers: Sequence[int]) -> Sequence[int | Exception]:
        together.append(numbers)
        return [KeyError(number) if number == 2 else number * 10 for number in numbers]

    for number in range(4):
        world.begin(str(number), calls(Call("a", lambda: -1, first(0), many, number)))
    world.begin("another", calls(Call("a", lambda: 7, first(0))))
    world.soon()
    assert world.carried("a") == 4
    assert together == [[0, 1, 2, 3]]
    assert [world.ended[str(number)] for number in (0, 1, 3)] == [[0], [10], [30]]
    assert isinstance(world.ended["2"], KeyError)
    assert world.carried("a") == 1
    assert world.ended["another"] == [7]


def test_what_fails_as_a_whole_fails_for_each(world: World) -> None:
    def many(_: Sequence[int]) -> Sequence[int]:
        raise ValueError("all of it")

    for number in range(2):
        world.begin(str(number), calls(Call("a", lambda: -1, SOON, many, number)))
    world.soon()
    world.carried("a")
    assert [str(world.ended[str(number)]) for number in range(2)] == ["all of it"] * 2


def test_jobs_of_one_key_come_one_after_the_other_whatever_becomes_of_them(world: World) -> None:
    def fails() -> None:
        raise KeyError

    world.begin("first", calls(Call("a", fails)), 1)
    world.begin("second", calls(Call("b", lambda: 2)), 1)
    world.begin("other", calls(Call("c", lambda: 3)), 2)
    world.soon()
    assert set(world.under_way) == {"a", "c"}
    world.carried("a")
    assert isinstance(world.ended["first"], KeyError)
    assert set(world.under_way) == {"b", "c"}
    world.carried("b")
    assert world.ended["second"] == [2]


def test_what_is_waited_for_within_some_seconds_holds_up_its_job_no_longer(world: World) -> None:
    async def impatient(call: Call[int]) -> str:
        try:
            return f"came: {await Within(3, call)}"
        except TimeoutError:
            return "given up"

    world.begin("hangs", impatient(Call("a", lambda: 1)))
    world.begin("comes", impatient(Call("b", lambda: 2)))
    world.soon()
    world.carried("b")
    assert world.ended == {"comes": "came: 2"}
    assert [seconds for seconds, _ in world.timers] == [3, 3]
    world.wake()
    assert world.ended == {"comes": "came: 2", "hangs": "given up"}
    world.carried("a")
    assert world.lanes.idle() and world.ended == {"comes": "came: 2", "hangs": "given up"}
    assert run(impatient(Call("a", lambda: 3)), lambda _: None) == "came: 3"


def test_several_at_once_go_on_each_by_itself_and_are_awaited_together(world: World) -> None:
    async def inner() -> str:
        await Pause(1)
        return await Call("b", lambda: "b")

    async def outer() -> list[Any]:
        none = await All([])
        return [none, *await All([Call("a", lambda: 1 / 0), inner, Call("b", lambda: "first")])]

    world.begin("outer", outer())
    world.soon()
    world.carried("b")
    world.wake()
    world.carried("b")
    assert "outer" not in world.ended
    world.carried("a")
    none, failed, *others = world.ended["outer"]
    assert (none, type(failed), others) == ([], ZeroDivisionError, ["b", "first"])


def test_a_job_that_waits_for_something_else_is_told() -> None:
    class Odd:
        def __await__(self) -> Any:
            yield "odd"

    async def job() -> None:
        await Odd()

    with pytest.raises(TypeError, match="odd"):
        run(job(), lambda _: None)
    with pytest.raises(TypeError, match="odd"):
        run_in_lanes(job())


@pytest.mark.parametrize("runs", [run_in_lanes, lambda job: run(job, lambda _: None)])
def test_a_job_may_be_run_here_and_now(runs: Callable[[Job[Any]], Any]) -> None:
    async def job() -> list[Any]:
        await Pause(0.001)
        return await All([Call("a", lambda: 1), lambda: calls(Call("b", lambda: 2)), Call("a", lambda: int("x"))])

    one, two, failed = runs(job())
    assert (one, two, type(failed)) == (1, [2], ValueError)


def test_threads_of_lanes_do_not_wait_for_each_other() -> None:
    hangs = threading.Event()

    async def job() -> list[Any]:
        return await All([Call("a", lambda: hangs.wait(60)), lambda: calls(Call("b", hangs.set))])

    assert run_in_lanes(job()) == [True, [None]]


def test_what_takes_too_long_is_given_up_and_goes_on_alone() -> None:
    go, done = threading.Event(), threading.Event()

    def hangs() -> None:
        go.wait(30)
        done.set()

    with pytest.raises(HostError, match=r"nothing answers within 0\.1 s"):
        within(0.1, hangs)
    assert not done.is_set()
    go.set()
    assert done.wait(30)
    assert within(5.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5.0, lambda: 1 // 0)
