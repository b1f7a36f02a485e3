"""Ending everything and waiting for the proof, with the coordinator or in its place."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from trogdor_bus import logs
from trogdor_bus.cli import render
from trogdor_bus.cli.addresses import join_address
from trogdor_bus.cli.asking import ask
from trogdor_bus.cli.reach import Reach
from trogdor_bus.client import Client
from trogdor_bus.config import DEFAULT_LEASE_MS, CoordinatorSettings
from trogdor_bus.errors import BusError, ConflictError, FencedError, HostError, NoCoordinatorError, NotFoundError
from trogdor_bus.keys import COORDINATOR_FILE
from trogdor_bus.messages import Latch, NodeRow, TaskInfo
from trogdor_bus.states import WorkerState

POLL_S = 0.1
APPEAR_S = 5.0
"""How long a one-shot coordinator waits for agents to find it."""
RESUMED_S = 10.0
_WORDS = {
    "ended": "ended, nothing is left",
    "stuck": "aborted, but an undo is stuck",
    "waiting": "not yet",
    "silent": "silent",
}
_STYLES = {"ended": "green", "stuck": "bold red", "silent": "bold yellow", "waiting": "yellow"}


class _Source(Protocol):
    """What is asked to abort: a client, or the coordinator in this process."""

    async def abort(self, latch: str, node: str = "") -> Latch: ...

    @property
    def replicated(self) -> bool | None: ...

    async def nodes(self) -> tuple[NodeRow, ...]: ...

    async def tasks(self) -> tuple[TaskInfo, ...]: ...


def abort(reach: Reach, node: str, within_s: float, state_dir: Path, as_json: bool) -> int:
    """End everything on a node, or ("") on all, tell how it goes, and return the exit code."""
    latch = uuid.uuid4().hex
    teller = _Teller(as_json)

    async def verb(client: Client) -> int:
        return await _abort(client, latch, node, within_s=within_s, teller=teller)

    try:
        return ask(reach, verb)
    except NoCoordinatorError as error:
        silence = error
    settings = _in_its_place(reach, state_dir, silence)
    teller.say(f"No coordinator answers at {reach.where()}: taking its place at {settings.url}.")
    logs.set_up("warning", daemon=False)

    async def errand() -> int:
        from trogdor_bus.coordinator.oneshot import take_place

        async with take_place(settings) as source:
            return await _abort(source, latch, node, within_s=within_s, teller=teller, appear_s=APPEAR_S)

    try:
        return asyncio.run(errand())
    except FencedError as error:
        teller.say(str(error))
        return 3
    except (ConflictError, BusError, HostError) as error:
        raise _left_to_the_agents(f"{silence}\n  its place cannot be taken: {error}") from None


def resume(reach: Reach, node: str, as_json: bool) -> int:
    """Let faults start again on a node, or ("") on all, and return the exit code once the live agents know it."""

    async def verb(client: Client) -> tuple[list[str], list[str], bool | None]:
        names = set(await client.resume(node))
        deadline = time.monotonic() + RESUMED_S
        while True:
            shut = [row.name for row in await client.nodes() if row.name in names and row.alive and row.latch]
            if not shut or time.monotonic() > deadline:
                return sorted(names), shut, client.replicated
            await asyncio.sleep(POLL_S)

    names, shut, replicated = ask(reach, verb)
    if as_json:
        render.print_json(render.with_replicated({"nodes": names, "waiting": shut}, replicated))
        return 3 if shut else 0
    render.print_unreplicated(replicated)
    if not names:
        print("Nothing was aborted.")
    else:
        render.print_line(render.console(), f"Resumed: faults may start again on {', '.join(names)}.")
        if shut:
            render.print_line(render.console(), f"Not confirmed within {RESUMED_S:g} s by {', '.join(shut)}.")
    return 3 if shut else 0


async def _abort(
    source: _Source, latch_id: str, node: str, *, within_s: float, teller: _Teller, appear_s: float = 0.0
) -> int:
    """Abort, wait for the proof of every node that is alive, and return the exit code.

    `appear_s` is how long a coordinator that has just begun waits for agents that it did not hear yet.
    """
    began = time.monotonic()
    latch = await _latch(source, latch_id, node, began + appear_s)
    teller.say(f"Aborting {node or 'everything'}: every fault ends, nothing starts until `trogdor-bus resume`.")
    while True:
        holding = {
            worker.node
            for info in await source.tasks()
            for worker in info.workers
            if worker.state not in (WorkerState.DONE, WorkerState.STUCK)
        }
        rows = [row for row in await source.nodes() if node in ("", row.name)]
        states = {row.name: _state(row, latch.id) for row in rows if row.heard_ms >= 0 or row.name in holding}
        teller.tell(states, rows)
        passed_s = time.monotonic() - began
        unheard = [name for name, state in states.items() if state == "silent" and name in holding]
        waits = "waiting" in states.values() or (unheard and passed_s < appear_s)
        if passed_s >= (within_s if waits else appear_s):
            break
        await asyncio.sleep(POLL_S)
    unproven = [name for name, state in states.items() if state == "waiting"] + unheard
    nobody = appear_s > 0 and all(state == "silent" for state in states.values())
    teller.end(latch, states, rows, unproven, nobody=nobody, replicated=source.replicated)
    return 1 if any(row.dirty for row in rows) else 3 if unproven or nobody else 0


async def _latch(source: _Source, latch_id: str, node: str, deadline: float) -> Latch:
    while True:
        try:
            return await source.abort(latch_id, node)
        except NotFoundError:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(POLL_S)


def _state(row: NodeRow, latch: str) -> str:
    if row.left or (row.latch == latch and row.at_rest):
        return "stuck" if row.dirty else "ended"
    return "waiting" if row.alive else "silent"


class _Teller:
    """Tells each node's news once, and the end; as JSON only the end."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._said: dict[str, str] = {}

    def say(self, text: str) -> None:
        """Say a line, on standard error if standard output is for JSON."""
        render.print_line(render.console(stderr=self._as_json), text)

    def tell(self, states: dict[str, str], rows: list[NodeRow]) -> None:
        """Tell what is new of each node."""
        for row in rows:
            state = states.get(row.name, "waiting")
            if not self._as_json and state != "waiting" and self._said.get(row.name) != state:
                self._said[row.name] = state
                to = render.console()
                render.print_line(to, f"  {row.name}: {_WORDS[state]}", _STYLES[state])
                render.print_dirt(to, [row])

    def end(
        self,
        latch: Latch,
        states: dict[str, str],
        rows: list[NodeRow],
        unproven: list[str],
        *,
        nobody: bool,
        replicated: bool | None,
    ) -> None:
        """Tell how it ended; `nobody` was heard, `replicated` as `Client.replicated`."""
        if self._as_json:
            nodes: list[dict[str, Any]] = [
                {"node": row.name, "state": states[row.name], "dirty": row.dirty} for row in rows if row.name in states
            ]
            found = {"latch": latch.id, "leaseMs": latch.lease_ms, "nodes": nodes, "unproven": unproven}
            render.print_json(render.with_replicated(found, replicated))
            return
        render.print_unreplicated(replicated)
        ended = sum(state == "ended" for state in states.values())
        self.say(f"Aborted: {ended} of {len(states)} nodes hold nothing and start nothing.")
        if nobody:
            self.say(
                f"No agent was heard within {APPEAR_S:g} s: is this the address that they dial, are these its keys? "
                "Each ends its faults by itself at their deadlines, and at the latest when its lease ends."
            )
        if unproven:
            self.say(
                f"No proof from {', '.join(unproven)}. An agent there ends its faults by itself, at the latest "
                f"{latch.lease_ms / 1000:g} s (its lease) after the last word that it heard; it is told of the abort "
                "when it is heard again."
            )


