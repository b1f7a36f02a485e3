"""The standard streams of a command: closed ones are opened, and what cannot be written ends in an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

INTERRUPTED, UNREAD = 130, 141
"""Exit codes: ended at Ctrl-C; wrote where nobody reads. So a shell tells of SIGINT and SIGPIPE."""


class _Output(io.FileIO):
    """A standard stream that remembers what went wrong first; one that is `forgiving` goes on as if nothing had."""

    def __init__(self, fd: int, *, forgiving: bool = False) -> None:
        super().__init__(fd, "wb", closefd=False)
        self.error: OSError | None = None
        self._forgiving = forgiving

    def write(self, data: object) -> int:
        """Write, and raise OSError unless that is forgiven."""
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except OSError as error:
            self.error = self.error or error
            if self._forgiving:
                return memoryview(data).nbytes  # type: ignore[arg-type]
            raise


def run(command: Callable[[], int]) -> int:
    """Return the exit code of a command, or what it is if its output could not be written."""
    output = _Output(1)
    sys.stdout = out = _text(output, sys.stdout)
    sys.stderr = err = _text(_Output(2, forgiving=True), sys.stderr)
    try:
        code = command()
        out.flush()
    except OSError as error:
        if output.error is None or error.errno != output.error.errno:  # a library may raise it anew
            raise
        if error.errno == errno.EPIPE:
            code = UNREAD
        else:
            print(f"error: cannot write to standard output: {error.strerror}", file=sys.stderr)
            code = 1
    finally:
        _drop_rest(out, err)
    return code


def _drop_rest(*streams: TextIO) -> None:
    """Have nobody stumble over what is still in a buffer, its own destructor neither: a failing stream leads nowhere.

    These are the streams themselves: a library may have hidden one that fails behind another that says nothing.
    """
    for stream in streams:
        with contextlib.suppress(OSError):
            stream.flush()
            continue
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_missing() -> None:
    """Open /dev/null for each standard stream that is closed, so that no file of ours gets its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _text(raw: _Output, like: TextIO | None) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(raw)
    if not isinstance(like, io.TextIOWrapper):
        return io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)
    return io.TextIOWrapper(
        buffer,
        encoding=like.encoding,
        errors=like.errors,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )
