"""The stack of a process that a fatal signal ends, written by faulthandler into a file of its state directory.

The watchdog of the agent uses it as well, so it imports next to nothing and knows no pathlib.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os

STACK = "stack.txt"
LAST = "stack-last.txt"
"""Where the stack stands once it was reported."""
MAX_BYTES = 16_384
"""So much of a stack is reported; the file has all of it."""


def keep(directory: str) -> list[str]:
    """Have SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGABRT leave a stack there; return what an earlier life left.

    Where no file can be made, there is none.
    """
    left = take(directory)
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        faulthandler.enable(os.open(f"{directory}/{STACK}", flags, 0o600), all_threads=True)
    return left


def take(directory: str) -> list[str]:
    """Return the lines of the stack that a process left there, [] if none did; it is given back once."""
    path = f"{directory}/{STACK}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            text = os.read(fd, MAX_BYTES + 1)
        finally:
            os.close(fd)
        if text:
            os.replace(path, f"{directory}/{LAST}")
    except OSError:
        return []
    lines = text[:MAX_BYTES].decode("utf-8", "replace").splitlines()
    return [*lines, f"... (cut; the rest is in {directory}/{LAST})"] if len(text) > MAX_BYTES else lines
