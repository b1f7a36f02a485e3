"""How a demo is told: on a terminal with a live matrix, as plain text in a pipe, or as one JSON object a line."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Protocol, TextIO

import msgspec
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trogdor_bus.lab.namespaces import Member
from trogdor_bus.lab.probe import PING, Matrix
from trogdor_bus.lab.site import LabState

_STYLES = {"ok": "green", "CUT": "bold red", "ping": "yellow", "silent": "yellow", "-": "dim"}
LEGEND = "ok: TCP, UDP and ping over IPv4 and IPv6   CUT: none of them   ping: only ping"


class Screen(Protocol):
    """Where a demo tells what it sees; a context manager."""

    def __enter__(self) -> Screen:
        """Begin."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop drawing."""
        ...

    def say(self, text: str) -> None:
        """Add a line to the time line."""
        ...

    def show(self, matrix: Matrix, caption: str, passed_s: float = 0, total_s: float = 0) -> None:
        """Show who reaches whom now, and how far a fault is on its way to its end."""
        ...

    def check(self, seen: bool, text: str, detail: str = "") -> None:
        """Tell whether an expectation was seen."""
        ...

    def verdict(self, ok: bool, text: str) -> None:
        """Tell how it ended; the last word."""
        ...


class TextScreen:
    """For people: a live matrix below the time line on a terminal; in a pipe the matrix at each change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = time.monotonic()
        self._shown: Matrix | None = None
        self._kept: Matrix | None = None
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(Text(""), console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> TextScreen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._fold()

    def say(self, text: str) -> None:
        """Add a line to the time line."""
        self._line("", text)

    def show(self, matrix: Matrix, caption: str, passed_s: float = 0, total_s: float = 0) -> None:
        """Show the matrix; in a pipe only if it says something new."""
        self._shown = matrix
        if self._live:
            parts: list[RenderableType] = [Text(""), table(matrix), Text(caption, style="bold")]
            if total_s:
                passed_s = min(passed_s, total_s)
                line = Table.grid(padding=(0, 1))
                line.add_row(ProgressBar(total_s, passed_s, width=30), f"{passed_s:.0f} s of {total_s:.0f} s")
                parts.append(line)
            self._live.update(Group(*parts), refresh=True)
        else:
            self._keep()

    def check(self, seen: bool, text: str, detail: str = "") -> None:
        """Add a line to the time line; the detail only if the expectation was not seen."""
        self._keep()
        self._line("seen" if seen else "NOT SEEN", text, "green" if seen else "bold red")
        if detail and not seen:
            self._console.print(Text(detail), soft_wrap=True)

    def verdict(self, ok: bool, text: str) -> None:
        """Print the verdict line."""
        self._fold()
        self._console.print()
        self._console.print(Text("PASS " if ok else "FAIL ", style="bold green" if ok else "bold red") + Text(text))

    def _keep(self) -> None:
        """Leave on the page what was just seen, if it is new."""
        if self._shown and self._shown != self._kept:
            self._kept = self._shown
            self._console.print(Text(""), table(self._kept), Text(""), sep="\n")

    def _line(self, mark: str, text: str, style: str = "") -> None:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=8, justify="right", no_wrap=True)
        grid.add_column(overflow="fold")
        words = Text(f"{mark}: ", style=style) + Text(text) if mark else Text(text)
        grid.add_row(Text(f"{time.monotonic() - self._began_s:.1f} s", style="dim"), words)
        self._console.print(grid)

    def _fold(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None


class JsonScreen:
    """For machines: one JSON object a line, a matrix whenever it changes, the verdict last."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began_s = time.monotonic()
        self._shown: tuple[Matrix, str] | None = None

    def __enter__(self) -> JsonScreen:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def say(self, text: str) -> None:
        """Write {"event": "said"}."""
        self._write("said", text=text)

    def show(self, matrix: Matrix, caption: str, passed_s: float = 0, total_s: float = 0) -> None:
        """Write {"event": "matrix"} if it says something new."""
        if self._shown != (matrix, caption):
            self._shown = (matrix, caption)
            self._write("matrix", text=caption, reached=matrix.ways)

    def check(self, seen: bool, text: str, detail: str = "") -> None:
        """Write {"event": "expectation"}."""
        self._write("expectation", text=text, seen=seen, detail=detail)

    def verdict(self, ok: bool, text: str) -> None:
        """Write {"event": "verdict"}."""
        self._write("verdict", text=text, ok=ok)

    def _write(self, event: str, **fields: object) -> None:
        at_ms = round((time.monotonic() - self._began_s) * 1000)
        self._out.write(msgspec.json.encode({"atMs": at_ms, "event": event, **fields}).decode() + "\n")
        self._out.flush()


def table(matrix: Matrix) -> Table:
    """Return the matrix as a table: rows are sources, columns are targets."""
    targets = list(dict.fromkeys(target for row in matrix.ways.values() for target in row))
    targets.sort(key=list(matrix.ways).index if len(matrix.ways) > 1 else None)
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False)
    shown.add_column("from \\ to", no_wrap=True)
    for name in targets:
        shown.add_column(name, justify="center", no_wrap=True)
    for source in matrix.ways:
        words = [word(matrix, source, target) for target in targets]
        shown.add_row(source, *(Text(text, style=_STYLES.get(text, "magenta")) for text in words))
    return shown


def members_table(members: Iterable[Member], state: LabState) -> Table:
    """Return the members with their addresses and the states of their processes by role."""
    shown = _member_columns()
    for member in members:
        shown.add_row(member.name, f"{member.ipv4}\n{member.ipv6}", _processes(state, member.name))
    return shown


def containers_table(status: Mapping[str, Any], state: LabState) -> Table:
    """Return the members of a lab of Kafka with their containers and the states of their processes by role."""
    shown = _member_columns("container")
    for member in status["members"]:
        running = Text(member["state"], style="" if member["state"] == "running" else "bold red")
        container = Text.assemble(f"{member['container']}\n", running)
        shown.add_row(member["name"], "\n".join(member["addresses"]), container, _processes(state, member["name"]))
    return shown


def _member_columns(*more: str) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False)
    for column in ("member", "addresses", *more, "processes"):
        shown.add_column(column, overflow="fold")
    return shown


def _processes(state: LabState, member: str) -> Text:
    processes = Text()
    for one in state.processes_of(member):
        ordinary = one.state() == ("stopped" if one.role == "sleeper" else "running")
        processes.append(f"{one.role} {one.state()}\n", style="" if ordinary else "bold red")
    processes.rstrip()
    return processes


def word(matrix: Matrix, source: str, target: str) -> str:
    """Return a cell, such as "ok" for all that was asked, "CUT" for nothing ("silent" if ping was not asked)."""
    if source == target:
        return "-"
    reached = matrix.reached(source, target)
    families = {family: frozenset(way for way in matrix.asked if way.endswith(family)) for family in "46"}
    if reached == frozenset(matrix.asked):
        return "ok"
    if reached == frozenset(PING):
        return "ping"
    for family, ways in families.items():
        if reached == ways and ways:
            return f"IPv{family}"
    if reached:
        return f"{len(reached)} of {len(matrix.asked)}"
    return "CUT" if set(PING) <= set(matrix.asked) else "silent"
