"""Moving the leadership of a partition: a program of its own asks the brokers, so that no client of Kafka is in here.

It reaches them from where the agent is, not from the node that it is attached to, which faults may cut off.
"""

from __future__ import annotations

import shlex
import sys
import time
from typing import Any, TypeVar

import msgspec

from trogdor_bus.actions import MoveLeader
from trogdor_bus.agents.platforms.linux.commands import ToolFailedError, run
from trogdor_bus.agents.platforms.linux.operations import Lead, LeadBack, step
from trogdor_bus.cluster import Move
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.platform import Step

LOOK_MS = 10_000
"""How long the cluster may take to say how things are."""
MOVE_MS = 20_000
"""How long it may take to make somebody lead: other undoes of this agent wait meanwhile."""
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


def prepare(action: MoveLeader) -> Step:
    """Ask the cluster how things are, and return the step; HostError in the cluster's words if nobody can take over."""
    order = {"topic": action.topic, "partition": action.partition, "to": action.to}
    move = _ask("plan", action.bootstrap, action.config, LOOK_MS, Move, **order)
    return step(Lead(action.bootstrap, action.config, move), LeadBack(action.bootstrap, action.config, move))


def move(operation: Lead) -> None:
    """Make the replica lead; HostError if it does not."""
    _ask("move", operation.bootstrap, operation.config, MOVE_MS, _Moved, move=operation.move)


def typed(operation: LeadBack) -> str:
    """Return what a person would type to restore the order."""
    order = _order(operation.bootstrap, operation.config, move=operation.move)
    return f"echo {shlex.quote(order)} | {shlex.join(PROGRAM)} restore"


class Leaders:
    """Restores, and remembers in this life what failed, so that the undoes of other faults need not wait for it."""

    def __init__(self) -> None:
        self._failed: dict[LeadBack, tuple[float, str]] = {}

    def restore(self, operation: LeadBack) -> str:
        """Restore the order found; return a note if nothing was to be done. CannotHealError if the cluster does not."""
        if why := self._rests(operation):
            raise CannotHealError(why)
        try:
            told = _ask("restore", operation.bootstrap, operation.config, MOVE_MS, _Moved, move=operation.move)
        except HostError as error:
            self._failed[operation] = (time.monotonic() + REST_S, str(error))
            raise CannotHealError(str(error)) from error
        self._failed.pop(operation, None)
        return "" if told.changed else told.why

    def residue(self, operation: LeadBack) -> tuple[str, ...]:
        """Return what is left of the move: an order on its way when its agent died may arrive later."""
        if self._rests(operation):
            return ()  # that it is not restored was told
        left = _ask("look", operation.bootstrap, operation.config, LOOK_MS, _Left, move=operation.move).left
        return (left,) if left else ()

    def _rests(self, operation: LeadBack) -> str:
        """Return why it failed a moment ago, "" if it did not."""
        until_s, why = self._failed.get(operation, (0.0, ""))
        return why if time.monotonic() < until_s else ""


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
