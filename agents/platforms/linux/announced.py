"""Which Kafka broker or controller a container is, by what its engine tells of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

LABEL = "trogdor-bus.broker-id"
NODE_ID, ROLES = "KAFKA_NODE_ID", "KAFKA_PROCESS_ROLES"
"""What the official image calls node.id and process.roles (KRaft)."""
BROKER_ID = "KAFKA_BROKER_ID"
"""The same before KRaft."""


def broker_id(told: str) -> int | None:
    """Return the broker's id in two lines of JSON, the labels (an object) and the environment (a list); else None.

    The label wins. A container whose roles leave the broker out is none, whatever its node id.
    """
    labels, environment = _read(told)
    if LABEL in labels:
        return _number(labels[LABEL])
    if "broker" not in environment.get(ROLES, "broker").split(","):
        return None
    return _number(environment.get(NODE_ID, environment.get(BROKER_ID)))


def controller_id(told: str) -> int | None:
    """Return the id of the KRaft controller in the same lines; None for a container whose roles name none."""
    _, environment = _read(told)
    if "controller" not in environment.get(ROLES, "").split(","):
        return None
    return _number(environment.get(NODE_ID))


def _read(told: str) -> tuple[Mapping[str, object], dict[str, str]]:
    try:
        lines = [msgspec.json.decode(line) for line in told.splitlines()]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}, {}
    labels = next((line for line in lines if isinstance(line, Mapping)), {})
    listed = next((line for line in lines if isinstance(line, Sequence)), ())
    return labels, {name: value for name, _, value in (str(entry).partition("=") for entry in listed)}


def _number(text: object) -> int | None:
    return int(text) if isinstance(text, str) and re.fullmatch("[0-9]{1,9}", text) else None
