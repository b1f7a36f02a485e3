"""Kafka is the bus and Kafka is broken: nothing is lost, nothing is done twice, and hardly anything waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kafka.commands import Commands
from tests.kafka.daemons import COORDINATOR, Daemons
from tests.kafka.troubles import Trouble, cut, during, killed, stopped
from tests.support import wait_until
from trogdor_bus.lab.kafka import KafkaCluster
from trogdor_bus.lab.processes import LabProcess
from trogdor_bus.states import Outcome

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

INSIDE, OUTSIDE = "apart", "outside"
"""Two nodes, both seats: one's agent lives in it and can be cut off alone, the other's stands outside."""
DELAY_S = 5.0
"""How long a command may take while Kafka is broken. The aim is 2 s, but JVMs that start leave little of a machine."""
DOWN_S, BACK_S = 15.0, 30.0
"""How soon `nodes` must say that a link is down, and, once all brokers know each other, that it is back."""
LEASE_S, LATE_S = 6, 3.0
"""A short lease, and how late an agent may be with what is due."""
WHOLE_S = 240.0
"""How long three JVMs may take to start again, all at once, and to find each other."""

BOTH = {INSIDE, OUTSIDE}
TROUBLES: dict[str, tuple[Callable[[KafkaCluster], Trouble], set[str]]] = {
    "stopped": (stopped, BOTH),
    "killed": (killed, BOTH),
    "coordinator-cut-off": (lambda cluster: cut(cluster, COORDINATOR), BOTH),
    "agent-cut-off": (lambda cluster: cut(cluster, INSIDE), {INSIDE}),
}
"""Each with the nodes whose link over Kafka it takes down."""


def noop(duration_s: float = 900) -> dict[str, Any]:
    return {"class": "org.apache.kafka.trogdor.task.NoOpTaskSpec", "durationMs": int(duration_s * 1000)}


def freeze(victim: LabProcess, duration_s: float = 900) -> dict[str, Any]:
    match = victim.role.removeprefix("victim-")
    return {"class": "process-stop", "durationMs": int(duration_s * 1000), "nodes": [INSIDE], "match": match}


def block(duration_s: float = 900) -> dict[str, Any]:
    return {"class": "port-block", "durationMs": int(duration_s * 1000), "nodes": [OUTSIDE], "ports": [9999]}


def begun(daemons: Daemons, *options: str) -> Daemons:
    """Start coordinator and agents, and wait until they know each other."""
    daemons.start_coordinator()
    daemons.start_agent(INSIDE, *options)
    daemons.start_agent(OUTSIDE, "--attach", f"container:{daemons.cluster.container(OUTSIDE)}", *options)
    daemons.wait_joined()
    return daemons


def start_victim(daemons: Daemons, number: int) -> LabProcess:
    return daemons.start(INSIDE, f"victim-sleep {number}", "sleep", str(number))


@pytest.fixture(scope="module")
def both(made_kafka_cluster: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    """Coordinator and agents on Kafka and ZeroMQ."""
    with Daemons(made_kafka_cluster, tmp_path_factory.mktemp("both"), "kafka+zmq") as daemons:
        yield begun(daemons)


def links(kafka_dead: set[str]) -> dict[str, dict[str, bool]]:
    return {node: {"kafka": node not in kafka_dead, "zmq": True} for node in BOTH}


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.core] * (one == "killed")) for one in TROUBLES])
def test_with_zeromq_beside_it_broken_kafka_delays_nothing(
    both: Daemons, kafka_cluster: KafkaCluster, name: str
) -> None:
    make, dead = TROUBLES[name]
    asyncio.run(_through(both, kafka_cluster, name, make(kafka_cluster), dead))


async def _through(daemons: Daemons, cluster: KafkaCluster, word: str, trouble: Trouble, dead: set[str]) -> None:
    first, second, third = (start_victim(daemons, 734_100 + number) for number in range(3))

    async with daemons.client() as client:
        commands = Commands(daemons, client, word)
        await commands.links(links(set()), BACK_S)
        await commands.submit("noop-before", noop())
        await commands.submit("block-before", block())
        await commands.submit("freeze-before", freeze(first, 4), Outcome.DONE)
        assert (first.state(), bool(daemons.rules(OUTSIDE))) == ("stopped", True)
        usual_s = dict(commands.delays_s)
        commands.delays_s.clear()

        with during(trouble) as end:
            down = asyncio.create_task(commands.links(links(dead), DOWN_S))
            await commands.stop("block-before")
            assert not daemons.rules(OUTSIDE)
            await commands.submit("freeze-while", freeze(second))
            assert second.state() == "stopped"
            await commands.submit("short-while", noop(1), Outcome.DONE)
            await commands.done("freeze-before")
            assert first.state() == "running"
            await commands.done("short-while")
            down_s = await down
            assert daemons.links() == links(dead)
            await commands.submit("block-while", block())
            await commands.stop("noop-before")
            await commands.submit("ends-across", freeze(third, 5), Outcome.DONE)
            end()
            await commands.stop("freeze-while")
            assert second.state() == "running"
            await commands.submit("noop-across", noop())
        await asyncio.to_thread(cluster.wait_ready, WHOLE_S)
        back_s = await commands.links(links(set()), BACK_S)
        assert daemons.links() == links(set())
        await commands.stop("block-while")
        await commands.stop("noop-across")
        await commands.done("ends-across")
        assert (third.state(), daemons.rules(OUTSIDE)) == ("running", "")
        await commands.check_all()

    slowest = max(commands.delays_s, key=lambda what: commands.delays_s[what])
    told_s = {what: f"{delay_s:.2f} s" for what, delay_s in commands.delays_s.items()}
    print(
        f"\n{word}: before: at most {max(usual_s.values()):.2f} s; {told_s}; down {down_s:.1f} s, back {back_s:.1f} s"
    )
    assert commands.delays_s[slowest] < DELAY_S, (slowest, told_s)


@pytest.mark.core
def test_on_kafka_alone_deadlines_and_leases_hold_by_themselves(kafka_cluster: KafkaCluster, tmp_path: Path) -> None:
    with Daemons(kafka_cluster, tmp_path, "kafka") as daemons:
        asyncio.run(_held(begun(daemons, "--lease", f"{LEASE_S}s"), kafka_cluster))


async def _held(daemons: Daemons, cluster: KafkaCluster) -> None:
    soon, late = start_victim(daemons, 734_201), start_victim(daemons, 734_202)
    async with daemons.client() as client:
        commands = Commands(daemons, client, "alone")
        await commands.submit("lease", freeze(late), Outcome.LEASE)
        await commands.submit("lease-block", block(), Outcome.LEASE)
        await commands.submit("deadline", freeze(soon, 4), Outcome.DONE)
        with during(stopped(cluster)):
            since = time.monotonic()
            assert (soon.state(), late.state(), bool(daemons.rules(OUTSIDE))) == ("stopped", "stopped", True)
            wait_until(lambda: soon.state() == "running", 4 + LATE_S, "the deadline")
            deadline_s = time.monotonic() - since
            wait_until(lambda: late.state() == "running", LEASE_S + LATE_S - deadline_s, "the lease of one agent")
            wait_until(lambda: not daemons.rules(OUTSIDE), LATE_S, "the lease of the other")
            lease_s = time.monotonic() - since
            await asyncio.sleep(2 * LEASE_S - lease_s)  # nothing happens, and the brokers have forgotten each other
        await asyncio.to_thread(cluster.wait_ready, WHOLE_S)
        for name in ("lease", "lease-block", "deadline"):
            await commands.done(name)
        await commands.submit("after", freeze(late))
        await commands.stop("after")
        await commands.check_all()
    print(
        f"\nalone: silence; the deadline ended one after {deadline_s:.1f} s, the lease the others after {lease_s:.1f} s"
    )
