"""Undoes what a dead agent left: for the guard, and for people. Needs no bus, no coordinator, no configuration."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from trogdor_bus import badge, logs
from trogdor_bus.agents.disk import FileDisk, lock
from trogdor_bus.agents.guard import START
from trogdor_bus.agents.hands import in_words
from trogdor_bus.agents.journal import Entry, Journal
from trogdor_bus.agents.perform import Performer
from trogdor_bus.agents.platforms import open_platform
from trogdor_bus.agents.threads import run_in_lanes
from trogdor_bus.errors import ConflictError, HostError, NotFoundError, TrogdorBusError
from trogdor_bus.exits import report
from trogdor_bus.platform import Platform
from trogdor_bus.title import set_title

log = logging.getLogger("trogdor_bus.heal")
LOOK_AGAIN_S = 1.0
SURROUNDINGS = "agent.json"
"""Where an agent notes its platform and attachment, for those who heal after it."""


class AgentNote(msgspec.Struct, frozen=True, kw_only=True):
    """What a healer must know of an agent beside its journal."""

    platform: str = "basic"
    attach: str = ""


class _Settings(msgspec.Struct, frozen=True):
    state_dir: str
    node: str = ""


class _Start(msgspec.Struct, frozen=True):
    """What a healer reads of the agent's START; the rest would cost it the import of the configuration."""

    settings: _Settings
    log_level: str = "info"
    log_json: bool = False
    words: dict[str, str] = {}


def leave_note(disk: FileDisk, note: AgentNote) -> None:
    """Write the note into the state directory, unless it is there already."""
    if _note(disk) == note and SURROUNDINGS in disk.names():
        return
    disk.create(f"{SURROUNDINGS}.tmp", msgspec.json.encode(note))
    disk.sync(f"{SURROUNDINGS}.tmp")
    disk.rename(f"{SURROUNDINGS}.tmp", SURROUNDINGS)
    disk.sync_directory()


def heal(
    directory: Path, *, dry_run: bool = False, sleep: Callable[[float], None] = time.sleep
) -> tuple[list[str], int]:
    """Undo every live worker of the journal in `directory`, and look again after a second.

    Returns lines for people and the exit code: 0 nothing is left, 1 something is; of a `dry_run` 1: something cannot be
    read. ConflictError if an agent runs there, NotFoundError if there is no such directory. A directory that cannot be
    written is read, and healed all the same.
    """
    disk = FileDisk(directory, make=False)
    with _alone(directory):
        note = _note(disk)
        platform = open_platform(note.platform, {"attach": note.attach})
        journal = Journal.read_only(disk) if dry_run else _journal(disk)
        live = journal.live()
        if dry_run:
            return _foretold(live, journal.broken, platform)
        performer = Performer(journal, platform)
        lines = list(run_in_lanes(performer.recover(wait=True)))
        if live:
            sleep(LOOK_AGAIN_S)  # what was on its way when the agent died has arrived by now
            lines += run_in_lanes(performer.look_again(tuple(entry.worker for entry in live)))
        left = bool(journal.live()) or bool(journal.broken)
    return lines or ["nothing to undo"], int(left)


def _foretold(live: Sequence[Entry], broken: Sequence[str], platform: Platform) -> tuple[list[str], int]:
    """Return what a dry run says, and 1 if something cannot be read."""
    lines: list[str] = []
    code = int(bool(broken))
    for task, step in [(entry.task, step) for entry in live for step in reversed(entry.steps)]:
        try:
            lines.append(f"would undo task {task}; by hand: {platform.by_hand(step) or 'nothing to do'}")
        except Exception as error:  # such as an operation of a newer version
            undo = msgspec.json.encode(step.undo).decode("utf-8", "replace")
            what = f"cannot say how to undo task {task}: {in_words(error)}"
            lines.append(f"{what}; look what it left and undo it: {undo}")
            code = 1
    return [*lines, *map("cannot be read: {}".format, broken)] or ["nothing to undo"], code


def _note(disk: FileDisk) -> AgentNote:
    try:
        return msgspec.json.decode(disk.read(SURROUNDINGS), type=AgentNote)
    except (NotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return AgentNote()


def _journal(disk: FileDisk) -> Journal:
    try:
        return Journal(disk)
    except HostError as error:
        log.warning("%s; undoing without writing it down", error)
        return Journal.read_only(disk)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    try:
        held = lock(directory)
    except HostError as error:
        log.warning("%s; going on without the lock", error)
        yield
        return
    try:
        yield
    finally:
        held.close()


def _holds_something(directory: Path) -> bool:
    """Return whether something may be left that the journal tells of, or cannot tell of."""
    try:
        journal = Journal.read_only(FileDisk(directory, make=False))
    except TrogdorBusError:
        return False
    return bool(journal.live() or journal.broken)


def main(text: str) -> int:
    """Heal for the guard, which gives the agent's START; return the exit code.

    0 nothing is left, 1 something is, 2 nothing can be read there, or an agent runs there.
    """
    badge.wear()
    start = msgspec.json.decode(text, type=_Start)
    set_title("trogdor-bus", "heal", "--node", start.settings.node)
    logs.set_up(start.log_level, start.log_json, words=start.words)
    try:
        lines, code = heal(Path(start.settings.state_dir))
    except ConflictError as error:
        return report(error, start.words)
    except TrogdorBusError as error:
        report(error, start.words)
        return 1 if _holds_something(Path(start.settings.state_dir)) else 2
    for line in lines:
        log.warning("%s", line)
    return code


if __name__ == "__main__":
    old = len(sys.argv) == 2  # a guard of an older version gives START there
    sys.exit(main(sys.argv[1] if old else os.environ.pop(START)))
