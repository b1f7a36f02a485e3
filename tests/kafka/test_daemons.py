"""The command line over real Kafka: daemons and verbs on kafka and on kafka+zmq."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Ran, run
from tests.cli.test_aborts import Site, runs
from tests.cli.test_verbs import NOOP
from tests.support import wait_until
from trogdor_bus.errors import TakenError
from trogdor_bus.lab.kafka import KafkaCluster
from trogdor_bus.transports import several

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


class KafkaSite(Site):
    """A site on topics of its own, with keys; also with ZeroMQ if the transport says so."""

    def __init__(self, directory: Path, transport: str, bootstrap: str) -> None:
        super().__init__(directory, keys=True)
        self.transport = transport
        self.kafka = ["--transport", transport, "--bootstrap-server", bootstrap]
        self.kafka += ["--topic-prefix", f"test-{secrets.token_hex(4)}"]

    def command(self, name: str) -> list[str]:
        if name == "coordinator":
            return ["coordinator", *(["--port", str(self.port)] if "zmq" in self.transport else []), *self.kafka]
        return ["agent", "--node", name, *self.dialling(), *self.kafka]

    def dialling(self) -> list[str]:
        return ["--coordinator", self.dialled] if "zmq" in self.transport else []

    def run(self, *arguments: str, **environment: str) -> Ran:
        return run(*arguments, *self.dialling(), *self.kafka, *self.trust, **environment)

    def noop(self, node: str = "") -> Ran:
        """Perform a task that does nothing on all nodes, long enough for brokers on a busy machine."""
        return self.run("submit", NOOP % 3000, "--wait")


Make = Callable[[str], KafkaSite]


@pytest.fixture
def make(tmp_path: Path, bootstrap: str) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def made(transport: str) -> KafkaSite:
            site = KafkaSite(tmp_path, transport, bootstrap)
            stack.callback(site.down)
            return site

        yield made


def links(site: Site, node: str) -> Any:
    found = site.nodes()
    return found[node]["links"] if node in found else None


@pytest.mark.parametrize("transport", [pytest.param("kafka", marks=pytest.mark.core), "kafka+zmq"])
def test_faults_go_round_and_a_dead_coordinator_is_replaced_for_an_abort(make: Make, transport: str) -> None:
    site = make(transport)
    site.up("node1", "node2")
    ran = site.noop()
    assert ran.code == 0, ran
    where = site.run("status").out.splitlines()[0]
    assert "kafka://" in where and (f"or {site.dialled}" in where) == ("zmq" in transport), where
    both = {"kafka": True, "zmq": True} if "zmq" in transport else {}
    wait_until(lambda: links(site, "node1") == both, 15, "the links to be known")
    monitor = site.run("monitor", "--json", "--for", "3s")
    views = [json.loads(line)["view"]["atMs"] for line in monitor.out.splitlines() if line.startswith('{"view"')]
    assert monitor.code == 0 and views == sorted(set(views)) and views
    task, victim = site.freeze("node1")
    site.end("coordinator", signal.SIGKILL)
    ran = site.run("abort", "--state-dir", str(site.state_dir))
    assert ran.code == 0, ran
    assert "taking its place at kafka://" in ran.out and runs(victim)
    site.start("coordinator")
    site.await_alive("node1", "node2")
    assert site.json("show", task)["outcome"] == "aborted"
    assert site.run("resume").code == 0
    for name in ("node2", "node1", "coordinator"):
        assert site.end(name) == 0, (site.directory / f"{name}.log").read_text()


def test_a_second_coordinator_on_kafka_is_refused(make: Make, tmp_path: Path) -> None:
    site = make("kafka")
    site.up("node1")
    ran = run("coordinator", *site.kafka, *site.trust, "--state-dir", str(tmp_path / "other"))
    assert ran.code == 2, ran
    assert "this coordinator's store is empty, but the log has a state" in ran.err
    same_topics = f"kafka://{site.kafka[3]}/{site.kafka[-1]}"
    with pytest.raises(TakenError, match="another coordinator"):  # whatever its state is: the first one is present
        several().open_coordinator(same_topics, tmp_path / "keys")
    assert site.noop().code == 0


def test_when_kafka_is_frozen_everything_goes_on_over_zeromq_and_is_told(
    make: Make, kafka_cluster: KafkaCluster
) -> None:
    site = make("kafka+zmq")
    site.up("node1")
    wait_until(lambda: links(site, "node1") == {"kafka": True, "zmq": True}, 15, "both links to be alive")
    for node in kafka_cluster.nodes:
        kafka_cluster.pause(node)
    wait_until(lambda: links(site, "node1") == {"kafka": False, "zmq": True}, 15, "the link over Kafka to be dead")
    task, victim = site.freeze("node1")
    site.start("node2")
    site.await_alive("node1", "node2")
    assert site.run("stop", task, "--wait").code == 0 and runs(victim)
    assert site.end("coordinator") == 0
    site.start("coordinator")
    site.await_alive("node1", "node2")
    assert site.noop().code == 0
    for node in kafka_cluster.nodes:
        kafka_cluster.unpause(node)
    all_alive = {"kafka": True, "zmq": True}
    for name in ("node1", "node2"):
        wait_until(lambda name=name: links(site, name) == all_alive, 60, f"{name} to be back on Kafka")
    log = (site.directory / "coordinator.log").read_text()
    assert "node node1: link kafka is silent" in log and "node node1: link kafka is back" in log
    assert "kafka is silent" in (site.directory / "node1.log").read_text()


def test_zeromq_can_die_as_well(make: Make, tmp_path: Path) -> None:
    """Agents that dial an address where nobody is work over Kafka alone, and so do clients."""
    site = make("kafka+zmq")
    site.start("coordinator")
    wait_until((tmp_path / "keys" / "member.json").exists, 60, "the keys")
    port, site.port = site.port, 9
    site.start("node1")
    site.await_alive("node1")
    assert site.noop().code == 0
    wait_until(lambda: links(site, "node1") == {"kafka": True, "zmq": False}, 15, "the dead link to be known")
    site.port = port
    row = site.run("nodes").out
    assert "zmq silent" in row and "kafka silent" not in row
