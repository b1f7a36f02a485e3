"""Lines for a descriptor that may block for ever: a stopped terminal, a full pipe. Who writes them never waits.

The watchdog of the agent uses it as well, so it imports next to nothing.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LINES = 1_000
MAX_BYTES = 32_768
"""Of one line; what is longer is cut."""
CUT = b" ... (cut)\n"
FLUSH_S = 0.5


class LineWriter:
    """Writes lines to descriptor `fd` in a thread of its own; `form` makes a line of what it says itself.

    What does not fit into its queue is dropped and counted, and the count is told where the lines would have stood.
    The descriptor is used as it is: its mode is shared with other programs, such as the shell.
    """

    def __init__(self, fd: int, form: Callable[[str], bytes]) -> None:
        self._fd, self._form = fd, form
        self._lines: deque[bytes | None] = deque()  # None: here lines were dropped
        self._dropped = self._failed = 0
        self._why = ""
        self._wake = _thread.allocate_lock()  # held while there is nothing to do
        self._wake.acquire()
        self._running = False
        self._nudge()  # now: when something goes wrong, there may be no thread to be had

    def put(self, line: bytes) -> None:
        """Have a line written soon, or drop it; never waits, also not in a signal handler."""
        if len(line) > MAX_BYTES:
            line = line[: MAX_BYTES - len(CUT)] + CUT
        if len(self._lines) < MAX_LINES:
            self._lines.append(line)
        else:
            if not self._dropped:
                self._lines.append(None)
            self._dropped += 1
        self._nudge()

    def flush(self, wait_s: float = FLUSH_S) -> bool:
        """Wait until all is written, but not longer than that; return whether it is."""
        deadline = time.monotonic() + wait_s
        while self._lines and time.monotonic() < deadline:
            self._nudge()
            time.sleep(0.002)
        return not self._lines

    def _nudge(self) -> None:
        if not self._running:
            try:
                self._running = True
                _thread.start_new_thread(self._run, ())
            except RuntimeError:  # no thread can be had now; the next line tries again
                self._running = False
        with contextlib.suppress(RuntimeError):
            self._wake.release()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            while self._lines:
                self._emit(self._lines[0])
                self._lines.popleft()

    def _emit(self, line: bytes | None) -> None:
        notes = b""
        if line is None:
            dropped, self._dropped = self._dropped, 0
            notes = self._note(dropped, "standard error was blocked")
        elif self._failed:
            notes = self._note(self._failed, f"standard error could not be written: {self._why}")
        try:
            self._write(notes + (line or b""))
        except OSError as error:
            self._failed, self._why = self._failed + 1, error.strerror or ""
        else:
            self._failed = 0

    def _note(self, count: int, why: str) -> bytes:
        what = "1 log line was" if count == 1 else f"{count} log lines were"
        return self._form(f"{what} dropped because {why}")

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody else made it non-blocking
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll(1_000)
