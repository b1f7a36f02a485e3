"""Agents that stand outside and act on real Docker containers, which hold no Python."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.docker import SERVICE, WORKER, Docker, Seen, require_docker
from tests.e2e.steps import await_active, new_id, partition, stop, submit
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
        config = self.lab.directory / f"{name}.yaml"
        config.write_text(json.dumps({"agent": {"allowCommands": [["docker", "start", name]]}}))
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

    def announced(self) -> dict[str, set[str]]:
        """Return the addresses of the containers as the coordinator knows them."""
        return {row["name"]: set(row["addresses"]) for row in self.lab.ask("nodes")["nodes"] if row["name"] in BROKERS}

    def real(self) -> dict[str, set[str]]:
        """Return the addresses of the containers as they are."""
        return {name: set(pair) for name, pair in self.addresses.items()}

    def reached(self, name: str) -> frozenset[str]:
        """Return the ways by which node1 makes a round trip to a container."""
        v4, v6 = self.addresses[name]

        def trips() -> dict[str, probe.RoundTrip]:
            made = {way: probe.RoundTrip(way, v6 if way.endswith("6") else v4) for way in WAYS}
            probe.finish(made.values(), 500)
            return made

        return frozenset(way for way, trip in self.lab.call_on("node1", trips).items() if trip.answered)

    def pinged(self, source: str, target: str) -> set[str]:
        """Return the addresses of one container that answer a program inside another one."""
        script = "for to; do ping -c 1 -W 1 $to >/dev/null && echo $to & done; wait"
        return set(self.inside(source, "sh", "-c", script, "sh", *self.addresses[target]).split())

    def inside(self, name: str, *argv: str) -> str:
        """Return what a program of busybox prints inside a container."""
        return self.docker.run("exec", name, "/bin/busybox", *argv)

    def rules(self, name: str) -> list[str]:
        """Return the rules in a container's namespace, IPv4 and IPv6."""
        inside = ["nsenter", "--net", "--target", str(self.docker.pid(name)), "--"]
        lines = (namespaces.run([*inside, f"{tool}-save"]).splitlines() for tool in ("iptables", "ip6tables"))
        return [line for line in itertools.chain(*lines) if line.startswith(("-A", ":TB-"))]

    def seen(self, name: str, args: str) -> Seen:
        return self.docker.processes(name)[args]

    def whole(self) -> bool:
        return all(self.reached(name) == frozenset(WAYS) for name in BROKERS)


def host() -> dict[str, list[str]]:
    """Return the firewall and the network of the machine that the tests run on, without comments and counters."""
    commands = ["iptables-save", "ip6tables-save", "nft --stateless list ruleset", "ip -o link", "ip -o route"]
    commands += ["sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding"]
    return {
        command: [line.partition(" [")[0] for line in namespaces.run(command.split()).splitlines() if line[0:1] != "#"]
        for command in commands
        if shutil.which(command.split()[0])
    }


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    require_namespaces()
    require_docker()
    before = host()
    with Docker() as docker, Lab(1, f"c{os.getpid()}") as lab:
        cluster = Cluster(lab, docker)
        for name in BROKERS:
            docker.create(name)
            cluster.plug(name)
            cluster.start_agent(name)
        cluster.wait_heard()
        yield cluster
    assert host() == before


@pytest.fixture
def cluster(made: Cluster) -> Iterator[Cluster]:
    """The cluster; after the test every container is reached, runs, and has no rule."""
    wait_until(made.whole, what="both containers to be reached")
    wait_until(lambda: made.announced() == made.real(), what="the addresses of the containers to be announced")
    yield made
    wait_until(made.whole, what="both containers to be reached after the test")
    for name in BROKERS:
        assert made.rules(name) == []
        assert {seen.state for seen in made.docker.processes(name).values()} <= {"S", "R"}


def test_the_agent_announces_the_addresses_of_its_container(cluster: Cluster) -> None:
    assert cluster.announced() == cluster.real()


def test_a_partition_cuts_containers_off_from_each_other_and_heals(cluster: Cluster) -> None:
    lab, task, before = cluster.lab, new_id("partition"), host()
    submit(lab, task, partition(["broker1"], ["broker2", "node1"]))
    await_active(lab, task)
    assert not cluster.reached("broker1")
    assert cluster.reached("broker2") == frozenset(WAYS)
    for source, target in (BROKERS, BROKERS[::-1]):
        assert not cluster.pinged(source, target)
        assert any("TB-" in rule for rule in cluster.rules(source))
    assert host() == before
    wait_until(lambda: dropped(lab, task)["broker1"] > 0, what="broker1 to tell that its rules drop")
    stop(lab, task)
    assert dropped(lab, task)["broker1"] > 0
    assert cluster.whole()
    assert cluster.pinged(*BROKERS) == set(cluster.addresses["broker2"])
    assert lab.ask("show", task)["outcome"] == "cancelled"


