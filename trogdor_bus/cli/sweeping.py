"""Deleting the topics that experiments left."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trogdor_bus.cli.asking import ask
from trogdor_bus.cli.reach import Reach
from trogdor_bus.client import Client
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.topics import Topics
from trogdor_bus.states import TaskState

_RUN = re.compile(r"(\d{8}t\d{6})-[0-9a-f]{6}")
"""What stands after the prefix: when the topic was made (liveness.new_run)."""


def sweep(
    reach: Reach, brokers: str, properties: Path | None, prefix: str, older_ms: int, *, dry_run: bool
) -> dict[str, list[str]]:
    """Delete the topics; return the names of those "deleted", "spared" because their experiment runs or they are young,
    and the "failed", each with the reason.

    NoCoordinatorError if no coordinator says what runs, HostError if no broker answers.
    """
    swept: dict[str, list[str]] = {"deleted": [], "spared": [], "failed": []}
    live = ask(reach, _live)
    with Topics(Access(brokers, properties)) as topics:
        for topic in sorted(topics.named(prefix), key=lambda topic: topic.name):
            made_ms = _made_ms(topic.name.removeprefix(prefix))
            if made_ms is None:
                continue
            if topic.name in live or time.time() * 1000 - made_ms < older_ms:
                swept["spared"].append(topic.name)
                continue
            try:
                if not dry_run:
                    topics.delete(topic.name)
                swept["deleted"].append(topic.name)
            except TrogdorBusError as error:
                swept["failed"].append(f"{topic.name}: {error}")
    return swept


def lines(swept: dict[str, list[str]], *, dry_run: bool) -> Iterator[str]:
    """Yield what happened, for people."""
    words = {"deleted": "would be deleted" if dry_run else "deleted", "spared": "spared", "failed": "NOT deleted"}
    yield from (f"{words[kind]}: {name}" for kind, names in swept.items() for name in names)
    if not any(swept.values()):
        yield "No experiment left a topic."


def _made_ms(run: str) -> int | None:
    """Return when a run was begun, epoch ms; None if that is no run id."""
    found = _RUN.fullmatch(run)
    try:
        return calendar.timegm(time.strptime(found[1], "%Y%m%dt%H%M%S")) * 1000 if found else None
    except ValueError:
        return None


async def _live(client: Client) -> set[str]:
    """Return the topics of the experiments that run."""
    topics: set[str] = set()
    for info in await client.tasks():
        if info.task.experiment and info.task.state is not TaskState.DONE:
            told: Any = await client.experiment(info.task.id, after=1 << 60)
            topics.add(told.progress.topic)
    return topics - {""}
