"""What an experiment's program has started, and what that started in turn: all carry a mark in their environment.

A session or a process group would do for those that stay in it, and its number may be another's once all have ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "TROGDOR_BUS_EXPERIMENT_RUN"
SEARCH_S = 2.0
"""How long is searched for what goes on starting others."""


def kill_marked(mark: str) -> int:
    """Kill every process that carries the mark, but this one, until none is left; return how many were killed."""
    killed, deadline_s = 0, time.monotonic() + SEARCH_S
    while time.monotonic() < deadline_s:
        found = sum(_kill(pid, mark) for pid in _marked(mark))
        if not found:
            break
        killed += found
    return killed


def _marked(mark: str) -> Iterator[int]:
    own = os.getpid()
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
    return (pid for pid in pids if pid != own and _carries(pid, mark))


def _carries(pid: int, mark: str) -> bool:
    try:
        return f"{VARIABLE}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it ended, or is another user's
        return False


def _kill(pid: int, mark: str) -> bool:
    """Kill a process that still carries the mark; its number may be another's by now."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if _carries(pid, mark):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return True
        finally:
            os.close(pidfd)
    return False
