"""Starting again what was killed: once, by the one who may, and only if nobody else did."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, assert_never

import msgspec

from trogdor_bus.actions import Kill
from trogdor_bus.agents.platforms.linux import endings, processes
from trogdor_bus.agents.platforms.linux.commands import find_tool, require_tool, run
from trogdor_bus.agents.platforms.linux.namespace import Attachment, Namespace, find_container, open_attached
from trogdor_bus.agents.platforms.linux.operations import (
    Command,
    Container,
    Finish,
    NamespaceIdentity,
    Restart,
    Unit,
    plain,
    read,
)
from trogdor_bus.agents.platforms.linux.reader import find_program
from trogdor_bus.agents.platforms.linux.starter import origin, waiting
from trogdor_bus.errors import CannotHealError, HostError, NotYetError, RefusedError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Operation, Surroundings
from trogdor_bus.supervisor.children import Door

_T = TypeVar("_T")
REST_S = 10.0
"""How long after a start that brought nothing the next one comes, at the earliest."""
INSIST_S = 2.0
"""How often a container is told to start: an engine that has not yet seen its end does nothing."""


def prepare(
    action: Kill, killed: Sequence[processes.Process], namespace: Namespace, allowed: set[tuple[str, ...]]
) -> Restart:
    """Return the undo of a kill; RefusedError says what to allow, HostError what is missing on this machine."""
    assert action.restart is not None
    first = min(killed, key=lambda process: (process.identity.start_ticks, process.pid))
    how: Unit | Container | Command
    if action.restart.unit:
        how = _unit(action.restart.unit, killed, allowed)
    elif action.restart.container:
        how = _container(action.restart.container, killed, allowed)
    elif action.restart.found:
        how = _found(killed)
    else:
        how = _command(action.restart.command, first, namespace, allowed)
    undo = Restart(
        boot_id=boot_id(),
        how=how,
        unless=action.restart.unless or action.match,
        alive_ms=action.restart.alive_ms,
        dying=tuple(process.identity for process in killed if endings.ends(process.pid, action.signal)),
    )
    read(plain(undo))  # what could not be read back could not be undone
    return undo


def typed(how: Unit | Container | Command) -> str:
    """Return what a person would type instead."""
    match how:
        case Unit():
            return f"systemctl start {how.name}"
        case Container():
            return f"{Path(how.engine).name} start {how.name}"
        case Command():
            return shlex.join(how.argv)
    assert_never(how)


class _Start(msgspec.Struct, frozen=True):
    """A start of this life: when it must have brought something, and when it may be told again (CLOCK_MONOTONIC)."""

    deadline_s: float
    insist_s: float


class Restarts:
    """Starts again, on the node that is attached to, and remembers in this life what is starting or brought nothing."""

    def __init__(self, attachment: Attachment, seen_to: endings.Endings) -> None:
        self._attachment = attachment
        self._endings = seen_to
        self._starts: dict[Restart, _Start] = {}
        self._rests: dict[Restart, float] = {}

    def undo(self, operation: Restart, signal: str, note: Callable[[Operation], None]) -> str:
        """Start what was killed by that signal; return a note if that needed no start.

        NotYetError: it is started and not found yet, or who was told to end has not; when its grace is over it is
        killed. CannotHealError: it was started, now or before, and is not to be found; or it cannot be started.
        """
        if operation.boot_id != boot_id():
            return "gone: the machine was booted since, and started what it starts"
        if operation.kill_ms:
            self._endings.finish(Finish(operation.dying, operation.kill_ms))
        else:
            self._endings.wait(operation, signal)
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

    def _begin(self, operation: Restart, what: Restart, note: Callable[[Operation], None]) -> str:
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
            with open_attached(self._attachment) as namespace:
                return bool(processes.find(operation.unless, namespace, Surroundings(force=True)).processes)
        except HostError:  # its container is down, or its pid file is gone
            return False

    def _start(self, operation: Restart, note: Callable[[Operation], None]) -> str:
        """Start it and return "", or a note if that was not to be."""
        match operation.how:
            case Unit() as unit:
                run([unit.systemctl, "start", "--no-block", unit.name])
            case Container() as container:
                run([container.engine, "start", container.id], environment=os.environ)
            case Command() as command:
                return self._run(operation, command, note)
        return ""

    def _run(self, operation: Restart, command: Command, note: Callable[[Operation], None]) -> str:
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

        If it went down with its container, the command brings it back from outside.
        """
        try:
            here = stack.enter_context(open_attached(self._attachment))
        except HostError:
            return _outside if self._attachment.kind in ("pid", "container") else None
        if here.identity.cookie == namespace.cookie or (namespace.container and _same_container(here, namespace)):
            return here.call
        return _outside if self._attachment.kind == "pid" else None


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


