"""The emergency brake: `abort`, and `resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trogdor_bus.cli import options
from trogdor_bus.cli.reach import Reach, connected

_NODE_HELP = "Only this node, and the tasks that use it."


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(epilog="Example: trogdor-bus abort    (then, when all is well: trogdor-bus resume)")(abort)
    app.command(epilog="Example: trogdor-bus resume --node node1")(resume)


@connected
def abort(
    *,
    node: Annotated[str, typer.Option("--node", "-n", metavar="NAME", help=_NODE_HELP)] = "",
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="How long to wait for the proof of live nodes.")
    ] = "60s",
    state_dir: Annotated[
        Path | None,
        typer.Option("--state-dir", metavar="DIR", help="The coordinator's state, if no coordinator answers."),
    ] = None,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """End every fault now, wait for the proof, and let nothing start until `resume`.

    If no coordinator answers: on its host this command takes its place for as long as that needs. Exit codes: 0 every
    node that was heard holds nothing, 1 an undo is stuck, 3 a node that holds a fault is silent, or none is known,
    4 nobody could abort.
    """
    from trogdor_bus.cli import aborting
    from trogdor_bus.config import parse_duration_ms

    within_s = parse_duration_ms(timeout, "--timeout") / 1000
    raise typer.Exit(aborting.abort(reach, node, within_s, options.state_dir(state_dir, "coordinator"), as_json))


@connected
def resume(
    *,
    node: Annotated[str, typer.Option("--node", "-n", metavar="NAME", help="Only this node.")] = "",
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Let faults start again after an abort."""
    from trogdor_bus.cli import aborting

    raise typer.Exit(aborting.resume(reach, node, as_json))
