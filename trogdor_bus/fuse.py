"""How a daemon ends at what nobody foresaw, and what its next life knows of it.

The process ends at once, with an exit code of its own and no farewell: whoever watches it starts it again, and what is
on disk is right. Three such ends at one place within a minute blow the fuse: the next life does without what led there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec

CRASHED = 70
"""The exit code, EX_SOFTWARE of sysexits.h."""
ENDS, WITHIN_S = 3, 60.0
FILE = "crashes.json"
_ROOMS = ("trogdor_bus", "agents", "coordinator", "transports")

log = logging.getLogger("trogdor_bus")


class Crash(msgspec.Struct, frozen=True, kw_only=True):
    """One end: when (s of CLOCK_BOOTTIME in that boot), where in our code, at which task ("" if at none)."""

    boot_id: str
    at_s: float
    place: str
    about: str = ""
    error: str = ""


class Fuse:
    """The fuse of the daemon whose state is in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._crashes = self._read()
        self._told: set[str] = set()
        self.blown = self._blown()
        """The last end, if too many were like it; None in a life as any other."""
        self.aside = {one.about for one in self._crashes[-ENDS:] if self.blown and one.about}
        """The ids of the tasks that this life does without: at these the others ended."""
        if self.blown:  # whoever starts the next life wants all of it
            self._crashes = []
            with contextlib.suppress(OSError):
                self._path.unlink()

    def said(self) -> str:
        """Return why this life does without what led there, "" if it does not."""
        if self.blown is None:
            return ""
        at = f", at {' and '.join(sorted(self.aside))}" if self.aside else ""
        return f"it ended {ENDS} times within {WITHIN_S:g} s in {self.blown.place}{at}: {self.blown.error}"

    def blow(self, error: BaseException, about: str = "") -> None:
        """End this process, having written down why; one whose fuse is blown goes on without what failed."""
        if self.blown is None:
            self.end(error, about)
        where = place(error)
        if where not in self._told:
            self._told.add(where)
            log.error("internal error in %s; going on without it", where, exc_info=error)

    def heed(self, task: asyncio.Task[None]) -> None:
        """Blow if something that goes on beside has ended by what nobody foresaw."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.blow(error)

    def end(self, error: BaseException, about: str = "") -> NoReturn:
        """End this process in any case, having written down why."""
        where = place(error)
        log.critical(
            "internal error in %s, so this process ends. What watches it starts it again; else type: %s",
            where,
            shlex.join(sys.argv),
            exc_info=error,
        )
        crash = Crash(boot_id=_boot_id(), at_s=_now_s(), place=where, about=about, error=repr(error))
        with contextlib.suppress(OSError):
            new = self._path.with_suffix(".new")
            new.write_bytes(msgspec.json.encode([*self._crashes, crash][-ENDS:]))
            new.replace(self._path)
        for handler in logging.getLogger().handlers:
            handler.flush()
        os._exit(CRASHED)

    def _read(self) -> list[Crash]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[Crash])
        except (OSError, msgspec.MsgspecError):
            return []

    def _blown(self) -> Crash | None:
        last = self._crashes[-ENDS:]
        if len(last) < ENDS or len({(one.place, one.boot_id) for one in last}) > 1:
            return None
        if last[-1].boot_id != _boot_id() or max(_now_s() - last[-1].at_s, last[-1].at_s - last[0].at_s) > WITHIN_S:
            return None
        return last[-1]


def place(error: BaseException) -> str:
    """Return where in our code an error came up: file, line and function."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if set(Path(frame.filename).parts) & set(_ROOMS)] or list(frames)
    if not ours:
        return type(error).__name__
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}"


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
