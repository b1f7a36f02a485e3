"""`monitor`: the status of everything, live."""

from __future__ import annotations

from typing import Annotated

import typer

from trogdor_bus.cli import options


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(epilog="Example: trogdor-bus monitor --json --for 30s")(monitor)


def monitor(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line per event, and per view of everything.")
    ] = False,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="End after this time (30s); exit 4 if nothing was heard."),
    ] = None,
    coordinator: options.Coordinator = options.DEFAULT_ADDRESS,
    transport: options.Transport = "zmq",
    keys: options.Keys = None,
    insecure: options.Insecure = False,
) -> None:
    """Watch nodes, running faults and every event.

    Any number of monitors may watch.
    """
    from trogdor_bus.cli import live
    from trogdor_bus.config import parse_duration_ms

    limit_s = parse_duration_ms(for_, "--for") / 1000 if for_ is not None else None
    reach = options.Reach(coordinator, transport, keys, insecure)
    raise typer.Exit(live.watch(reach, as_json, limit_s))
