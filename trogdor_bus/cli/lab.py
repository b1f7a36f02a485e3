"""`lab`, a small cluster on one machine, and `demo`, which shows two faults in one."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from trogdor_bus.cli import options

lab_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Which lab; several may be up at once.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(lab_app, name="lab", help="A small cluster on one machine, out of network namespaces (Linux, root).")
    app.command(epilog="Example: trogdor-bus demo")(demo)


@lab_app.command(epilog="Example: trogdor-bus lab up --nodes 5")
def up(
    nodes: Annotated[int, typer.Option("--nodes", help="How many nodes, beside the coordinator's.")] = 3,
    name: Name = "lab",
) -> None:
    """Make a lab: namespaces, foreign rules, echo services, a coordinator and an agent per node."""
    from trogdor_bus.lab.cluster import Lab, require
    from trogdor_bus.lab.interrupts import Interrupted, Interrupts

    require()
    try:
        with Interrupts():
            Lab(nodes, name, print).up()
    except Interrupted as told:
        print(f"ended by {told.number.name}, everything is removed", file=sys.stderr)
        raise typer.Exit(128 + told.number) from None
    suffix = "" if name == "lab" else f" --name {name}"
    print(f"try: trogdor-bus lab exec{suffix} coordinator -- trogdor-bus submit examples/partition.json")
    print(f"end: trogdor-bus lab down{suffix}")


@lab_app.command(epilog="Example: trogdor-bus lab status --json")
def status(name: Name = "lab", as_json: options.AsJson = False) -> None:
    """Show the lab's members, their processes, and who reaches whom."""
    from trogdor_bus.cli import render
    from trogdor_bus.lab.cluster import existing, require
    from trogdor_bus.lab.screen import LEGEND, members_table, table

    require()
    lab = existing(name)
    matrix = lab.matrix()
    if as_json:
        members = [
            {
                "name": member.name,
                "namespace": member.namespace,
                "addresses": [member.ipv4, member.ipv6],
                "processes": {
                    one.role: {"pid": one.pid, "state": one.state()} for one in lab.state.processes_of(member.name)
                },
            }
            for member in lab.members
        ]
        directory = str(lab.directory)
        render.print_json({"name": name, "directory": directory, "members": members, "reached": matrix.ways})
        return
    console = render.console()
    console.print(members_table(lab.members, lab.state))
    console.print()
    console.print(table(matrix))
    print(LEGEND)
    print(f"logs and state: {lab.directory}")


@lab_app.command(
    "exec",
    epilog="Example: trogdor-bus lab exec node1 -- ping -c 1 10.89.0.2",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def execute(
    node: Annotated[str, typer.Argument(metavar="NODE", help="node1 ... nodeN, or coordinator.")],
    command: Annotated[list[str], typer.Argument(metavar="-- CMD [ARG]...", help="What to run there.")],
    name: Name = "lab",
) -> None:
    """Run a command in a node's network namespace; its exit code is ours."""
    from trogdor_bus.errors import NotFoundError
    from trogdor_bus.lab.cluster import existing, require

    require()
    lab = existing(name)
    words = command[1:] if command[:1] == ["--"] else command
    argv = lab.command(node, words)
    sys.stdout.flush()
    try:
        os.execvpe(argv[0], argv, lab.environment())  # noqa: S606 - no shell is wanted
    except FileNotFoundError:
        raise NotFoundError(f"{argv[0]} is not installed") from None


@lab_app.command(epilog="Example: trogdor-bus lab down")
def down(name: Name = "lab") -> None:
    """Take away exactly what the lab made; also what a killed `lab up` left."""
    from trogdor_bus.lab.cluster import remove, require

    require()
    print(f"lab {name} is gone" if remove(name) else f"there is no lab {name}: nothing to do")


def demo(
    nodes: Annotated[int, typer.Option("--nodes", min=3, help="How many nodes, beside the coordinator's.")] = 3,
    as_json: options.AsJson = False,
) -> None:
    """Make a lab, cut it in two, freeze a process, watch both heal, and leave nothing behind.

    Without root only the process fault runs, on the loopback address.
    """
    from trogdor_bus.cli import render
    from trogdor_bus.lab.cluster import missing
    from trogdor_bus.lab.demo import run_demo
    from trogdor_bus.lab.screen import JsonScreen, Screen, TextScreen

    screen: Screen = JsonScreen(sys.stdout) if as_json else TextScreen(render.console())
    lacking = missing()
    if lacking:
        from trogdor_bus.lab.loopback import run_loopback

        raise typer.Exit(run_loopback(screen, lacking))
    raise typer.Exit(run_demo(screen, nodes))
