"""Every address that a node announces is cut, those of the configuration and those that come while a fault lasts."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.steps import await_active, await_matrix, new_id, partition, stop, submit
from tests.support import wait_until
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.demo import cut_between

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

FOLLOWED_S = 30.0
"""Agents read their addresses every 5 s; a machine may be busy."""
SHARED = "172.17.0.1"


@contextlib.contextmanager
def with_addresses(lab: Lab, addresses: dict[str, str], *how: str) -> Iterator[None]:
    """Give nodes one more address each, on the wire to the others unless `how` says where, and take it back."""
    devices = {}
    for node in addresses:
        other = next(lab.member(name).ipv4 for name in lab.nodes if name != node)
        route = lab.run(node, "ip", "-o", "route", "get", other).stdout
        devices[node] = how or ("dev", route.split(" dev ")[1].split()[0])
    try:
        for node, address in addresses.items():
            assert lab.run(node, "ip", "addr", "add", address, *devices[node]).returncode == 0
        yield
    finally:
        for node, address in addresses.items():
            lab.run(node, "ip", "addr", "del", address, *devices[node])


def hears(lab: Lab, node: str, address: str) -> bool:
    return lab.run(node, "ping", "-n", "-c1", "-W1", address).returncode == 0


def announcing(lab: Lab, address: str) -> set[str]:
    return {node["name"] for node in lab.ask("nodes")["nodes"] if address in node["addresses"]}


def disturbed(lab: Lab, task: str) -> dict[str, list[tuple[str, bool]]]:
    workers = lab.ask("show", task)["workers"]
    return {one["node"]: [(found["text"], found["mended"]) for found in one["disturbed"]] for one in workers}


def await_disturbed(lab: Lab, task: str, expected: dict[str, list[tuple[str, bool]]]) -> None:
    wait_until(lambda: disturbed(lab, task) == expected, FOLLOWED_S, f"{task} to be disturbed: {expected}")


def test_addresses_that_appear_while_a_partition_lasts_are_told_and_followed_if_asked(lab: Lab) -> None:
    followed, left = new_id("followed"), new_id("left")
    submit(lab, followed, partition(["node1"], ["node2"]) | {"onDisturbed": "reapply"})
    submit(lab, left, partition(["node1"], ["node3"]))
    await_active(lab, followed)
    await_active(lab, left)
    with with_addresses(lab, {"node1": "10.90.0.1/24", "node2": "10.90.0.2/24", "node3": "10.90.0.3/24"}):
        expected = {
            followed: {"node1": "node2 announces 10.90.0.2", "node2": "node1 announces 10.90.0.1"},
            left: {"node1": "node3 announces 10.90.0.3", "node3": "node1 announces 10.90.0.1"},
        }
        for task, mended in ((followed, True), (left, False)):
            wanted = {node: [(f"{text}, which no rule names", mended)] for node, text in expected[task].items()}
            await_disturbed(lab, task, wanted)
        assert not hears(lab, "node1", "10.90.0.2") and not hears(lab, "node2", "10.90.0.1")
        assert hears(lab, "node1", "10.90.0.3"), "nobody asked to follow that"
        assert "10.90.0.2" in lab.run("node1", "iptables-save").stdout
        stop(lab, followed)
        assert hears(lab, "node1", "10.90.0.2")
        assert "10.90.0" not in lab.run("node1", "iptables-save").stdout
    stop(lab, left)


@pytest.fixture
def configured(lab: Lab) -> Iterator[Lab]:
    """The lab with a coordinator whose configuration gives each node its IPv4 address, as a trogdor.conf does."""
    config = lab.directory / "cluster.yaml"
    nodes = {name: {"hostname": lab.member(name).ipv4} for name in lab.nodes}
    config.write_text(json.dumps({"nodes": nodes}))
    try:
        _restart(lab, "--config", str(config))
        yield lab
    finally:
        _restart(lab)


def _restart(lab: Lab, *options: str) -> None:
    coordinator = lab.process("coordinator", "coordinator")
    if coordinator.state() != "gone":
        lab.end(coordinator)
    lab.start_coordinator(*options)
    lab.wait_ready()


def test_with_a_configured_address_the_others_are_cut_too_and_what_is_left_out_is_told(configured: Lab) -> None:
    lab, groups = configured, (["node1", "node2"], ["node3"])
    with with_addresses(lab, {"node2": f"{SHARED}/32", "node3": f"{SHARED}/32"}, "dev", "lo"):
        wait_until(lambda: announcing(lab, SHARED) == {"node2", "node3"}, FOLLOWED_S, f"{SHARED} to be announced")
        task = new_id("configured")
        told = lab.trogdor("submit", "-", "--dry-run", "--json", given=json.dumps(partition(*groups)))
        plan: dict[str, Any] = json.loads(told.stdout)
        left_out = {node["node"]: node["leftOut"] for node in plan["nodes"]}
        assert left_out["node1"] == [f"{SHARED} of node3: node2 announces it too"]
        assert left_out["node2"] == [f"{SHARED} of node3: also an address of node2, which would block itself"]
        assert any(re.search(rf"is not cut: .*{SHARED} of node3", warning) for warning in plan["warnings"]), plan
        submit(lab, task, partition(*groups))
        await_active(lab, task)
        await_matrix(lab, cut_between([list(group) for group in groups]), "the cut, in IPv6 too")
        assert not any(disturbed(lab, task).values())
        stop(lab, task)
