"""Reading files that may never answer: a child reads them, and is given up when it takes too long.

A file on a dead mount blocks whoever looks at it, and so does what /proc tells of the memory of a process that waits
for one. Whoever waits so cannot be killed, not even the child. Nothing else waits for it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Self

from trogdor_bus import badge
from trogdor_bus.agents.platforms.linux import files
from trogdor_bus.agents.platforms.linux.commands import search_path
from trogdor_bus.agents.platforms.linux.files import HEAD
from trogdor_bus.agents.platforms.linux.namespace import UnseenError
from trogdor_bus.errors import HostError
from trogdor_bus.supervisor import tree

PATIENCE_S = 1.0
"""How long one file may take."""
MOST_OF_PROCESS = 1 << 23
"""More than the kernel takes as the arguments of one."""
START_S = 10.0
"""How long the child may take to be there; its Python starts in some 20 ms."""
_given_up: list[subprocess.Popen[bytes]] = []
"""Children that were killed and did not end at once; each is waited for as soon as it has."""


class _LostError(OSError):
    """The child was killed: that says nothing of what it was asked for."""


class Reader:
    """A child that reads; it is started when it is needed, and again when one was given up."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_up()

    def read(self, path: str, max_bytes: int, root: str = "") -> bytes:
        """Return at most the first `max_bytes` of a file, as `files.read_regular` does.

        OSError says why it cannot be read: TimeoutError, that nothing answers. UnseenError if there can be no child,
        or if two in a row are killed.
        """
        return self._ask("regular", path, max_bytes, root)

    def of_process(self, pid: int, name: str) -> bytes:
        """Return what that file of a process in /proc says; OSError as for `read`.

        Its main thread may tell nothing, for it has ended: then another one is asked.
        """
        refused: list[OSError] = []
        for folder in tree.folders(pid):
            try:
                if told := self._ask("any", f"{folder}/{name}", MOST_OF_PROCESS):
                    return told
            except (FileNotFoundError, ProcessLookupError) as error:  # that thread has ended
                refused.append(error)
        if refused:
            raise refused[0]
        return b""

    def program(self, paths: Iterable[str]) -> str:
        """Return the first of the paths that is a program, "" if none is; OSError: TimeoutError, if nothing answers."""
        try:
            return os.fsdecode(self._ask("program", *paths))
        except FileNotFoundError:
            return ""

    def _ask(self, what: str, *words: str | int) -> bytes:
        for _ in range(2):
            with contextlib.suppress(_LostError):
                return self._ask_once(what, *words)
        raise UnseenError("the process that looks for processes and files was killed twice in a row")

    def _ask_once(self, what: str, *words: str | int) -> bytes:
        try:
            child = self._child = self._child or _start()
            plain = [os.fsencode(word).decode("latin-1") if isinstance(word, str) else word for word in words]
            _write(child, json.dumps([what, *plain]).encode() + b"\n")
            head = _receive(child, HEAD.size, time.monotonic() + PATIENCE_S)
            number, length = HEAD.unpack(head)
            data = _receive(child, length, time.monotonic() + PATIENCE_S)
        except BaseException:
            self._give_up()
            raise
        if number:
            raise OSError(number, data.decode(errors="replace") or os.strerror(number), *words[:1])
        return data

    def _give_up(self) -> None:
        if (child := self._child) is not None:
            self._child = None
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            _given_up.append(child)
        _given_up[:] = [one for one in _given_up if one.poll() is None]


def find_program(name: str, folder: str) -> str:
    """Return the path of the program that `name` means to who is in `folder`; "" if there is none.

    Without a "/" it is looked for where tools are. HostError if nothing answers, as on a dead mount.
    """
    folders = [folder] if "/" in name else map(os.path.abspath, search_path().split(":"))
    try:
        with Reader() as reader:
            return reader.program(os.path.join(one, name) for one in folders)  # noqa: PTH118
    except OSError as error:
        raise HostError(f"{name!r} cannot be looked at: {error.strerror}") from None


def _start() -> subprocess.Popen[bytes]:
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", files.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            process_group=0,
            pass_fds=badge.handed(),
        )
        try:
            _receive(child, HEAD.size, time.monotonic() + START_S)
        except BaseException:
            child.kill()
            raise
    except OSError as error:
        raise UnseenError(
            f"the process that looks for processes and files cannot be started: {error.strerror}"
        ) from None
    return child


def _write(child: subprocess.Popen[bytes], data: bytes) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(data)
        child.stdin.flush()
    except BrokenPipeError:
        raise _LostError(errno.EPIPE, "it was killed") from None


def _receive(child: subprocess.Popen[bytes], length: int, until_s: float) -> bytes:
    assert child.stdout is not None
    fd, data = child.stdout.fileno(), b""
    while len(data) < length:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(1000 * max(0.0, until_s - time.monotonic())):
            raise TimeoutError(errno.ETIMEDOUT, f"nothing answers within {PATIENCE_S:g} s: is it on a dead mount?")
        part = os.read(fd, length - len(data))
        if not part:
            raise _LostError(errno.EIO, "it was killed")
        data += part
    return data
