"""A real partition of real agents in network namespaces, beside the same disk writes and iptables calls done bare."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.bus import Watch
from benchmarks.results import Result, Skipped, Table, median, ms, ratio
from trogdor_bus.agents.platforms.linux.commands import require_tool
from trogdor_bus.client import Client
from trogdor_bus.lab import namespaces
from trogdor_bus.lab.cluster import Lab, missing
from trogdor_bus.lab.namespaces import COORDINATOR, Member
from trogdor_bus.topology import halves
from trogdor_bus.transports import transport

ENTRY_BYTES = 4096
CHAIN = "TB-00000000000000be"
ROUND_S = 60.0


def measure(*, quick: bool) -> Result:
    """Return the table of all sizes; Skipped without root or tools."""
    if lacking := missing():
        raise Skipped("; ".join(lacking))
    table = Table(
        title="Partition: submit halves to all cut, read back (ms, medians)",
        columns=("agents", "rounds", "all cut", "max", "all healed", "bare 1 by 1", "bare at once", "ratio"),
        notes=(
            "Us: agent daemons and a coordinator daemon, each in its own namespace, IPv4 and IPv6; CURVE; journals "
            f"on {_file_system(Path('/run'))}. All cut: every worker RUNNING, which is after its read-back; all "
            "healed: stop to DONE.",
            "Bare: per node, without us, two journal writes (temporary file, fsync, rename, fsync of the directory) "
            "and for each family one iptables-restore and one iptables-save, in the same namespaces and directories; "
            "one node after the other, or all nodes at once. The ratio is to all at once. Rounds took turns.",
        ),
    )
    result = Result(table=table)
    for agents, rounds in ((10, 3),) if quick else ((10, 7), (30, 5)):
        with Lab(agents, f"bench{os.getpid()}") as lab:
            where = lab.member(COORDINATOR).namespace
            samples = namespaces.call_inside(where, functools.partial(asyncio.run, _rounds(lab, rounds)))
        p50 = {name: median(values) for name, values in samples.items()}
        table.rows.append(
            (
                str(agents),
                str(rounds),
                ms(p50["cut"]),
                ms(max(samples["cut"])),
                ms(p50["healed"]),
                ms(p50["bare_sequential"]),
                ms(p50["bare_parallel"]),
                ratio(p50["cut"], p50["bare_parallel"]),
            )
        )
        result.figures[f"agents_{agents}"] = {
            "samples_ms": {name: [round(v * 1000, 1) for v in values] for name, values in samples.items()},
            "p50_ms": {name: round(value * 1000, 1) for name, value in p50.items()},
            "ratio_to_bare_parallel": round(p50["cut"] / p50["bare_parallel"], 2),
            "ratio_to_bare_sequential": round(p50["cut"] / p50["bare_sequential"], 2),
        }
    return result


async def _rounds(lab: Lab, rounds: int) -> dict[str, list[float]]:
    url = f"zmq://{lab.member(COORDINATOR).ipv4}:5560"
    keys = lab.directory / "keys"
    samples: dict[str, list[float]] = {name: [] for name in ("cut", "healed", "bare_sequential", "bare_parallel")}
    monitor = transport(url).open_monitor(url, keys)
    try:
        watch = Watch()
        monitor.receive(watch.take)
        async with Client(transport(url).open_client(url, keys), url, timeout_s=10.0) as client:
            await asyncio.wait_for(watch.connected, 10)
            for number in range(-1, rounds):  # the first one warms up
                groups = halves(lab.nodes, random.Random(number))
                taken = {
                    **await _cut_and_heal(client, watch, f"partition-{number + 1}", groups),
                    "bare_sequential": _bare(lab, groups, at_once=1),
                    "bare_parallel": _bare(lab, groups, at_once=len(lab.nodes)),
                }
                for name, value in taken.items() if number >= 0 else ():
                    samples[name].append(value)
                await asyncio.sleep(0.2)
    finally:
        monitor.close()
    return samples


async def _cut_and_heal(
    client: Client, watch: Watch, task_id: str, groups: tuple[tuple[str, ...], ...]
) -> dict[str, float]:
    spec = {
        "class": "org.apache.kafka.trogdor.fault.NetworkPartitionFaultSpec",
        "durationMs": 600_000,
        "partitions": groups,
    }
    active, done = watch.expect(task_id, "active"), watch.expect(task_id, "done")
    begun = time.perf_counter()
    await client.create(task_id, json.dumps(spec).encode())
    cut = await asyncio.wait_for(active, ROUND_S)
    stopped = time.perf_counter()
    await client.stop(task_id)
    healed = await asyncio.wait_for(done, ROUND_S)
    return {"cut": cut - begun, "healed": healed - stopped}


def _bare(lab: Lab, groups: tuple[tuple[str, ...], ...], *, at_once: int) -> float:
    """Return the seconds in which the same work is done without us, and take it back."""
    work = [
        (lab.member(name), [lab.member(peer) for peer in groups[1 - side]], lab.directory / name)
        for side, group in enumerate(groups)
        for name in group
    ]
    with ThreadPoolExecutor(at_once) as threads:
        begun = time.perf_counter()
        list(threads.map(lambda one: _in_thread(_cut, *one), work))
        taken = time.perf_counter() - begun
        list(threads.map(lambda one: _in_thread(_mend, *one), work))
    return taken


def _in_thread(function: object, member: Member, peers: list[Member], directory: Path) -> None:
    namespaces.enter(member.namespace)  # a thread of the pool may serve several members: it enters each anew
    assert callable(function)
    function(member, peers, directory)


def _cut(member: Member, peers: list[Member], directory: Path) -> None:
    _write(directory)
    for tool, sources in (("iptables", [p.ipv4 for p in peers]), ("ip6tables", [p.ipv6 for p in peers])):
        rules = [f"-A {CHAIN} -s {source} -j DROP" for source in sources]
        _restore(tool, f":{CHAIN} - [0:0]", *rules, f"-I INPUT 1 -j {CHAIN}")
        saved = subprocess.run(
            [require_tool(f"{tool}-save", "iptables"), "-t", "filter"], check=True, capture_output=True, text=True
        ).stdout
        assert saved.count(f"-A {CHAIN} -s ") == len(sources)
    _write(directory)


def _mend(member: Member, peers: list[Member], directory: Path) -> None:
    for tool in ("iptables", "ip6tables"):
        _restore(tool, f":{CHAIN} - [0:0]", f"-D INPUT -j {CHAIN}", f"-X {CHAIN}")
    (directory / "bare.json").unlink()


def _restore(tool: str, *lines: str) -> None:
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    argv = [require_tool(f"{tool}-restore", "iptables"), "--noflush", "-w", "5"]
    subprocess.run(argv, input=text, check=True, capture_output=True, text=True)


def _write(directory: Path) -> None:
    temporary = os.open(directory / "bare.json.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(temporary, bytes(ENTRY_BYTES))
    os.fsync(temporary)
    os.close(temporary)
    (directory / "bare.json.tmp").rename(directory / "bare.json")
    names = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(names)
    os.close(names)


def _file_system(path: Path) -> str:
    """Return the type of the file system that holds the path, from /proc/mounts."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(Path(point), kind) for point, kind in mounts if path.is_relative_to(point)]
    return max(holding, key=lambda one: len(one[0].parts))[1]
