from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from tests.agents.platforms.nodes import Node, cut, prepare
from tests.support import require
from trogdor_bus.actions import Peer
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.agents.platforms.linux import commands, firewall
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.platform import Endpoint, Step, Surroundings
from trogdor_bus.testing import unnoted

Pair = tuple[Node, Node]
FOREIGN = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:MINE - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "not \\"yours\\"" -j MINE
-A INPUT -j ACCEPT
-A MINE -j RETURN
COMMIT
"""


def chain(step: Step) -> str:
    (name,) = {name for table in step.undo["tables"] for name in table["chains"]}
    return str(name)


def test_a_cut_is_complete_and_heals(pair: Pair) -> None:
    here, there = pair
    assert there.reaches(here.v4)
    assert there.reaches(here.v6)
    step = cut(here, there)
    assert not there.reaches(here.v4)
    assert not there.reaches(here.v6)
    assert here.platform.disturbance(step) == ""
    assert len(here.platform.residue(step, [])) == 2
    assert here.platform.undo(step, [], unnoted) == ""
    assert here.platform.residue(step, []) == ()
    assert there.reaches(here.v4)
    assert there.reaches(here.v6)
    assert here.rules() == here.rules("ip6tables") == ""


def test_what_is_dropped_is_counted(pair: Pair) -> None:
    here, there = pair
    here.run("iptables", "-A", "INPUT", "-s", "192.0.2.1", "-j", "DROP")
    step = cut(here, there)
    assert here.platform.look(step).dropped == 0
    assert not there.reaches(here.v4)
    four = here.platform.look(step).dropped
    assert not there.reaches(here.v6)
    assert here.platform.look(step).dropped > four > 0
    here.platform.undo(step, [], unnoted)
    assert here.platform.look(step).dropped == 0
    here.empty()


def test_an_established_connection_is_cut_and_foreign_rules_stay_in_order(pair: Pair) -> None:
    here, there = pair
    for tool in ("iptables", "ip6tables"):
        here.run(f"{tool}-restore", stdin=FOREIGN)
    before = here.rules(), here.rules("ip6tables")
    with here.listen(here.v4, 9092) as server:
        client = there.connect(here.v4, 9092)
        assert client is not None
        with client, server.accept()[0] as accepted:
            accepted.settimeout(0.4)
            client.sendall(b"a")
            assert accepted.recv(1) == b"a"
            step = cut(here, there)
            client.sendall(b"b")
            with pytest.raises(TimeoutError):
                accepted.recv(1)
            here.platform.undo(step, [], unnoted)
            accepted.settimeout(10)
            assert accepted.recv(1) == b"b"
    assert (here.rules(), here.rules("ip6tables")) == before


def test_doing_and_undoing_twice_is_the_same_as_once(pair: Pair) -> None:
    here, there = pair
    here.run("iptables-restore", stdin=FOREIGN)
    before = here.rules()
    step = cut(here, there)
    once = here.rules()
    here.platform.do(step)
    assert here.rules() == once
    for _ in range(2):
        assert here.platform.undo(step, [], unnoted) == ""
        assert here.rules() == before


@pytest.mark.parametrize("readable", [True, False])
def test_what_a_person_would_type_undoes_it_too(pair: Pair, readable: bool) -> None:
    here, there = pair
    here.run("iptables-restore", stdin=FOREIGN)
    before = here.rules(), here.rules("ip6tables")
    step = cut(here, there)
    assert not there.reaches(here.v4)
    known = step if readable else Step(do={"op": "newer"}, undo=step.undo)
    here.run("sh", "-ec" if readable else "-c", here.platform.by_hand(known))
    assert here.platform.residue(step, []) == ()
    assert (here.rules(), here.rules("ip6tables")) == before


def test_undoing_what_was_never_done_changes_nothing(pair: Pair) -> None:
    here, there = pair
    here.run("iptables-restore", stdin=FOREIGN)
    before = here.rules()
    (step,) = prepare(here, BlockFrom(peers=(there.peer,)))
    assert here.rules() == before
    assert here.platform.undo(step, [], unnoted) == ""
    assert here.rules() == before


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_two_workers_on_the_same_peer_do_not_disturb_each_other(pair: Pair, first_to_end: int) -> None:
    here, there = pair
    steps = [cut(here, there, worker=1), cut(here, there, worker=2)]
    assert [here.platform.disturbance(step) for step in steps] == ["", ""]
    here.platform.undo(steps[first_to_end], [steps[1 - first_to_end]], unnoted)
    assert not there.reaches(here.v4)
    assert here.platform.disturbance(steps[1 - first_to_end]) == ""
    here.platform.undo(steps[1 - first_to_end], [], unnoted)
    assert there.reaches(here.v4)


def test_half_removed_rules_are_still_removed(pair: Pair) -> None:
    here, there = pair
    step = cut(here, there)
    here.run("iptables", "-D", "INPUT", "-j", chain(step))
    here.run("ip6tables", "-F", chain(step))
    here.run("ip6tables", "-A", "INPUT", "-j", chain(step))  # a second jump
    here.platform.undo(step, [], unnoted)
    assert here.platform.residue(step, []) == ()
    assert here.rules() == here.rules("ip6tables") == ""


def test_a_foreign_rule_that_leads_to_our_chain_does_not_keep_the_fault(pair: Pair) -> None:
    here, there = pair
    step = cut(here, there)
    here.run("iptables", "-A", "INPUT", "-p", "icmp", "-j", chain(step))
    here.platform.undo(step, [], unnoted)
    (left,) = here.platform.residue(step, [])
    assert re.search(r"rule of somebody else leads to it: .*-p icmp", left)
    assert there.reaches(here.v4)
    here.run("iptables", "-D", "INPUT", "-p", "icmp", "-j", chain(step))
    assert here.platform.undo(step, [], unnoted) == ""
    assert here.platform.residue(step, []) == ()


def test_a_recreated_namespace_of_the_same_name_is_left_alone(fresh_pair: Pair) -> None:
    here, there = fresh_pair
    step = cut(here, there)
    subprocess.run(["ip", "netns", "del", here.name], check=True)
    subprocess.run(["ip", "netns", "add", here.name], check=True)
    here.run("iptables", "-N", chain(step))
    here.run("iptables", "-I", "INPUT", "-j", chain(step))
    before = here.rules()
    assert here.platform.disturbance(step).startswith("the network namespace is gone")
    assert here.platform.undo(step, [], unnoted).startswith("gone:")
    assert here.platform.residue(step, []) == ()
    assert here.rules() == before
    with pytest.raises(HostError, match="gone"):
        here.platform.do(step)


def test_after_a_reboot_nothing_is_touched(pair: Pair) -> None:
    here, there = pair
    step = cut(here, there)
    before = here.rules()
    earlier = {**step.undo, "namespace": {**step.undo["namespace"], "boot_id": "another"}}
    assert here.platform.undo(Step(do={}, undo=earlier), [], unnoted).startswith("gone:")
    assert here.rules() == before


def test_a_namespace_that_lost_its_name_is_still_healed(fresh_pair: Pair) -> None:
    here, there = fresh_pair
    here.sleeper("keeps-the-namespace")
    step = cut(here, there)
    subprocess.run(["ip", "netns", "del", here.name], check=True)
    assert len(here.platform.residue(step, [])) == 2
    assert here.platform.undo(step, [], unnoted) == ""
    assert there.reaches(here.v4)


def test_a_fault_of_an_agent_inside_is_healed_by_a_later_life_outside(pair: Pair) -> None:
    here, there = pair
    program = f"""
