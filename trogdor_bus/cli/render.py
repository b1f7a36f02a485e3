"""What people see: texts without control characters, dates and durations as Trogdor writes them, tables."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trogdor_bus.cli.telling import said_json
from trogdor_bus.cli.wording import said
from trogdor_bus.messages import NodeRow, Plan, TaskInfo
from trogdor_bus.printable import escape_json, escape_lines
from trogdor_bus.registry import registry
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerRow, WorkerState, trogdor_json

PIPE_WIDTH = 200
Told = TypeVar("Told", TaskRow, Plan)
_COLOURS = {
    "PENDING": "cyan",
    "RUNNING": "green",
    "STOPPING": "yellow",
    "STUCK": "bold red",
    "dirty": "bold red",
    "aborted": "bold yellow",
    "alive": "green",
    "silent": "bold red",
    "never heard": "yellow",
    Outcome.FAILED.value: "bold red",
    Outcome.UNKNOWN.value: "bold yellow",
    Outcome.DISTURBED.value: "bold yellow",
    Outcome.LATE.value: "bold yellow",
}
_WORDS = {Outcome.UNKNOWN: "CLOSED", Outcome.DISTURBED: "DISTURBED", Outcome.LATE: "LATE"}
"""What is said of an end that is neither a success nor a failure."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the command say what it means that nobody reads; rich would exit."""
        raise  # noqa: PLE0704 (rich calls it where it catches the error)


def console(stderr: bool = False) -> Console:
    """Return a console that interprets no markup; wide where nobody's terminal sets the width."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return _Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def text(value: object, style: str = "") -> Text:
    """Return `value` for showing: in our words, control characters escaped, coloured where its word has a colour."""
    shown = said(value)
    return Text(escape_lines(shown), style=style or _COLOURS.get(shown, ""))


def print_line(to: Console, line: str, style: str = "") -> None:
    """Print one line; only a terminal's width breaks it."""
    to.print(text(line, style), soft_wrap=not to.is_terminal)


def table(*columns: str) -> Table:
    """Return an empty table that wraps its cells and never cuts them."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        result.add_column(column, overflow="fold")
    return result


def add_row(to: Table, *cells: object) -> None:
    """Add a row, each cell made safe to show."""
    to.add_row(*[cell if isinstance(cell, Text) else text(cell) for cell in cells])


def date(ms: int) -> str:
    """Return epoch ms as ISO date and time with the local offset, the fraction trimmed (Trogdor's format)."""
    try:
        moment = datetime.datetime.fromtimestamp(ms // 1000).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms after 1970"
    fraction = f".{ms % 1000:03d}".rstrip("0").rstrip(".")
    offset = moment.strftime("%z")
    zone = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:]}"
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}{zone}"


