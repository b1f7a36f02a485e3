"""`lab`, a small cluster on one machine, and `demo`, which shows two faults in one."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from trogdor_bus.cli import options
from trogdor_bus.errors import SpecError

if TYPE_CHECKING:
    from trogdor_bus.lab.kafka_lab import KafkaLab

lab_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Which lab; several may be up at once.")]
Kafka = Annotated[
    bool, typer.Option("--kafka", help="Nodes are the brokers of a real Kafka cluster, in Docker containers.")
]
Brokers = Annotated[int, typer.Option("--brokers", metavar="N", help="With --kafka: how many brokers.")]
Mode = Annotated[
    str,
    typer.Option(
        "--mode",
        metavar="MODE",
        help="With --kafka: combined, isolated for controllers of their own, or zookeeper (Kafka 3).",
    ),
]
Version = Annotated[str, typer.Option("--version", metavar="V", help="With --kafka: the version of Kafka.")]
Transport = Annotated[
    str, typer.Option("--transport", metavar="NAME", help="With --kafka: the bus: zmq, kafka, or kafka+zmq for both.")
]
_VERSION = "4.4.0"  # kafka.DEFAULT_VERSION, which is slow to import
_OF_KAFKA = ("brokers", "mode", "version", "transport")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(lab_app, name="lab")
    app.command(epilog="Example: trogdor-bus demo")(demo)


@lab_app.callback(invoke_without_command=True, epilog="Example: trogdor-bus lab --kafka --brokers 3")
def stay(
    context: typer.Context,
    *,
    kafka: Kafka = False,
    brokers: Brokers = 3,
    mode: Mode = "combined",
    version: Version = _VERSION,
    transport: Transport = "zmq",
    name: Name = "lab",
) -> None:
    """A small cluster on one machine, out of network namespaces or of Kafka in containers (Linux, root).

    `lab --kafka` brings up a Kafka cluster, an agent for each of its nodes and a coordinator, stays, and takes all
    of it away when it is told to end (Ctrl-C). `lab up` makes a lab and leaves it there until `lab down`.
    """
    if context.invoked_subcommand:
        if given := _given(context, "kafka", *_OF_KAFKA, "name"):
            verb = context.invoked_subcommand
            raise SpecError(f"{given[0]} stands before {verb}", remedy=f"write trogdor-bus lab {verb} {given[0]} ...")
        return
    if not kafka:
        raise SpecError("a lab of what?", remedy="trogdor-bus lab --kafka, or trogdor-bus lab up")
    from trogdor_bus.lab.interrupts import Interrupted, Interrupts, wait
    from trogdor_bus.lab.kafka_lab import KafkaLab

    lab = KafkaLab(brokers, name, _progress(), mode=mode, version=version, transport=transport)
    try:
        with Interrupts() as interrupts, lab:
            _tell(lab)
            print("end: Ctrl-C")
            sys.stdout.flush()
            try:
                wait()
            finally:
                interrupts.close()
                print("taking it away", file=sys.stderr)
    except Interrupted as told:
        print(f"ended by {told.number.name}, everything is removed", file=sys.stderr)
        raise typer.Exit(0 if told.number in (signal.SIGINT, signal.SIGTERM) else 128 + told.number) from None


@lab_app.command(epilog="Example: trogdor-bus lab up --nodes 5")
def up(
    context: typer.Context,
    *,
    nodes: Annotated[int, typer.Option("--nodes", help="How many nodes, beside the coordinator's.")] = 3,
    name: Name = "lab",
    kafka: Kafka = False,
    brokers: Brokers = 3,
    mode: Mode = "combined",
    version: Version = _VERSION,
    transport: Transport = "zmq",
) -> None:
    """Make a lab and leave it there: nodes, a coordinator and an agent per node.

    Without --kafka nodes are network namespaces with foreign rules and echo services.
    """
    from trogdor_bus.lab.cluster import Lab, require
    from trogdor_bus.lab.interrupts import Interrupted, Interrupts
    from trogdor_bus.lab.kafka_lab import KafkaLab

    if wrong := _given(context, *(("nodes",) if kafka else _OF_KAFKA)):
        remedy = "write --brokers" if kafka else f"add --kafka, or drop {wrong[0]}"
        raise SpecError(f"{wrong[0]} is for a lab {'without' if kafka else 'with'} --kafka", remedy=remedy)
    lab: Lab | KafkaLab
    if kafka:
        lab = KafkaLab(brokers, name, _progress(), mode=mode, version=version, transport=transport)
    else:
        require()
        lab = Lab(nodes, name, print)
    try:
        with Interrupts():
            lab.up()
    except Interrupted as told:
        print(f"ended by {told.number.name}, everything is removed", file=sys.stderr)
        raise typer.Exit(128 + told.number) from None
    if isinstance(lab, KafkaLab):
        _tell(lab)
    else:
        exec_ = f"trogdor-bus lab exec{_suffix(name)} coordinator --"
        print(f"try: {exec_} trogdor-bus submit examples/partition.json")
    print(f"end: trogdor-bus lab down{_suffix(name)}")


def _given(context: typer.Context, *names: str) -> list[str]:
    """Return those of the options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [f"--{name}" for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def _suffix(name: str) -> str:
    return "" if name == "lab" else f" --name {name}"


def _progress() -> Callable[[str], None]:
    """Return what prints a step with the seconds since now."""
    began = time.monotonic()

    def print_step(step: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s {step}", flush=True)

    return print_step


def _tell(lab: KafkaLab) -> None:
    """Print what to type where."""
    freeze = {"class": "process-stop", "durationMs": 30000, "nodes": [lab.nodes[0]], "match": "kafka.Kafka"}
    print(f"brokers, for programs on this machine: {lab.cluster.bootstrap}")
    print(f"type elsewhere: . {lab.directory}/env")
    print("and then: trogdor-bus nodes")
    print("          trogdor-bus monitor")
    print(f"          trogdor-bus submit '{json.dumps(freeze)}'")
    print(f"or: trogdor-bus lab exec{_suffix(lab.name)} coordinator -- trogdor-bus nodes")


@lab_app.command(epilog="Example: trogdor-bus lab status --json")
def status(name: Name = "lab", as_json: options.AsJson = False) -> None:
    """Show the lab's members, their processes, and who reaches whom; of a lab of Kafka, the containers."""
    from trogdor_bus.cli import render
    from trogdor_bus.lab.cluster import require
    from trogdor_bus.lab.kafka_lab import KafkaLab
    from trogdor_bus.lab.labs import existing
    from trogdor_bus.lab.screen import LEGEND, containers_table, members_table, table

    require()
    lab = existing(name)
    console = render.console()
    if isinstance(lab, KafkaLab):
        if as_json:
            render.print_json(lab.status())
            return
        console.print(containers_table(lab.status(), lab.state))
        print(f"brokers: {lab.cluster.bootstrap}")
        print(f"logs and state: {lab.directory}")
        return
    matrix = lab.matrix()
    if as_json:
        members = [
            {
                "name": member.name,
                "namespace": member.namespace,
                "addresses": [member.ipv4, member.ipv6],
                "processes": lab.processes_told(member.name),
            }
            for member in lab.members
        ]
        directory = str(lab.directory)
        render.print_json({"name": name, "directory": directory, "members": members, "reached": matrix.ways})
        return
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
    node: Annotated[str, typer.Argument(metavar="NODE", help="node1 ..., broker1 ..., or coordinator.")],
    command: Annotated[list[str], typer.Argument(metavar="-- CMD [ARG]...", help="What to run there.")],
    name: Name = "lab",
) -> None:
    """Run a command in a node's network namespace; its exit code is ours."""
    from trogdor_bus.errors import NotFoundError
    from trogdor_bus.lab.cluster import require
    from trogdor_bus.lab.labs import existing

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
    """Take away exactly what the lab made; also what a killed `lab up` or `lab --kafka` left."""
    from trogdor_bus.lab.cluster import require
    from trogdor_bus.lab.labs import remove

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
