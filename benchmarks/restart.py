"""A coordinator is killed and starts again: how long until it leads, and all agents go on with what they run."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from pathlib import Path

from benchmarks.bus import SPEC, ZMQ, begin, crowd, end, joined
from benchmarks.results import TROGDOR, Aim, Result, Table, median, ms, ratio
from trogdor_bus.client import Client
from trogdor_bus.errors import HostError, NoCoordinatorError
from trogdor_bus.states import WorkerState
from trogdor_bus.transports import transport

AGENTS, QUICK_AGENTS = 1_000, 100
RESTARTS, QUICK_RESTARTS = 5, 2
LISTENS_S = 2.0
"""A coordinator that starts listens for two beats, whatever it has."""
ROUND_S = 60.0
TASK = "noop"


def measure(*, quick: bool) -> Result:
    """Return the table."""
    agents, restarts = (QUICK_AGENTS, QUICK_RESTARTS) if quick else (AGENTS, RESTARTS)
    table = Table(
        title="Restart of the coordinator, killed with SIGKILL (ms), until all agents go on with a no-op",
        columns=("agents", "restarts", "leads p50", "all heard p50", "max", "ratio p50", "lost"),
        notes=(
            "Agents as in the benchmark of the bus, multiplexed in a few processes, CURVE on. Leads: it answers, and "
            "does not listen any more. All heard: the row of every node says that it is alive, and no worker is on its "
            "way. Lost: workers that do not run at the end.",
            f"The ratio is to the {LISTENS_S:g} s in which a coordinator only listens.",
        ),
    )
    result = Result(table=table)
    leads, heard, lost = asyncio.run(_measured(agents, restarts))
    cells = (f"{agents:,}", str(restarts), ms(median(leads)), ms(median(heard)), ms(max(heard)))
    table.rows.append((*cells, ratio(median(heard), LISTENS_S), str(lost)))
    if agents == AGENTS:
        result.aims.append(Aim(f"{agents:,} agents stay alive, and no worker is lost", f"{lost} lost", lost == 0))
    result.figures[f"agents_{agents}"] = {"leads_s": leads, "heard_s": heard, "lost": lost}
    return result


async def _measured(agents: int, restarts: int) -> tuple[list[float], list[float], int]:
    options, url = ZMQ.place()
    argv = [*TROGDOR, "coordinator", *options]
    leads, heard = list[float](), list[float]()
    with tempfile.TemporaryDirectory(prefix="trogdor-bus-bench-") as name, contextlib.ExitStack() as stack:
        directory, daemons = Path(name), [begin(argv, Path(name))]
        stack.callback(lambda: end(daemons[-1]))
        stack.enter_context(crowd(agents, directory, url))
        async with Client(transport(url).open_client(url, directory / "keys"), url, timeout_s=10.0) as client:
            await joined(client, agents)
            await client.create(TASK, SPEC)
            await _all_run(client, agents)
            for _ in range(restarts):
                begun = time.perf_counter()
                daemons[-1].kill()
                daemons[-1].wait()
                daemons.append(begin(argv, directory))
                await _until_it_leads(client)
                leads.append(time.perf_counter() - begun)
                await _all_run(client, agents)
                heard.append(time.perf_counter() - begun)
            states = [worker.state for worker in (await client.show(TASK)).workers]
    return leads, heard, agents - states.count(WorkerState.RUNNING)


async def _until_it_leads(client: Client) -> None:
    deadline = time.monotonic() + ROUND_S
    while time.monotonic() < deadline:
        with contextlib.suppress(NoCoordinatorError):
            if not (await client.status()).listening:
                return
        await asyncio.sleep(0.05)
    raise HostError(f"the coordinator does not lead within {ROUND_S:g} s")


async def _all_run(client: Client, agents: int) -> None:
    """Wait until all nodes are alive and all workers have been heard to run, or to have ended."""
    deadline = time.monotonic() + ROUND_S
    while time.monotonic() < deadline:
        rows, workers = await client.nodes(), (await client.show(TASK)).workers
        settled = sum(worker.state in (WorkerState.RUNNING, WorkerState.DONE) for worker in workers)
        if sum(row.alive for row in rows) == settled == agents:
            return
        await asyncio.sleep(0.1)
    raise HostError(f"not all of {agents} agents were heard within {ROUND_S:g} s")
