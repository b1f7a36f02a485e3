"""The command line: the composition root. Rooms, the bus and tables are imported inside the commands."""

from __future__ import annotations

import errno
import sys

import typer

from trogdor_bus import __version__
from trogdor_bus.cli import aborts, cluster, daemons, experiment, keys, lab, monitor, offline, tasks
from trogdor_bus.cli.wording import WORDS
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.exits import report
from trogdor_bus.logs import quiet_drivers

app = typer.Typer(
    name="trogdor-bus",
    help="Inject faults into a cluster over a message bus, and undo every one of them on time.",
    epilog="Exit codes: 0 done, 1 failed or disturbed, 2 bad input, 3 outcome unknown, 4 no coordinator answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verbs in (daemons, tasks, experiment, aborts, cluster, offline, monitor, keys, lab):
    verbs.register(app)


def main() -> int:
    """Run the command line; return the exit code."""
    try:
        app(prog_name="trogdor-bus")
    except TrogdorBusError as error:
        return report(error, WORDS, as_json="--json" in sys.argv)
    except SystemExit as end:
        if isinstance(end.__context__, OSError) and end.__context__.errno == errno.EPIPE:
            raise end.__context__ from None  # whoever owns the standard streams says what that is
        return end.code if isinstance(end.code, int) else 0
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    quiet_drivers()
