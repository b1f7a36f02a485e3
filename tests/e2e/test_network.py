"""Faults of the network on real namespaces, by the command line."""

from __future__ import annotations

import json
import socket
import time

import pytest

from tests.e2e.steps import await_active, await_matrix, new_id, partition, stop, submit
from tests.support import wait_until
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.demo import cut_between, examples, whole
from trogdor_bus.lab.probe import PING, WAYS

pytestmark = pytest.mark.e2e


def dial(lab: Lab, source: str, address: str) -> socket.socket:
    connection = lab.call_on(source, lambda: socket.create_connection((address, 9092), 2))
    connection.settimeout(1)
    return connection


def answers(connection: socket.socket, word: bytes) -> bool:
    connection.sendall(word)
    try:
        return connection.recv(1000) == word
    except TimeoutError:
        return False


def test_the_readme_example_unedited_cuts_and_heals_by_itself(lab: Lab) -> None:
    node3 = lab.member("node3")
    with dial(lab, "node1", node3.ipv4) as old4, dial(lab, "node1", node3.ipv6) as old6:
        assert answers(old4, b"hello") and answers(old6, b"hello")
        began = time.monotonic()
        waiting = lab.begin_trogdor("submit", str(examples() / "partition.json"), "--id", "readme", "--wait", "--json")
        cut = cut_between([["node1", "node2"], ["node3"]])
        await_matrix(lab, cut, "the cut of the README's example")
        cut_s = time.monotonic() - began
        assert not answers(old4, b"late") and not answers(old6, b"late")  # established ones too
    assert lab.alive() == {"node1", "node2", "node3"}
    assert lab.ask("show", "readme")["active"]
    while time.monotonic() - began < cut_s + 20:
        assert lab.matrix().agrees(cut)
        time.sleep(1)
    said, complained = waiting.communicate(timeout=30)
    assert waiting.returncode == 0, said + complained
    assert 29 <= time.monotonic() - began <= 36
    told = json.loads(said)
    assert (told["state"], told["outcome"], told["cancelled"]) == ("DONE", "done", False)
    assert told["spec"]["class"] == "org.apache.kafka.trogdor.fault.NetworkPartitionFaultSpec"
    assert set(told["status"].values()) == {"removed network partition readme"}
    await_matrix(lab, whole, "healing")


def test_overlapping_partitions_do_not_disturb_each_other(lab: Lab) -> None:
    first, second = new_id("first"), new_id("second")
    submit(lab, first, partition(["node1"], ["node2", "node3"]))
    submit(lab, second, partition(["node1", "node2"], ["node3"]))
    await_matrix(lab, cut_between([["node1"], ["node2"], ["node3"]]), "both cuts")
    stop(lab, first)
    assert lab.matrix().agrees(cut_between([["node1", "node2"], ["node3"]]))
    stop(lab, second)
    assert lab.matrix().agrees(whole)


def test_a_directed_partition_stops_one_direction_only(lab: Lab) -> None:
    def heard(source: str, target: str, address: str) -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def receiver() -> socket.socket:
            made = socket.socket(family, socket.SOCK_DGRAM)
            made.bind((address, 7777))
            made.settimeout(0.4)
            return made

        with (
            lab.call_on(target, receiver) as ear,
            lab.call_on(source, lambda: socket.socket(family, socket.SOCK_DGRAM)) as mouth,
        ):
            mouth.sendto(b"psst", (address, 7777))
            try:
                return ear.recv(100) == b"psst"
            except TimeoutError:
                return False

    task = new_id("directed")
    submit(lab, task, {"class": "directed-partition", "durationMs": 60_000, "from": ["node1"], "to": ["node2"]})
    await_active(lab, task)
    one, two = lab.member("node1"), lab.member("node2")
    for family in ("ipv4", "ipv6"):
        assert not heard("node1", "node2", getattr(two, family))
        assert heard("node2", "node1", getattr(one, family))
        assert heard("node1", "node3", getattr(lab.member("node3"), family))
    stop(lab, task)
    assert heard("node1", "node2", two.ipv4) and heard("node1", "node2", two.ipv6)


@pytest.mark.parametrize(("protocol", "left"), [("tcp", ("udp4", "udp6", *PING)), ("udp", ("tcp4", "tcp6", *PING))])
def test_a_port_block_closes_the_port_and_nothing_else(lab: Lab, protocol: str, left: tuple[str, ...]) -> None:
    task = new_id("port")
    spec = {"class": "port-block", "durationMs": 60_000, "nodes": ["node1"], "ports": [9092], "protocol": protocol}
    submit(lab, task, spec)
    await_matrix(
        lab, lambda source, target: left if target == "node1" else WAYS, f"{protocol} port 9092 of node1 to close"
    )
    stop(lab, task)


def test_a_port_block_outwards_leaves_what_comes_in(lab: Lab) -> None:
    task = new_id("port")
    spec = {"class": "port-block", "durationMs": 60_000, "nodes": ["node2"], "ports": [9092], "direction": "out"}
    submit(lab, task, spec)
    left = ("udp4", "udp6", *PING)
    await_matrix(
        lab, lambda source, target: left if source == "node2" else WAYS, "node2's way out to port 9092 to close"
    )
    stop(lab, task)


def test_a_task_that_was_stopped_before_its_start_does_nothing(lab: Lab) -> None:
    task = new_id("later")
    start_ms = int(time.time() * 1000) + 60_000
    submit(lab, task, partition(["node1"], ["node2"]) | {"startMs": start_ms})
    assert lab.ask("show", task)["state"] == "PENDING"
    stop(lab, task)
    told = lab.ask("show", task)
    assert (told["state"], told["outcome"], told["workers"]) == ("DONE", "cancelled", [])


def test_destroy_undoes_and_forgets(lab: Lab) -> None:
    task = new_id("destroyed")
    submit(lab, task, partition(["node1"], ["node2"]))
    await_matrix(lab, cut_between([["node1"], ["node2"]]), "the cut")
    assert lab.trogdor("destroy", task).returncode == 0
    await_matrix(lab, whole, "healing")
    wait_until(lambda: lab.trogdor("show", task).returncode == 2, what="the task to be forgotten")


def test_a_dry_run_tells_each_do_and_undo_and_does_nothing(lab: Lab) -> None:
    done = lab.trogdor("submit", "-", "--dry-run", given=json.dumps(partition(["node1"], ["node2"])))
    assert done.returncode == 0
    for member in ("node1", "node2"):
        assert member in done.stdout
        assert lab.member(member).ipv4 in done.stdout and lab.member(member).ipv6 in done.stdout
    assert lab.matrix().agrees(whole)
