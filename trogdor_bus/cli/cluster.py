"""What is there: `nodes`, `status`, `uptime`, and `shutdown`."""

from __future__ import annotations

import typer

from trogdor_bus.cli import options
from trogdor_bus.cli.reach import Reach, connected


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(epilog="Example: trogdor-bus nodes --coordinator 10.0.0.1")(nodes)
    app.command(epilog="Example: trogdor-bus status --json")(status)
    app.command(epilog="Example: trogdor-bus uptime")(uptime)
    app.command(epilog="Example: trogdor-bus shutdown --coordinator 10.0.0.1")(shutdown)


@connected
def nodes(
    *,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """List the nodes: which are alive, since when unheard."""
    from trogdor_bus.cli import render
    from trogdor_bus.cli.asking import ask
    from trogdor_bus.client import Client
    from trogdor_bus.messages import CoordinatorStatus, NodeRow

    async def verb(client: Client) -> tuple[CoordinatorStatus, tuple[NodeRow, ...]]:
        return await client.status(), await client.nodes()

    status, rows = ask(reach, verb)
    if as_json:
        render.print_json({"nowMs": status.now_ms, "nodes": rows})
    elif rows:
        render.print_nodes(render.console(), rows, status.now_ms)
    else:
        print(f"No nodes: start an agent on each ({reach.agent()}).")


@connected
def status(
    *,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Say whether the coordinator runs, since when, and what it is."""
    from trogdor_bus.cli import render
    from trogdor_bus.cli.asking import ask
    from trogdor_bus.printable import escape

    found = ask(reach, lambda client: client.status())
    if as_json:
        render.print_json(found)
        return
    print(f"Coordinator is running at {reach.where()}.")
    print(f"\tStart time: {render.date(found.server_start_ms)}")
    listening = " (still listening for its agents)" if found.listening else ""
    print(f"\tVersion: {escape(found.version)}, epoch {found.epoch}{listening}")
    if isinstance(found.behind_ms, int):
        print(f"\tReplicated: {'everything' if found.replicated else f'not since {render.date(found.behind_ms)}'}")


@connected
def uptime(
    *,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Say for how long the coordinator has been running."""
    from trogdor_bus.cli import render
    from trogdor_bus.cli.asking import ask

    found = ask(reach, lambda client: client.status())
    if as_json:
        render.print_json({"serverStartMs": found.server_start_ms, "nowMs": found.now_ms})
        return
    print(f"Coordinator is running at {reach.where()}.")
    print(f"\tStart time: {render.date(found.server_start_ms)}")
    print(f"\tCurrent server time: {render.date(found.now_ms)}")
    print(f"\tUptime: {render.duration(found.now_ms - found.server_start_ms)}")


@connected
def shutdown(
    *,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """End the coordinator.

    Running faults go on to their deadlines; the agents undo them by themselves.
    """
    from trogdor_bus.cli import render
    from trogdor_bus.cli.asking import ask

    ask(reach, lambda client: client.shutdown())
    if as_json:
        render.print_json({})
    else:
        print(f"The coordinator at {reach.where()} ends; running faults go on to their deadlines.")
