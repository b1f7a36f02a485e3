"""What the command line calls the remedies that texts name: the one table, and where it is applied."""

from __future__ import annotations

from trogdor_bus.remedies import worded

WORDS: dict[str, str] = {
    "abort": "trogdor-bus abort",
    "abort-all": "--abort-all",
    "adopt": "--adopt",
    "allow": "--allow {rule}",
    "allow-probe": "--allow-probe",
    "allow-probe-commands": "--allow-probe-commands",
    "bind": "--bind",
    "bootstrap": "--bootstrap-server",
    "cluster": "--cluster",
    "cluster-config": "--cluster-config",
    "coordinator": "--coordinator",
    "export-keys": "trogdor-bus keys export",
    "faults": "trogdor-bus faults",
    "force": "--force",
    "forget": "trogdor-bus forget {node} --force",
    "heal": "trogdor-bus heal --state-dir {directory}",
    "import-keys": "trogdor-bus keys import",
    "insecure": "--insecure",
    "kafka-config": "--kafka-config",
    "node": "--node",
    "nodes": "trogdor-bus nodes",
    "port": "--port",
    "remove-topics": "trogdor-bus experiment gc",
    "replace-keys": "trogdor-bus keys import --force",
    "resume": "trogdor-bus resume",
    "show": "trogdor-bus show {id}",
    "show-experiment": "trogdor-bus experiment show {id}",
    "standby-after": "--standby-after",
    "start-agent": "trogdor-bus agent",
    "start-coordinator": "trogdor-bus coordinator",
    "state-dir": "--state-dir",
    "stop": "trogdor-bus stop {id}",
    "take-over": "--take-over",
    "topic-prefix": "--topic-prefix",
    "transport": "--transport {kind}",
}


def said(text: object) -> str:
    """Return a text, or an error, as the command line says it."""
    return worded(str(text), WORDS)