def _found(killed: Sequence[processes.Process]) -> Unit | Container:
    """Return how to start the container, or else the service, that all the killed processes are in."""
    homes = {_home(process.pid): process for process in reversed(killed)}
    (container, unit), process = next(iter(homes.items()))
    instead = "say in the spec how to start it: restart.unit, restart.container or restart.command"
    if len(homes) > 1:
        raise RefusedError(
            "what matches is not all in one container or unit, of which restart.found starts one; "
            f"match less, or {instead}"
        )
    if container:
        return _container(container, killed, set())
    if unit:
        return _unit(unit, killed, set())
    raise RefusedError(
        f"process {process.pid} ({process.name}) is in no container and in no service of this machine's systemd, so "
        f"restart.found cannot start it again; {instead}"
    )


def _home(pid: int) -> tuple[str, str]:
    """Return the container, or else the service, that a process is in, and both "" if it is in neither.

    A service that we are in ourselves is not what it is started with, and those of users are not systemd's to start.
    """
    if container := processes.container_of(pid):
        return container, ""
    unit = processes.unit_of(pid)
    foreign = unit.endswith(".service") and not unit.startswith("user@") and unit != processes.unit_of(os.getpid())
    return "", unit if foreign else ""


def _unit(name: str, killed: Sequence[processes.Process], allowed: set[tuple[str, ...]]) -> Unit:
    listed = {("systemctl", "start", name), ("systemctl", "start", name.removesuffix(".service"))} & allowed
    stranger = next((process for process in killed if processes.unit_of(process.pid) != name), None)
    if stranger and not listed:
        raise _refused(f"process {stranger.pid} ({stranger.name}) is not of the unit {name}", "systemctl", name)
    systemctl = require_tool("systemctl", "systemd")
    state = run([systemctl, "show", "--property=LoadState", "--value", name]).strip()
    if state != "loaded":
        raise HostError(
            f"systemd cannot start the unit {name}: it is {state or 'unknown'}; see `systemctl status {name}`"
        )
    return Unit(systemctl, name)


def _container(name: str, killed: Sequence[processes.Process], allowed: set[tuple[str, ...]]) -> Container:
    engine = find_tool("docker") or find_tool("podman")
    found = find_container(name)  # HostError if there is no engine, or it does not know the container
    assert engine is not None
    tool = Path(engine).name
    inside = processes.mounts_of(found.process.pid)
    stranger = next((process for process in killed if processes.mounts_of(process.pid) != inside), None)
    if stranger and (tool, "start", name) not in allowed:
        raise _refused(f"process {stranger.pid} ({stranger.name}) is not of the container {name}", tool, name)
    return Container(engine, found.identity, found.name)


def _refused(why: str, tool: str, name: str) -> RefusedError:
    return RefusedError(
        f"{why}, so this agent may start that only if its own configuration lists "
        f"{json.dumps([tool, 'start', name])} under allowCommands"
    )


def check_allowed(argv: tuple[str, ...], allowed: set[tuple[str, ...]]) -> None:
    """Raise RefusedError, which says what would allow it, if this agent may not run those words."""
    if argv not in allowed:
        raise RefusedError(
            f"this agent may not run the command {list(argv)}; "
            "list exactly that under allowCommands in the agent's own configuration"
        )


def _command(
    argv: tuple[str, ...], killed: processes.Process, namespace: Namespace, allowed: set[tuple[str, ...]]
) -> Command:
    check_allowed(argv, allowed)
    started = origin(killed.identity)
    program = find_program(argv[0], os.fsdecode(started.cwd.encode("latin-1")) if started else "/")
    if not program:
        raise HostError(f"the restart command {argv[0]!r} does not exist on this machine or cannot be executed")
    return Command(program, argv, namespace.identity, started)
