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
from trogdor_bus.agents.platforms.linux import processes, signals
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
from trogdor_bus.agents.platforms.linux.starter import Door, origin, waiting
from trogdor_bus.errors import CannotHealError, HostError, RefusedError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Operation, Surroundings

_T = TypeVar("_T")
LOOK_S = 0.05
REST_S = 10.0
"""How long after a start that brought nothing the next one comes, at the earliest."""
INSIST_S = 2.0
"""How often a container is told to start: an engine that has not yet seen its end does nothing."""
ENDING = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGABRT", "SIGSEGV")
"""Signals that end a process, but perhaps not at once."""


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
        dying=tuple(process.identity for process in killed) if action.signal in ENDING else (),
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


class Restarts:
    """Starts again, on the node that is attached to, and remembers in this life what brought nothing."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._rests: dict[Restart, float] = {}

    def undo(self, operation: Restart, note: Callable[[Operation], None]) -> str:
        """Start what was killed and wait until it is found; return a note if that needed no start.

        Who was told to end is waited for before, and killed when its grace is over. CannotHealError: it was started,
        now or before, and is not to be found; or it cannot be started.
        """
        if operation.boot_id != boot_id():
            return "gone: the machine was booted since, and started what it starts"
        within_s = operation.alive_ms / 1000
        if operation.kill_ms:
            signals.finish(Finish(operation.dying, operation.kill_ms))
        else:
            _wait(lambda: not any(map(processes.thread_states, operation.dying)), within_s)
        if self._runs(operation):
            return f"already running: {operation.unless.describe()}"
        started = operation.started
        if started is not None and processes.session_lives(started):  # by an attempt before, perhaps of another life
            left_s = within_s - processes.age_s(started)
            _wait(lambda: self._runs(operation) or not processes.session_lives(started), left_s)
            if self._runs(operation):
                return ""
            if processes.session_lives(started):
                raise _missing(operation)
        what = msgspec.structs.replace(operation, started=None)
        if time.monotonic() < self._rests.get(what, 0):
            raise _missing(operation)
        deadline = time.monotonic() + within_s
        while (left_s := deadline - time.monotonic()) > 0:
            if told := self._start(operation, note):
                return told
            if _wait(lambda: self._runs(operation), min(left_s, _insist_s(operation))):
                return ""
        self._rests[what] = time.monotonic() + REST_S
        raise _missing(operation)

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


def _insist_s(operation: Restart) -> float:
    return INSIST_S if isinstance(operation.how, Container) else operation.alive_ms / 1000


def _missing(operation: Restart) -> CannotHealError:
    more = f"; `systemctl status {operation.how.name}` says more" if isinstance(operation.how, Unit) else ""
    return CannotHealError(
        f"ran {typed(operation.how)}, but {operation.unless.describe()} "
        f"did not appear within {operation.alive_ms / 1000:g} s{more}"
    )


def _wait(done: Callable[[], bool], within_s: float) -> bool:
    """Return whether it came true in time; it is asked at least once."""
    deadline = time.monotonic() + within_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


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


def _command(
    argv: tuple[str, ...], killed: processes.Process, namespace: Namespace, allowed: set[tuple[str, ...]]
) -> Command:
    if argv not in allowed:
        raise RefusedError(
            f"this agent may not run the command {list(argv)}; "
            "list exactly that under allowCommands in the agent's own configuration"
        )
    started = origin(killed.identity)
    program = find_tool(argv[0])
    if "/" in argv[0]:
        folder = started.cwd.encode("latin-1") if started else b"/"
        program = os.fsdecode(os.path.join(folder, os.fsencode(argv[0])))  # noqa: PTH118 - bytes
    if program is None or not os.access(program, os.X_OK) or not Path(program).is_file():
        raise HostError(f"the restart command {argv[0]!r} does not exist on this machine or cannot be executed")
    return Command(program, argv, namespace.identity, started)
