"""`keys`: carrying the keys of the bus to other machines."""

from __future__ import annotations

from typing import Annotated

import typer

from trogdor_bus.cli import options

keys_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(keys_app, name="keys", help="Carry the keys of the bus to other machines.")


@keys_app.command("export", epilog="Example: trogdor-bus keys export | ssh node1 trogdor-bus keys import -")
def export(keys: options.Keys = None) -> None:
    """Print, on the coordinator's machine, what agents and clients elsewhere need; keep it secret."""
    from trogdor_bus import keys as store

    print(store.export(keys or store.default_dir()))


@keys_app.command("import", epilog="Example: trogdor-bus keys import member.txt")
def import_(
    source: Annotated[
        str, typer.Argument(metavar="[FILE]", help='What `keys export` printed; "-" is standard input.')
    ] = "-",
    force: Annotated[bool, typer.Option("--force", help="Replace other keys.")] = False,
    keys: options.Keys = None,
) -> None:
    """Store what `keys export` printed."""
    from trogdor_bus import document
    from trogdor_bus import keys as store
    from trogdor_bus.errors import SpecError

    data, name = document.read_source(source)
    directory = keys or store.default_dir()
    try:
        store.import_(directory, data.decode("ascii").strip(), force=force)
    except UnicodeDecodeError:
        raise SpecError(f"{name} is no text of trogdor-bus keys", remedy="pass what `keys export` prints") from None
    print(f"The keys are in {directory}.")


@keys_app.command("path", epilog="Example: trogdor-bus keys path")
def path() -> None:
    """Print the directory where keys are looked for."""
    from trogdor_bus.keys import default_dir

    print(default_dir())
