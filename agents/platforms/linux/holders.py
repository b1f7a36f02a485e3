"""Who still holds a network namespace that has no name and no process: open files and mounts of any process.

A namespace lives as long as anything holds it, and its rules with it. What only a socket holds is not to be found.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.namespace import Namespace, open_first
from trogdor_bus.supervisor import tree

FIRST_INODE = 0xF0000000
"""The kernel numbers namespaces from here on (PROC_DYNAMIC_FIRST), and file systems rarely get so far."""
LOOK_S = 3.0
"""How long all processes may be looked through."""


class Held:
    """The namespaces that this process keeps open as long as rules of ours are in them, so that none outlives us."""

    def __init__(self) -> None:
        self._open: dict[NamespaceIdentity, tuple[Namespace, set[str]]] = {}

    def keep(self, identity: NamespaceIdentity, chains: set[str]) -> None:
        """Hold the namespace for these chains as well; one that is not to be found is not held."""
        if identity not in self._open and (found := open_first(identity, (identity.path,))) is not None:
            self._open[identity] = (found, set())
        if identity in self._open:
            self._open[identity][1].update(chains)

    def open(self, identity: NamespaceIdentity) -> Namespace | None:
        """Return the namespace, to be closed as any other, if it is held."""
        held = self._open.get(identity)
        return open_first(identity, (held[0].own_path(),)) if held else None

    def release(self, identity: NamespaceIdentity, chains: set[str]) -> None:
        """Let go of it, unless other chains need it."""
        if held := self._open.get(identity):
            held[1].difference_update(chains)
            if not held[1]:
                held[0].close()
                del self._open[identity]


def open_held(identity: NamespaceIdentity) -> Namespace | None:
    """Return that very namespace if a thread, an open file or a mount of any process holds it; None if none is found.

    This looks at everything in /proc, for a while, and sees what this user may see.
    """
    return open_first(identity, _holding(time.monotonic() + LOOK_S))


def _holding(deadline: float) -> Iterator[str]:
    """Yield paths in /proc to what may be a network namespace that somebody holds."""
    mounted: set[str] = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208 - names only
        folder = tree.folder(int(pid))
        for number in _names(f"{folder}/fd"):
            if time.monotonic() > deadline:
                return
            if _may_be_namespace(folder, number):
                yield f"{folder}/fd/{number}"
        yield from _threads(pid)
        mounts = _target(f"{folder}/ns/mnt")
        if mounts not in mounted:
            mounted.add(mounts)
            yield from _mounts(folder)


def _may_be_namespace(folder: str, number: str) -> bool:
    """Return whether an open file may be a namespace, without asking its file system, which may hang."""
    target = _target(f"{folder}/fd/{number}")
    if not target.startswith("/"):
        return target.startswith("net:[")
    try:
        with open(f"{folder}/fdinfo/{number}", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            told = dict(line.partition(":")[::2] for line in file)
    except OSError:
        return False
    inode = told.get("ino", "").strip()
    return int(inode) >= FIRST_INODE if inode.isdecimal() else target.startswith(("/run/", "/var/run/", "/proc/"))


def _threads(pid: str) -> list[str]:
    tasks = _names(f"/proc/{pid}/task")
    return [f"/proc/{pid}/task/{task}/ns/net" for task in tasks] if len(tasks) > 1 else []


def _mounts(folder: str) -> Iterator[str]:
    """Yield where network namespaces are mounted; see proc(5) on mountinfo."""
    try:
        with open(f"{folder}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            lines = [line.split() for line in file if " - nsfs " in line]
    except OSError:
        return
    for words in lines:
        if words[3].startswith("net:["):
            where = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words[4])
            yield f"{folder}/root{where}"


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names only
    except OSError:
        return []


def _target(link: str) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - a Path would be made for each open file
    except OSError:
        return ""
