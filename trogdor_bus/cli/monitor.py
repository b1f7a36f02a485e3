"""`monitor`: the status of everything, live."""

from __future__ import annotations

from typing import Annotated

import typer

from trogdor_bus.cli.reach import Reach, connected


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(epilog="Example: trogdor-bus monitor --json --for 30s")(monitor)


@connected
def monitor(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line per event, and per view of everything.")
    ] = False,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="End after this time (30s); exit 4 if nothing was heard."),
    ] = None,
    reach: Reach,
) -> None:
    """Watch nodes, running faults and every event.

    Any number of monitors may watch.
    """
    from trogdor_bus.cli import live
    from trogdor_bus.config import parse_duration_ms

    limit_s = parse_duration_ms(for_, "--for") / 1000 if for_ is not None else None
    raise typer.Exit(live.watch(reach, as_json, limit_s))
