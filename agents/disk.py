"""The agent's state directory, as primitives so small that a simulated disk can lose what was not synced."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from trogdor_bus.errors import ConflictError, HostError, NotFoundError

_ELSEWHERE = "or choose another state directory"
_REMEDIES = {
    errno.ENOSPC: f"free some space, {_ELSEWHERE}",
    errno.EDQUOT: f"raise the quota, {_ELSEWHERE}",
    errno.EROFS: f"mount it for writing, {_ELSEWHERE}",
    errno.EACCES: f"run as the user that owns it, {_ELSEWHERE}",
    errno.EPERM: f"run as the user that owns it, {_ELSEWHERE}",
    errno.ELOOP: "symbolic links are not followed here: name the real path",
    errno.ENOTDIR: "name the real path of a directory; symbolic links are not followed here",
    errno.EIO: f"check the disk, {_ELSEWHERE}",
    errno.ENOLCK: f"the file system has no locks: {_ELSEWHERE.removeprefix('or ')}",
    errno.EMFILE: "raise the limit of open files",
}


class Disk(Protocol):
    """One flat directory. Every method raises HostError if the machine refuses."""

    def read(self, name: str) -> bytes:
        """Return the content of a file; NotFoundError if there is none."""
        ...

    def names(self) -> tuple[str, ...]:
        """Return the names of all files, sorted."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Write a temporary file; nothing of it is durable yet."""
        ...

    def sync(self, name: str) -> None:
        """Make the content of a file durable; its name is not."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing what had it; not durable yet."""
        ...

    def sync_directory(self) -> None:
        """Make all names durable: what was created, renamed and removed."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or nothing if there is none; not durable yet."""
        ...


class FileDisk:
    """A real directory of this process's user: made if missing (0700), files 0600, symbolic links refused."""

    def __init__(self, directory: Path, *, make: bool = True) -> None:
        """Open the directory; with `make` False a missing one is a NotFoundError (for tools that only read)."""
        self.directory = directory
        self._fd = _open_directory(directory, make)

    def read(self, name: str) -> bytes:
        """Return the content of a regular file."""
        with self._saying("read", name):
            try:
                fd = self._open(name, os.O_RDONLY | os.O_NONBLOCK)
            except FileNotFoundError:
                raise NotFoundError(f"there is no file {self.directory / name}") from None
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise HostError(f"{self.directory / name} is not a regular file: remove it")
                with os.fdopen(fd, "rb", closefd=False) as file:
                    return file.read()
            finally:
                os.close(fd)

    def names(self) -> tuple[str, ...]:
        """Return the names of all files, sorted."""
        with self._saying("list", "."):
            return tuple(sorted(os.listdir(self._fd)))  # noqa: PTH208 (a path could be swapped meanwhile)

    def create(self, name: str, data: bytes) -> None:
        """Write a temporary file; nothing of it is durable yet."""
        with self._saying("write", name):
            fd = self._open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with os.fdopen(fd, "wb", buffering=0) as file:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]

    def sync(self, name: str) -> None:
        """Make the content of a file durable."""
        with self._saying("sync", name):
            fd = self._open(name, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing what had it."""
        with self._saying("rename to", new):
            os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def sync_directory(self) -> None:
        """Make all names durable."""
        with self._saying("sync", "."):
            os.fsync(self._fd)

    def remove(self, name: str) -> None:
        """Remove a file, or nothing if there is none."""
        with self._saying("remove", name), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._fd)

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fd)

    def _saying(self, what: str, name: str) -> contextlib.AbstractContextManager[None]:
        return _translated(what, self.directory / name)


class Lock:
    """The hold of one agent on its state directory, until `close` or until the process ends, however it ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Let another agent have the directory."""
        os.close(self._fd)


def lock(directory: Path) -> Lock:
    """Return the hold on a state directory (made if missing); ConflictError names the pid of the agent that has it."""
    path = directory / "lock"
    directory_fd = _open_directory(directory, make=True)
    try:
        with _translated("open", path):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open("lock", flags, 0o600, dir_fd=directory_fd)
    finally:
        os.close(directory_fd)
    try:
        with _translated("lock", path):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "not written yet"
                raise ConflictError(
                    f"{directory} belongs to a running agent (pid {holder}): "
                    "stop that one, or give this one a state directory of its own"
                ) from None
            with contextlib.suppress(OSError):  # a full disk: it is locked all the same
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
    except BaseException:
        os.close(fd)
        raise
    return Lock(fd)


def _open_directory(directory: Path, make: bool) -> int:
    with _translated("open", directory):
        if make:
            _make(directory, 0o700)
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError(f"there is no state directory {directory}") from None
        status = os.fstat(fd)
        problem = ""
        if status.st_uid != os.geteuid():
            problem = f"belongs to user {status.st_uid}, this process is user {os.geteuid()}: run as that user"
        elif status.st_mode & 0o022:
            problem = f"can be written by other users (mode {stat.S_IMODE(status.st_mode):04o}): chmod 700 it"
        if problem:
            os.close(fd)
            raise HostError(f"{directory} {problem}, {_ELSEWHERE}")
        return fd


def _make(directory: Path, mode: int) -> None:
    """Make a directory and its parents so that they outlive a power cut."""
    if directory.exists() or directory.is_symlink():
        return
    _make(directory.parent, 0o755)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode)
    fd = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _translated(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, _ELSEWHERE.removeprefix("or "))
        raise HostError(f"cannot {what} {path}: {error.strerror}; {remedy}") from None
