"""Runs benchmarks, prints a table for each, and writes the figures as JSON."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.results import ROOT, WIDTH, Result, Skipped, Table, headline, keep, machine, show
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.lab.interrupts import Interrupted, Interrupts

NAMES = ("bus", "kafka", "views", "restart", "partition", "rules", "lateness", "daemons")


def main() -> int:
    """Run what was asked for; return 1 if a benchmark failed (an aim that is not met is no failure)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes, under a minute")
    parser.add_argument("--json", type=Path, metavar="DIR", default=ROOT / "benchmarks/results", help="where JSON goes")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in NAMES]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    console = Console(width=WIDTH)
    facts = machine()
    console.print(headline(facts), highlight=False)
    console.print()
    failed = False
    for name in asked.names or NAMES:
        begun = time.monotonic()
        try:
            with Interrupts():
                result = importlib.import_module(f"benchmarks.{name}").measure(quick=asked.quick)
        except Skipped as reason:
            result = Result(table=Table(title=name, columns=("skipped",), rows=[(str(reason),)]))
        except TrogdorBusError as error:
            console.print(f"[red]{name} failed:[/] {error}", highlight=False)
            failed = True
            continue
        except (Interrupted, KeyboardInterrupt):
            console.print(f"{name} was interrupted; what it made is cleaned up", highlight=False)
            return 130
        show(console, result)
        path = keep(asked.json, name, facts, result, quick=asked.quick, took_s=time.monotonic() - begun)
        console.print(f"  {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