def _in_its_place(reach: Reach, state_dir: Path, silence: NoCoordinatorError) -> CoordinatorSettings:
    """Return how to be the coordinator here; NoCoordinatorError if this machine may not."""
    keys = reach.keys_dir()
    if keys is not None and not os.path.exists(keys / COORDINATOR_FILE):  # noqa: PTH110 (no error where it is closed)
        why = f"its place can be taken only on its own host, with its keys ({COORDINATOR_FILE}, not in {keys})"
        raise _left_to_the_agents(f"{silence}\n  {why}")
    own = _own_places(reach, silence)
    from trogdor_bus.coordinator.oneshot import last_url

    try:
        last = last_url(state_dir)
    except ConflictError as error:
        why = str(error)
    except HostError as error:
        why = f"its place cannot be taken: {error}"
    else:
        if not last or _bearings(last) & _bearings(dataclasses.replace(reach, coordinator=",".join(own)).url()):
            asked = dataclasses.replace(reach, coordinator=",".join(own[:1])).url()
            return CoordinatorSettings(url=last or asked, state_dir=state_dir, keys=keys)
        why = (
            f"the last coordinator with its state in {state_dir} was at {last}: give that address, or the --state-dir "
            "of the one that you mean"
        )
    raise _left_to_the_agents(f"{silence}\n  {why}")


def _own_places(reach: Reach, silence: NoCoordinatorError) -> list[str]:
    """Return those addresses of the coordinator that are this machine's.

    NoCoordinatorError if it has to be at one and is at none: on Kafka it may be anywhere.
    """
    places = reach.places()
    own = [join_address(host, port) for host, port in places if _is_here(host)]
    if places and not own:
        why = f"its place can be taken only on its own host, there with --coordinator 127.0.0.1:{places[0][1]}"
        why += "; over Kafka alone from here, too: --transport kafka" if "kafka" in reach.schemes() else ""
        raise _left_to_the_agents(f"{silence}\n  {why}")
    return own


def _bearings(url: str) -> set[tuple[str, str]]:
    """Return by what the places of a coordinator are known: a port here, the topics of a Kafka."""
    parts = [urlsplit(one) for one in url.split(" ")]
    return {(part.scheme, str(part.port) if part.scheme == "zmq" else part.path) for part in parts}


def _is_here(host: str) -> bool:
    """Return whether that is this machine: whether an address of it can be bound."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as bound:
                bound.bind(address)
                return True
    return False


def _left_to_the_agents(text: str) -> NoCoordinatorError:
    lease_s = DEFAULT_LEASE_MS / 1000
    return NoCoordinatorError(
        f"{text}\n"
        "nothing was aborted from here. What happens now:\n"
        f"  each agent ends its faults by itself at their deadlines, and at the latest {lease_s:g} s after the\n"
        "  coordinator's last word (its --lease, if it was given another one)\n"
        "  to end them now: run `trogdor-bus abort` on the coordinator's host, or end the agent on each node (SIGTERM)"
    )
