"""Ports that the kernel rewrites (REDIRECT, DNAT) are blocked as clients name them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.agents.platforms.nodes import Node, cut, prepare
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents.platforms.linux import commands, firewall
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.errors import HostError
from trogdor_bus.testing import unnoted

Pair = tuple[Node, Node]
REDIRECT = ["-p", "tcp", "--dport", "19092", "-j", "REDIRECT", "--to-ports", "9092"]
TOOLS = {"v4": "iptables", "v6": "ip6tables"}


@pytest.mark.parametrize("backend", ["-nft", "-legacy"])
@pytest.mark.parametrize("version", ["v4", "v6"])
def test_a_redirected_port_is_blocked_as_the_client_named_it(fresh_pair: Pair, version: str, backend: str) -> None:
    here, there = fresh_pair
    address, tool = getattr(here, version), TOOLS[version] + backend
    here.run(tool, "-t", "nat", "-A", "PREROUTING", *REDIRECT)
    here.run(tool, "-P", "INPUT", "ACCEPT")  # so that there is a table already
    before = here.rules(tool)
    with here.listen(address, 9092) as server:
        client = there.connect(address, 19092)
        assert client is not None, "the redirect works"
        with client, server.accept()[0] as accepted:
            (step,) = prepare(here, BlockPorts(ports=(19092,)))
            here.platform.do(step)
            assert here.platform.disturbance(step) == ""
            assert not there.connects(address, 19092)
            assert there.connects(address, 9092), "who names the other port is not meant"
            accepted.settimeout(0.4)
            client.sendall(b"established before")
            with pytest.raises(TimeoutError):
                accepted.recv(1)
            assert (here.platform.look(step).dropped or 0) > 0
            here.platform.undo(step, [], unnoted)
            assert here.platform.residue(step, []) == ()
            accepted.settimeout(10)
            assert accepted.recv(1) == b"e"
        assert there.connects(address, 19092)
    assert here.rules(tool) == before


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_an_outgoing_port_is_blocked_as_it_was_asked_for(fresh_pair: Pair, version: str) -> None:
    here, there = fresh_pair
    theirs, tool = getattr(there, version), TOOLS[version]
    shown = f"[{theirs}]:9092" if version == "v6" else f"{theirs}:9092"
    here.run(tool, "-t", "nat", "-A", "OUTPUT", *REDIRECT[:-3], "DNAT", "--to-destination", shown)
    with there.listen(theirs, 9092):
        assert here.connects(theirs, 19092)
        (step,) = prepare(here, BlockPorts(ports=(19092,), direction="out"))
        here.platform.do(step)
        with contextlib.suppress(PermissionError):  # how the kernel may tell a sender that OUTPUT dropped its packet
            assert not here.connects(theirs, 19092)
        assert here.connects(theirs, 9092)
        here.platform.undo(step, [], unnoted)
        assert here.connects(theirs, 19092)


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_a_peer_that_is_called_by_another_address_is_cut_too(fresh_pair: Pair, version: str) -> None:
    here, there = fresh_pair
    theirs, tool = getattr(there, version), TOOLS[version]
    service = {"v4": "10.77.0.99", "v6": "fd77::99"}[version]
    here.run(tool, "-t", "nat", "-A", "OUTPUT", "-d", service, "-j", "DNAT", "--to-destination", theirs)
    with there.listen(theirs, 9092) as server:
        client = here.connect(service, 9092)
        assert client is not None
        with client, server.accept()[0] as accepted:
            step = cut(here, there)
            assert here.platform.disturbance(step) == ""
            assert not here.connects(service, 9092)
            client.settimeout(0.4)
            accepted.sendall(b"established before")
            with pytest.raises(TimeoutError):
                client.recv(1)
            here.platform.undo(step, [], unnoted)
            client.settimeout(10)
            assert client.recv(1) == b"e"


def test_answers_to_a_node_that_asks_elsewhere_for_that_port_are_no_packets_to_it(fresh_pair: Pair) -> None:
    here, there = fresh_pair
    here.run("iptables", "-t", "nat", "-A", "PREROUTING", *REDIRECT)
    (step,) = prepare(here, BlockPorts(ports=(19092,), direction="in"))
    here.platform.do(step)
    with there.listen(there.v4, 19092):
        assert here.connects(there.v4, 19092)


def test_where_nothing_is_tracked_no_rule_of_ours_makes_the_kernel_begin(pair: Pair) -> None:
    here, there = pair
    (step,) = prepare(here, BlockPorts(ports=(19092,)))
    here.platform.do(step)
    assert "conntrack" not in here.rules() + here.rules("ip6tables")
    with here.listen(here.v4, 9093), Namespace(f"/run/netns/{here.name}") as namespace:
        client = there.connect(here.v4, 9093)
        assert client is not None
        with client:
            assert namespace.call(firewall.TRACKED.read_text).strip() == "0"
    here.platform.undo(step, [], unnoted)


def test_what_is_tracked_for_another_reason_is_asked_too(fresh_pair: Pair) -> None:
    here, there = fresh_pair
    here.run("iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
    with here.listen(here.v4, 9093):
        client = there.connect(here.v4, 9093)
        assert client is not None
        with client:
            (step,) = prepare(here, BlockPorts(ports=(19092,)))
    here.platform.do(step)
    assert "--ctorigdstport 19092" in here.rules()


def test_an_iptables_that_cannot_ask_refuses_and_says_what_it_lacks(
    fresh_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = fresh_pair
    here.run("iptables", "-t", "nat", "-A", "PREROUTING", *REDIRECT)
    before = here.rules()
    (step,) = prepare(here, BlockPorts(ports=(19092,)))
    found = commands.find_tool("iptables-nft")
    assert found
    for library in Path("/usr/lib").glob("*/xtables/*.so"):
        if "conntrack" not in library.name:
            (tmp_path / library.name).symlink_to(library)

    def without(argv: list[str], stdin: str = "") -> str:
        return commands.run(["env", f"XTABLES_LIBDIR={tmp_path}", *argv], stdin)

    monkeypatch.setattr(firewall, "run", without)
    with pytest.raises(HostError, match="kernel module xt_conntrack and its own extension conntrack"):
        here.platform.do(step)
    monkeypatch.undo()
    assert here.platform.undo(step, [], unnoted) == ""
    assert here.rules() == before


def test_rules_that_a_former_version_wrote_down_are_read_and_undone(pair: Pair) -> None:
    here, there = pair
    (step,) = prepare(here, BlockPorts(ports=(9092,)))
    assert "original_port" not in str(step), "what a former version cannot read is written only if needed"
    here.platform.do(step)
    with here.listen(here.v4, 9092):
        assert not there.connects(here.v4, 9092)
        here.platform.undo(step, [], unnoted)
        assert there.connects(here.v4, 9092)
