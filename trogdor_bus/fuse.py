"""How a daemon ends at what nobody foresaw, and what its next life knows of it.

The process ends at once, with an exit code of its own and no farewell: whoever watches it starts it again, and what is
on disk is right. Three such ends at one place within a minute, or six within five minutes anywhere, blow the fuse: the
lives that follow do without what led there, until one of them is ended in good order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

CRASHED = 70
"""The exit code, EX_SOFTWARE of sysexits.h."""
ENDS, WITHIN_S = 3, 60.0
"""So many ends at one place blow it."""
MANY, WITHIN_LONG_S = 6, 300.0
"""So many ends anywhere blow it. A life that begins later than that after the last one is as any other."""
FILE = "crashes.json"
MOST_TEXT = 300
_HOME = Path(__file__).parent

log = logging.getLogger("trogdor_bus")


class Crash(msgspec.Struct, frozen=True, kw_only=True):
    """One end: when (s of CLOCK_BOOTTIME in that boot), where in our code, at which task ("" if at none)."""

    boot_id: str
    at_s: float
    place: str
    about: str = ""
    error: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a life leaves to the next. `blown`: the end by which the fuse was blown, None if it is whole.

    `aside` are the tasks that a life with a blown fuse does without, and `bare`: it does without any.
    """

    crashes: tuple[Crash, ...] = ()
    blown: Crash | None = None
    aside: tuple[str, ...] = ()
    bare: bool = False


def begun(before: Record, boot_id: str, now_s: float) -> Record:
    """Return with what a life begins that finds this record."""
    crashes = tuple(one for one in before.crashes if one.boot_id == boot_id)
    if before.blown is not None and before.blown.boot_id == boot_id:
        bare = before.bare or any(one.about in ("", *before.aside) for one in crashes)
        return Record(blown=before.blown, aside=_abouts(before.aside, crashes), bare=bare)
    if not crashes or now_s - crashes[-1].at_s > WITHIN_LONG_S:
        return Record()
    for number, within_s, anywhere in ((ENDS, WITHIN_S, False), (MANY, WITHIN_LONG_S, True)):
        last = crashes[-number:]
        near = len(last) == number and last[-1].at_s - last[0].at_s <= within_s
        if near and (anywhere or len({one.place for one in last}) == 1):
            return Record(blown=last[-1], aside=_abouts((), last))
    return Record(crashes=crashes)


def crashed(record: Record, crash: Crash) -> Record:
    """Return what a life leaves that ends by this."""
    return msgspec.structs.replace(record, crashes=(*record.crashes, crash)[-MANY:])


class Fuse:
    """The fuse of the daemon whose state is in `directory`; `typed` starts it again where nobody watches it."""

    def __init__(self, directory: Path, typed: str = "") -> None:
        self._path, self._typed = directory / FILE, typed
        self._record = begun(self._read(), _boot_id(), _now_s())
        if self._record.blown is not None:
            self._write(self._record)

    @property
    def aside(self) -> frozenset[str]:
        """The ids of the tasks that this life does without: at these the others ended."""
        return frozenset(self._record.aside)

    @property
    def bare(self) -> bool:
        """Whether this life does without all tasks: to do without those at which the others ended was not enough."""
        return self._record.bare

    def said(self) -> str:
        """Return why this life does without what led there, "" if it does not."""
        blown = self._record.blown
        return f"it crashed again and again in {blown.place}: {blown.error}" if blown is not None else ""

    def blow(self, error: BaseException, about: str = "") -> NoReturn:
        """End this process, having written down why; `about` is the task at which it failed, "" if at none."""
        where = place(error)
        hint = f", unless something watches it, start it again: {self._typed}" if self._typed else ""
        log.critical("internal error in %s, so this process ends%s", where, hint, exc_info=error)
        cause = _cause(error)
        text = f"{type(cause).__name__}: {cause}"[:MOST_TEXT]
        crash = Crash(boot_id=_boot_id(), at_s=_now_s(), place=where, about=about, error=text)
        self._write(crashed(self._record, crash))
        for handler in logging.getLogger().handlers:
            handler.flush()
        os._exit(CRASHED)

    def ended(self) -> None:
        """Let the next life be as any other: this one ends as it was told to."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _read(self) -> Record:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Record()

    def _write(self, record: Record) -> None:
        with contextlib.suppress(OSError):
            new = self._path.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(record))
            new.replace(self._path)


def heed(task: asyncio.Task[None], broken: Callable[[BaseException], object]) -> None:
    """Have `broken` called when something that goes on beside ends by what nobody foresaw."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            broken(error)

    task.add_done_callback(ended)


def place(error: BaseException) -> str:
    """Return where in our code an error came up: file, line and function."""
    frames = traceback.extract_tb(_cause(error).__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_HOME)] or list(frames)
    if not ours:
        return type(error).__name__
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}"


def _cause(error: BaseException) -> BaseException:
    """Return what an error of ours that only passes another one on came from."""
    return _cause(error.__cause__) if error.__cause__ is not None else error


def _abouts(aside: tuple[str, ...], crashes: tuple[Crash, ...]) -> tuple[str, ...]:
    return tuple(sorted({*aside, *(one.about for one in crashes if one.about)}))


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