def dropped(lab: Lab, task: str) -> dict[str, int]:
    """Return how many packets the rules of each node dropped, as `show` tells."""
    return {worker["node"]: worker["dropped"] for worker in lab.ask("show", task)["workers"]}


def test_a_port_block_silences_connections_that_stand_already(cluster: Cluster) -> None:
    lab, task = cluster.lab, new_id("port")
    with contextlib.ExitStack() as stack:
        dialled = [
            stack.enter_context(lab.call_on("node1", functools.partial(socket.create_connection, (address, 9092), 2)))
            for address in cluster.addresses["broker1"]
        ]
        assert all(echoes(connection, b"hello") for connection in dialled)
        submit(lab, task, {"class": "port-block", "durationMs": 60_000, "nodes": ["broker1"], "ports": [9092]})
        await_active(lab, task)
        assert cluster.reached("broker1") == {"ping4", "ping6"}
        assert cluster.reached("broker2") == frozenset(WAYS)
        assert not any(echoes(connection, b"late") for connection in dialled)
        stop(lab, task)


def echoes(connection: socket.socket, word: bytes) -> bool:
    connection.settimeout(0.5)
    connection.sendall(word)
    try:
        return connection.recv(1000) == word
    except TimeoutError:
        return False


def stop_process(**match: Any) -> dict[str, Any]:
    return {"class": "process-stop", "durationMs": 60_000, "nodes": ["broker1"], **match}


@pytest.mark.parametrize(
    "match", [{"match": "sleep 734001"}, {"pidFile": "/run/worker.pid"}, {"pidFile": "/var/run/worker.pid"}]
)
def test_a_stop_hits_the_process_of_the_container_and_no_other(cluster: Cluster, match: dict[str, str]) -> None:
    lab, task = cluster.lab, new_id("freeze")
    inner = int(cluster.inside("broker1", "cat", "/run/worker.pid"))
    others = [lab.begin(member, "sleep", "734001") for member in ("node1", COORDINATOR)]
    try:
        before = state(inner)
        submit(lab, task, stop_process(**match))
        await_active(lab, task)
        assert cluster.seen("broker1", WORKER).state == "T"
        assert cluster.seen("broker1", SERVICE).state == "S"
        assert cluster.seen("broker2", WORKER).state == "S"
        assert [state(other.pid) for other in others] == ["S", "S"]
        assert state(inner) == before  # who has that pid out here
        stop(lab, task)
        assert cluster.seen("broker1", WORKER).state == "S"
    finally:
        for other in others:
            other.kill()
            other.communicate(timeout=5)


