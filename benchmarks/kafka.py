"""Kafka as the bus beside ZeroMQ: submit to all active, and what an idle agent asks of the brokers.

It needs a real cluster, so it runs itself again as a program beside a private Docker, and takes the result from there.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks import floor
from benchmarks.bus import ZMQ, Bus, joined, ours, running, whole
from benchmarks.results import ROOT, Result, Skipped, Table, median, ms, percentile, ratio
from trogdor_bus.client import Client
from trogdor_bus.errors import HostError, TrogdorBusError
from trogdor_bus.lab.kafka import DEFAULT_VERSION, KafkaCluster
from trogdor_bus.transports import transport

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "trogdor-bus/kafka-image"
TOOLS = ("dockerd", "docker", "setpriv")
BESIDE_DOCKER = 'contrib/kafka-image/build --version "$1" >&2; shift; exec "$@"'
IDLE_AGENTS, IDLE_S = 10, 25.0


class Size(msgspec.Struct, frozen=True):
    """How many agents, and how often: blocks of the floor and of each bus take turns."""

    agents: int
    blocks: int
    ours: int
    floor: int


FULL = (Size(10, 2, 40, 200), Size(100, 2, 20, 100))
QUICK = (Size(10, 1, 20, 100),)


def measure(*, quick: bool) -> Result:
    """Return the table of all buses and sizes; Skipped says what this machine lacks."""
    if os.geteuid() != 0:
        raise Skipped("it needs root: run it with sudo")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise Skipped(f"{tool} is not installed, which is of Debian's Docker or of util-linux")
    if not list(CACHE.glob(f"kafka-{DEFAULT_VERSION}-*.tar")):
        raise Skipped("there is no image of Kafka here: contrib/kafka-image/build --only-cache, or make test-kafka")
    again = [sys.executable, "-m", "benchmarks.kafka", *(["--quick"] if quick else [])]
    beside = [str(ROOT / ".ci/with-docker"), "sh", "-ec", BESIDE_DOCKER, "sh", DEFAULT_VERSION, *again]
    done = subprocess.run(beside, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise HostError(f"the benchmark beside a Docker of its own ended {done.returncode}")
    return msgspec.json.decode(done.stdout, type=Result)


def measure_here(*, quick: bool) -> Result:
    """Return the table, measured on a cluster of the Docker that is here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    table = Table(
        title="Kafka as the bus: submit to all active (ms), no-op spec, warm client, keys",
        columns=("agents", "bus", "p50", "p99", "n", "floor p50", "ratio p50"),
        notes=(
            "Three combined brokers in containers on this machine; us as in the benchmark `bus`, and each agent has "
            "its own clients of Kafka. The create reply waits until the task is replicated on Kafka. The floor is "
            "that of `bus`, bare ZeroMQ with CURVE. Floor and buses took turns, never at once.",
        ),
    )
    result = Result(table=table)
    with KafkaCluster(3, f"bench{os.getpid()}", lambda step: print(step, file=sys.stderr)) as cluster:
        buses = (ZMQ, Bus("kafka", cluster.bootstrap_inside), Bus("kafka+zmq", cluster.bootstrap_inside))
        for size in QUICK if quick else FULL:
            _add(result, size, buses)
        for bus in buses[1:]:
            _add_idle(result, bus)
    return result


# --- submit to all active ---------------------------------------------------------------------------------------------


def _add(result: Result, size: Size, buses: tuple[Bus, ...]) -> None:
    samples: dict[str, list[float]] = {bus.transport: [] for bus in buses}
    bare: list[float] = []
    failed: dict[str, str] = {}
    for _ in range(size.blocks):
        with floor.hub(size.agents, curve=True) as hub:
            bare += [whole(hub.round()) for _ in range(size.floor)]
        for bus in buses:
            try:
                samples[bus.transport] += asyncio.run(ours(size.agents, size.ours, bus))
            except TrogdorBusError as error:
                failed[bus.transport] = str(error)
    for bus, values in samples.items():
        row = [str(size.agents), bus, "failed", "", str(len(values)), "", ""]
        figures: dict[str, object] = {"rounds": len(values)}
        if values:
            p50, p99 = median(values), percentile(values, 0.99)
            row[2:] = [ms(p50), ms(p99), str(len(values)), ms(median(bare)), ratio(p50, median(bare))]
            figures |= {"p50_ms": round(p50 * 1000, 3), "p99_ms": round(p99 * 1000, 3)}
            figures["ratio_p50"] = round(p50 / median(bare), 2)
        if bus in failed:
            figures["failed"] = failed[bus]
            result.table.notes += (f"{size.agents} agents, {bus}: a block failed: {failed[bus]}.",)
        result.table.rows.append(tuple(row))
        result.figures[f"{bus}_{size.agents}"] = figures


# --- idle -------------------------------------------------------------------------------------------------------------


def _add_idle(result: Result, bus: Bus) -> None:
    rates = asyncio.run(_idle(bus))
    kinds = sorted(((rate, kind) for kind, rate in rates.items() if rate >= 0.05), reverse=True)
    listed = ", ".join(f"{kind} {rate:.1f}" for rate, kind in kinds)
    result.table.notes += (
        f"{bus.transport}: an idle agent sends the brokers {sum(rates.values()):.1f} requests a second ({listed}), by "
        f"librdkafka's own count, mean of {IDLE_AGENTS} agents.",
    )
    result.figures[f"{bus.transport}_idle_requests_per_s"] = {kind: round(rate, 2) for kind, rate in rates.items()}


async def _idle(bus: Bus) -> dict[str, float]:
    """Return the requests per second of one agent, by kind."""
    with tempfile.TemporaryDirectory(prefix="trogdor-bus-bench-") as name:
        directory = Path(name)
        with running(IDLE_AGENTS, directory, bus=bus, requests=str(directory / "requests")) as url:
            async with Client(transport(url).open_client(url, directory / "keys"), url, timeout_s=10.0) as client:
                await joined(client, IDLE_AGENTS)
            time.sleep(IDLE_S)
        told = [json.loads(path.read_text()) for path in directory.glob("requests.agents*")]
    kinds = {kind for rates in told for kind in rates}
    return {kind: sum(rates.get(kind, 0.0) for rates in told) / IDLE_AGENTS for kind in kinds}


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measure_here(quick="--quick" in sys.argv)))
