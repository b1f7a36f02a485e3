"""How late undos are that are due at once: from due until read back as gone, beside the same undone bare."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.results import Aim, Result, Skipped, Table, median, ms, percentile, ratio
from trogdor_bus.agents.platforms.linux.commands import require_tool
from trogdor_bus.client import Client
from trogdor_bus.lab import namespaces
from trogdor_bus.lab.cluster import Lab, missing
from trogdor_bus.lab.namespaces import COORDINATOR
from trogdor_bus.lab.processes import LabProcess
from trogdor_bus.states import Outcome
from trogdor_bus.transports import transport

AIM_S = 0.25
AIM = f"p99 of the lateness below {AIM_S * 1000:g} ms"
BEGIN_MS, LAST_MS = 3_000, 9_000
HANG_MS = 2_000
"""So long before the others are due begins what hangs."""
UNIT = "hangs.service"
SYSTEMCTL = "#!/bin/sh\nexec sleep 30\n"


def measure(*, quick: bool) -> Result:
    """Return the table; Skipped without root or tools."""
    if lacking := missing():
        raise Skipped("; ".join(lacking))
    table = Table(
        title="Lateness of undos due at once (ms)",
        columns=("what", "undos", "p50", "p99", "max", "bare p50", "ratio p50", "not done"),
        notes=(
            "Us: agent daemons and a coordinator daemon, each in its own namespace. Tasks of half port-block (IPv4 and "
            "IPv6), half process-stop begin at one moment and last equally long. Lateness is what `show` tells: from "
            "due until read back as gone, as the agent measured it. Not done: workers with any outcome but done.",
            "One lane hangs: a process-kill whose restart asks a `systemctl` that does not answer.",
            "Bare, in the same namespaces at once: one restore and one save of the rules for each family, and a "
            "SIGCONT for each process. All nodes share the cores of this machine.",
        ),
    )
    result = Result(table=table)
    rounds = 1 if quick else 3
    for nodes, tasks, hangs in ((1, 50, False), (1, 50, True), (30, 2, False)):
        if quick and nodes > 1:
            continue
        name = f"{nodes} node{'s' if nodes > 1 else ''} x {tasks}" + (", one lane hangs" if hangs else "")
        _add(result, name, _measured(nodes, tasks, rounds, hangs=hangs))
    return result


def _add(result: Result, name: str, found: dict[str, list[float]]) -> None:
    late, bare = found["late"], found["bare"]
    p50, p99, wrong = median(late), percentile(late, 0.99), len(found["wrong"])
    cells = (name, str(len(late)), ms(p50), ms(p99), ms(max(late)), ms(median(bare)), ratio(p50, median(bare)))
    result.table.rows.append((*cells, str(wrong)))
    result.aims.append(Aim(f"{name}: {AIM}", f"{p99 * 1000:.0f} ms", p99 < AIM_S and not wrong))
    result.figures[name] = {
        "samples_ms": {what: [round(value * 1000, 1) for value in values] for what, values in found.items()},
        "p50_ms": round(p50 * 1000, 1),
        "p99_ms": round(p99 * 1000, 1),
        "ratio_to_bare_p50": round(p50 / median(bare), 2),
    }


def _measured(nodes: int, tasks: int, rounds: int, *, hangs: bool) -> dict[str, list[float]]:
    with _hanging_systemctl(), Lab(nodes, f"late{os.getpid()}", daemons=False) as lab:
        lab.start_coordinator()
        lab.wait_keys()
        config = lab.directory / "agents.yaml"
        config.write_text(json.dumps({"agent": {"allowCommands": [["systemctl", "start", UNIT]]}}))
        for node in lab.nodes:
            lab.start_agent(node, "--config", str(config))
        lab.wait_ready()
        sleepers = [
            lab.start_process(f"victim{number}", node, ["sleep", f"{3600 + number}"])
            for node in lab.nodes
            for number in range(tasks - tasks // 2 + hangs)
        ]
        where = lab.member(COORDINATOR).namespace
        return namespaces.call_inside(
            where, functools.partial(asyncio.run, _rounds(lab, tasks, rounds, sleepers, hangs=hangs))
        )


async def _rounds(
    lab: Lab, tasks: int, rounds: int, sleepers: list[LabProcess], *, hangs: bool
) -> dict[str, list[float]]:
    url = f"zmq://{lab.member(COORDINATOR).ipv4}:5560"
    found: dict[str, list[float]] = {"late": [], "bare": [], "wrong": []}
    async with Client(transport(url).open_client(url, lab.directory / "keys"), url, timeout_s=10.0) as client:
        for number in range(rounds):
            begin_ms = int(time.time() * 1000) + BEGIN_MS
            specs = dict(_specs(lab.nodes, tasks, begin_ms))
            if hangs:
                specs["hangs"] = _hanging(lab.nodes[0], tasks - tasks // 2, begin_ms)
            for name, spec in specs.items():
                await client.create(f"{name}-{number}", json.dumps(spec).encode())
            for name in specs:
                info = await client.wait(f"{name}-{number}")
                if name != "hangs":
                    found["late"] += [worker.late_ms / 1000 for worker in info.workers]
                    found["wrong"] += [1.0 for worker in info.workers if worker.outcome is not Outcome.DONE]
            found["bare"] += _bare(lab, tasks // 2, sleepers)
    return found


def _specs(nodes: tuple[str, ...], tasks: int, begin_ms: int) -> Iterator[tuple[str, dict[str, Any]]]:
    when = {"nodes": nodes, "startMs": begin_ms, "durationMs": LAST_MS}
    for number in range(tasks // 2):
        yield f"block-{number}", {"class": "port-block", "ports": [20_000 + number], **when}
    for number in range(tasks - tasks // 2):
        yield f"stop-{number}", {"class": "process-stop", "match": f"sleep {3600 + number}", **when}


def _hanging(node: str, number: int, begin_ms: int) -> dict[str, Any]:
    return {
        "class": "process-kill",
        "nodes": [node],
        "match": f"sleep {3600 + number}",
        "restart": {"unit": UNIT},
        "startMs": begin_ms + LAST_MS - HANG_MS,
        "durationMs": LAST_MS,
    }


@contextmanager
def _hanging_systemctl() -> Iterator[None]:
    before = os.environ.get("PATH", "")
    with tempfile.TemporaryDirectory() as directory:
        tool = Path(directory) / "systemctl"
        tool.write_text(SYSTEMCTL)
        tool.chmod(0o755)
        os.environ["PATH"] = f"{directory}:{before}"
        try:
            yield
        finally:
            os.environ["PATH"] = before


def _bare(lab: Lab, blocks: int, sleepers: list[LabProcess]) -> list[float]:
    """Return the seconds in which the same is undone on each node without us, on all at once, after doing it."""
    ready = threading.Barrier(len(lab.nodes))

    def undone(node: str) -> float:
        pids = [one.pid for one in sleepers if one.member == node]
        work = functools.partial(_undone, blocks, pids, ready)
        return namespaces.call_inside(lab.member(node).namespace, work)

    with ThreadPoolExecutor(len(lab.nodes)) as threads:
        return list(threads.map(undone, lab.nodes))


def _undone(blocks: int, pids: list[int], ready: threading.Barrier) -> float:
    chains = [f"BARE{number}" for number in range(blocks)]
    for family in ("iptables", "ip6tables"):
        rules = [f"-A {chain} -p tcp --dport {20_000 + number} -j DROP" for number, chain in enumerate(chains)]
        _restore(family, *(f":{chain} - [0:0]" for chain in chains), *rules, *(f"-I INPUT 1 -j {c}" for c in chains))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    ready.wait()
    begun = time.perf_counter()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    for family in ("iptables", "ip6tables"):
        gone = [line for chain in chains for line in (f"-D INPUT -j {chain}", f"-X {chain}")]
        _restore(family, *(f":{chain} - [0:0]" for chain in chains), *gone)
        saved = subprocess.run(
            [require_tool(f"{family}-save", "iptables"), "-t", "filter"], check=True, capture_output=True, text=True
        ).stdout
        assert "BARE" not in saved
    return time.perf_counter() - begun


def _restore(family: str, *lines: str) -> None:
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    argv = [require_tool(f"{family}-restore", "iptables"), "--noflush", "-w", "5"]
    subprocess.run(argv, input=text, check=True, capture_output=True, text=True)
