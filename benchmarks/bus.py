"""Submit to all active: how long until every agent runs a no-op, beside bare pyzmq doing the least that could."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import floor
from benchmarks.results import TROGDOR, Aim, Result, Table, environment, median, ms, percentile, ratio
from trogdor_bus.client import Client
from trogdor_bus.errors import BusError, HostError, NoCoordinatorError, TrogdorBusError
from trogdor_bus.messages import EVENT_TOPIC, VIEW_TOPIC, AnyEvent, TaskChanged, decode
from trogdor_bus.states import TaskRow, TaskState
from trogdor_bus.transports import transport

PROCESSES = floor.PROCESSES
JOIN_S = 60.0
ROUND_S = 30.0
AIM_AGENTS, AIM_TIMES = 100, 3.0
AIM = f"p50 within {AIM_TIMES:g} times the floor at N = {AIM_AGENTS}"
SPEC = b'{"class":"org.apache.kafka.trogdor.task.NoOpTaskSpec","durationMs":600000}'


class Size(msgspec.Struct, frozen=True):
    """How many agents, and how often: blocks of us and of each floor take turns."""

    agents: int
    blocks: int
    ours: int
    floor: int


FULL = (Size(10, 3, 70, 300), Size(100, 3, 40, 150), Size(1000, 2, 12, 40))
QUICK = (Size(10, 1, 25, 100), Size(100, 1, 15, 60))


def measure(*, quick: bool) -> Result:
    """Return the table of all sizes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    table = Table(
        title="Bus: submit to all active (ms), no-op spec, warm client, CURVE",
        columns=("agents", "p50", "p99", "n", "floor p50", "p99", "p50 no CURVE", "ratio p50"),
        notes=(
            f"Us: the coordinator daemon (SQLite), client and monitor here, the agents in {PROCESSES} processes that "
            "share a zmq context each: real service, machine, journal and transport, but the journal's disk is memory, "
            "the log holds warnings only, and the work is done without a thread of its own. "
            "Active: the create reply, and the event that all run, have both come.",
            f"Floor: bare PUB to N SUB in {PROCESSES} processes, {floor.MESSAGE_BYTES} bytes, each answers by PUSH to "
            "one PULL. The ratio is to the floor with CURVE. Us and floors took turns, never at once.",
        ),
    )
    result = Result(table=table)
    for size in QUICK if quick else FULL:
        try:
            _add(result, size.agents, _take_turns(size))
        except TrogdorBusError as error:
            table.rows.append((str(size.agents), "failed", *[""] * (len(table.columns) - 2)))
            table.notes += (f"{size.agents} agents: {error}.",)
            result.figures[f"agents_{size.agents}"] = {"failed": str(error)}
            if size.agents == AIM_AGENTS:
                result.aims.append(Aim(AIM, "nothing, it failed", met=False))
    return result


def _take_turns(size: Size) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {"ours": [], "floor_curve": [], "floor_plain": []}
    for _ in range(size.blocks):
        for name, curve in (("floor_plain", False), ("floor_curve", True)):
            with floor.hub(size.agents, curve=curve) as hub:
                samples[name] += [whole(hub.round()) for _ in range(size.floor)]
        samples["ours"] += asyncio.run(ours(size.agents, size.ours))
    return samples


def _add(result: Result, agents: int, samples: dict[str, list[float]]) -> None:
    p50 = {name: median(values) for name, values in samples.items()}
    p99 = {name: percentile(values, 0.99) for name, values in samples.items()}
    times = p50["ours"] / p50["floor_curve"]
    result.table.rows.append(
        (
            str(agents),
            ms(p50["ours"]),
            ms(p99["ours"]),
            str(len(samples["ours"])),
            ms(p50["floor_curve"]),
            ms(p99["floor_curve"]),
            ms(p50["floor_plain"]),
            ratio(p50["ours"], p50["floor_curve"]),
        )
    )
    result.figures[f"agents_{agents}"] = {
        "rounds": {name: len(values) for name, values in samples.items()},
        "p50_ms": {name: round(value * 1000, 3) for name, value in p50.items()},
        "p99_ms": {name: round(value * 1000, 3) for name, value in p99.items()},
        "ratio_p50_curve": round(times, 2),
        "ratio_p50_plain": round(p50["ours"] / p50["floor_plain"], 2),
    }
    if agents == AIM_AGENTS:
        result.aims.append(Aim(AIM, f"{times:.1f} times", times <= AIM_TIMES))


