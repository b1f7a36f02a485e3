"""What the daemons cost: start-up beside an empty Python, and when idle, processor, memory and bytes on the wire."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.bus import end, free_ports
from benchmarks.results import TROGDOR, Aim, Result, Table, environment, median, ms, ratio
from trogdor_bus.errors import HostError
from trogdor_bus.lab.cluster import Lab, missing
from trogdor_bus.lab.namespaces import COORDINATOR
from trogdor_bus.messages import Beat, decode
from trogdor_bus.transports import transport

AIM_RSS_MB = 45
AGENTS = 3
START_S = 20.0
SETTLE_S = 3.0
MB = 1e6


def measure(*, quick: bool) -> Result:
    """Return the table of start-up, and of idling if this machine can make a lab."""
    table = Table(
        title="Daemons: start-up (median), and idle cost",
        columns=("", "start-up ms", "x empty", "idle CPU %", "RSS MB", "bytes/s"),
        notes=(
            "Start-up: from the start of the process to its end (`python -c pass`, `--help`), to the line `Starting "
            "... process.`, or to the first beat at a coordinator's socket; CURVE keys exist; rounds took turns.",
        ),
    )
    result = Result(table=table)
    started = asyncio.run(_start_ups(3 if quick else 11))
    p50 = {name: median(values) for name, values in started.items()}
    result.figures["start_up_p50_ms"] = {name: round(value * 1000, 1) for name, value in p50.items()}
    idle: dict[str, dict[str, float]] = {}
    if lacking := missing():
        table.notes += (f"Idle cost skipped: {'; '.join(lacking)}.",)
    else:
        idle = _idle(5.0 if quick else 15.0)
        result.figures["idle"] = idle
        table.notes += (
            f"Idle: {AGENTS} agents and a coordinator in namespaces, CURVE, nothing to do, over "
            f"{idle['coordinator']['seconds']:.0f} s. CPU of all threads, the guard's too (schedstat), in % of one "
            "core; RSS without the guard. Bytes: both ways on the node's own interface, with all headers and "
            "acknowledgements (/proc/net/dev); the agent's figures are the medians of the agents.",
        )
        rss, together = idle["agent"]["rss_mb"], idle["agent"]["rss_with_guard_mb"]
        text = f"the agent idles below {AIM_RSS_MB} MB RSS"
        result.aims.append(Aim(text, f"{rss:.1f} MB ({together:.1f} MB with its guard)", rss < AIM_RSS_MB))
    for name, value in p50.items():
        cost = idle.get({"agent, first beat": "agent", "coordinator": "coordinator"}.get(name, ""), {})
        cells = [f"{cost['cpu_percent']:.2f}", f"{cost['rss_mb']:.1f}", f"{cost['bytes_per_s']:,.0f}"] if cost else []
        table.rows.append((name, ms(value), ratio(value, p50["python -c pass"]), *(cells or ["", "", ""])))
    return result


# --- start-up ---------------------------------------------------------------------------------------------------------


async def _start_ups(rounds: int) -> dict[str, list[float]]:
    port, other = free_ports(), free_ports()
    with tempfile.TemporaryDirectory(prefix="trogdor-bus-bench-") as name:
        directory = Path(name)
        url, keys = f"zmq://127.0.0.1:{port}", directory / "keys"
        bus = transport(url).open_coordinator(url, keys)
        try:
            beats: asyncio.Queue[str] = asyncio.Queue()
            bus.receive(lambda frame: beats.put_nowait(decode(frame, Beat).node), lambda frame, answer: None)
            samples: dict[str, list[float]] = {}
            for number in range(-1, rounds):  # the first one fills the caches
                agent = f"node{number + 1}"
                common = ["--keys", str(keys), "--state-dir", str(directory / f"state{number}")]
                taken = {
                    "python -c pass": _to_end([sys.executable, "-c", "pass"]),
                    "trogdor-bus --help": _to_end([*TROGDOR, "--help"]),
                    "agent, first line": _to_line(
                        [*TROGDOR, "agent", "--node", "other", "--coordinator", f"127.0.0.1:{port}", *common],
                        "Starting agent process.",
                    ),
                    "agent, first beat": await _to_beat(
                        [*TROGDOR, "agent", "--node", agent, "--coordinator", f"127.0.0.1:{port}", *common],
                        agent,
                        beats,
                    ),
                    "coordinator": _to_line(
                        [*TROGDOR, "coordinator", "--port", str(other), *common], "Starting coordinator process."
                    ),
                }
                for what, value in taken.items() if number >= 0 else ():
                    samples.setdefault(what, []).append(value)
        finally:
            bus.close()
    return samples


def _to_end(argv: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment())
    return time.perf_counter() - begun


def _to_line(argv: list[str], line: str) -> float:
    begun = time.perf_counter()
    child = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, bufsize=1, env=environment()
    )
    try:
        assert child.stderr
        written = []
        for text in child.stderr:
            written.append(text)
            if line in text:
                return time.perf_counter() - begun
        raise HostError(f"{' '.join(argv)} ended without saying {line!r}: {''.join(written)}")
    finally:
        end(child)
        assert child.stderr
        child.stderr.close()


async def _to_beat(argv: list[str], node: str, beats: asyncio.Queue[str]) -> float:
    begun = time.perf_counter()
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    try:
        async with asyncio.timeout(START_S):
            while await beats.get() != node:
                pass
        return time.perf_counter() - begun
    except TimeoutError:
        raise HostError(f"the agent {node} sent no beat within {START_S:g} s") from None
    finally:
        end(child)


# --- idle -------------------------------------------------------------------------------------------------------------


def _idle(seconds: float) -> dict[str, dict[str, float]]:
    with Lab(AGENTS, f"bench{os.getpid()}") as lab:
        pids = {name: lab.process("agent", name).pid for name in lab.nodes}
        pids[COORDINATOR] = lab.process("coordinator", COORDINATOR).pid
        time.sleep(SETTLE_S)
        begun, before = time.perf_counter(), {name: (_cpu_s(pid), _wire_bytes(pid)) for name, pid in pids.items()}
        time.sleep(seconds)
        lasted, after = time.perf_counter() - begun, {n: (_cpu_s(pid), _wire_bytes(pid)) for n, pid in pids.items()}
        found = {
            name: {
                "cpu_percent": round(100 * (after[name][0] - before[name][0]) / lasted, 3),
                "rss_mb": round(max(map(_rss_bytes, _family(pid))) / MB, 1),
                "rss_with_guard_mb": round(sum(map(_rss_bytes, _family(pid))) / MB, 1),
                "bytes_per_s": round((after[name][1] - before[name][1]) / lasted),
                "seconds": round(lasted, 1),
            }
            for name, pid in pids.items()
        }
    agents = [found.pop(name) for name in lab.nodes]
    return {"agent": {what: median([agent[what] for agent in agents]) for what in agents[0]}, **found}


def _cpu_s(pid: int) -> float:
    """Return the seconds that all threads of a process and its children spent on a core (schedstat counts in ns)."""
    tasks = [task for one in _family(pid) for task in Path(f"/proc/{one}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _family(pid: int) -> list[int]:
    """Return a process and what it started: an agent runs under a guard."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def _wire_bytes(pid: int) -> int:
    """Return the bytes that went in and out at eth0 of the namespace in which a process lives."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "eth0":
            fields = counters.split()
            return int(fields[0]) + int(fields[8])
    raise HostError(f"process {pid} has no interface eth0")