def state(pid: int) -> str:
    """Return the state of a process of the host, "" if nobody has that pid; the moods of an idle one count as one."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return "S" if letter in "SDIR" else letter


def test_pid_1_of_a_container_is_stopped_from_outside(cluster: Cluster) -> None:
    lab, task = cluster.lab, new_id("freeze")
    assert cluster.inside("broker1", "cat", "/run/service.pid") == "1"
    submit(lab, task, stop_process(pidFile="/run/service.pid"))
    await_active(lab, task)
    assert cluster.seen("broker1", SERVICE).state == "T"
    assert cluster.reached("broker1") == {"ping4", "ping6"}
    assert cluster.seen("broker2", SERVICE).state == "S"
    stop(lab, task)
    assert cluster.reached("broker1") == frozenset(WAYS)


def test_a_container_restarted_in_mid_fault_is_a_new_one_that_no_undo_touches(cluster: Cluster) -> None:
    lab, docker = cluster.lab, cluster.docker
    cut, frozen, again = new_id("cut"), new_id("frozen"), new_id("again")
    submit(lab, cut, partition(["broker1"], ["broker2", "node1"]))
    submit(lab, frozen, stop_process(pidFile="/run/service.pid"))
    await_active(lab, cut)
    await_active(lab, frozen)
    old = docker.pid("broker1")
    docker.run("restart", "-t", "0", "broker1")
    cluster.plug("broker1")
    assert docker.pid("broker1") not in (0, old)
    # what the new one has, an undo of the old one's faults must leave: a rule and a stopped process
    rule = "INPUT -p udp -m udp --dport 7 -j DROP"
    inside = f"nsenter --net --target {docker.pid('broker1')} -- iptables"
    namespaces.run(f"{inside} -A {rule}".split())
    cluster.inside("broker1", "sh", "-c", "kill -STOP $(cat /run/worker.pid)")
    processes = docker.processes("broker1")
    assert processes[WORKER].state == "T"
    for task, what in ((cut, "the network namespace has no name"), (frozen, "(busybox) ended")):
        stop(lab, task)
        told = lab.ask("show", task)
        assert (told["state"], told["outcome"], told.get("error", "")) == ("DONE", "cancelled", ""), told
        (worker,) = (one for one in told["workers"] if one["node"] == "broker1")
        assert [note for note in worker["warnings"] if note.startswith("gone: ") and what in note], worker
    assert cluster.rules("broker1") == [f"-A {rule}"]
    assert docker.processes("broker1") == processes
    assert cluster.reached("broker1") == frozenset(WAYS)

    wait_until(lambda: cluster.announced() == cluster.real(), what="the new addresses to be announced")
    submit(lab, again, {"class": "port-block", "durationMs": 60_000, "nodes": ["broker1"], "ports": [9092]})
    await_active(lab, again)
    assert cluster.reached("broker1") == {"ping4", "ping6"}
    stop(lab, again)
    assert cluster.rules("broker1") == [f"-A {rule}"]
    namespaces.run(f"{inside} -D {rule}".split())
    cluster.inside("broker1", "sh", "-c", "kill -CONT $(cat /run/worker.pid)")


def test_pid_1_of_a_container_is_killed_from_outside_and_docker_starts_it_again(cluster: Cluster) -> None:
    lab, docker, task = cluster.lab, cluster.docker, new_id("kill")
    kill = {"class": "process-kill", "durationMs": 60_000, "nodes": ["broker1"], "pidFile": "/run/service.pid"}
    refused = lab.trogdor("submit", "-", "--wait", "--json", given=json.dumps(kill | {"signal": "SIGTERM"}))
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "init of its own pid namespace" in json.loads(refused.stdout)["error"]
    before, other = docker.pid("broker1"), docker.pid("broker2")
    assert before

    submit(lab, task, kill | {"restart": ["docker", "start", "broker1"]})
    await_active(lab, task)
    wait_until(lambda: docker.pid("broker1") == 0, what="Docker to see that the container ended")
    assert docker.run("inspect", "--format", "{{.State.ExitCode}}", "broker1") == str(128 + signal.SIGKILL)
    assert state(before) == ""
    stop(lab, task)
    assert docker.pid("broker1") not in (0, before)
    assert docker.pid("broker2") == other
    cluster.plug("broker1")


def test_a_container_is_started_again_because_what_was_killed_was_of_it(cluster: Cluster) -> None:
    lab, docker, task = cluster.lab, cluster.docker, new_id("kill")
    kill = {"class": "process-kill", "durationMs": 60_000, "nodes": ["broker1"], "pidFile": "/run/service.pid"}
    refused = lab.trogdor(
        "submit", "-", "--wait", "--json", given=json.dumps(kill | {"restart": {"container": "broker2"}})
    )
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert re.search(
        r'is not of the container broker2, .*lists \["docker", "start", "broker2"\] under allowCommands',
        json.loads(refused.stdout)["error"],
    )
    before, other = docker.pid("broker1"), docker.pid("broker2")
    submit(lab, task, kill | {"restart": {"container": "broker1", "unless": {"match": WORKER}}})
    await_active(lab, task)
    entry = next(
        path
        for path in (lab.directory / "broker1").glob("worker-*.json")
        if json.loads(path.read_text())["task"] == task
    )
    (step,) = json.loads(entry.read_text())["steps"]
    assert step["undo"]["how"] == {
        "by": "container",
        "engine": shutil.which("docker"),
        "id": docker.run("inspect", "--format", "{{.Id}}", "broker1"),
        "name": "broker1",
    }
    assert state(before) == ""
    stop(lab, task)
    assert docker.pid("broker1") not in (0, before)
    assert docker.pid("broker2") == other
    cluster.plug("broker1")


def test_what_was_killed_in_a_container_is_started_again_as_that_container_is_now(cluster: Cluster) -> None:
    lab, docker = cluster.lab, cluster.docker
    kill = {"class": "process-kill", "durationMs": 60_000, "nodes": ["broker1"], "pidFile": "/run/service.pid"}
    first = docker.run("inspect", "--format", "{{.Id}}", "broker1")
    for made_anew in (False, True):
        if made_anew:
            docker.run("rm", "-f", "broker1")
            docker.create("broker1")
            cluster.plug("broker1")
        task, before = new_id("found"), docker.pid("broker1")
        other = docker.pid("broker2")
        submit(lab, task, kill | {"restart": {"found": True, "unless": {"match": WORKER}}})
        await_active(lab, task)
        assert state(before) == ""
        stop(lab, task)
        assert lab.ask("show", task)["outcome"] == "cancelled"
        assert docker.pid("broker1") not in (0, before)
        assert docker.pid("broker2") == other
        assert (docker.run("inspect", "--format", "{{.Id}}", "broker1") == first) is not made_anew
        cluster.plug("broker1")
