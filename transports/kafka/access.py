"""Who needs which rights on a cluster with ACLs: the least that works, as commands to paste."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import NamedTuple

from trogdor_bus.transports.kafka import topics
from trogdor_bus.transports.kafka.address import Address
from trogdor_bus.transports.kafka.topics import Topic


class Right(NamedTuple):
    """Operations on one topic, on all topics of the prefix (`topic` None), or on the cluster."""

    topic: Topic | None
    operations: tuple[str, ...]
    cluster: bool = False


ROLES = {
    "coordinator": (
        Right(None, ("Create", "DescribeConfigs", "AlterConfigs", "Read", "Write")),
        Right(None, ("DescribeConfigs",), cluster=True),  # which brokers are the quorum
    ),
    "agent": (Right(topics.CONTROL, ("Read",)), Right(topics.STATUS, ("Write",))),
    "client": (
        Right(topics.REQUESTS, ("Write",)),
        Right(topics.REPLIES, ("Read",)),
        Right(topics.EVENTS, ("Read",)),
    ),
}
"""By role; a client may monitor, too. Read and Write let one Describe."""


def commands(address: Address, role: str, principal: str) -> Iterator[str]:
    """Return the commands that let a principal (`User:NAME`) be of that role."""
    for right in ROLES[role]:
        yield acl_command(address, right, principal)


def acl_command(address: Address, right: Right, principal: str) -> str:
    """Return the command that gives a principal a right."""
    operations = [word for operation in right.operations for word in ("--operation", operation)]
    if right.cluster:
        where = ["--cluster"]
    elif right.topic is None:
        where = ["--topic", f"{address.prefix}.", "--resource-pattern-type", "prefixed"]
    else:
        where = ["--topic", address.topic(right.topic.name)]
    tool = ["kafka-acls", "--bootstrap-server", address.bootstrap]
    return shlex.join([*tool, "--add", "--allow-principal", principal, *operations, *where])
