"""Starting again what was killed: once, by the one who may, and only if nobody else did."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.process import Kill
from trogdor_bus.agents.platforms.linux import endings, processes
from trogdor_bus.agents.platforms.linux.commands import run
from trogdor_bus.agents.platforms.linux.endings import Endings
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.agents.platforms.linux.operations import START, Note, Operation, plain, read
from trogdor_bus.agents.platforms.linux.restart import Container, Unit, choose, typed
from trogdor_bus.agents.platforms.linux.starter import Command, waiting
from trogdor_bus.errors import CannotHealError, GoneError, HostError, NotYetError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import ProcessIdentity, Step, Surroundings
from trogdor_bus.supervisor.children import Door

if TYPE_CHECKING:
    from trogdor_bus.agents.platforms.linux.node import Node

_T = TypeVar("_T")
REST_S = 10.0
"""How long after a start that brought nothing the next one comes, at the earliest."""
INSIST_S = 2.0
"""How often a container is told to start: an engine that has not yet seen its end does nothing."""


class Restart(Operation, frozen=True, kw_only=True, tag="restart"):
    """Start again what was killed, in the same boot, unless there is a process that `unless` matches.

    `dying`: who was told to end, and may still be at it: they are not what `unless` means. `told_ms` (CLOCK_BOOTTIME):
    when that was; 0: they may not have been. `kill_ms`: when they are killed (see `Finish`), which is known as soon as
    they were told; 0: never. `started`: who was started already, on disk before it ran.
    """

    boot_id: str
    how: Unit | Container | Command
    unless: ProcessMatch
    alive_ms: int
    dying: tuple[ProcessIdentity, ...] = ()
    kill_ms: int = 0
    started: ProcessIdentity | None = None
    told_ms: int = 0

    @classmethod
    def of(cls, action: Kill, killed: Sequence[processes.Process], namespace: Namespace, on: Node) -> Restart:
        """Return the undo of a kill; RefusedError says what to allow, HostError what is missing on this machine."""
        assert action.restart is not None
        undo = cls(
            boot_id=boot_id(),
            how=choose(action.restart, killed, namespace, on.allowed),
            unless=action.restart.unless or action.match,
            alive_ms=action.restart.alive_ms,
            dying=tuple(process.identity for process in killed if endings.ends(process.pid, action.signal)),
        )
        read(plain(undo))  # what could not be read back could not be undone
        on.memory(Endings).prepared(undo.dying)
        return undo

    def undo(self, on: Node, do: Operation, held: Sequence[Step], note: Note) -> str:
        """Start what was killed; return a note if that needed no start.

        NotYetError: it is started and not found yet, or who was told to end has not; when its grace is over it is
        killed. CannotHealError: it was started, now or before, and is not to be found; or it cannot be started.
        """
        if self.boot_id != boot_id():
            return "gone: the machine was booted since, and started what it starts"
        if self.kill_ms:
            on.memory(Endings).finish(self.dying, self.kill_ms)
        else:
            on.memory(Endings).wait(self.dying, self.told_ms, _signal(do))
        return on.memory(_Starts).undo(self, note)

    def manual(self, on: Node, do: Operation) -> str:
        """Return the commands that end who was told to, and start it."""
        inside = on.typed_prefix() if isinstance(self.how, Command) else ""
        kill = endings.typed(on.memory(Endings).dying(self.dying, _signal(do)))
        return f"{kill}{'; ' if kill else ''}{inside}{typed(self.how)}"

    def resource(self) -> str:
        """Return what is started."""
        how = self.how
        return f"{START} {' '.join(how.argv) if isinstance(how, Command) else how.name}"


def _signal(do: Operation) -> str:
    """Return by which signal it was killed."""
    return getattr(do, "signal", "SIGTERM")


class _Start(msgspec.Struct, frozen=True):
    """A start of this life: when it must have brought something, and when it may be told again (CLOCK_MONOTONIC)."""

    deadline_s: float
    insist_s: float


class _Starts:
    """Starts again on one node, and remembers in this life what is starting or brought nothing."""

    def __init__(self, on: Node) -> None:
        self._on = on
        self._starts: dict[Restart, _Start] = {}
        self._rests: dict[Restart, float] = {}

    def undo(self, operation: Restart, note: Note) -> str:
        """Start it, unless it runs; see `Restart.undo`."""
        what = msgspec.structs.replace(operation, started=None)
        begun = self._starts.get(what)
        if self._runs(operation):
            self._starts.pop(what, None)
            ours = begun is not None or (operation.started is not None and processes.session_lives(operation.started))
            return "" if ours else f"already running: {operation.unless.describe()}"
        if begun is None:
            return self._begin(operation, what, note)
        now_s = time.monotonic()
        if now_s > begun.deadline_s:
            del self._starts[what]
            self._rests[what] = now_s + REST_S
            raise _missing(operation)
        if now_s > begun.insist_s:
            self._starts[what] = msgspec.structs.replace(begun, insist_s=now_s + INSIST_S)
            self._start(operation, note)
        raise _starting(operation)

    def _begin(self, operation: Restart, what: Restart, note: Note) -> str:
        """Start it, unless somebody did; return a note if that was not to be."""
        within_s, started = operation.alive_ms / 1000, operation.started
        if started is not None and processes.session_lives(started):  # by an attempt before, perhaps of another life
            raise (_starting if processes.age_s(started) < within_s else _missing)(operation)
        if time.monotonic() < self._rests.get(what, 0):
            raise _missing(operation)
        if told := self._start(operation, note):
            return told
        again_s = INSIST_S if isinstance(operation.how, Container) else within_s
        self._starts[what] = _Start(time.monotonic() + within_s, time.monotonic() + again_s)
        raise _starting(operation)

    def _runs(self, operation: Restart) -> bool:
        try:
            with self._on.open() as namespace:
                return bool(processes.find(operation.unless, namespace, Surroundings(force=True)).processes)
        except GoneError:  # its container is down, or its pid file is gone
            return False

    def _start(self, operation: Restart, note: Note) -> str:
        """Start it and return "", or a note if that was not to be."""
        match operation.how:
            case Unit() as unit:
                run([unit.systemctl, "start", "--no-block", unit.name])
            case Container() as container:
                run([container.engine, "start", container.id], environment=os.environ)
            case Command() as command:
                return self._run(operation, command, note)
        return ""

    def _run(self, operation: Restart, command: Command, note: Note) -> str:
        with contextlib.ExitStack() as stack:
            enter = self._door(command.namespace, stack)
            if enter is None:
                return "gone: the node is another one now, and what ran in it is not started again"
            try:
                waiter = stack.enter_context(waiting(command, enter))
                note(plain(msgspec.structs.replace(operation, started=waiter.identity)))
                if self._runs(operation):
                    return f"already running: {operation.unless.describe()}"
                waiter.release()
            except HostError as error:
                raise HostError(f"{typed(command)}: {error}") from error
        return ""

    def _door(self, namespace: NamespaceIdentity, stack: contextlib.ExitStack) -> Door | None:
        """Return what calls a function where the killed process lived; None if that place is no more.

        If it went down with its container, the command brings it back from outside. HostError if that cannot be seen.
        """
        try:
            here = stack.enter_context(self._on.open())
        except GoneError:
            return _outside if self._on.attachment.kind in ("pid", "container") else None
        if here.identity.cookie == namespace.cookie or (namespace.container and _same_container(here, namespace)):
            return here.call
        return _outside if self._on.attachment.kind == "pid" else None


def _same_container(here: Namespace, namespace: NamespaceIdentity) -> bool:
    return here.identity.container == namespace.container


def _outside(work: Callable[[], _T]) -> _T:
    return work()


def _starting(operation: Restart) -> NotYetError:
    return NotYetError(f"{typed(operation.how)} was run, and {operation.unless.describe()} is not found yet")


def _missing(operation: Restart) -> CannotHealError:
    more = f"; `systemctl status {operation.how.name}` says more" if isinstance(operation.how, Unit) else ""
    return CannotHealError(
        f"ran {typed(operation.how)}, but {operation.unless.describe()} "
        f"did not appear within {operation.alive_ms / 1000:g} s{more}"
    )
