"""The one loop: order, errors, and when to come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from trogdor_bus.errors import HostError, RefusedError
from trogdor_bus.shell import Shell, UnforeseenError


class Echo:
    """A machine that asks for what it is told, each letter by itself; "!" is refused, "?" nobody foresaw."""

    def __init__(self) -> None:
        self.due_ms = 100

    def handle(self, event: str, now_ms: int) -> Sequence[str]:
        if event == "tick":
            self.due_ms = now_ms + 100
            return []
        if "!" in event:
            raise RefusedError("refused")
        if "?" in event:
            raise ZeroDivisionError("nobody foresaw it")
        if "%" in event:
            raise SystemExit("somebody else's code would end us")
        return list(event)

    def deadline(self) -> int:
        return self.due_ms


class Run:
    """A shell, what it did, and the time."""

    def __init__(self, then: Callable[[Run, str], None] = lambda run, effect: None) -> None:
        self.done: list[str] = []
        self.broke: list[BaseException] = []
        self.fed = self.now_ms = 0
        self.machine = Echo()
        self._then = then
        self.shell: Shell[str, str] = Shell(
            self.machine, self._perform, lambda: self.now_ms, ticked="tick", fed=self._fed, broken=self.broke.append
        )

    def _perform(self, effects: Sequence[str]) -> None:
        for effect in effects:
            self.done.append(effect)
            self._then(self, effect)

    def _fed(self) -> None:
        self.fed += 1


def test_all_that_an_event_asks_for_is_done_before_the_next_event() -> None:
    def feeds(run: Run, effect: str) -> None:
        if effect == "a":
            run.shell.feed("xy")
            run.shell.feed("z")

    run = Run(feeds)
    run.shell.feed("abc")
    assert run.done == ["a", "b", "c", "x", "y", "z"]
    assert run.fed == 1


def test_a_refusal_reaches_who_fed_it_and_nothing_was_done() -> None:
    run = Run()
    with pytest.raises(RefusedError):
        run.shell.feed("a!")
    run.shell.feed("b")
    assert (run.done, run.broke) == (["b"], [])


def test_the_error_of_what_it_asks_for_reaches_who_fed_it() -> None:
    def fails(run: Run, effect: str) -> None:
        if effect == "a":
            raise HostError("the disk is full")

    run = Run(fails)
    with pytest.raises(HostError):
        run.shell.feed("ab")
    assert run.fed == 1, "when to come back is another time now"
    run.shell.feed("c")
    assert run.done == ["a", "c"]


def test_what_waits_behind_what_fails_is_dropped_and_not_done_after_the_next_event() -> None:
    def fails(run: Run, effect: str) -> None:
        if effect == "a":
            run.shell.feed("b")
            raise HostError("the disk is full")

    run = Run(fails)
    with pytest.raises(HostError):
        run.shell.feed("a")
    run.shell.feed("c")
    assert run.done == ["a", "c"]


def test_an_event_of_our_own_that_is_refused_is_what_nobody_foresaw() -> None:
    run = Run()
    run.shell.feed("a!", ours=True)
    (error,) = run.broke
    assert isinstance(error, UnforeseenError)
    assert isinstance(error.__cause__, RefusedError)


@pytest.mark.parametrize(("first", "kind"), [("?", ZeroDivisionError), ("a", ZeroDivisionError), ("%", SystemExit)])
def test_what_nobody_foresaw_is_told_and_not_raised_and_what_waits_is_dropped(
    first: str, kind: type[BaseException]
) -> None:
    def feeds(run: Run, effect: str) -> None:
        if effect == "a":
            run.shell.feed("b")
            raise ZeroDivisionError("here as well")

    run = Run(feeds)
    run.shell.feed(first)
    assert [type(error) for error in run.broke] == [kind]
    run.shell.feed("c")
    assert "b" not in run.done
    assert run.done[-1] == "c"


def test_the_time_is_told_when_it_is_due_and_not_before() -> None:
    run = Run()
    run.now_ms = 99
    run.shell.tick()
    assert (run.shell.due(), run.fed) == (100, 0)
    run.now_ms = 100
    run.shell.tick()
    assert (run.shell.due(), run.fed) == (200, 1)
