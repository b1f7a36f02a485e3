"""Several coordinators' addresses, against real daemons."""

from __future__ import annotations

import json
import re
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


@pytest.mark.matrix
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


@pytest.mark.matrix
def test_of_two_coordinators_at_both_addresses_the_newer_one_leads(site: TwoSeats) -> None:
    site.up("node1")
    first = site.daemons.pop("coordinator")
    site.port, site.other = site.other, site.port
    site.directory = site.directory / "second"
    site.directory.mkdir()
    site.start("coordinator")
    assert first.wait(30) == 1
    assert "fenced" in (site.directory.parent / "coordinator.log").read_text()
    site.await_alive("node1")
    assert site.noop().code == 0


@pytest.mark.matrix
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
    place = f"127.0.0.1:{site.other}"
    first, one, other, *advice = ran.err.splitlines()
    assert first == "error: no coordinator answered on any of 2 links within 3 s"
    answer = rf"  zmq {place}: no coordinator answered at {place} within [0-9.]+ s: connection refused by"
    assert re.match(answer, one), one  # less than 3 s if that link was open a little later
    assert other.startswith(f"  zmq 127.0.0.1:{site.port}: ")
    assert advice[0].startswith(f"  is one running there?   trogdor-bus coordinator --port {site.other} --insecure")


@pytest.mark.matrix
def test_brokers_that_are_down_do_not_keep_zeromq_from_working(tmp_path: Path) -> None:
    """The state is there already: with an empty one a coordinator waits for Kafka, which may know better."""
    site, broker = Site(tmp_path), f"127.0.0.1:{free_port()}"
    try:
        site.up()
        wait_until(lambda: not site.json("status")["listening"], 20, "the coordinator to lead")
        assert site.end("coordinator") == 0
        site.trust += ["--transport", "kafka+zmq", "--bootstrap-server", broker]
        site.start("coordinator")
        site.start("node1")
        wait_until(lambda: site.nodes().get("node1", {}).get("alive"), 60, "node1 to be heard")
        site.await_alive("node1")
        assert site.noop().code == 0
        wait_until(lambda: site.nodes()["node1"]["links"] == {"kafka": False, "zmq": True}, 15, "the dead link")
        assert "kafka silent" in site.run("nodes").out
        log = (tmp_path / "coordinator.log").read_text()
        assert re.search(f"link kafka is left out: .*{broker}", log), log
        assert "node node1: link kafka is silent" in log
    finally:
        site.down()


def test_nobody_on_kafka_is_told_with_what_to_do_there() -> None:
    ran = run("nodes", "--insecure", "--transport", "kafka", "--bootstrap-server", f"127.0.0.1:{free_port()}")
    assert ran.code == 4
    assert "is one running there?   trogdor-bus coordinator --transport kafka --bootstrap-server" in ran.err
    assert "--coordinator" not in ran.err
