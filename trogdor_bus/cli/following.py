"""Watching an experiment to its end, and telling its verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.live import Live
from rich.table import Table

from trogdor_bus.cli import render, waiting
from trogdor_bus.cli.asking import ask
from trogdor_bus.cli.reach import Reach
from trogdor_bus.cli.telling import said_parts
from trogdor_bus.cli.wording import said
from trogdor_bus.client import SILENCE_S, Client
from trogdor_bus.errors import NoCoordinatorError, NotFoundError
from trogdor_bus.experiment import outputs
from trogdor_bus.experiment.result import EXIT_CODES, ErrorOutput, Result, Verdict, decode, encode
from trogdor_bus.experiment.verdict import judged
from trogdor_bus.messages import ExperimentInfo, ToldLine
from trogdor_bus.states import TaskState

LOOK_S = 0.5
_COLOURS: dict[Verdict, str] = {"Pass": "bold green", "Fail": "bold red", "Error": "bold red", "Stopped": "bold yellow"}


def how_to(task_id: str) -> str:
    """Return how an experiment is watched, and ended."""
    return f"To watch it: trogdor-bus experiment show {task_id} --follow    To end it: trogdor-bus stop {task_id}"


def follow(reach: Reach, task_id: str, out: Path | None, *, as_json: bool) -> int:
    """Return the exit code of the verdict, once it is there, is told, and is written to `out`.

    Exits 3 if nobody can tell the end; 130 on Ctrl-C, and 141 if nobody reads the output: the experiment then goes on.
    """

    async def verb(client: Client) -> ExperimentInfo:
        with _teller(as_json) as teller:
            return await _followed(client, task_id, teller)

    try:
        with waiting.may_leave(f"experiment {task_id} goes on. {how_to(task_id)}"):
            info = ask(reach, verb)
    except (NoCoordinatorError, NotFoundError) as error:
        text = f"{error}\nhow experiment {task_id} ended is unknown; it ends by itself, and its faults with their lease"
        raise waiting.outcome_unknown(text, as_json) from None
    return _tell(info, out, as_json=as_json)


def show(reach: Reach, task_id: str, out: Path | None, *, as_json: bool) -> int:
    """Show an experiment as it is now; return the exit code of its verdict, 0 while there is none."""
    info = ask(reach, lambda client: client.experiment(task_id, with_result=True))
    is_done, console = info.task.state is TaskState.DONE, render.console()
    for line in info.lines if not as_json else ():
        render.print_line(console, _line(line))
    if is_done:
        return _tell(info, out, as_json=as_json)
    if as_json:
        render.print_json({"id": task_id, "state": info.task.state, "progress": msgspec.to_builtins(info.progress)})
        return 0
    render.print_line(console, f"{info.task.state}: {_progress(info)}")
    render.print_line(console, how_to(task_id))
    return 0


def all_of(reach: Reach) -> list[ExperimentInfo]:
    """Return all experiments, the newest last."""

    async def verb(client: Client) -> list[ExperimentInfo]:
        ids = [info.task.id for info in await client.tasks() if info.task.experiment]
        return [await client.experiment(one, after=1 << 60) for one in ids]

    return sorted(ask(reach, verb), key=lambda info: info.task.start_ms)


def table(found: list[ExperimentInfo]) -> Table:
    """Return the experiments for showing."""
    result = render.table("ID", "STATE", "VERDICT", "STARTED", "WHY")
    for info in found:
        started = render.date(info.task.started_ms) if info.task.started_ms >= 0 else ""
        verdict = info.verdict or result_of(info).verdict if info.task.state is TaskState.DONE else ""
        style = next((colour for word, colour in _COLOURS.items() if word == verdict), "")
        why = info.task.error.partition(": ")[2] or info.task.error
        render.add_row(result, info.task.id, info.task.state.value, render.text(verdict, style), started, why[:200])
    return result


def result_of(info: ExperimentInfo) -> Result:
    """Return the result of an ended experiment, made of its task if its program could give none."""
    if bytes(info.result) != b"null":
        result: Result = said_parts(decode(bytes(info.result)))
        return result
    task = info.task
    error = (
        ErrorOutput()
        if task.cancelled
        else ErrorOutput(code="GENERIC_ERROR", reason=said(task.error.removeprefix("Error: ")))
    )
    spec = msgspec.json.decode(task.original)
    return judged(
        Result(
            id=task.id,
            name=str(spec.get("name", "")),
            stopped="somebody stopped it" if task.cancelled else "",
            error_output=error,
            fail_step=info.progress.phase,
            phase=info.progress.phase or "start",
            started_ms=task.started_ms,
            ended_ms=task.done_ms,
            spec=spec,
        )
    )


async def _followed(client: Client, task_id: str, teller: _Silent) -> ExperimentInfo:
    after = 0
    while True:
        info = await client.experiment(task_id, after, silence_s=SILENCE_S)
        for line in info.lines:
            teller.line(line)
            after = line.number
        teller.progress(info)
        if info.task.state is TaskState.DONE:
            return await client.experiment(task_id, with_result=True, silence_s=SILENCE_S)
        await asyncio.sleep(LOOK_S)


def _tell(info: ExperimentInfo, out: Path | None, *, as_json: bool) -> int:
    """Tell the verdict and why, write the files, and return the exit code."""
    result = result_of(info)
    files = outputs.write(result, out) if out is not None else []
    with waiting.unread():
        if as_json:
            print(encode(result).decode(), end="")
        else:
            _print(result, files)
    return EXIT_CODES[result.verdict]


def _print(result: Result, files: list[Path]) -> None:
    console = render.console()
    render.print_line(console, f"Verdict: {result.verdict}", _COLOURS[result.verdict])
    for reason in result.reasons:
        render.print_line(console, f"  {reason.kind}: {reason.text}")
    for warning in result.warnings:
        render.print_line(console, f"  warning: {warning}")
    for file in files:
        render.print_line(console, f"{file}")


def _line(line: ToldLine) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(line.at_ms / 1000))} {line.text}"


def _progress(info: ExperimentInfo) -> str:
    told = info.progress
    if not told.sent:
        return told.phase
    gap = f"; nothing came for {told.gap_ms / 1000:.1f} s" if told.gap_ms >= 1000 else ""
    return (
        f"{told.phase}; faults {told.faults}; records sent {told.sent}, acknowledged {told.acked}, "
        f"indeterminate {told.indeterminate}, delivered {told.delivered}{gap}"
    )


class _Silent:
    """Shows nothing; the base of what shows something."""

    def line(self, line: ToldLine) -> None:
        """Take note of a line."""

    def progress(self, info: ExperimentInfo) -> None:
        """Take note of how far it is."""


class _Lines(_Silent):
    """A plain line for each line, and one for each change of the phase."""

    def __init__(self) -> None:
        self._console = render.console()

    def line(self, line: ToldLine) -> None:
        render.print_line(self._console, _line(line))


class _Screen(_Silent):
    """How far it is at the bottom of the terminal, lines scrolling above."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def line(self, line: ToldLine) -> None:
        render.print_line(self._live.console, _line(line))

    def progress(self, info: ExperimentInfo) -> None:
        lasts_ms = max(0, time.time_ns() // 1_000_000 - info.task.started_ms) if info.task.started_ms >= 0 else 0
        self._live.update(render.text(f"{render.duration(lasts_ms)} {_progress(info)}", "bold"), refresh=True)


@contextmanager
def _teller(as_json: bool) -> Iterator[_Silent]:
    if as_json:
        yield _Silent()
        return
    console = render.console()
    if not console.is_terminal:
        yield _Lines()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield _Screen(live)
