"""Ending everything and waiting for the proof, with the coordinator or in its place."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from trogdor_bus import logs
from trogdor_bus.cli import render
from trogdor_bus.cli.addresses import join_address
from trogdor_bus.cli.asking import ask
from trogdor_bus.cli.reach import Reach
from trogdor_bus.cli.wording import WORDS
from trogdor_bus.client import Client
from trogdor_bus.config import DEFAULT_LEASE_MS, CoordinatorSettings
from trogdor_bus.errors import (
    BusError,
    ConflictError,
    FencedError,
    HostError,
    NoCoordinatorError,
    NotFoundError,
    TrogdorBusError,
)
from trogdor_bus.keys import COORDINATOR_FILE
from trogdor_bus.messages import Latch, NodeProof, Proof

POLL_S = 0.1
APPEAR_S = 5.0
"""How long a one-shot coordinator waits for agents to find it."""
RESUMED_S = 10.0
LEFT = "nothing was aborted from here. What happens now:"
_WORDS = {
    "ended": "ended, nothing is left",
    "stuck": "aborted, but an undo is stuck",
    "unproven": "aborted, but something may be left",
    "waiting": "not yet",
    "silent": "silent",
}
_STYLES = {
    "ended": "green",
    "stuck": "bold red",
    "unproven": "bold red",
    "silent": "bold yellow",
    "waiting": "yellow",
}


class _Source(Protocol):
    """What is asked to abort: a client, or the coordinator in this process."""

    async def abort(self, latch: str, node: str = "") -> Latch: ...

    @property
    def replicated(self) -> bool | None: ...

    async def proof(self, latch: str, node: str = "") -> Proof: ...


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
    except BusError as error:  # an older coordinator does not know what a proof is
        return teller.no_proof(error)
    try:
        settings = _in_its_place(reach, state_dir, silence)
    except NoCoordinatorError as error:
        return teller.no_proof(error)
    teller.say(f"No coordinator answers at {reach.where()}: taking its place at {settings.url}.")
    logs.set_up("warning", daemon=False, words=WORDS)

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
        return teller.no_proof(_left_to_the_agents(f"{silence}\n  its place cannot be taken: {error}"))


def resume(reach: Reach, node: str, as_json: bool) -> int:
    """Let faults start again on a node, or ("") on all, and return the exit code once the live agents know it."""

    async def verb(client: Client) -> tuple[list[str], list[str], list[str], bool | None]:
        names = set(await client.resume(node))
        deadline = time.monotonic() + RESUMED_S
        while True:
            rows = [row for row in await client.nodes() if row.name in names]
            shut = [row.name for row in rows if row.alive and row.latch]
            if not shut or time.monotonic() > deadline:
                silent = sorted(names - {row.name for row in rows if row.alive})
                return sorted(names), shut, silent, client.replicated
            await asyncio.sleep(POLL_S)

    names, shut, silent, replicated = ask(reach, verb)
    if as_json:
        told = {"nodes": names, "waiting": shut, "silent": silent}
        render.print_json(render.with_replicated(told, replicated))
        return 3 if shut else 0
    render.print_unreplicated(replicated)
    if not names:
        print("Nothing was aborted.")
    else:
        if open_ := [name for name in names if name not in (*shut, *silent)]:
            render.print_line(render.console(), f"Resumed: faults may start again on {', '.join(open_)}.")
        if silent:
            line = f"Silent, so told as soon as they are heard again: {', '.join(silent)}."
            render.print_line(render.console(), line)
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
    teller.accepted(latch, node)
    while True:
        proof = await source.proof(latch.id, node)
        nodes = proof.nodes
        teller.tell(nodes)
        passed_s = time.monotonic() - began
        unheard = any(one.state == "silent" and one.doubtful for one in nodes)
        waits = proof.listening or any(one.state == "waiting" for one in nodes) or (unheard and passed_s < appear_s)
        if passed_s >= (within_s if waits else appear_s):
            break
        await asyncio.sleep(POLL_S)
    nobody = appear_s > 0 and all(one.state == "silent" for one in nodes)
    return teller.end(nodes, nobody=nobody, listening=proof.listening, replicated=source.replicated)


async def _latch(source: _Source, latch_id: str, node: str, deadline: float) -> Latch:
    while True:
        try:
            return await source.abort(latch_id, node)
        except NotFoundError:
            if time.monotonic() >= deadline and not (await source.proof(latch_id)).listening:
                raise
        await asyncio.sleep(POLL_S)


class _Teller:
    """Tells each node's news once, and the end; as JSON only the end."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._said: dict[str, str] = {}
        self._latch: Latch | None = None

    def say(self, text: str) -> None:
        """Say a line, on standard error if standard output is for JSON."""
        render.print_line(render.console(stderr=self._as_json), text)

    def accepted(self, latch: Latch, node: str) -> None:
        """Tell that a coordinator has taken it up."""
        self._latch = latch
        self.say(f"Aborting {node or 'everything'}: every fault ends, nothing starts until `trogdor-bus resume`.")

    def no_proof(self, error: TrogdorBusError) -> int:
        """Return the exit code if nobody answers (any more); the error if nobody took it up."""
        if self._latch is None:
            raise error
        why = str(error).partition(LEFT)[0].rstrip()
        self.say(
            f"{why}\nThe coordinator took the abort up, and then told nothing more of it: it tells its agents as long "
            "as it runs, and so does the next one. There is no proof: abort again."
        )
        return 3

    def tell(self, nodes: Sequence[NodeProof]) -> None:
        """Tell what is new of each node."""
        for node in nodes:
            if not self._as_json and node.state != "waiting" and self._said.get(node.node) != node.state:
                self._said[node.node] = node.state
                to = render.console()
                render.print_line(to, f"  {node.node}: {_WORDS[node.state]}", _STYLES[node.state])
                render.print_left(to, node.node, (*node.dirty, *node.unproven, *node.strays))

    def end(self, nodes: Sequence[NodeProof], *, nobody: bool, listening: bool, replicated: bool | None) -> int:
        """Tell how it ended, and return the exit code; `nobody` was heard, `replicated` as `Client.replicated`.

        `listening` as in Proof.
        """
        assert self._latch is not None
        unproven = [one.node for one in nodes if one.state == "waiting" or one.doubtful]
        code = 1 if any(one.dirty for one in nodes) else 3 if unproven or nobody or listening or not nodes else 0
        if self._as_json:
            latch = self._latch
            found = {
                "latch": latch.id,
                "leaseMs": latch.lease_ms,
                "nodes": nodes,
                "unproven": unproven,
                "listening": listening,
            }
            render.print_json(render.with_replicated(found, replicated))
            return code
        render.print_unreplicated(replicated)
        ended = sum(one.state == "ended" for one in nodes)
        self.say(f"Aborted: {ended} of {len(nodes)} nodes hold nothing and start nothing.")
        if listening:
            self.say("This coordinator has just started, and does not know yet which agents there are: abort again.")
        elif nobody or not nodes:
            within = f" within {APPEAR_S:g} s" if nobody else ""
            self.say(
                f"No agent was heard{within}: is this the address that they dial, are these its keys? "
                "Each that runs ends its faults by itself at their deadlines, and at the latest when its lease ends."
            )
        self._say_unproven(nodes, self._latch.lease_ms)
        return code

    def _say_unproven(self, nodes: Sequence[NodeProof], lease_ms: int) -> None:
        """Say why there is no proof, what to look for, and what to type."""
        silent = [one.node for one in nodes if one.state == "waiting" or (one.state == "silent" and one.doubtful)]
        if silent:
            self.say(
                f"No proof from {', '.join(silent)}. An agent that runs there ends its faults by itself, at the latest "
                f"{lease_ms / 1000:g} s (its lease) after the last word that it heard; it is told of the abort "
                "when it is heard again."
            )
        for one in nodes:
            if one.state in ("unproven", "stuck") and one.unproven:
                self.say(render.former_remedy(one.node))
            if one.strays and one.state != "silent":
                self.say(render.strays_remedy(one.node))


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
        f"{LEFT}\n"
        f"  each agent ends its faults by itself at their deadlines, and at the latest {lease_s:g} s after the\n"
        "  coordinator's last word (its --lease, if it was given another one)\n"
        "  to end them now: run `trogdor-bus abort` on the coordinator's host, or end the agent on each node (SIGTERM)"
    )
