"""Locks of a network namespace, one for each kind of thing in it, so that two healers never fight.

The kernel frees one when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.errors import HostError
from trogdor_bus.host import boot_id

log = logging.getLogger("trogdor_bus.agents")
DIRECTORY = Path("/run/trogdor-bus-locks")
"""Where root's locks are: nobody else can make it. Those of a user who is not root are in its `USERS` directory."""
USERS = Path("/run/user")
OLD = Path("/run/lock/trogdor-bus")
"""Where the first versions have theirs, whose agents may still run; it counts nothing if somebody else made it."""
WAIT_S = 20.0
PAUSE_S = 0.02


@contextlib.contextmanager
def hold(identities: Iterable[NamespaceIdentity], wait_s: float = WAIT_S, kind: str = "") -> Iterator[None]:
    """Hold the locks of the namespaces, those of an earlier boot left out; HostError names who has one too long.

    `kind` is what of them: "" the firewall. `wait_s` is for all of them together. Where no lock can be made, it goes on
    without, and warns.
    """
    deadline = time.monotonic() + wait_s
    boot = boot_id()
    names = sorted({_name(identity, kind) for identity in identities if identity.boot_id == boot})
    with contextlib.ExitStack() as held:
        refused: list[str] = []
        paths = _directories()
        for path in paths:
            try:
                directory = _open_directory(path)
                held.callback(os.close, directory)
                for name in names:
                    held.callback(_free, directory, name, _take(directory, name, deadline))
            except OSError as error:
                refused.append(f"{path}: {error.strerror}")
        if len(refused) == len(paths):
            log.warning("going on without the lock of the network namespace (%s)", "; ".join(refused))
        yield


def _name(identity: NamespaceIdentity, kind: str = "") -> str:
    return hashlib.sha256(" ".join(filter(None, (identity.boot_id, identity.cookie, kind))).encode()).hexdigest()[:32]


def _directories() -> tuple[Path, ...]:
    """Return where the locks are, in the order in which everybody takes them: all that can be had are held."""
    user = os.geteuid()
    if not user:
        return DIRECTORY, OLD
    return USERS / str(user) / DIRECTORY.name, OLD.with_name(f"{OLD.name}-{user}")


def _open_directory(path: Path) -> int:
    """Return a directory of locks; OSError if it cannot be made, or belongs to somebody else."""
    user = os.geteuid()
    path.mkdir(mode=0o700, parents=path.parent == OLD.parent, exist_ok=True)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(directory)
    if status.st_uid != user or stat.S_IMODE(status.st_mode) & 0o077:
        os.close(directory)
        raise PermissionError(0, f"it is of user {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}")
    return directory


def _take(directory: int, name: str, deadline: float) -> int:
    """Return a descriptor that holds the lock; no child inherits it."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(directory, name, fd):
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}".encode(), 0)
                return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(fd, 20, 0).decode("ascii", "replace") or "unknown"
                os.close(fd)
                raise HostError(
                    f"process {holder} injects or undoes a fault in this network namespace and does not get done; "
                    "look what it is, and end it if it hangs"
                ) from None
        except OSError:
            os.close(fd)
            raise
        os.close(fd)
        time.sleep(PAUSE_S)


def _is_there(directory: int, name: str, fd: int) -> bool:
    """Return whether the file is still the one of that name: who had the lock before us removed it."""
    try:
        now = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(now, os.fstat(fd))


def _free(directory: int, name: str, fd: int) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=directory)
    os.close(fd)
