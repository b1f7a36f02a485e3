"""The options that several commands share, and what they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trogdor_bus.errors import SpecError

Keys = Annotated[
    Path | None,
    typer.Option("--keys", metavar="DIR", help="Directory of the keys; `trogdor-bus keys path` prints the default."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Without keys: no encryption, and anybody who reaches the port is obeyed.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines; errors too, on standard error.")]
LogLevel = Annotated[str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log JSON lines.")]
StateDir = Annotated[
    Path | None, typer.Option("--state-dir", metavar="DIR", help="Where state is kept across restarts.")
]

Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="RULE",
        help="Break that rule of the guard on Kafka's data: below-min-isr, no-quorum, under-replicated; repeatable.",
    ),
]
CLUSTER_VARIABLE = "TROGDOR_BUS_CLUSTER"
CLUSTER_CONFIG_VARIABLE = "TROGDOR_BUS_CLUSTER_CONFIG"
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        envvar=CLUSTER_VARIABLE,
        metavar="HOST:PORT[,...]",
        help="Brokers of the Kafka cluster under test. Default: those of the bus, if it is Kafka.",
    ),
]
ClusterConfig = Annotated[
    Path | None,
    typer.Option(
        "--cluster-config",
        envvar=CLUSTER_CONFIG_VARIABLE,
        metavar="FILE",
        help="Properties of librdkafka for it: TLS, SASL and so on.",
    ),
]


def keys_dir(keys: Path | None, insecure: bool) -> Path | None:
    """Return the directory of the keys, or None without encryption; SpecError if both were asked for."""
    if insecure:
        if keys is not None:
            raise SpecError("--keys and --insecure exclude each other", remedy="drop one")
        return None
    if keys is not None:
        return keys
    from trogdor_bus.keys import default_dir

    return default_dir()


def state_dir(given: Path | None, name: str) -> Path:
    """Return where a daemon called `name` keeps its state: /var/lib for root, the user's state directory otherwise."""
    if given is not None:
        return given
    if os.geteuid() == 0:
        return Path("/var/lib/trogdor-bus") / name
    from platformdirs import user_state_path

    return user_state_path("trogdor-bus") / name
