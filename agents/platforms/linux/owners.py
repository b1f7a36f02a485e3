"""Which agents there are on this machine: each notes its state directory, so that others can tell whose a chain is."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.platforms.linux.chains import OwnedChains
from trogdor_bus.agents.platforms.linux.operations import read
from trogdor_bus.agents.platforms.linux.operations.blocks import Unblock
from trogdor_bus.errors import HostError, NotFoundError
from trogdor_bus.platform import Step

DIRECTORY = Path("/run/trogdor-bus-agents")
"""Only root can make it, and only root changes rules; it is empty after a boot, as they are."""


class Owner(msgspec.Struct, frozen=True):
    """An agent's state directory, whether the agent runs, and the chains that its journal says are in force."""

    directory: str
    runs: bool
    chains: frozenset[str]


def register(directory: str) -> None:
    """Note a state directory, and drop those that are no more; nothing happens where `/run` is not ours."""
    with contextlib.suppress(HostError):
        disk = FileDisk(DIRECTORY)
        try:
            name = hashlib.sha256(directory.encode(errors="surrogateescape")).hexdigest()[:32]
            disk.create(f"{name}.tmp", directory.encode(errors="surrogateescape"))
            disk.rename(f"{name}.tmp", name)
            for other in disk.names():
                with contextlib.suppress(NotFoundError):  # another agent has just dropped it
                    if not os.path.isdir(os.fsdecode(disk.read(other))):  # noqa: PTH112 (no error where it is closed)
                        disk.remove(other)
        finally:
            disk.close()


def others(directory: str) -> Iterator[Owner]:
    """Yield the agents of this machine but the one whose state directory that is, as their journals are now."""
    with contextlib.suppress(HostError, NotFoundError):
        disk = FileDisk(DIRECTORY, make=False)
        try:
            found = [os.fsdecode(disk.read(name)) for name in disk.names() if not name.endswith(".tmp")]
        finally:
            disk.close()
        yield from (_owner(other) for other in found if other != directory)


def chains_of(steps: Iterator[Step] | tuple[Step, ...]) -> Iterator[str]:
    """Yield the chains that the undo of the steps would remove; a step that cannot be read names none."""
    for step in steps:
        with contextlib.suppress(HostError):
            undo = read(step.undo)
            tables: tuple[OwnedChains, ...] = undo.tables if isinstance(undo, Unblock) else ()
            yield from (chain for table in tables for chain in table.chains)


def _owner(directory: str) -> Owner:
    chains: frozenset[str] = frozenset()
    with contextlib.suppress(HostError, NotFoundError):  # it was deleted: then nobody has its journal
        disk = FileDisk(Path(directory), make=False)
        try:
            live = Journal.read_only(disk).live()
            chains = frozenset(chains_of(step for entry in live for step in entry.steps))
        finally:
            disk.close()
    return Owner(directory, _runs(Path(directory) / "lock"), chains)


def _runs(lock: Path) -> bool:
    """Return whether somebody holds that lock; asking the kernel for it would hinder an agent that starts."""
    try:
        inode, pid = lock.stat().st_ino, lock.read_text().strip()
        held = Path("/proc/locks").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any(
        fields[1] == "FLOCK" and fields[4] == pid and fields[5].rpartition(":")[2] == str(inode)
        for fields in map(str.split, held)
        if len(fields) > 5
    )