import msgspec
from trogdor_bus.actions import Peer
from trogdor_bus.actions.network import BlockFrom
from trogdor_bus.agents.platforms import open_platform
from trogdor_bus.platform import Endpoint, Surroundings
platform = open_platform("basic", {{}})
action = BlockFrom(peers=(Peer("there", ({there.v4!r}, {there.v6!r})),))
around = Surroundings(control=(Endpoint("127.0.0.1", (7300,)),))
(step,) = platform.prepare(1, action, around, []).steps
platform.do(step)
print(msgspec.json.encode(step).decode())
"""
    step = msgspec.json.decode(here.run(sys.executable, "-c", program), type=Step)
    assert not there.reaches(here.v4)
    assert not there.reaches(here.v6)
    assert f"-d {here.v4}/32 -p tcp -m multiport --dports 7300 -j RETURN" in here.rules()
    assert LinuxPlatform().undo(step, [], unnoted) == ""
    assert there.reaches(here.v4)
    assert here.rules() == here.rules("ip6tables") == ""


def test_the_backend_that_the_host_uses_is_chosen_and_kept(fresh_pair: Pair) -> None:
    require(commands.find_tool("iptables-legacy") is not None, "no iptables-legacy", "apt-get install iptables")
    here, there = fresh_pair
    here.run("iptables-legacy", "-A", "INPUT", "-s", "10.9.9.9", "-j", "ACCEPT")
    before = here.rules("iptables-legacy")
    (step,) = prepare(here, BlockFrom(peers=(Peer("there", (there.v4,)),)))
    assert step.undo["tables"][0]["tool"].endswith("/iptables-legacy")
    here.platform.do(step)
    assert not there.reaches(here.v4)
    here.run("iptables-nft", "-A", "INPUT", "-s", "10.9.9.8", "-j", "ACCEPT")
    here.platform.undo(step, [], unnoted)
    assert here.rules("iptables-legacy") == before
    assert there.reaches(here.v4)


def test_a_reload_is_noticed_and_still_undone(pair: Pair) -> None:
    here, there = pair
    step = cut(here, there)
    here.run("iptables-restore", stdin=FOREIGN)
    assert here.platform.disturbance(step).startswith("firewall rules were reloaded: chain TB-")
    before = here.rules()
    assert here.platform.undo(step, [], unnoted) == ""
    assert here.rules() == before
    assert here.platform.residue(step, []) == ()


def test_a_rule_above_ours_is_named(pair: Pair) -> None:
    here, there = pair
    step = cut(here, there)
    here.run("ip6tables", "-I", "INPUT", "1", "-p", "tcp", "-j", "ACCEPT")
    assert here.platform.disturbance(step) == "rule 1 of INPUT is not ours and comes first: -p tcp -j ACCEPT"
    here.run("ip6tables", "-D", "INPUT", "1")
    here.run("ip6tables", "-I", chain(step), "-j", "RETURN")
    assert "holds other rules than ours" in here.platform.disturbance(step)


def test_a_thousand_peers_are_one_restore(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = pair
    calls: list[Sequence[str]] = []

    def counted(argv: Sequence[str], stdin: str = "") -> str:
        calls.append(argv)
        return commands.run(argv, stdin)

    monkeypatch.setattr(firewall, "run", counted)
    crowd = tuple(Peer(f"n{n}", (f"10.80.{n // 250}.{n % 250 + 1}", f"fd80::{n:x}")) for n in range(1000))
    (step,) = prepare(here, BlockFrom(peers=(*crowd, there.peer)))
    assert not [argv for argv in calls if argv[0].endswith("-restore")]
    here.platform.do(step)
    assert len([argv for argv in calls if argv[0].endswith("-restore")]) == 2
    assert not there.reaches(here.v4)
    assert here.platform.disturbance(step) == ""
    calls.clear()
    here.platform.undo(step, [], unnoted)
    assert len([argv for argv in calls if argv[0].endswith("-restore")]) == 2
    assert there.reaches(here.v4)


def test_the_coordinator_elsewhere_is_still_heard_on_its_ports_only(pair: Pair) -> None:
    here, there = pair
    with there.listen(there.v4, 7300), there.listen(there.v6, 7300), there.listen(there.v4, 9092):
        endpoints = (Endpoint(there.v4, (7300,)), Endpoint(there.v6, (7300,)))
        cut(here, there, control=endpoints, force=True)
        here.run("ip", "-6", "neigh", "flush", "dev", "w0")  # as after a minute: the link layer must be asked anew
        assert here.connects(there.v4, 7300)
        assert here.connects(there.v6, 7300)
        assert not here.connects(there.v4, 9092)


@pytest.mark.parametrize("known_as", ["10.77.0.1", "fd77::1"])
def test_the_coordinator_here_is_still_reached_by_the_peers_at_each_of_its_addresses(pair: Pair, known_as: str) -> None:
    here, there = pair
    with here.listen(here.v4, 7300), here.listen(here.v6, 7300), here.listen(here.v4, 9092):
        cut(here, there, control=(Endpoint(known_as, (7300,)),))
        assert there.connects(here.v4, 7300)
        assert there.connects(here.v6, 7300)
        assert not there.connects(here.v4, 9092)


def test_a_users_own_drop_of_control_traffic_still_counts(pair: Pair) -> None:
    here, there = pair
    with there.listen(there.v4, 7300):
        here.run("iptables", "-A", "INPUT", "-p", "tcp", "--sport", "7300", "-j", "DROP")
        cut(here, there, control=(Endpoint(there.v4, (7300,)),))
        assert not here.connects(there.v4, 7300)


@pytest.mark.parametrize(
    ("direction", "inward", "outward"), [("in", False, True), ("out", True, False), ("both", False, False)]
)
@pytest.mark.parametrize("version", ["v4", "v6"])
def test_ports_are_blocked_in_the_direction_asked(
    pair: Pair, direction: str, inward: bool, outward: bool, version: str
) -> None:
    here, there = pair
    ours, theirs = getattr(here, version), getattr(there, version)
    action = msgspec.convert({"action": "block-ports", "ports": [9092], "direction": direction}, BlockPorts)
    loopback = "127.0.0.1" if version == "v4" else "::1"
    with (
        here.listen(ours, 9092),
        here.listen(loopback, 9092),
        here.listen(ours, 9093),
        there.listen(theirs, 9092),
    ):
        (step,) = prepare(here, action)
        here.platform.do(step)
        assert here.platform.disturbance(step) == ""
        assert there.connects(ours, 9092) is inward
        assert there.connects(ours, 9093)
        assert _outward(here, theirs) is outward
        assert here.connects(loopback, 9092)
        here.platform.undo(step, [], unnoted)
        assert there.connects(ours, 9092)
        assert here.connects(theirs, 9092)


def _outward(here: Node, theirs: str) -> bool:
    try:
        return here.connects(theirs, 9092)
    except PermissionError:  # how the kernel tells a sender that OUTPUT dropped its packet
        return False


def test_udp_is_blocked_apart_from_tcp(pair: Pair) -> None:
    here, there = pair
    (step,) = prepare(here, BlockPorts(ports=(9092,), protocol="udp"))
    here.platform.do(step)
    with here.listen(here.v4, 9092):
        assert there.connects(here.v4, 9092)
    assert "-p udp -m multiport --dports 9092 -j DROP" in here.rules()


def test_more_ports_than_one_rule_can_hold(pair: Pair) -> None:
    here, there = pair
    (step,) = prepare(here, BlockPorts(ports=tuple(range(9000, 9040))))
    here.platform.do(step)
    with here.listen(here.v4, 9039):
        assert not there.connects(here.v4, 9039)
        here.platform.undo(step, [], unnoted)
        assert there.connects(here.v4, 9039)


@pytest.mark.parametrize(("force", "open_"), [(False, True), (True, False)])
def test_a_port_block_spares_the_coordinator_unless_forced(pair: Pair, force: bool, open_: bool) -> None:
    here, there = pair
    with here.listen(here.v4, 7300):
        (step,) = prepare(here, BlockPorts(ports=(7300,)), control=(Endpoint(here.v4, (7300,)),), force=force)
        here.platform.do(step)
        assert there.connects(here.v4, 7300) is open_


def test_a_tampered_journal_does_not_reach_the_kernel(pair: Pair) -> None:
    here, there = pair
    step = cut(here, there)
    before = here.rules()
    for bad in ("INPUT", "TB-0123456789abcdef\n-F INPUT", "TB-0123456789ABCDEF"):
        tables = [{**table, "chains": [bad]} for table in step.undo["tables"]]
        with pytest.raises(CannotHealError, match="not an operation"):
            here.platform.undo(Step(do={}, undo={**step.undo, "tables": tables}), [], unnoted)
    tables = [{**table, "tool": "/bin/sh"} for table in step.undo["tables"]]
    with pytest.raises(CannotHealError, match="not an operation"):
        here.platform.undo(Step(do={}, undo={**step.undo, "tables": tables}), [], unnoted)
    assert here.rules() == before


def test_nothing_to_block_is_an_error(node: Node) -> None:
    for action in (BlockFrom(peers=()), BlockFrom(peers=(Peer("n2", ()),)), BlockPorts(ports=())):
        with pytest.raises(HostError, match=r"nothing|no address|no port"):
            node.platform.prepare(1, action, Surroundings(), [])


def test_a_missing_iptables_names_the_package(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(commands, "SYSTEM_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="install the package iptables"):
        node.platform.prepare(1, BlockFrom(peers=(Peer("n2", ("10.77.0.2",)),)), Surroundings(), [])


def test_the_addresses_are_those_of_the_namespace(node: Node) -> None:
    assert set(node.platform.addresses()) == {node.v4, node.v6}


def test_sockets_of_the_test_itself_stay_where_they_were(node: Node) -> None:
    with socket.socket() as own, node.listen(node.v4, 9092) as theirs:
        cookies = [one.getsockopt(socket.SOL_SOCKET, 71, 8) for one in (own, theirs)]
    assert cookies[0] != cookies[1]
