"""Several coordinators' addresses, against real daemons."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import run
from tests.cli.test_aborts import Site, runs
from tests.cli.test_verbs import free_port
from tests.support import wait_until


class TwoSeats(Site):
    """A site whose agents and clients know two addresses: the coordinator's, and one where another may be one day."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.other = free_port()

    @property
    def dialled(self) -> str:
        return f"127.0.0.1:{self.other},127.0.0.1:{self.port}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TwoSeats]:
    made = TwoSeats(tmp_path)
    try:
        yield made
    finally:
        made.down()


def test_agents_and_clients_find_the_coordinator_at_either_address(site: TwoSeats) -> None:
    site.up("node1")
    assert site.noop().code == 0
    places = f"127.0.0.1:{site.other} or 127.0.0.1:{site.port}"
    assert site.run("status").out.startswith(f"Coordinator is running at {places}.\n")
    link = f"zmq 127.0.0.1:{site.port}"
    wait_until(lambda: site.nodes()["node1"]["links"] == {link: True}, 10, "the link to be known")
    header, row = (line.split() for line in site.run("nodes").out.splitlines()[:2])
    assert header[:4] == ["NODE", "STATE", "HEARD", "LINKS"] and " ".join(row[4:6]) == link
    monitor = site.run("monitor", "--json", "--for", "2s")
    views = [json.loads(line)["view"] for line in monitor.out.splitlines() if line.startswith('{"view"')]
    assert len(views) >= 1 and len({view["atMs"] for view in views}) == len(views)
    assert views[-1]["nodes"][0]["links"] == {link: True}
    wait_until(
        lambda: "the coordinator answers on" in (site.directory / "node1.log").read_text(), 10, "the agent's log"
    )
    log = (site.directory / "node1.log").read_text()
    assert f"the coordinator answers on {link}; zmq 127.0.0.1:{site.other} is silent (connection refused by" in log
    log = (site.directory / "coordinator.log").read_text()
    assert "is silent" not in log and "is back" not in log


def test_another_coordinator_goes_on_at_the_other_address(site: TwoSeats) -> None:
    site.up("node1")
    task, victim = site.freeze("node1")
    site.end("coordinator", signal.SIGKILL)
    site.port, site.other = site.other, site.port
    site.start("coordinator")
    site.await_alive("node1")
    assert site.json("show", task)["state"] == "RUNNING" and not runs(victim)
    assert site.run("stop", task, "--wait").code == 0
    assert runs(victim)


def test_an_abort_takes_the_place_of_a_dead_coordinator_at_its_own_address(site: TwoSeats) -> None:
    site.up("node1")
    _, victim = site.freeze("node1")
    site.end("coordinator", signal.SIGKILL)
    ran = site.run("abort", "--state-dir", str(site.state_dir))
    assert ran.code == 0, ran
    place = f"zmq://127.0.0.1:{site.port}"  # the state tells which of the two
    assert ran.out.startswith(
        f"No coordinator answers at {site.dialled.replace(',', ' or ')}: taking its place at {place}."
    )
    assert runs(victim)


def test_nobody_at_any_address(site: TwoSeats) -> None:
    ran = site.run("status")
    assert ran.code == 4
    first, one, other, *advice = ran.err.splitlines()
    assert first == "error: no coordinator answered on any of 2 links within 3 s"
    assert one.startswith(
        f"  zmq 127.0.0.1:{site.other}: no coordinator answered at 127.0.0.1:{site.other} within 3 s: "
    )
    assert other.startswith(f"  zmq 127.0.0.1:{site.port}: ")
    assert advice[0].startswith(f"  is one running there?   trogdor-bus coordinator --port {site.other} --insecure")


def test_kafka_that_is_not_there_does_not_keep_zeromq_from_working(tmp_path: Path) -> None:
    """Nobody listens where Kafka should be: everything goes on over ZeroMQ, and says so."""
    ran = run("nodes", "--insecure", "--transport", "kafka", "--bootstrap-server", f"127.0.0.1:{free_port()}")
    assert ran.code == 4
    assert "is one running there?   trogdor-bus coordinator --transport kafka --bootstrap-server" in ran.err
