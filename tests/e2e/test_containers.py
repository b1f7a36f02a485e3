"""Agents that stand outside and act on real Docker containers, which hold no Python."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import os
import pytest

from tests.e2e.docker import SERVICE, WORKER, Docker, Seen, require_docker
from tests.e2e.steps import await_active, await_done, new_id, partition, stop, submit
from tests.support import require_namespaces, wait_until
from trogdor_bus.lab import namespaces, probe
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.namespaces import COORDINATOR

pytestmark = pytest.mark.e2e

BROKERS = ("broker1", "broker2")
WAYS = ("ping4", "ping6", "tcp4", "tcp6")


class Cluster:
    """A lab of one node, two containers on its bridge, and for each of them an agent that stands outside."""

    def __init__(self, lab: Lab, docker: Docker) -> None:
        self.lab, self.docker = lab, docker
        self.addresses: dict[str, tuple[str, str]] = {}
        self._agents: dict[str, subprocess.Popen[str]] = {}
        self._plugs = 100

    def log(self, name: str) -> str:
        return self._log(name).read_text()

    def _log(self, name: str) -> Path:
        return self.lab.directory / f"{name}.log"

    def plug(self, name: str) -> None:
        """Wire a running container to the lab's bridge, with addresses that nobody had before."""
        self._plugs += 1
        pid, end = str(self.docker.pid(name)), f"plug{self._plugs}"
        v4, v6 = str(namespaces.SUBNET4[self._plugs]), str(namespaces.SUBNET6[self._plugs])
        bridge = ["ip", "-n", namespaces.bridge(self.lab.name)]
        namespaces.run([*bridge, *f"link add {end} type veth peer name eth0 netns {pid}".split()])
        namespaces.run([*bridge, *f"link set {end} master br0 up".split()])
        inside = ["nsenter", "--net", "--target", pid, "--"]
        namespaces.run([*inside, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0"])
        for command in (f"address add {v4}/24 dev eth0", f"address add {v6}/64 dev eth0 nodad", "link set eth0 up"):
            namespaces.run([*inside, "ip", *command.split()])
        self.addresses[name] = (v4, v6)

    def start_agent(self, name: str) -> None:
        config = self.lab.directory / "agents.yaml"
        config.write_text(json.dumps({"agent": {"allowCommands": [["docker", "start", name] for name in BROKERS]}}))
        self._agents[name] = self.lab.begin(
            COORDINATOR,
            *("sh", "-c", 'exec "$@" >"$0" 2>&1', str(self._log(name)), "env"),
            *(f"{key}={value}" for key, value in self.docker.settings.items()),
            *(sys.executable, "-m", "trogdor_bus", "agent", "--node", name, "--attach", f"container:{name}"),
            *("--state-dir", str(self.lab.directory / name), "--config", str(config)),
        )

    def wait_heard(self) -> None:
        """Return when the coordinator hears the agents of both containers; an agent that ended shows its log."""

        def heard() -> bool:
            ended = [name for name, agent in self._agents.items() if agent.poll() is not None]
            assert not ended, self.log(ended[0])
            return self.lab.alive() >= set(BROKERS)

        wait_until(heard, 20, "the agents of the containers to be heard")

    def announced(self, name: str) -> set[str]:
        return {a for row in self.lab.ask("nodes")["nodes"] if row["name"] == name for a in row["addresses"]}

    def reached(self, name: str) -> frozenset[str]:
        """Return the ways by which node1 makes a round trip to a container."""
        v4, v6 = self.addresses[name]

        def trips() -> dict[str, probe.RoundTrip]:
            made = {way: probe.RoundTrip(way, v6 if way.endswith("6") else v4) for way in WAYS}
            probe.finish(made.values(), 500)
            return made

        return frozenset(way for way, trip in self.lab.call_on("node1", trips).items() if trip.answered)

    def pings(self, source: str, address: str) -> bool:
        """Tell whether a program inside one container gets an answer."""
        try:
            self.docker.run("exec", source, "/bin/busybox", "ping", "-c", "1", "-W", "1", address)
        except AssertionError:
            return False
        return True

    def rules(self, pid: int) -> str:
        saves = (["nsenter", "--net", "--target", str(pid), "--", tool] for tool in ("iptables-save", "ip6tables-save"))
        return "".join(map(namespaces.run, saves))

    def seen(self, name: str, args: str) -> Seen:
        return self.docker.processes(name)[args]

    def restart(self, name: str) -> None:
        before = self.docker.pid(name)
        self.docker.run("restart", "-t", "0", name)
        assert self.docker.pid(name) not in (0, before)
        self.plug(name)

    def whole(self) -> bool:
        return all(self.reached(name) == frozenset(WAYS) for name in BROKERS)


def host() -> dict[str, str]:
    """Return the firewall and the network of the machine that the tests run on."""
    commands = ["iptables-save", "ip6tables-save", "nft list ruleset", "ip -o link", "ip -o address", "ip route"]
    commands += ["sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding", "ip netns"]
    known = [command.split() for command in commands if shutil.which(command.split()[0])]
    return {" ".join(argv): subprocess.run(argv, capture_output=True, text=True, check=True).stdout for argv in known}


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    require_namespaces()
    require_docker()
    with Docker() as docker, Lab(1, f"c{os.getpid()}") as lab:
        cluster = Cluster(lab, docker)
        for name in BROKERS:
            docker.create(name)
            cluster.plug(name)
            cluster.start_agent(name)
        cluster.wait_heard()
        yield cluster


@pytest.fixture
def cluster(made: Cluster) -> Iterator[Cluster]:
    """The cluster; after the test every container is reached, runs, and has no rule."""
    wait_until(made.whole, what="both containers to be reached")
    yield made
    wait_until(made.whole, what="both containers to be reached after the test")
    for name in BROKERS:
        assert "TB-" not in made.rules(made.docker.pid(name))
        assert {seen.state for seen in made.docker.processes(name).values()} <= {"S", "R"}


def test_the_agent_announces_the_addresses_of_its_container(cluster: Cluster) -> None:
    for name in BROKERS:
        wait_until(lambda: cluster.announced(name) == set(cluster.addresses[name]), what=f"the addresses of {name}")
