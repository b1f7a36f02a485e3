"""What `ps` shows of a process."""

from __future__ import annotations

import contextlib
import ctypes

PR_SET_NAME = 15
_ARG_START = 48 - 3
"""Of /proc/self/stat, counted from the state on (proc(5), field 48)."""


def set_title(*words: str) -> None:
    """Have `ps` and /proc show these words as the command line, as far as there is room; where it cannot be, nothing.

    The words stand where those that the process was started with stood.
    """
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/stat", "rb") as stat:
        start, end = map(int, stat.read().rpartition(b")")[2].split()[_ARG_START : _ARG_START + 2])
        with open("/proc/self/cmdline", "rb") as line:
            now = line.read()
        if 0 < len(now) == end - start and ctypes.string_at(start, len(now)) == now:  # it is where we take it to be
            title = b"\0".join(word.encode() for word in words)[: len(now) - 1]
            ctypes.memmove(start, title.ljust(len(now), b"\0"), len(now))
            ctypes.CDLL(None).prctl(PR_SET_NAME, words[0].encode()[:15], 0, 0, 0)
