"""What a benchmark gives back, the facts of the machine that it ran on, and how both are shown and kept."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table as RichTable

from trogdor_bus import __version__

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 80


class Skipped(Exception):
    """This benchmark cannot run here; the text says why and what would help."""


class Table(msgspec.Struct, kw_only=True):
    """Cells as people read them; the first column names the row. Each note is a paragraph."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = []
    notes: tuple[str, ...] = ()


class Aim(msgspec.Struct, frozen=True):
    """What was aimed at, what was measured, and whether that is met."""

    text: str
    measured: str
    met: bool


class Result(msgspec.Struct, kw_only=True):
    """One benchmark: the table, the aims, and every figure under its name (the unit is in the name)."""

    table: Table
    aims: list[Aim] = []
    figures: dict[str, Any] = {}


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def ms(seconds: float) -> str:
    """Return a duration as a number of milliseconds, three digits that count."""
    value = seconds * 1000
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def ratio(ours: float, other: float) -> str:
    """Return how many times `other` fits into `ours`."""
    value = ours / other
    return f"{value:.1f} x" if value < 100 else f"{value:,.0f} x"


def machine() -> dict[str, Any]:
    """Return what a reader must know of this machine to judge the figures."""
    import zmq

    iptables = shutil.which("iptables", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    packages = ("pyzmq", "msgspec", "psutil", "typer", "rich")
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu[1] if cpu else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
        "iptables": subprocess.run([iptables, "-V"], capture_output=True, text=True, check=False).stdout.strip()
        if iptables
        else "none",
        "versions": {"trogdor-bus": __version__} | {name: version(name) for name in packages},
        "load_before": round(os.getloadavg()[0], 2),
    }


def headline(facts: dict[str, Any]) -> str:
    """Return the machine in one line or two."""
    versions = facts["versions"]
    return (
        f"{facts['cores']} cores ({facts['cpu']}), Linux {facts['kernel']}, Python {facts['python']}, "
        f"pyzmq {versions['pyzmq']} on libzmq {facts['libzmq']}, {facts['iptables']}; "
        f"load before {facts['load_before']}"
    )


def show(console: Console, result: Result) -> None:
    """Print the table, its notes, and whether each aim is met."""
    table = RichTable(title=result.table.title, title_justify="left", width=None)
    for index, column in enumerate(result.table.columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in result.table.rows:
        table.add_row(*row)
    console.print(table)
    for note in result.table.notes:
        console.print(textwrap.indent(textwrap.fill(note, WIDTH - 4), "  "), highlight=False, markup=False)
    for aim in result.aims:
        verdict = "[green]aim met[/]" if aim.met else "[red]aim NOT met[/]"
        console.print(f"  {verdict}: {aim.text}; measured {aim.measured}", highlight=False)
    console.print()


def keep(directory: Path, name: str, facts: dict[str, Any], result: Result, *, quick: bool, took_s: float) -> Path:
    """Write the result as JSON and return where."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    content = {
        "benchmark": name,
        "quick": quick,
        "took_s": round(took_s, 1),
        "machine": facts,
        "aims": msgspec.to_builtins(result.aims),
        "figures": result.figures,
        "table": msgspec.to_builtins(result.table),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def environment() -> dict[str, str]:
    """Return the environment of our child processes: they find the benchmarks, and no settings of the user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TROGDOR_BUS_")}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}


TROGDOR = (sys.executable, "-m", "trogdor_bus")