def whole(seconds: float | None) -> float:
    """Return the seconds of a round of bare sockets; HostError if there was none."""
    if seconds is None:
        raise HostError(f"a round of the bare sockets lost a message, or took over {floor.ROUND_S:g} s")
    return seconds


# --- us ---------------------------------------------------------------------------------------------------------------


class Bus(msgspec.Struct, frozen=True):
    """A bus: `transport` as the command line has it, and the brokers (HOST:PORT,...) if Kafka is in it."""

    transport: str = "zmq"
    brokers: str = ""

    def place(self) -> tuple[list[str], str]:
        """Return the options of a coordinator at a place of its own, and the URL of that."""
        options, urls = [], []
        if "kafka" in self.transport:
            prefix = f"bench{secrets.token_hex(4)}"
            options += ["--transport", self.transport, "--bootstrap-server", self.brokers, "--topic-prefix", prefix]
            urls.append(f"kafka://{self.brokers}/{prefix}")
        if "zmq" in self.transport:
            port = free_ports()
            options += ["--bind", "127.0.0.1", "--port", str(port)]
            urls.append(f"zmq://127.0.0.1:{port}")
        return options, " ".join(urls)


ZMQ = Bus()


class Watch:
    """What the monitor stream said of the tasks that are waited for."""

    def __init__(self) -> None:
        self.connected = asyncio.get_running_loop().create_future()
        self._waiting: dict[tuple[str, str], asyncio.Future[float]] = {}

    def expect(self, task_id: str, what: str) -> asyncio.Future[float]:
        """Return when (perf_counter) the task was heard to be "active" or "done"."""
        future = self._waiting[task_id, what] = asyncio.get_running_loop().create_future()
        return future

    def take(self, topic: str, frame: bytes) -> None:
        """Take in one frame of the monitor."""
        if topic == EVENT_TOPIC and frame.startswith(b'{"event":"task"'):
            event = decode(frame, AnyEvent)
            if isinstance(event, TaskChanged):
                self.see(event.task)
        elif topic == VIEW_TOPIC and not self.connected.done():
            self.connected.set_result(None)

    def see(self, task: TaskRow) -> None:
        """Take in what became of a task."""
        for what, come in (("active", task.active), ("done", task.state is TaskState.DONE)):
            future = self._waiting.pop((task.id, what), None) if come else None
            if future and not future.done():
                future.set_result(time.perf_counter())


@contextlib.contextmanager
def running(
    agents: int,
    directory: Path,
    *,
    coordinator: tuple[str, ...] = TROGDOR,
    profile: str = "",
    bus: Bus = ZMQ,
    requests: str = "",
) -> Iterator[str]:
    """Yield the URL of a coordinator daemon that was just started, with its crowd of agents; all ended after."""
    options, url = bus.place()
    with contextlib.ExitStack() as stack:
        stack.callback(end, begin([*coordinator, "coordinator", *options], directory))
        stack.enter_context(crowd(agents, directory, url, profile=profile, requests=requests))
        yield url


def begin(argv: list[str], directory: Path) -> subprocess.Popen[bytes]:
    """Start a coordinator whose state, keys and log are in the directory; HostError if it makes no keys."""
    keys, log = directory / "keys", directory / "coordinator.log"
    with log.open("ab") as said:
        daemon = subprocess.Popen(
            [*argv, "--state-dir", str(directory / "state"), "--keys", str(keys)],
            stdin=subprocess.DEVNULL,
            stderr=said,
            env=environment(),
        )
    deadline = time.monotonic() + 20
    while not (keys / "member.json").exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            end(daemon)
            raise HostError(f"the coordinator did not start: {log.read_text()[-2000:]}")
        time.sleep(0.02)
    return daemon


