"""Tasks: `submit`, `tasks`, `show`, `stop`, `destroy`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from trogdor_bus.cli import options
from trogdor_bus.cli.offline import SpecArgument, read_spec
from trogdor_bus.cli.reach import Reach, connected
from trogdor_bus.errors import NoCoordinatorError, SpecError

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The id of the task.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(epilog="Example: trogdor-bus submit examples/partition.json --wait")(submit)
    app.command(epilog="Example: trogdor-bus tasks --state RUNNING")(tasks)
    app.command(epilog="Example: trogdor-bus show partition-7f3a9c")(show)
    app.command(epilog="Example: trogdor-bus stop partition-7f3a9c --wait")(stop)
    app.command(epilog="Example: trogdor-bus destroy partition-7f3a9c")(destroy)


@connected
def submit(
    spec: SpecArgument,
    *,
    id: Annotated[
        str | None, typer.Option("--id", help="The id; sending the same id and spec again is harmless.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; the exit code tells the outcome.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what each node would do and undo; do not.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Allow what would cut the coordinator itself or silence the bus, and faults on a dirty node.",
        ),
    ] = False,
    allow: options.Allow = None,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Create a task from a spec: JSON, JSON with comments, or YAML."""
    from trogdor_bus.cli import render, waiting
    from trogdor_bus.cli.asking import ask
    from trogdor_bus.client import Client, new_id
    from trogdor_bus.names import check_name
    from trogdor_bus.spec import wire

    found = read_spec(spec)
    body, looks, permits = wire(found), found.needs_cluster(()), tuple(allow or ())
    if dry_run:
        plan = ask(reach, lambda client: client.validate(body, force, allow=permits, looks=looks))
        if as_json:
            render.print_json(render.with_why(plan))
        else:
            render.print_plan(plan)
        return
    task_id = new_id(found.aliases[0] if found.aliases else "task") if id is None else check_name(id, "task id")
    announce = json.dumps({"id": task_id}) if as_json else f"Task {task_id}"
    print(announce, file=sys.stderr if as_json else sys.stdout, flush=True)
    ask(reach, lambda client: client.validate(body, force, allow=permits, looks=looks, brief=True))

    async def verb(client: Client) -> bool | None:
        await client.create(task_id, body, force, allow=permits)
        return client.replicated

    try:
        replicated = ask(reach, verb)
    except NoCoordinatorError as error:
        again = f"the task may or may not exist; ask again with the same id: trogdor-bus submit ... --id {task_id}"
        raise waiting.outcome_unknown(f"{error}\n{again}", as_json) from None
    with waiting.may_leave(f"task {task_id} goes on; to end it: trogdor-bus stop {task_id}"):
        if not as_json:
            render.print_unreplicated(replicated)
    if wait:
        raise typer.Exit(waiting.wait(reach, task_id, as_json))
    if as_json:
        render.print_json(render.with_replicated({"id": task_id}, replicated))
    else:
        print(f"Submitted. To see it: trogdor-bus show {task_id}    To end it: trogdor-bus stop {task_id}")


@connected
def tasks(
    *,
    state: Annotated[
        str, typer.Option("--state", "-s", metavar="STATE", help="PENDING, RUNNING, STOPPING or DONE.")
    ] = "",
    id: Annotated[list[str] | None, typer.Option("--id", "-i", help="Only this task; can be repeated.")] = None,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """List tasks."""
    from trogdor_bus.cli import render
    from trogdor_bus.cli.asking import ask
    from trogdor_bus.messages import ListTasks
    from trogdor_bus.states import TaskState

    if state and state.upper() not in TaskState.__members__:
        raise SpecError(f"State {state} is invalid. Must be one of [{', '.join(TaskState)}]")
    query = ListTasks(ids=tuple(id or ()), state=state.upper())
    found = ask(reach, lambda client: client.tasks(query))
    if as_json:
        render.print_json({"tasks": {info.task.id: render.task_json(info) for info in found}})
    elif found:
        render.console().print(render.tasks_table(found))
    else:
        print("No matching tasks found.")


@connected
def show(
    id: IdArgument,
    *,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Show one task: its state, what each node says, its spec."""
    from trogdor_bus.cli import render
    from trogdor_bus.cli.asking import ask

    info = ask(reach, lambda client: client.show(id))
    if as_json:
        render.print_json(render.task_json(info))
        return
    console, task = render.console(), info.task
    kind, told = render.class_of(task), render.info_text(task)
    render.print_line(console, f"Task {task.id} of type {kind} is {task.state}. {told}")
    render.print_why(console, task)
    for line in task.why:
        render.print_line(console, line)
    if info.workers:
        render.print_workers(console, info)
    render.print_line(console, f"Spec: {json.dumps(json.loads(bytes(task.spec)), indent=2)}")


@connected
def stop(
    id: IdArgument,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end, and say how it ended.")] = False,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Stop a task: its faults are undone now."""
    from trogdor_bus.cli import render, waiting
    from trogdor_bus.cli.asking import ask
    from trogdor_bus.client import Client

    async def verb(client: Client) -> bool | None:
        await client.show(id)  # the coordinator itself ignores an unknown id, as Trogdor does
        await client.stop(id)
        return client.replicated

    replicated = ask(reach, verb)
    if not as_json:
        render.print_unreplicated(replicated)
    if wait:
        raise typer.Exit(waiting.wait(reach, id, as_json, cancelled_is_success=True))
    if as_json:
        render.print_json(render.with_replicated({"id": id}, replicated))
    else:
        line = f"Task {id} is asked to stop; `trogdor-bus show {id}` says what became of it."
        render.print_line(render.console(), line)


@connected
def destroy(
    id: IdArgument,
    *,
    as_json: options.AsJson = False,
    reach: Reach,
) -> None:
    """Stop a task on its agents and forget it.

    Exit codes: 0 its faults are undone, 2 there is no such task, 3 some node has not proven that (it is remembered
    until then).
    """
    from trogdor_bus.cli.destroying import destroy as destroyed

    raise typer.Exit(destroyed(reach, id, as_json))
