"""Experiments: `experiment run`, `show`, `list`, `gc`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trogdor_bus.cli import options
from trogdor_bus.cli.reach import Reach, connected
from trogdor_bus.errors import ConflictError, NoCoordinatorError, SpecError

if TYPE_CHECKING:
    from trogdor_bus.faults.experiment import ExperimentSpec

DEFAULT_OUT = Path("trogdor-experiments")
experiment_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The id of the experiment.")]
FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help='An experiment, or a ChaosEngine of Litmus; "-" is standard input.')
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help=f"Where the files go; ./{DEFAULT_OUT}/ID unless given."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    add = experiment_app.command
    add(epilog="Example: trogdor-bus experiment run examples/kafka-leader-kill.yaml")(run)
    add(epilog="Example: trogdor-bus experiment show experiment-7f3a9c --follow")(show)
    add("list", epilog="Example: trogdor-bus experiment list")(list_)
    add(epilog="Example: trogdor-bus experiment gc --cluster 10.0.0.1:9092 --older-than 1d --dry-run")(gc)
    app.add_typer(
        experiment_app, name="experiment", help="Break Kafka while a stream flows, and judge what came of it."
    )


@connected
def run(
    file: FileArgument,
    *,
    id: Annotated[str | None, typer.Option("--id", help="The id; it must be new.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change a field: chaosMs=20000, stream.rate=50; repeatable."),
    ] = None,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster",
            metavar="HOST:PORT[,...]",
            help="Brokers of the cluster under test, as the coordinator's host reaches them. Default: its own.",
        ),
    ] = "",
    out: Out = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start it, and do not wait for the end.")] = False,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Run an experiment and judge it; this command only watches, and may be interrupted.

    Exit codes: 0 Pass, 1 Fail, 5 Error, 6 Stopped, 3 nobody can tell.
    """
    from trogdor_bus.client import new_id
    from trogdor_bus.names import check_name

    specs = _specs(file, changes or [], cluster)
    if id is not None and len(specs) > 1:
        raise SpecError(f"{file} holds {len(specs)} experiments", remedy="drop --id")
    codes = []
    for spec in specs:
        task_id = check_name(id, "experiment id") if id is not None else new_id(spec.name or "experiment")
        where = DEFAULT_OUT / task_id if out is None else out if len(specs) == 1 else out / task_id
        codes.append(_run(reach, task_id, spec, where, no_wait=no_wait, as_json=as_json))
    raise typer.Exit(max(codes, key=lambda code: (code == 3, code)))


@connected
def show(
    id: IdArgument,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch it to its end.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the files that tell of it there.")
    ] = None,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Show how an experiment goes, or its verdict and why.

    Exit codes: 0 Pass, or no verdict yet; 1 Fail, 5 Error, 6 Stopped, 3 nobody can tell.
    """
    from trogdor_bus.cli import following

    told = following.follow if follow else following.show
    raise typer.Exit(told(reach, id, out, as_json=as_json))


@connected
def list_(
    *,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """List the experiments, with their verdicts."""
    from trogdor_bus.cli import following, render

    found = following.all_of(reach)
    if as_json:
        shown = [{"id": one.task.id, "state": one.task.state, "verdict": one.verdict} for one in found]
        render.print_json({"experiments": shown})
    elif found:
        render.console().print(following.table(found))
    else:
        print("There are no experiments.")


@connected
def gc(
    *,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="NAME", help="What the names of the topics begin with.")
    ] = "",
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="TIME", help="Only those made longer ago than that: 1h, 1d.")
    ] = "1h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which would be deleted.")] = False,
    cluster: options.Cluster = "",
    cluster_config: options.ClusterConfig = None,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Delete the topics that experiments left, and none of one that still runs.

    Experiments of other coordinators are not known here: their topics are spared by their age alone.
    """
    from trogdor_bus.cli import render, sweeping
    from trogdor_bus.config import parse_duration_ms
    from trogdor_bus.faults.stream import StreamSpec

    brokers, properties = reach.cluster(cluster, cluster_config)
    if not brokers:
        raise SpecError(
            "which cluster?", path="$.cluster", remedy=f"give --cluster HOST:PORT, or {options.CLUSTER_VARIABLE}"
        )
    older_ms = parse_duration_ms(older_than, "--older-than")
    swept = sweeping.sweep(reach, brokers, properties, prefix or StreamSpec().topic_prefix, older_ms, dry_run=dry_run)
    if as_json:
        render.print_json(swept)
    else:
        for line in sweeping.lines(swept, dry_run=dry_run):
            render.print_line(render.console(), line)
    raise typer.Exit(1 if swept["failed"] else 0)


def _run(reach: Reach, task_id: str, spec: ExperimentSpec, out: Path, *, no_wait: bool, as_json: bool) -> int:
    from trogdor_bus.cli import following, render, waiting
    from trogdor_bus.cli.asking import ask
    from trogdor_bus.client import Client
    from trogdor_bus.messages import ListTasks
    from trogdor_bus.spec import wire

    body = wire(spec)
    ask(reach, lambda client: client.validate(body, brief=True))

    async def create(client: Client) -> None:
        if await client.tasks(ListTasks(ids=(task_id,))):
            raise ConflictError(f"there is a task {task_id} already; give another --id")
        await client.create(task_id, body)

    announce = json.dumps({"id": task_id}) if as_json else f"Experiment {task_id}"
    print(announce, file=sys.stderr if as_json else sys.stdout, flush=True)
    try:
        ask(reach, create)
    except NoCoordinatorError as error:
        again = f"it may or may not exist: trogdor-bus experiment show {task_id}"
        raise waiting.outcome_unknown(f"{error}\n{again}", as_json) from None
    if not as_json:
        for key in spec.litmus.not_used if spec.litmus else ():
            render.print_line(render.console(), f"not used here: {key}")
    if no_wait:
        if not as_json:
            print(following.how_to(task_id))
        return 0
    return following.follow(reach, task_id, out, as_json=as_json)


def _specs(file: str, changes: list[str], cluster: str) -> list[ExperimentSpec]:
    """Return the experiments in a file, changed as the command line says; SpecError names what is wrong."""
    from trogdor_bus import document
    from trogdor_bus.experiment import litmus
    from trogdor_bus.faults.experiment import ExperimentSpec
    from trogdor_bus.registry import registry

    found = []
    text, name = document.read_source(file)
    for data in litmus.read(text, name):
        for change in changes:
            _set(data, change)
        if cluster:
            data["bootstrap"] = cluster
        spec = registry().decode(data).performed()
        if not isinstance(spec, ExperimentSpec):
            kind = type(spec).aliases[0] if type(spec).aliases else type(spec).__name__
            raise SpecError(
                f"{name} is a spec of {kind}, no experiment", path="$.class", remedy="`trogdor-bus submit` takes it"
            )
        found.append(spec)
    return found


def _set(data: dict[str, Any], change: str) -> None:
    """Change one field of a spec, as --set says."""
    path, equals, text = change.partition("=")
    *parents, last = path.split(".")
    if not equals or not all([*parents, last]):
        raise SpecError(f"--set {change!r} is no FIELD=VALUE", remedy="such as chaosMs=20000 or fault.durationMs=3000")
    at = data
    for parent in parents:
        at = at.setdefault(parent, {})
        if not isinstance(at, dict):
            raise SpecError(f"--set {change!r}: {parent} holds no fields", remedy="name a field of an object")
    try:
        at[last] = json.loads(text)
    except ValueError:
        at[last] = text