@contextlib.contextmanager
def crowd(agents: int, directory: Path, url: str, *, profile: str = "", requests: str = "") -> Iterator[None]:
    """Run so many agents, whose keys are in the directory, in a few processes, and end them after.

    `profile`, `requests`: what each process leaves behind, as a path without its number.
    """
    members: list[tuple[subprocess.Popen[bytes], Path]] = []
    with contextlib.ExitStack() as stack:
        for index in range(PROCESSES):
            given = {
                "url": url,
                "keys": str(directory / "keys"),
                "numbers": list(range(index, agents, PROCESSES)),
                "profile": f"{profile}.agents{index}" if profile else "",
                "requests": f"{requests}.agents{index}" if requests else "",
            }
            agents_log = stack.enter_context((directory / f"agents{index}.log").open("wb"))
            child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.crowd", json.dumps(given)],
                stdin=subprocess.PIPE,
                stderr=agents_log,
                env=environment(),
            )
            stack.callback(floor.hang_up, child)
            members.append((child, directory / f"agents{index}.log"))
        try:
            yield
        except HostError as error:
            for child, said in members:
                if child.poll() is not None:
                    raise HostError(f"{error}; the agents ended: {said.read_text()[-500:]}") from None
            raise


async def ours(agents: int, rounds: int, bus: Bus = ZMQ) -> list[float]:
    """Return the seconds from submit to all active of each round, on a bus with daemons that were just started."""
    with tempfile.TemporaryDirectory(prefix="trogdor-bus-bench-") as name, running(agents, Path(name), bus=bus) as url:
        return await submit_rounds(url, Path(name) / "keys", agents, rounds)


async def submit_rounds(url: str, keys: Path, agents: int, rounds: int) -> list[float]:
    """Return the seconds from submit to all active of each round; each task is stopped and destroyed after."""
    samples = []
    monitor = transport(url).open_monitor(url, keys)
    try:
        watch = Watch()
        monitor.receive(watch.take)
        async with Client(transport(url).open_client(url, keys), url, timeout_s=10.0) as client:
            await joined(client, agents)
            await asyncio.wait_for(watch.connected, 10)
            for number in range(-3, rounds):  # the first ones warm up
                taken = await _round(client, watch, f"noop-{number + 3}")
                if number >= 0:
                    samples.append(taken)
    finally:
        monitor.close()
    return samples


async def _round(client: Client, watch: Watch, task_id: str) -> float:
    active, done = watch.expect(task_id, "active"), watch.expect(task_id, "done")
    begun = time.perf_counter()
    await client.create(task_id, SPEC)
    replied = time.perf_counter()
    heard = await _in_time(client, watch, active, task_id)
    await client.stop(task_id)
    await _in_time(client, watch, done, task_id)
    await client.destroy(task_id)
    await asyncio.sleep(random.uniform(0.02, 0.08))
    return max(replied, heard) - begun


async def _in_time(client: Client, watch: Watch, future: asyncio.Future[float], task_id: str) -> float:
    """Return when a task was heard to have got on; who misses an event asks."""
    deadline = time.monotonic() + ROUND_S
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.shield(future), 1.0)
        watch.see((await client.show(task_id)).task)
    raise HostError(f"task {task_id} did not get on within {ROUND_S:g} s")


async def joined(client: Client, agents: int) -> None:
    """Wait until all agents are heard and the coordinator leads; HostError if that takes too long."""
    deadline = time.monotonic() + JOIN_S
    alive, leads = 0, False
    while alive < agents or not leads:
        if time.monotonic() > deadline:
            raise HostError(f"only {alive} of {agents} agents joined within {JOIN_S:g} s")
        await asyncio.sleep(0.2)
        with contextlib.suppress(NoCoordinatorError):
            alive = sum(node.alive for node in await client.nodes())
            leads = not (await client.status()).listening
    await asyncio.sleep(1.5)  # the beats of the newcomers settle


def free_ports() -> int:
    """Return the first of four free ports in a row on 127.0.0.1."""
    for _ in range(100):
        first = random.randrange(20_000, 32_000, 4)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + 4):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return first
    raise BusError("found no four free ports in a row on 127.0.0.1")


def end(child: subprocess.Popen[Any]) -> None:
    """Terminate a child and wait for it."""
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
