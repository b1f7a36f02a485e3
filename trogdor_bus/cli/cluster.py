"""What is there: `nodes`, `forget`, `status`, `uptime`, and `shutdown`."""

from __future__ import annotations

from typing import Annotated

import typer

from trogdor_bus.cli import options
from trogdor_bus.cli.reach import Reach, connected


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(epilog="Example: trogdor-bus nodes --coordinator 10.0.0.1")(nodes)
    app.command(epilog="Example: trogdor-bus forget node3")(forget)
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
def forget(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The name of the node.")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Also if it may hold something, which is given up.")] = False,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Forget a node whose agent is gone for good.

    Refused while its agent is alive, or while it may hold something. If a live agent came back with another state
    directory, --force gives up what its former one may hold.
    """
    from trogdor_bus.cli import render
    from trogdor_bus.cli.asking import ask
    from trogdor_bus.client import Client
    from trogdor_bus.messages import Forgotten

    async def verb(client: Client) -> tuple[Forgotten, bool | None]:
        return await client.forget(node, force), client.replicated

    found, replicated = ask(reach, verb)
    if as_json:
        told = {"node": found.node, "gone": found.gone, "givenUp": found.given_up}
        render.print_json(render.with_replicated(told, replicated))
        return
    to = render.console()
    render.print_unreplicated(replicated)
    for line in found.given_up:
        render.print_line(to, f"Given up: {line}", "yellow")
    render.print_line(to, f"Node {node} is forgotten." if found.gone else f"Node {node} stays: its agent is alive.")


@connected
def status(
    *,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Say whether the coordinator runs, since when, and what it is."""
    from trogdor_bus.cli import render
    from trogdor_bus.cli.asking import ask
    from trogdor_bus.cli.wording import said
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
    if isinstance(found.trouble, str):
        print(f"\tTakes and starts no task until it is ended and started anew: {escape(said(found.trouble))}")


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
