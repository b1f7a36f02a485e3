"""Apply and remove a block of many peers: our platform beside one `iptables` process per peer, Trogdor's way."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.results import Aim, Result, Skipped, Table, median, ms, ratio
from trogdor_bus.actions import Peer
from trogdor_bus.actions.network import BlockFrom
from trogdor_bus.agents.platforms.linux.commands import require_tool
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.lab import namespaces
from trogdor_bus.lab.cluster import missing
from trogdor_bus.platform import Surroundings
from trogdor_bus.testing import unnoted

AIM_PEERS, AIM_TIMES = 1000, 100.0


def measure(*, quick: bool) -> Result:
    """Return the table of all numbers of peers; Skipped without root or tools."""
    if lacking := missing():
        raise Skipped("; ".join(lacking))
    table = Table(
        title="Rules: block everything from some peers, and take it back (ms, medians)",
        columns=("peers", "apply", "remove", "per-peer apply", "remove", "ratio apply", "ratio both"),
        notes=(
            "Us: prepare and do, then undo and look for residue, as an agent does; each includes choosing the tool and "
            "reading back. Beside: `iptables -A INPUT -p tcp -s PEER -j DROP -m comment --comment NODE` per peer, then "
            "-D, unread. IPv4 addresses on both sides; in a network namespace made for this. Rounds took turns.",
        ),
    )
    result = Result(table=table)
    sizes = ((1, 5), (100, 3)) if quick else ((1, 15), (100, 7), (1000, 3))
    with _namespace() as namespace:
        for peers, rounds in sizes:
            samples: dict[str, list[float]] = {name: [] for name in ("apply", "remove", "peer_apply", "peer_remove")}
            for _ in range(rounds):
                for name, value in zip(("apply", "remove"), _ours(namespace, _peers(peers)), strict=True):
                    samples[name].append(value)
                for name, value in zip(("peer_apply", "peer_remove"), _one_each(namespace, _peers(peers)), strict=True):
                    samples[name].append(value)
            _add(result, peers, rounds, {name: median(values) for name, values in samples.items()})
    return result


def _add(result: Result, peers: int, rounds: int, p50: dict[str, float]) -> None:
    ours, theirs = p50["apply"] + p50["remove"], p50["peer_apply"] + p50["peer_remove"]
    result.table.rows.append(
        (
            f"{peers:,}",
            ms(p50["apply"]),
            ms(p50["remove"]),
            ms(p50["peer_apply"]),
            ms(p50["peer_remove"]),
            ratio(p50["peer_apply"], p50["apply"]),
            ratio(theirs, ours),
        )
    )
    result.figures[f"peers_{peers}"] = {
        "rounds": rounds,
        "p50_ms": {name: round(value * 1000, 2) for name, value in p50.items()},
        "times_faster_apply": round(p50["peer_apply"] / p50["apply"], 2),
        "times_faster_both": round(theirs / ours, 2),
    }
    if peers == AIM_PEERS:
        text = f"{AIM_TIMES:g} times faster at {AIM_PEERS:,} peers, apply and remove together"
        result.aims.append(Aim(text, f"{theirs / ours:.0f} times", theirs / ours >= AIM_TIMES))


@contextmanager
def _namespace() -> Iterator[str]:
    name = f"tb-bench-{os.getpid()}"
    namespaces.add_bridge(name)
    try:
        yield name
    finally:
        namespaces.delete(name)


def _peers(count: int) -> tuple[Peer, ...]:
    return tuple(Peer(f"node{n}", (f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}",)) for n in range(1, count + 1))


def _ours(namespace: str, peers: tuple[Peer, ...]) -> tuple[float, float]:
    platform = LinuxPlatform(attach=f"netns:{namespace}")  # "" would be the host's own namespace
    begun = time.perf_counter()
    (step,) = platform.prepare(1, BlockFrom(peers=peers), Surroundings(), ()).steps
    platform.do(step)
    applied = time.perf_counter()
    platform.undo(step, (), unnoted)
    left = platform.residue(step, ())
    removed = time.perf_counter()
    assert not left, left
    return applied - begun, removed - applied


def _one_each(namespace: str, peers: tuple[Peer, ...]) -> tuple[float, float]:
    iptables = require_tool("iptables", "iptables")

    def change(flag: str) -> float:
        begun = time.perf_counter()
        for peer in peers:
            rule = [
                "INPUT",
                "-p",
                "tcp",
                "-s",
                peer.addresses[0],
                "-j",
                "DROP",
                "-m",
                "comment",
                "--comment",
                peer.node,
            ]
            subprocess.run([iptables, flag, *rule], check=True, stdin=subprocess.DEVNULL)
        return time.perf_counter() - begun

    return namespaces.call_inside(namespace, lambda: (change("-A"), change("-D")))
