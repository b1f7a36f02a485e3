"""Operations of another package that answer wrongly: that costs their own worker, and no other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.agents.driver import order
from tests.agents.inline import Inline
from trogdor_bus.actions import Action
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.journal import Journal, JournalState
from trogdor_bus.agents.perform import NotInjectedError
from trogdor_bus.agents.platforms.linux.operations import KINDS, Nothing, Operation, step
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.platform import Prepared, Seen, Step, Surroundings
from trogdor_bus.states import Outcome
from trogdor_bus.testing import unnoted


class Ask(Action, frozen=True, tag="their-action"):
    """What another package's fault asks for."""


class Do(Operation, frozen=True, tag="their-do"):
    performs = (Ask,)

    @classmethod
    def prepares_in(cls, action: Ask) -> str:
        return "theirs"

    @classmethod
    def prepare(cls, *_: Any) -> Prepared:
        return Prepared((THEIRS,))

    def do(self, *_: Any) -> None:
        """Do nothing."""


class Undo(Operation, frozen=True, tag="their-undo"):
    def undo(self, *_: Any) -> str:
        return "alone"

    def leftovers(self, *_: Any) -> tuple[str, ...]:
        return ("left",)


class Unlike:
    """A key that fails where it is compared."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise KeyError(other)


class Unhashed:
    def __hash__(self) -> int:
        raise KeyError(self)


THEIRS = step(Do(), Undo())
OURS = step(Nothing(), Nothing())


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package, installed."""
    monkeypatch.setitem(vars(KINDS), "others", ({"their-do": Do, "their-undo": Undo}, ()))


def raising() -> Iterator[str]:
    yield "together"
    raise KeyError


def batched(monkeypatch: pytest.MonkeyPatch, key: Callable[[], Hashable], answer: Callable[[], Any]) -> None:
    monkeypatch.setattr(Undo, "batch", lambda self, verb: key())
    for name in ("undo_together", "left_together"):
        monkeypatch.setattr(Undo, name, classmethod(lambda cls, on, many: answer()))


def undone(steps: Sequence[Step]) -> Sequence[object]:
    return LinuxPlatform().undo_many([(one, (), unnoted) for one in steps])


def left(steps: Sequence[Step]) -> Sequence[object]:
    return LinuxPlatform().residue_many([(one, ()) for one in steps])


@pytest.mark.parametrize(
    "answer",
    [
        lambda: None,
        lambda: 5,
        lambda: [],
        lambda: ["together"] * 3,
        lambda: itertools.repeat("together"),
        raising,
    ],
)
def test_a_batch_that_does_not_answer_for_each_is_done_one_by_one(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Any]
) -> None:
    batched(monkeypatch, lambda: "all of mine", answer)
    assert undone([OURS, THEIRS, THEIRS, OURS]) == ["", "alone", "alone", ""]
    assert left([OURS, THEIRS, THEIRS, OURS]) == [(), ("left",), ("left",), ()]


def test_an_iterator_that_answers_for_each_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    batched(monkeypatch, lambda: "all of mine", lambda: iter([("a",), HostError("b")]))
    assert list(map(str, left([THEIRS, THEIRS]))) == ["('a',)", "b"]


@pytest.mark.parametrize("key", [Unlike, Unhashed, list])
def test_what_cannot_be_compared_with_others_of_its_batch_is_done_alone(
    monkeypatch: pytest.MonkeyPatch, key: Callable[[], Hashable]
) -> None:
    batched(monkeypatch, key, lambda: ["together"])
    first, *others = undone([OURS, THEIRS, THEIRS])
    assert first == "" and others[-1] == "alone"


def life(tmp_path: Path) -> Inline:
    return Inline(Journal(FileDisk(tmp_path)), LinuxPlatform())


def raises(*_: Any) -> Any:
    raise KeyError(1)


def answers(what: object) -> Callable[..., Any]:
    return lambda *_: what


@pytest.mark.parametrize("wrong", [answers(None), answers(Prepared(None)), raises])  # type: ignore[arg-type]
def test_what_is_prepared_wrongly_is_not_injected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: Callable[..., Any]
) -> None:
    monkeypatch.setattr(Do, "prepare", classmethod(wrong))
    agent = life(tmp_path)
    with pytest.raises(NotInjectedError):
        agent.inject(order(1, actions=(Ask(),)), 10**15, Surroundings())
    assert agent.journal.entries[1].state is JournalState.UNDONE


@pytest.mark.parametrize("method", ["holds", "search", "again", "missed"])
@pytest.mark.parametrize(
    "wrong",
    [
        answers(None),
        answers(5),
        answers(Seen(5)),  # type: ignore[arg-type]
        answers(Seen("\udcff")),
        answers(Seen(status={"phase": "x"})),  # type: ignore[arg-type]
        answers(Seen(status=None)),  # type: ignore[arg-type]
        answers(Seen(status=msgspec.Raw(b"no JSON"))),
        answers(Seen(dropped="3")),  # type: ignore[arg-type]
        answers(Seen(ended=5)),  # type: ignore[arg-type]
        raises,
    ],
)
def test_who_looks_wrongly_is_undone_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, wrong: Callable[..., Any]
) -> None:
    monkeypatch.setattr(Do, "holds", lambda *_: Seen("disturbed", unsure=method == "search"))
    monkeypatch.setattr(Do, method, wrong)
    monkeypatch.setattr(Undo, "leftovers", answers(()))
    agent = life(tmp_path)
    agent.inject(order(1, actions=(Ask(),)), 10**15, Surroundings())
    agent.look(1)
    if method == "again":
        with pytest.raises(HostError):
            agent.reapply(1)
    agent.heal(1, Outcome.DONE, "")
    assert agent.journal.entries[1].state is JournalState.UNDONE


@pytest.mark.parametrize("wrong", [answers(None), answers(5), answers((5,)), raises])
def test_who_cannot_say_what_is_left_is_stuck(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: Callable[..., Any]
) -> None:
    monkeypatch.setattr(Undo, "leftovers", wrong)
    agent = life(tmp_path)
    agent.inject(order(1, actions=(Ask(),)), 10**15, Surroundings())
    with pytest.raises(CannotHealError):
        agent.heal(1, Outcome.DONE, "")
    assert agent.journal.entries[1].state is JournalState.STUCK
    monkeypatch.setattr(Undo, "leftovers", answers(()))
    agent.recover()
    assert agent.journal.entries[1].state is JournalState.UNDONE
    monkeypatch.setattr(Undo, "leftovers", wrong)
    assert agent.look_again((1,))


def test_names_that_are_no_text_reach_a_frame_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "/var/\udcff"  # as os.listdir tells of a file
    monkeypatch.setattr(Undo, "leftovers", answers((odd,)))
    monkeypatch.setattr(Undo, "manual", answers(odd))
    platform = LinuxPlatform()
    assert platform.residue(THEIRS, ()) == ("/var/\\udcff",)
    assert platform.by_hand(THEIRS) == "/var/\\udcff"
    assert msgspec.json.decode(msgspec.json.encode(undone([THEIRS]))) == ["alone"]


@pytest.mark.parametrize(("told", "notes"), [(None, ()), (5, ("5",)), ("\udcff", ("\\udcff",))])
def test_what_an_undo_tells_is_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: object, notes: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Undo, "undo", answers(told))
    monkeypatch.setattr(Undo, "leftovers", answers(()))
    agent = life(tmp_path)
    agent.inject(order(1, actions=(Ask(),)), 10**15, Surroundings())
    assert agent.heal(1, Outcome.DONE, "") == notes
