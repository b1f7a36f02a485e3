"""Waiting for the end of a task, and telling how it goes."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer
from rich.progress import BarColumn, Progress, TextColumn

from trogdor_bus.cli import render
from trogdor_bus.cli.asking import ask
from trogdor_bus.cli.reach import Reach
from trogdor_bus.cli.wording import said
from trogdor_bus.client import SILENCE_S, Client
from trogdor_bus.errors import NoCoordinatorError, NotFoundError
from trogdor_bus.messages import TaskInfo
from trogdor_bus.states import EXIT_CODES, Outcome, TaskState
from trogdor_bus.streams import INTERRUPTED, UNREAD

UNKNOWN_EXIT = EXIT_CODES[Outcome.UNKNOWN]
TICK_S = 0.2
_CANNOT_WRITE = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT)


def wait(reach: Reach, task_id: str, as_json: bool, cancelled_is_success: bool = False) -> int:
    """Return the exit code of the task once it has ended, having shown how it went.

    Exits 3 if nobody can tell the end; 130 on Ctrl-C, and 141 if nobody reads the output: the task then goes on.
    """

    async def verb(client: Client) -> TaskInfo:
        status = await client.status(SILENCE_S)
        offset_ms = status.now_ms - time.time_ns() // 1_000_000
        with _teller(as_json, offset_ms) as teller:
            ticker = asyncio.create_task(teller.tick_for_ever())
            try:
                return await client.wait(task_id, teller.tell)
            finally:
                ticker.cancel()

    try:
        with may_leave(f"task {task_id} goes on; to end it: trogdor-bus stop {task_id}"):
            info = ask(reach, verb)
    except (NoCoordinatorError, NotFoundError) as error:
        raise outcome_unknown(f"{error}\nthe outcome of task {task_id} is unknown", as_json) from None
    with unread():
        if as_json:
            render.print_json(render.task_json(info))
        else:
            _tell_end(info)
    if cancelled_is_success and info.task.outcome is Outcome.CANCELLED:
        return 0
    return EXIT_CODES.get(info.task.outcome, UNKNOWN_EXIT)


@contextmanager
def may_leave(goes_on: str) -> Iterator[None]:
    """Say `goes_on` on standard error, and exit, if waiting ends before what is waited for: nobody wants to see it."""
    try:
        yield
    except KeyboardInterrupt:
        _say(f"\nInterrupted: {goes_on}")
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        silence_output()
        _say(f"Standard output cannot be written ({error.strerror}): {goes_on}")
        raise typer.Exit(UNREAD) from None


@contextmanager
def unread() -> Iterator[None]:
    """Let an end be told to nobody: the exit code tells it, too."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        silence_output()
        _say(f"Standard output cannot be written ({error.strerror}): the end is told by the exit code alone.")


def silence_output() -> None:
    """Let what is still printed go nowhere, also what is in the buffer."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _say(line: str) -> None:
    with suppress(OSError):
        render.print_line(render.console(stderr=True), line)


def outcome_unknown(message: str, as_json: bool) -> typer.Exit:
    """Say on standard error that nobody can tell how it ended; return the exit to raise."""
    if as_json:
        print(
            json.dumps({"error": "OutcomeUnknown", "message": said(message), "path": "$", "remedy": ""}),
            file=sys.stderr,
        )
    else:
        render.print_line(render.console(stderr=True), f"error: {message}")
    return typer.Exit(UNKNOWN_EXIT)


def _tell_end(info: TaskInfo) -> None:
    console, task = render.console(), info.task
    render.print_line(console, f"Task {task.id}: {task.outcome or 'ended'}. {render.info_text(task)}")
    render.print_why(console, task)
    if any(worker.error or worker.warnings or worker.disturbed or worker.residue for worker in info.workers):
        render.print_workers(console, info)


class _Silent:
    """Shows nothing; the base of what shows something."""

    def tell(self, info: TaskInfo) -> None:
        """Take note of a change."""

    def tick(self) -> None:
        """Take note of the time."""

    async def tick_for_ever(self) -> None:
        while True:
            self.tick()
            await asyncio.sleep(TICK_S)


class _Lines(_Silent):
    """A plain line for each change."""

    def __init__(self) -> None:
        self._console = render.console()
        self._said: dict[str, str] = {}

    def tell(self, info: TaskInfo) -> None:
        lines = {"": f"{info.task.state}"}
        lines |= {f"{worker.node}: ": f"{worker.state}, {worker.status}" for worker in info.workers}
        for who, what in lines.items():
            if self._said.get(who) != what:
                render.print_line(self._console, f"{time.strftime('%H:%M:%S')} {who}{what}")
        self._said = lines


class _Bar(_Silent):
    """A progress bar to the task's end, with what its nodes say."""

    def __init__(self, progress: Progress, offset_ms: int) -> None:
        self._progress, self._offset_ms = progress, offset_ms
        self._bar = progress.add_task("", total=1, text=render.text(""), left="")
        self._info: TaskInfo | None = None

    def tell(self, info: TaskInfo) -> None:
        self._info = info
        said = sorted({worker.status for worker in info.workers}) or [""]
        self._progress.update(self._bar, text=render.text(f"{info.task.state} {'; '.join(said)}"))
        self.tick()

    def tick(self) -> None:
        if self._info is None:
            return
        task = self._info.task
        left_ms = task.end_ms - (time.time_ns() // 1_000_000 + self._offset_ms)
        if task.state is TaskState.DONE:
            left_ms = 0
        total = max(task.duration_ms, 1)
        left = f"{render.duration(left_ms)} left" if task.state is TaskState.RUNNING else ""
        self._progress.update(self._bar, total=total, completed=min(max(total - left_ms, 0), total), left=left)


@contextmanager
def _teller(as_json: bool, offset_ms: int) -> Iterator[_Silent]:
    if as_json:
        yield _Silent()
    elif not sys.stdout.isatty():
        yield _Lines()
    else:
        columns = (BarColumn(bar_width=20), TextColumn("{task.fields[left]}"), TextColumn("{task.fields[text]}"))
        with Progress(*columns, console=render.console(), transient=True) as progress:
            yield _Bar(progress, offset_ms)
