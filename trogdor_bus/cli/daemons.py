"""The two daemons: `coordinator` and `agent`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trogdor_bus.cli import options
from trogdor_bus.cli.reach import Reach, Seat, connected
from trogdor_bus.cli.wording import WORDS, said
from trogdor_bus.errors import SpecError

_CONFIG_HELP = "The cluster: Trogdor's JSON, or YAML. Without it agents announce themselves."


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(epilog="Example: trogdor-bus coordinator --bind 10.0.0.1 --config cluster.yaml")(coordinator)
    app.command(epilog="Example: trogdor-bus agent --node node1 --coordinator 10.0.0.1")(agent)
    app.command(epilog="Example: trogdor-bus heal --state-dir /var/lib/trogdor-bus/agent-node1")(heal)


@connected
def coordinator(
    *,
    seat: Seat,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", "--coordinator.config", metavar="FILE", help=_CONFIG_HELP)
    ] = None,
    node_name: Annotated[str, typer.Option("--node-name", "-n", hidden=True)] = "",
    state_dir: options.StateDir = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="With an empty state: keep faults that already run, to their deadlines.")
    ] = False,
    abort_all: Annotated[
        bool, typer.Option("--abort-all", help="With an empty state: undo faults that already run.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Go on with the state of another coordinator, from its log.")
    ] = False,
    standby: Annotated[
        bool, typer.Option("--standby", help="Wait, and take over once no coordinator is seen for --standby-after.")
    ] = False,
    standby_after: Annotated[
        str, typer.Option("--standby-after", metavar="TIME", help="How long that is: 10s, 1m.")
    ] = "10s",
    cluster: options.Cluster = "",
    cluster_config: options.ClusterConfig = None,
    allow_probe_commands: Annotated[
        bool,
        typer.Option(
            "--allow-probe-commands",
            help="Let probes of experiments start programs here as this user, for whoever reaches it.",
        ),
    ] = False,
    allow_probe: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-probe",
            metavar="HOST[:PORT]",
            help="Let experiments connect there, too, from here: by probes, or as their Kafka. Also a network such as "
            "10.1.0.0/16, or '*'; repeatable. Nodes, and the brokers of --cluster, may be reached in any case.",
        ),
    ] = None,
    log_level: options.LogLevel = "info",
    log_json: options.LogJson = False,
) -> None:
    """Run the coordinator, which tells the agents."""
    from trogdor_bus import logs
    from trogdor_bus.config import CoordinatorSettings, load_cluster, parse_standby_ms
    from trogdor_bus.experiment.destinations import check_rule

    if adopt and abort_all:
        raise SpecError("--adopt and --abort-all exclude each other", remedy="drop one")
    if take_over and standby:
        raise SpecError("--take-over and --standby exclude each other", remedy="drop one: --standby takes over later")
    standby_ms = parse_standby_ms(standby_after)
    logs.set_up(log_level, log_json, words=WORDS)
    nodes = load_cluster(config) if config else None
    if nodes and node_name:
        nodes.require(node_name)
    under_test, properties = seat.cluster(cluster, cluster_config)
    settings = CoordinatorSettings(
        url=seat.url(),
        state_dir=options.state_dir(state_dir, "coordinator"),
        keys=seat.keys_dir(),
        config=nodes,
        adopt=adopt,
        abort_all=abort_all,
        take_over=take_over,
        standby_ms=standby_ms if standby else None,
        cluster=under_test,
        cluster_config=properties,
        allow_probe_commands=allow_probe_commands,
        allow_probes=tuple(map(check_rule, allow_probe or ())),
    )
    from trogdor_bus.coordinator.service import run

    raise typer.Exit(run(settings))


@connected
def agent(
    *,
    node: Annotated[str, typer.Option("--node", "--node-name", "-n", metavar="NAME", help="The name of this node.")],
    reach: Reach,
    attach: Annotated[
        str,
        typer.Option(
            "--attach",
            metavar="WHERE",
            help="Act on another network namespace: netns:NAME, pid:PID or container:NAME.",
        ),
    ] = "",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", "--agent.config", metavar="FILE", help=_CONFIG_HELP)
    ] = None,
    lease: Annotated[
        str | None,
        typer.Option("--lease", metavar="TIME", help='Undo after so long without the coordinator: 30s, or "off".'),
    ] = None,
    state_dir: options.StateDir = None,
    log_level: options.LogLevel = "info",
    log_json: options.LogJson = False,
) -> None:
    """Run the agent of a node, which does and undoes."""
    from trogdor_bus import logs
    from trogdor_bus.agents.platforms.linux.namespace import pinned
    from trogdor_bus.config import AgentSection, AgentSettings, ClusterConfig, load_config, parse_lease_ms
    from trogdor_bus.names import check_name

    check_name(node, "node name")
    if attach and attach.partition(":")[0] not in ("netns", "pid", "container"):
        raise SpecError(f"--attach {attach!r} names nothing", remedy="write netns:NAME, pid:PID or container:NAME")
    logs.check(log_level)
    cluster, section = load_config(config) if config else (ClusterConfig(), AgentSection())
    if cluster.nodes:
        cluster.require(node)
    settings = AgentSettings(
        node=node,
        url=reach.url(),
        state_dir=options.state_dir(state_dir, f"agent-{node}"),
        keys=reach.keys_dir(),
        platform=cluster.platform,
        attach=pinned(attach),
        allow_commands=section.allow_commands,
        lease_ms=section.lease_ms if lease is None else parse_lease_ms(lease),
        ceiling_ms=section.ceiling_ms,
        late_ms=section.late_ms,
        broker=cluster.nodes[node].broker if section.broker is None and cluster.nodes else section.broker,
        controller=cluster.nodes[node].controller
        if section.controller is None and cluster.nodes
        else section.controller,
    )
    from trogdor_bus.agents.__main__ import Start, become_guard

    become_guard(Start(settings=settings, log_level=log_level, log_json=log_json, words=WORDS))


def heal(
    *,
    node: Annotated[str, typer.Option("--node", "-n", metavar="NAME", help="Whose default state directory.")] = "",
    state_dir: options.StateDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be undone.")] = False,
    log_level: options.LogLevel = "warning",
    log_json: options.LogJson = False,
) -> None:
    """Undo what a dead agent left; needs no bus, no coordinator, no configuration."""
    from trogdor_bus import logs
    from trogdor_bus.names import check_heard_name
    from trogdor_bus.printable import escape

    if not node and state_dir is None:
        raise SpecError("whose faults?", path="$.state-dir", remedy="give --node NAME, or --state-dir DIR")
    logs.set_up(log_level, log_json, daemon=False, words=WORDS)
    if node:
        check_heard_name(node, "node name")
    from trogdor_bus.agents import heal as healing

    lines, code = healing.heal(options.state_dir(state_dir, f"agent-{node}"), dry_run=dry_run)
    for line in lines:
        typer.echo(escape(said(line)))
    raise typer.Exit(code)
