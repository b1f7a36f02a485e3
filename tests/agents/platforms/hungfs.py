"""A file system that hangs on command: a FUSE mount whose server does not answer, as that of a dead disk or server."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support import require, wait_until

IN, OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
LOOKUP, FORGET, GETATTR, OPEN, READ, INIT, INTERRUPT = 1, 2, 3, 14, 15, 26, 36
FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE = 1, 2
DIRECTORY, FILE = 0o40755, 0o100644
SIZE = 4096
MNT_FORCE, MNT_DETACH = 1, 2
HANGS_IN_MMAP = """
import mmap, os, sys
here, page = sys.argv[1], sys.argv[2]
file = os.open(here, os.O_RDONLY)
print("ready", flush=True)
mmap.mmap(file, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
"""
"""Maps a file while a page of it is being read: it waits for that, and holds the lock of its memory meanwhile."""
_libc = ctypes.CDLL(None, use_errno=True)


class HungFs:
    """Mounted at `path`: the file `page` is there and is never read, what begins with "hung" is not even found."""

    def __init__(self, path: Path) -> None:
        self.path, self.reads, self._opened = path, 0, 0
        require(
            os.access("/dev/fuse", os.R_OK | os.W_OK), "/dev/fuse cannot be used", "modprobe fuse, and run it as root"
        )
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % self._fd
        if _libc.mount(b"hung", os.fsencode(path), b"fuse", 6, options):
            raise OSError(ctypes.get_errno(), "the mount failed")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Unmount it: whoever waits for it fails now."""
        _libc.umount2(os.fsencode(self.path), MNT_FORCE | MNT_DETACH)
        self._thread.join(10)
        os.close(self._fd)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, 1 << 20)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                continue
            _, opcode, unique, node, *_ = IN.unpack_from(request)
            answer = self._answer(opcode, node, request[IN.size :])
            if answer is not None:
                number, data = answer
                with contextlib.suppress(OSError):  # it does not wait any more
                    os.write(self._fd, OUT.pack(OUT.size + len(data), -number, unique) + data)

    def _answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes] | None:
        self.reads += opcode == READ
        if opcode in (READ, FORGET, INTERRUPT):
            return None
        if opcode == INIT:
            return 0, struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 1 << 12, 1, 0, 0, 0)
        if opcode == LOOKUP:
            if body.startswith(b"hung"):
                return None
            if body != b"page\0":
                return errno.ENOENT, b""
            return 0, struct.pack("<QQQQII", 2, 0, 0, 0, 0, 0) + _attr(2, FILE)
        if opcode == GETATTR:
            return 0, struct.pack("<QII", 0, 0, 0) + _attr(node, DIRECTORY if node == 1 else FILE)
        if opcode == OPEN:
            self._opened += 1
            return 0, struct.pack("<QII", 1, FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE if self._opened > 1 else 0, 0)
        return errno.ENOSYS, b""


def _attr(node: int, mode: int) -> bytes:
    return ATTR.pack(node, SIZE, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, SIZE, 0)


@contextlib.contextmanager
def hung(directory: Path) -> Iterator[HungFs]:
    """Keep such a file system mounted there."""
    directory.mkdir()
    fs = HungFs(directory)
    try:
        yield fs
    finally:
        fs.close()


@contextlib.contextmanager
def hung_process(directory: Path, word: str, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """Keep a process whose memory nobody can look at, as if it waited for a dead disk; `word` is an argument of it."""
    with contextlib.ExitStack() as ended, hung(directory) as fs:
        page = fs.path / "page"
        argv = [*prefix, sys.executable, "-c", HANGS_IN_MMAP, page, word]
        reader = subprocess.Popen(["head", "-c", "1", page], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ended.callback(reader.wait, 10)
        ended.callback(reader.kill)
        wait_until(lambda: fs.reads, what="the page to be read")
        victim = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        ended.callback(victim.wait, 10)
        ended.callback(victim.kill)
        assert victim.stdout is not None
        ended.enter_context(victim.stdout)
        assert victim.stdout.readline() == "ready\n"
        wait_until(lambda: Path(f"/proc/{victim.pid}/wchan").read_text() == "__folio_lock", what="it to hang")
        yield victim
