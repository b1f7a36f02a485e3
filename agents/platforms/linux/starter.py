"""Starting a command that lives on by itself, so that its identity is known before it runs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.processes import identify, status
from trogdor_bus.agents.platforms.linux.reader import Reader
from trogdor_bus.errors import HostError
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.supervisor import children, launch, tree
from trogdor_bus.supervisor.children import Door, text

PATIENCE_S = 10.0
"""How long a launcher may take to read, or to answer; its Python starts in some 20 ms."""


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a process was started with. The texts stand for bytes, one character for each (ISO 8859-1)."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    cwd: str
    environment: tuple[str, ...]


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="command"):
    """Run a program (an absolute path) in a namespace, as the process of `origin` ran; None: as the agent itself."""

    program: str
    argv: tuple[str, ...]
    namespace: NamespaceIdentity
    origin: Origin | None = None


class Waiting:
    """A process in a session of its own, nobody's child, that becomes the command when it is released."""

    def __init__(self, launcher: subprocess.Popen[bytes], identity: ProcessIdentity) -> None:
        self.identity = identity
        self._launcher = launcher

    def release(self) -> None:
        """Let it run the command; HostError says why it cannot."""
        with _translated():
            _write(self._launcher, b"g")
            why = _read(self._launcher, b"")
        if why:
            raise HostError(f"it cannot be run: {why.decode(errors='replace')}")


@contextlib.contextmanager
def waiting(command: Command, enter: Door) -> Iterator[Waiting]:
    """Hold a process that waits to become the command; it ends if it is not released, or if we die.

    `enter` calls what it is given inside the namespace of the command. HostError if there can be no such process.
    """
    with _translated(), enter(_launch) as launcher:
        try:
            _write(launcher, json.dumps(order(command)).encode() + b"\n")
            said = _read(launcher, b"\n")
            identity = identify(int(said)) if said.strip().isdigit() else None
            if identity is None:
                raise HostError("it was killed before it ran")
            yield Waiting(launcher, identity)
        except BaseException:
            launcher.kill()  # the first process only; the second sees the end of its input
            raise


def origin(process: ProcessIdentity) -> Origin | None:
    """Return what a living process was started with; None if that is not to be known, or not of our file system.

    A process in a container has a root directory, users and programs of its own, which mean nothing outside.
    """
    folder = Path(tree.folder(process.pid))
    try:
        ours, theirs = Path("/").stat(), (folder / "root").stat()
        cwd = os.fsencode((folder / "cwd").readlink())
        with Reader() as reader:
            environment = reader.of_process(process.pid, "environ").split(b"\0")
        told = status(process.pid)
        uid, gid = (int(told[key].split()[0]) for key in ("Uid", "Gid"))
        groups = tuple(map(int, told["Groups"].split()))
    except (OSError, KeyError):
        return None
    if identify(process.pid) != process or (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
        return None
    return Origin(uid, gid, groups, text(cwd), tuple(text(entry) for entry in environment if b"=" in entry))


def _launch() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", launch.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        bufsize=0,
    )


def order(command: Command, cwd: str = "/", **more: str) -> dict[str, Any]:
    """Return what `launch.py` takes; as the agent itself it runs in `cwd`, with `more` variables."""
    environment = os.environb | {key.encode(): value.encode() for key, value in more.items()}
    ours = children.order(command.argv, cwd, environment) | {"program": text(os.fsencode(command.program))}
    if (started := command.origin) is None:
        return ours
    who = [started.uid, started.gid, started.groups]
    return {**ours, "cwd": started.cwd, "who": who, "environment": started.environment}


def _write(launcher: subprocess.Popen[bytes], data: bytes) -> None:
    assert launcher.stdin is not None
    os.set_blocking(launcher.stdin.fileno(), False)
    poll = select.poll()
    poll.register(launcher.stdin, select.POLLOUT)
    deadline = time.monotonic() + PATIENCE_S
    left = memoryview(data)
    while left:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise HostError(f"it did not read within {PATIENCE_S:g} s")
        left = left[launcher.stdin.write(left) or 0 :]


def _read(launcher: subprocess.Popen[bytes], until: bytes) -> bytes:
    """Return what it says up to `until` or the end of it."""
    assert launcher.stdout is not None
    poll = select.poll()
    poll.register(launcher.stdout, select.POLLIN)
    deadline = time.monotonic() + PATIENCE_S
    said = b""
    while not (until and said.endswith(until)):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise HostError(f"it did not answer within {PATIENCE_S:g} s")
        part = launcher.stdout.read(4096)
        if not part:
            break
        said += part
    return said


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"it cannot be started: {error}") from None
