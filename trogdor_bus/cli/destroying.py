"""Destroying a task, and telling what is proven."""

from __future__ import annotations

import asyncio
import time

from trogdor_bus.cli import render
from trogdor_bus.cli.asking import ask
from trogdor_bus.cli.reach import Reach
from trogdor_bus.client import Client
from trogdor_bus.errors import NotFoundError
from trogdor_bus.messages import Destroyed

PROOF_S = 10.0
"""How long the word of agents that are heard is waited for."""
POLL_S = 0.1


def destroy(reach: Reach, task: str, as_json: bool) -> int:
    """Destroy a task, wait for the proof, tell what is known, and return the exit code; NotFoundError for none."""

    async def verb(client: Client) -> tuple[Destroyed | None, bool | None]:
        deadline = time.monotonic() + PROOF_S
        first = found = await client.destroy(task)
        replicated = client.replicated
        while found is not None and found.waiting and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
            found = await client.destroy(task)
        if first is not None and not first.known and not (first.waiting or first.unheard):
            raise NotFoundError(f'No task with ID "{task}" exists.')
        return found, replicated

    found, replicated = ask(reach, verb)
    unproven = (*found.waiting, *found.unheard) if found else ()
    if as_json:
        told = {"id": task, "unproven": sorted(unproven)}
        render.print_json(render.with_replicated(told, replicated))
    else:
        render.print_unreplicated(replicated)
        for line in _lines(task, found):
            render.print_line(render.console(), line)
    return 3 if unproven else 0


def _lines(task: str, found: Destroyed | None) -> list[str]:
    if found is None:
        return [
            f"Task {task} is forgotten, if there was one; this coordinator does not tell what becomes of its faults."
        ]
    if not (found.waiting or found.unheard):
        return [f"Task {task} is forgotten, and its faults are undone."]
    lines = [f"Task {task} is forgotten."]
    if found.waiting:
        lines.append(f"No proof yet from {', '.join(found.waiting)}: its faults are being undone there.")
    if found.unheard:
        lines.append(
            f"No proof from {', '.join(found.unheard)}: the agent that has its fault is not heard. It is told when it "
            "is, and until then it is remembered that something may be left there (`trogdor-bus nodes`)."
        )
    return lines
