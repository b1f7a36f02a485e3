"""Real children with real keepers, and what is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

from trogdor_bus.supervisor import tree
from trogdor_bus.supervisor.children import Child

DEEP = """
import os, sys, time
def leave(argv):
    if not os.fork():
        os.setsid()
        if not os.fork():
            os.execve(argv[0], argv, {})  # nobody's child, in a session of its own, without the mark
        os._exit(0)
leave([sys.executable, "-c", "import time; time.sleep(3600)"])
os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "3600")
"""
"""Python that leaves a process behind which hides as well as it can, and another one below it."""
LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(3600,)).start()
ctypes.CDLL(None).syscall({exit}, 0)  # of its main thread alone, as pthread_exit does
""".format(exit={"x86_64": 60, "aarch64": 93}[os.uname().machine])
"""Python whose main thread ends while another one lives on."""


def has_lost_its_main_thread(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123
        return stat.read().rpartition(b")")[2].split()[0] == b"Z"


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def order(argv: list[str], mark: str, text: str = "") -> dict[str, Any]:
    environment = {**os.environ, tree.CHILD: mark}
    return {
        "program": argv[0],
        "argv": argv,
        "cwd": "/",
        "who": [os.getuid(), os.getgid(), os.getgroups()],
        "environment": [f"{key}={value}" for key, value in environment.items()],
        "input": text,
    }


class Kept:
    """A child of the test, and how often it stirred."""

    def __init__(self, argv: list[str], text: str = "") -> None:
        self.mark, self.stirs = uuid.uuid4().hex, list[None]()
        self.child = Child(
            order(argv, self.mark, text), self.mark, "task t", lambda start: start(), lambda: self.stirs.append(None)
        )
        self.pids = {self.child.keeper, self.child.identity.pid}

    def over(self, within_s: float) -> bool:
        """Whether its keeper is done, or dead, within that time."""
        deadline = time.monotonic() + within_s
        while not self.child.over and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.child.over

    def said(self) -> Any:
        """Return the status that it said last."""
        return json.loads(bytes(self.child.status))

    def left(self) -> set[int]:
        """Return what is left of it: what carries its mark, is below that, or was ever seen to be."""
        family = tree.living()
        self.pids |= set(tree.of_child(self.mark, self.child.identity.pid, family))
        return self.pids & family.keys()


@contextlib.contextmanager
def kept(argv: list[str], text: str = "") -> Iterator[Kept]:
    """Hold a child; nothing is left of it afterwards."""
    one = Kept(argv, text)
    try:
        yield one
    finally:
        one.child.stop(0)
        one.over(10)
        for pid in one.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
