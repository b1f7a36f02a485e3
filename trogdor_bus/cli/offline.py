"""What needs no coordinator: `validate`, `schema`, `faults`, `version`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trogdor_bus.cli import options
from trogdor_bus.cli.reach import Reach, connected
from trogdor_bus.errors import SpecError

if TYPE_CHECKING:
    from trogdor_bus.messages import Plan
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
    from trogdor_bus.registry import registry

    (data, *_), is_engine = _read(argument)
    if is_engine:
        raise SpecError("is a ChaosEngine of Litmus", path="$.kind", remedy="`trogdor-bus experiment run` takes it")
    return registry().decode(data)


def _read(argument: str) -> tuple[list[Any], bool]:
    """Return the specs that an argument means, and whether they come of a ChaosEngine."""
    from trogdor_bus import document
    from trogdor_bus.experiment import litmus

    text, name = document.read_source(argument)
    if litmus.is_engine(document.parse_all(text, name)):
        return list(litmus.read(text, name)), True
    return [document.parse(text, name)], False


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

    from trogdor_bus.registry import registry
    from trogdor_bus.spec import wire

    for data in _read(spec)[0]:
        found, plan = registry().decode(data), None
        if reach.chosen & {"coordinator", "bootstrap"}:
            plan = _plan(found, reach, force, tuple(allow or ()))
        if as_json:
            sys.stdout.buffer.write(wire(found) + b"\n")
        else:
            _print_valid(found, data.get("durationMs"), plan)
    _warn()


def _plan(found: TaskSpec, reach: Reach, force: bool, permits: tuple[str, ...]) -> Plan:
    from trogdor_bus.cli.asking import ask
    from trogdor_bus.spec import wire

    looks = found.needs_cluster(())
    return ask(reach, lambda client: client.validate(wire(found), force, allow=permits, looks=looks))


def _print_valid(found: TaskSpec, given_ms: object, plan: Plan | None) -> None:
    from trogdor_bus.cli import render
    from trogdor_bus.faults.experiment import ExperimentSpec

    start = "at once" if found.start_ms <= 0 else f"at {render.date(found.start_ms)}"
    lasts = f"lasts {'at most ' if found.is_experiment else ''}{render.duration(found.longest_ms(), exact=True)}"
    print(f"Valid: {type(found).__struct_config__.tag}, starts {start}, {lasts}.")
    if given_ms is not None and str(given_ms) != str(found.duration_ms):
        render.print_line(render.console(), f"durationMs {given_ms} counts as {found.duration_ms} ms, as in Trogdor.")
    for key in found.litmus.not_used if isinstance(found, ExperimentSpec) and found.litmus else ():
        render.print_line(render.console(), f"not used here: {key}")
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
    _warn()


def _warn() -> None:
    """Say on standard error which packages of faults are broken."""
    from trogdor_bus.cli import render
    from trogdor_bus.registry import registry

    for line in registry().broken:
        render.print_line(render.console(stderr=True), f"warning: {line}", "yellow")


def version() -> None:
    """Print the version."""
    from trogdor_bus import __version__

    print(__version__)
