"""What the command line calls the remedies that texts name: the one table, and where it is applied."""

from __future__ import annotations

import json
import re

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
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"')


def said(text: object) -> str:
    """Return a text, or an error, as the command line says it."""
    return worded(str(text), WORDS)


def said_json(document: str) -> str:
    """Return a JSON document with every text in it as the command line says it, and all else as it is."""
    return _LITERAL.sub(_said, document) if "‹" in document else document


def _said(literal: re.Match[str]) -> str:
    return json.dumps(said(json.loads(literal[0])), ensure_ascii=False) if "‹" in literal[0] else literal[0]
