"""What needs no coordinator: `validate`, `schema`, `faults`, `version`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trogdor_bus.cli import options
from trogdor_bus.cli.reach import Reach, connected

if TYPE_CHECKING:
    from trogdor_bus.spec import TaskSpec

SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help='A file, "-" for standard input, or inline {...}.')]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(epilog="Example: trogdor-bus validate partition.json")(validate)
    app.command(epilog="Example: trogdor-bus schema > trogdor-bus.schema.json")(schema)
    app.command(epilog="Example: trogdor-bus faults partition")(faults)
    app.command(epilog="Example: trogdor-bus version")(version)


def read_spec(argument: str) -> TaskSpec:
    """Return the spec that the argument of a command means; SpecError or NotFoundError says what is wrong."""
    return _decoded(_read(argument))


def _read(argument: str) -> Any:
    from trogdor_bus import document

    return document.parse(*document.read_source(argument))


def _decoded(data: Any) -> TaskSpec:
    from trogdor_bus.registry import registry

    return registry().decode(data)


@connected
def validate(
    spec: SpecArgument,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the spec exactly as it goes on the wire.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Allow what would cut the coordinator itself or silence the bus.")
    ] = False,
    allow: options.Allow = None,
    reach: Reach,
) -> None:
    """Say what is wrong with a spec.

    With --coordinator or --bootstrap-server (or their variables), also what it would do to that cluster.
    """
    import sys

    from trogdor_bus.spec import wire

    data = _read(spec)
    found, plan = _decoded(data), None
    if reach.chosen & {"coordinator", "bootstrap"}:
        from trogdor_bus.cli.asking import ask

        permits, looks = tuple(allow or ()), found.needs_cluster(())
        plan = ask(reach, lambda client: client.validate(wire(found), force, allow=permits, looks=looks))
    if as_json:
        sys.stdout.buffer.write(wire(found) + b"\n")
        return
    from trogdor_bus.cli import render

    start = "at once" if found.start_ms <= 0 else f"at {render.date(found.start_ms)}"
    print(f"Valid: {type(found).__struct_config__.tag}, starts {start}, lasts {render.duration(found.duration_ms)}.")
    given = data.get("durationMs")
    if given is not None and str(given) != str(found.duration_ms):
        render.print_line(render.console(), f"durationMs {given} counts as {found.duration_ms} ms, as in Trogdor.")
    if plan:
        render.print_plan(plan)


def schema() -> None:
    """Print the JSON Schema of all specs."""
    from trogdor_bus.cli.render import print_json
    from trogdor_bus.registry import registry

    print_json(registry().schema())


def faults(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A class or an alias.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List every fault, or show the fields and an example of one."""
    from trogdor_bus.cli import catalogue, render
    from trogdor_bus.registry import registry

    classes = [registry().lookup(name)] if name else list(registry().by_tag.values())
    if as_json:
        described = [catalogue.described(cls) for cls in classes]
        render.print_json(described[0] if name else described)
    elif name:
        catalogue.show(classes[0])
    else:
        catalogue.show_all(classes)


def version() -> None:
    """Print the version."""
    from trogdor_bus import __version__

    print(__version__)
