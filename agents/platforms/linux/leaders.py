"""Moving the leadership of a partition: a program of its own asks the brokers, so that no client of Kafka is in here.

It reaches them from where the agent is, not from the node that it is attached to, which faults may cut off.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import msgspec

from trogdor_bus.actions.kafka import MoveLeader
from trogdor_bus.agents.platforms.linux.commands import ToolFailedError, run
from trogdor_bus.cluster import Move
from trogdor_bus.errors import CannotHealError, HostError, NotYetError

LOOK_MS = 10_000
"""How long the cluster may take to say how things are."""
MOVE_MS = 20_000
"""How long it may take to make somebody lead."""
PAUSE_S = 0.05
"""How long the agent's thread waits for an answer: other undoes wait meanwhile."""
START_S = 10.0
"""How much longer the program may take, to start and to end."""
REST_S = 5.0
"""How long after a restoring that failed the next one comes, at the earliest."""
PROGRAM = (sys.executable, "-P", "-m", "trogdor_bus.kafka.movers")

_T = TypeVar("_T")


class _Moved(msgspec.Struct):
    """What is read of the answer to a move."""

    changed: bool
    why: str


class _Left(msgspec.Struct):
    left: str


class Moving(NamedTuple):
    """A move; the brokers of `bootstrap` are asked for it, with the properties in the file `config`, if any."""

    bootstrap: str
    config: str
    move: Move


def typed(moving: Moving) -> str:
    """Return what a person would type to restore the order."""
    order = _order(moving.bootstrap, moving.config, move=moving.move)
    return f"echo {shlex.quote(order)} | {shlex.join(PROGRAM)} restore"


class Leaders:
    """Moves leadership and restores it, each by a thread that asks the cluster, so that no other work waits for that.

    NotYetError of every method: the cluster is being asked, so call it again soon. What failed is remembered in this
    life, and rests for a while.
    """

    def __init__(self, _: object = None) -> None:
        self._asked: dict[tuple[object, ...], Future[Any]] = {}
        self._failed: dict[Moving, tuple[float, str]] = {}
        self._left: dict[Moving, str] = {}

    def prepare(self, worker: int, action: MoveLeader) -> Moving:
        """Ask how things are, and return the move; HostError in the cluster's words if nobody can take over."""
        how = (action.bootstrap, action.config)
        order: dict[str, Any] = {"topic": action.topic, "partition": action.partition, "to": action.to}
        move = self._answer(
            ("plan", worker, action), action.bootstrap, lambda: _ask("plan", *how, LOOK_MS, Move, **order)
        )
        return Moving(*how, move)

    def move(self, moving: Moving) -> None:
        """Make the replica lead; HostError if it does not."""
        self._answer(
            ("move", moving),
            moving.bootstrap,
            lambda: _ask("move", moving.bootstrap, moving.config, MOVE_MS, _Moved, move=moving.move),
        )

    def restore(self, moving: Moving) -> str:
        """Restore the order found; return a note if nothing was to be done. CannotHealError if the cluster does not."""
        asked = self._asked.get(("move", moving))
        if asked is not None and not asked.done():  # it could come after what restores
            raise NotYetError(f"the move of {moving.move.topic}-{moving.move.partition} is not over")
        self._asked.pop(("move", moving), None)
        if why := self._rests(moving):
            raise CannotHealError(why)

        def work() -> tuple[_Moved, str]:
            told = _ask("restore", moving.bootstrap, moving.config, MOVE_MS, _Moved, move=moving.move)
            return told, _look(moving)

        try:
            told, self._left[moving] = self._answer(("restore", moving), moving.bootstrap, work)
        except HostError as error:
            self._failed[moving] = (time.monotonic() + REST_S, str(error))
            raise CannotHealError(str(error)) from error
        self._failed.pop(moving, None)
        return "" if told.changed else told.why

    def residue(self, moving: Moving) -> tuple[str, ...]:
        """Return what is left of the move: an order on its way when its agent died may arrive later.

        Right after `restore` it is known; else this waits for the cluster.
        """
        if self._rests(moving):
            return ()  # that it is not restored was told
        left = self._left.pop(moving) if moving in self._left else _look(moving)
        return (left,) if left else ()

    def _rests(self, moving: Moving) -> str:
        """Return why it failed a moment ago, "" if it did not."""
        until_s, why = self._failed.get(moving, (0.0, ""))
        return why if time.monotonic() < until_s else ""

    def _answer(self, what: tuple[object, ...], bootstrap: str, work: Callable[[], _T]) -> _T:
        """Return what `work` returns in a thread of its own, or raise its error; NotYetError while it is at it."""
        future: Future[_T] | None = self._asked.get(what)
        if future is None:
            future = self._asked[what] = Future()
            Thread(target=_work, args=(work, future), name="leaders", daemon=True).start()  # an end waits for none
        wait([future], PAUSE_S)
        if not future.done():
            raise NotYetError(f"the brokers of {bootstrap} are asked")
        del self._asked[what]
        return future.result()


def _work(work: Callable[[], _T], future: Future[_T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def _look(moving: Moving) -> str:
    return _ask("look", moving.bootstrap, moving.config, LOOK_MS, _Left, move=moving.move).left


def _ask(verb: str, bootstrap: str, config: str, within_ms: int, kind: type[_T], **order: Any) -> _T:
    try:
        text = _order(bootstrap, config, withinMs=within_ms, **order)
        return msgspec.json.decode(run([*PROGRAM, verb], text, within_ms / 1000 + START_S), type=kind)
    except ToolFailedError as error:
        raise HostError(error.words or str(error)) from error
    except msgspec.DecodeError as error:
        raise HostError(f"what was to {verb} the leader of a partition answered strangely: {error}") from error


def _order(bootstrap: str, config: str, **order: Any) -> str:
    return msgspec.json.encode({"bootstrap": bootstrap, "config": config or None, **order}).decode()
