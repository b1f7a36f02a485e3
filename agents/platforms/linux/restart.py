"""How what was killed is started again: by its unit, its container, or a command that this agent may run."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, assert_never

import msgspec

from trogdor_bus.actions.process import Restart
from trogdor_bus.agents.platforms.linux import processes
from trogdor_bus.agents.platforms.linux.commands import find_tool, require_tool, run
from trogdor_bus.agents.platforms.linux.namespace import Namespace, find_container
from trogdor_bus.agents.platforms.linux.reader import find_program
from trogdor_bus.agents.platforms.linux.starter import Command, origin
from trogdor_bus.errors import HostError, RefusedError

Systemctl = Annotated[str, msgspec.Meta(pattern=r"\A(/[A-Za-z0-9._+-]+)+/systemctl\Z")]
UnitName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_:.\\@-]*\.service\Z")]
Engine = Annotated[str, msgspec.Meta(pattern=r"\A(/[A-Za-z0-9._+-]+)+/(docker|podman)\Z")]
ContainerId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]+\Z")]


class Unit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="systemd"):
    """Have systemd start a service; `systemctl` is the absolute path of the tool."""

    systemctl: Systemctl
    name: UnitName


class Container(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="container"):
    """Have the engine (an absolute path) start a container; `name` is for people."""

    engine: Engine
    id: ContainerId
    name: str


def choose(
    restart: Restart, killed: Sequence[processes.Process], namespace: Namespace, allowed: set[tuple[str, ...]]
) -> Unit | Container | Command:
    """Return how to start again; RefusedError says what to allow, HostError what is missing on this machine."""
    first = min(killed, key=lambda process: (process.identity.start_ticks, process.pid))
    if restart.unit:
        return _unit(restart.unit, killed, allowed)
    if restart.container:
        return _container(restart.container, killed, allowed)
    if restart.found:
        return _found(killed)
    return _command(restart.command, first, namespace, allowed)


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