def duration(ms: int, *, exact: bool = False) -> str:
    """Return ms as Trogdor does: 1h2m3s, zero parts skipped, ms dropped; what is below a second whole if `exact`."""
    if exact and 0 < ms < 1_000:
        return f"{ms}ms"
    minutes, seconds = divmod(max(ms, 0) // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if n) or "0s"


def info_text(task: TaskRow) -> str:
    """Return Trogdor's INFO column, with the outcomes that Trogdor does not know named beside it."""
    match task.state:
        case TaskState.PENDING:
            return f"Will start at {date(task.start_ms)}"
        case TaskState.RUNNING:
            return f"Started {date(task.started_ms)}; will stop after {duration(task.duration_ms)}"
        case TaskState.STOPPING:
            return f"Started {date(task.started_ms)}"
    word = _WORDS.get(task.outcome) or ("FAILED" if task.error else "CANCELLED" if task.cancelled else "FINISHED")
    after = f" after {duration(task.done_ms - task.started_ms)}" if task.started_ms >= 0 else " before its start"
    plain = task.outcome in (Outcome.NONE, Outcome.DONE, Outcome.FAILED, Outcome.CANCELLED, *_WORDS)
    plain = plain and task.outcome is not Outcome.UNKNOWN
    return f"{word} at {date(task.done_ms)}{after}" + ("" if plain else f" ({task.outcome})")


def print_why(to: Console, task: TaskRow) -> None:
    """Print why a task did not end well; that nobody knows how it ended is called no error."""
    if task.outcome is Outcome.UNKNOWN:
        print_line(to, task.error[:1].upper() + task.error[1:], _COLOURS[task.outcome.value])
    elif task.outcome in (Outcome.DISTURBED, Outcome.LATE):
        print_line(to, f"{task.outcome.value.title()}: {task.error}", _COLOURS[task.outcome.value])
    elif task.error:
        print_line(to, f"Error: {task.error}", "red")


def class_of(task: TaskRow) -> str:
    """Return the class of a task's spec."""
    return str(json.loads(bytes(task.spec)).get("class", "?"))


def kind_of(task: TaskRow) -> str:
    """Return the alias of a task's class where it has one, else its last part."""
    tag = class_of(task)
    found = registry().by_tag.get(tag)
    return found.aliases[0] if found and found.aliases else tag.rpartition(".")[2]


def tasks_table(infos: Sequence[TaskInfo]) -> Table:
    """Return ID, TYPE, STATE and INFO of tasks."""
    result = table("ID", "TYPE", "STATE", "INFO")
    for info in infos:
        add_row(result, info.task.id, kind_of(info.task), info.task.state.value, info_text(info.task))
    return result


def workers_table(info: TaskInfo) -> Table:
    """Return NODE, STATE, STATUS and NOTES of a task's workers."""
    result = table("NODE", "STATE", "STATUS", "NOTES")
    for worker in info.workers:
        error = worker.error if worker.outcome is Outcome.UNKNOWN else f"error: {worker.error}"
        notes = [error] if worker.error and worker.error != worker.status else []
        notes += [f"warning: {note}" for note in worker.warnings]
        notes += [f"disturbed: {note}" for note in worker.disturbed]
        notes += [f"left behind: {note}" for note in worker.residue]
        notes += [f"left out: {note}" for note in worker.left_out]
        notes += [f"undone {worker.late_ms} ms after it was due"] if worker.late_ms else []
        stuck = worker.state is WorkerState.STUCK
        state = worker.state.value if stuck else worker.outcome.value or worker.state.value
        style = _COLOURS["STUCK"] if stuck else ""
        add_row(result, worker.node, state, _said(worker), text("\n".join(notes), style))
    return result


def _said(worker: WorkerRow) -> str:
    """Return what a worker says of itself, else its status."""
    return worker.said if isinstance(worker.said, str) else bytes(worker.progress).decode()


def print_workers(to: Console, info: TaskInfo) -> None:
    """Print a task's workers, then what a person would type for those that are stuck, each on a line to be copied."""
    to.print(workers_table(info))
    for worker in info.workers:
        for command in worker.by_hand:
            to.print(text(f"{worker.node}, by hand: {command}", _COLOURS["STUCK"]), soft_wrap=True)


def nodes_table(nodes: Iterable[NodeRow], now_ms: int, *, live: bool = False) -> Table:
    """Return the nodes with what was last heard of them; `now_ms` is on the coordinator's clock.

    `live`: the rows do not tell when a node that is alive was heard last.
    """
    rows = list(nodes)
    with_links = ("LINKS",) if any(node.links for node in rows) else ()
    result = table("NODE", "STATE", "HEARD", *with_links, "ADDRESSES", "NOTE")
    for node in rows:
        heard = f"{duration(now_ms - node.heard_ms)} ago" if node.heard_ms >= 0 else "-"
        heard = "just now" if live and node.alive else heard
        tags = f"tags: {' '.join(node.tags)}" if node.tags else ""
        broker = f"broker {node.broker}" if node.broker is not None else ""
        controller = f"controller {node.controller}" if node.controller is not None else ""
        note = "\n".join(part for part in (node.note, broker, controller, tags) if part)
        links = [links_text(node)] if with_links else []
        unresolved = f"{node.hostname} (not resolved)" if node.hostname else ""
        add_row(result, node.name, node_state(node), heard, *links, "\n".join(node.addresses) or unresolved, note)
    return result


def links_text(node: NodeRow) -> Text:
    """Return the links of a live node, a line each; those that are silent say so, in their colour."""
    shown = Text()
    for name, alive in node.links.items() if node.alive else ():
        shown.append("\n" if shown else "")
        shown.append_text(text(name) if alive else text(f"{name} silent", _COLOURS["silent"]))
    return shown


def dirt(nodes: Iterable[NodeRow]) -> list[Text]:
    """Return what is stuck on the nodes or may be left there, each with what a person would type, one line each."""
    return [
        text(f"{node.name}: {what}", _COLOURS["dirty"])
        for node in nodes
        for what in (*node.dirty, *node.unproven, *node.strays)
    ]


def print_nodes(to: Console, nodes: Sequence[NodeRow], now_ms: int) -> None:
    """Print the nodes, then what is stuck on them."""
    to.print(nodes_table(nodes, now_ms))
    print_dirt(to, nodes)


def print_dirt(to: Console, nodes: Iterable[NodeRow]) -> None:
    """Print what is stuck on the nodes, each on a line to be copied."""
    for line in dirt(nodes):
        to.print(line, soft_wrap=True)


def node_state(node: NodeRow) -> str:
    """Return "alive", "silent" or "never heard"; for a live node also "dirty" or "aborted", the worst first."""
    if not node.alive:
        return "never heard" if node.heard_ms < 0 else "silent"
    return "dirty" if node.dirty or node.unproven or node.strays else "aborted" if node.latch else "alive"


def print_left(to: Console, node: str, lines: Iterable[str]) -> None:
    """Print what is left or may be left on a node, each on a line to be copied."""
    for line in lines:
        to.print(text(f"{node}: {line}", _COLOURS["dirty"]), soft_wrap=True)


def former_remedy(node: str) -> str:
    """Return what to do about a node whose former agent may have left something."""
    return (
        f"On {node}, what its former agent may hold is in no journal of the present one. Look there for chains TB-... "
        "(`iptables-save | grep TB-`, `ip6tables-save | grep TB-`) and for stopped processes (`ps -eo pid,stat,args | "
        "grep ' T'`), or `trogdor-bus heal --state-dir` the former state directory. Once nothing is left: "
        f"`trogdor-bus forget {node} --force`."
    )


def strays_remedy(node: str) -> str:
    """Return what to do about chains that are in nobody's journal."""
    return (
        f"On {node}, type the commands above, once no other agent or test needs those chains; the node is clean then."
    )


def print_plan(plan: Plan) -> None:
    """Print who holds the roles now, what each node would do and undo, what Kafka would lose, and the warnings."""
    to = console()
    for line in plan.why:
        print_line(to, f"now {line}")
    for node in plan.nodes:
        print_line(to, node.node if node.alive else f"{node.node} (its agent is silent)", "bold")
        for do, undo in node.steps:
            print_line(to, f"  do    {do}")
            print_line(to, f"  undo  {undo}")
        for reason in node.left_out:
            print_line(to, f"  left out  {reason}")
    for line in plan.losses:
        print_line(to, line)
    for warning in plan.warnings:
        print_line(to, f"warning: {warning}", "yellow")


def with_why(told: Told) -> Told:
    """Return a task or a plan that also says in lines who was chosen, as JSON shows it."""
    return msgspec.structs.replace(told, chosen=told.why)


def task_json(info: TaskInfo) -> dict[str, Any]:
    """Return a task as Trogdor writes it, with our own fields after Trogdor's."""
    task, rows = info.task, [msgspec.structs.replace(one, status=said(one.status)) for one in info.workers]
    told = {**trogdor_json(task, rows), "spec": task.spec}
    told |= {"status": msgspec.Raw(msgspec.json.encode(told["status"]))} if "status" in told else {}
    ours: dict[str, Any] = {"id": task.id, "type": kind_of(task), "active": task.active, "outcome": task.outcome.value}
    ours |= {"chosen": list(task.why)} if task.why else {}
    ours |= {"holders": task.holders, "seed": task.seed} if task.holders else {}
    return {**told, **ours, "workers": info.workers}


def print_unreplicated(replicated: bool | None) -> None:
    """Say it if a change is not in the coordinator's log, which another coordinator would go on with."""
    if replicated is False:
        print_line(console(), "accepted, not replicated: the log on Kafka has not acknowledged it", "yellow")


def with_replicated(found: dict[str, Any], replicated: bool | None) -> dict[str, Any]:
    """Return the JSON of a change, with `replicated` if the coordinator has a log."""
    return found if replicated is None else {**found, "replicated": replicated}


def print_json(value: Any) -> None:
    """Print Structs, or anything made of them, as one JSON document on standard output."""
    print(escape_json(msgspec.json.format(said_json(value), indent=2).decode()))
