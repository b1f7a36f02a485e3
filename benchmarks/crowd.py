"""Many agents in one process, for the bus benchmark: the real service, machine, journal and transport of each.

What is not real: they share the process and its zmq context, the journal's disk is memory, the platform records, the
log holds warnings only, and there is no thread for the work. Each agent would have a machine of its own for these.
Run as a program it is one of the processes that hold the agents; it ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import pstats
import sys
from collections import Counter
from pathlib import Path

import zmq

from trogdor_bus import logs
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.lanes import carry_out
from trogdor_bus.agents.perform import Performer
from trogdor_bus.agents.service import Service
from trogdor_bus.config import AgentSettings
from trogdor_bus.errors import NotFoundError
from trogdor_bus.fuse import Fuse
from trogdor_bus.testing import RecordingPlatform
from trogdor_bus.transports import transport
from trogdor_bus.transports.kafka import settings

SETTLE_S = 5.0
"""How long a client of Kafka may take until it is idle."""


class MemoryDisk:
    """A Disk that forgets everything when the process ends."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        if name not in self._files:
            raise NotFoundError(f"there is no file {name}")
        return self._files[name]

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._files))

    def create(self, name: str, data: bytes) -> None:
        self._files[name] = data

    def sync(self, name: str) -> None:
        pass

    def rename(self, old: str, new: str) -> None:
        self._files[new] = self._files.pop(old)

    def sync_directory(self) -> None:
        pass

    def remove(self, name: str) -> None:
        self._files.pop(name, None)


def node_name(number: int) -> str:
    """Return the name of one agent of the crowd."""
    return f"node{number:04d}"


async def _main() -> None:
    async with asyncio.TaskGroup() as group:  # an agent that fails ends all of them, loudly
        await _serve(group, **json.loads(sys.argv[1]))


class Requests:
    """What librdkafka says of the requests that all its clients in this process sent: one sample a second of each."""

    def __init__(self) -> None:
        self._samples: dict[str, list[tuple[float, Counter[str]]]] = {}

    def watch(self) -> None:
        """Have every client that is made from now on tell."""
        told = {"statistics.interval.ms": 1000, "stats_cb": self._take}
        settings.CONSUMER.update(told)
        settings.PRODUCER.update(told)

    def per_second(self, settled_s: float) -> dict[str, float]:
        """Return the rate of each kind of request, all clients together, without the first `settled_s` of each."""
        rates: Counter[str] = Counter()
        for samples in self._samples.values():
            later = [sample for sample in samples if sample[0] >= samples[0][0] + settled_s]
            (began_s, before), (ended_s, after) = later[0], later[-1]
            for kind, count in after.items():
                rates[kind] += (count - before[kind]) / (ended_s - began_s)
        return dict(rates)

    def _take(self, text: str) -> None:
        told = json.loads(text)
        sent: Counter[str] = Counter()
        for broker in told["brokers"].values():
            sent.update(broker["req"])
        self._samples.setdefault(told["name"], []).append((told["ts"] / 1e6, sent))


def _do_here(service: Service) -> None:
    """Have it do its calls at once: threads of each agent, all waiting for one interpreter lock, would be measured."""
    service.lanes.carry = lambda lane, calls: service.lanes.deliver(lane, carry_out(calls))


async def _serve(
    group: asyncio.TaskGroup, *, url: str, keys: str, numbers: list[int], profile: str, requests: str
) -> None:
    counted = Requests()
    if requests:
        counted.watch()
    shared: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    shared.max_sockets = 16 * len(numbers) + 16
    zmq.Context = lambda: shared  # type: ignore[assignment,misc]  # one context for the whole crowd
    for number in numbers:
        name = node_name(number)
        given = AgentSettings(node=name, url=url, state_dir=Path("/nowhere"), keys=Path(keys))
        journal = Journal(MemoryDisk())
        platform = RecordingPlatform((f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",))
        bus = transport(url).open_agent(url, name, given.keys)
        service = Service(given, Performer(journal, platform), bus, Fuse(given.state_dir))
        _do_here(service)
        group.create_task(service.run(asyncio.Event()))
        if number % 20 == 0:
            await asyncio.sleep(0)
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    if profile:
        profiler.disable()
        pstats.Stats(profiler).dump_stats(profile)
    if requests:
        Path(requests).write_text(json.dumps(counted.per_second(SETTLE_S)))
    os._exit(0)  # nothing here outlives the process


if __name__ == "__main__":
    logs.set_up("warning")
    asyncio.run(_main())
