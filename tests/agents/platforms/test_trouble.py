"""A machine that is not ours alone, or not whole: a clear failure, nothing half done, nothing of others touched."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.agents.inline import Inline
from tests.agents.platforms.nodes import Node, prepare
from tests.agents.platforms.sandbox import FOREIGN, Sandbox, process, restoring, sandbox
from tests.support import require, require_namespaces, wait_until
from trogdor_bus.actions import Action, Peer, ProcessMatch
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.actions.process import Suspend
from trogdor_bus.agents.__main__ import Start
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.journal import Journal, JournalState
from trogdor_bus.agents.platforms.linux import namespace
from trogdor_bus.agents.platforms.linux.commands import find_tool
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.config import AgentSettings
from trogdor_bus.errors import CannotHealError
from trogdor_bus.messages import Order
from trogdor_bus.platform import Surroundings
from trogdor_bus.states import Outcome

THEIRS = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:MINE - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j MINE
-A INPUT -s {address} -j ACCEPT
-A MINE -j RETURN
COMMIT
"""
HIDE = (
    "mkdir -p /run/over/upper /run/over/work && mount -t overlay overlay "
    "-o lowerdir=/usr/sbin,upperdir=/run/over/upper,workdir=/run/over/work /usr/sbin && rm -r "
)


def our_chain(node: Node, tool: str) -> str:
    found = re.search(r"-A INPUT -j (TB-[0-9a-f]+)", node.rules(tool))
    assert found
    return found[1]


@pytest.fixture
def box() -> Iterator[Sandbox]:
    require_namespaces()
    with sandbox() as made:
        yield made


def entry_state(directory: Path) -> JournalState:
    return Journal.read_only(FileDisk(directory)).entries[1].state


def performer(node: Node, directory: Path) -> Inline:
    return Inline(Journal(FileDisk(directory)), node.platform)


def inject(who: Inline, worker: int, *actions: Action) -> None:
    order = Order(worker=worker, task=f"t{worker}", journal="j", remaining_ms=60_000, actions=actions)
    who.inject(order, 60_000, Surroundings())


# --- what belongs to somebody else ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_rules_of_others_above_between_and_below_ours_stay_in_their_order(
    node: Node, tmp_path: Path, backend: str
) -> None:
    tools = {f"iptables-{backend}": "10.9.9.9", f"ip6tables-{backend}": "fd99::9"}
    for tool, address in tools.items():
        require(find_tool(tool) is not None, f"no {tool}", "apt-get install iptables")
        node.run(f"{tool}-restore", stdin=THEIRS.format(address=address))
    us = performer(node, tmp_path)
    peer = Peer("peer", ("10.77.0.2", "fd77::2"))
    for worker in (1, 2):
        inject(us, worker, BlockFrom(peers=(peer,)), BlockPorts(ports=(9092,), direction="both"))
    expected = {}
    for tool, address in tools.items():
        node.run(tool, "-I", "INPUT", "1", "-s", address, "-p", "tcp", "-j", "ACCEPT")  # above
        node.run(tool, "-I", "INPUT", "3", "-s", address, "-p", "udp", "-j", "DROP")  # between
        node.run(tool, "-A", "INPUT", "-s", address, "-j", "DROP")  # below
        node.run(tool, "-A", "OUTPUT", "-d", address, "-j", "DROP")
        rules = node.rules(tool).splitlines()
        assert [line.startswith("-A INPUT -j TB-") for line in rules if line.startswith("-A INPUT")] == [
            *[False, True, False, True, True, True],
            *[False, False, False],
        ]
        expected[tool] = [line for line in rules if "TB-" not in line]
    for worker in (1, 2):
        assert us.heal(worker, Outcome.DONE, "") == ()
    assert {tool: node.rules(tool).splitlines() for tool in tools} == expected


@pytest.mark.parametrize("qdisc", ["pfifo limit 77", "tbf rate 1gbit burst 10kb latency 1s"])
def test_a_root_qdisc_of_somebody_else_is_untouched(node: Node, tmp_path: Path, qdisc: str) -> None:
    require(find_tool("tc") is not None, "no tc", "apt-get install iproute2")
    node.run("tc", "qdisc", "add", "dev", "w0", "root", "handle", "5:", *qdisc.split())
    before = node.run("tc", "qdisc", "show")
    assert "5: dev w0 root" in before
    us = performer(node, tmp_path)
    inject(us, 1, BlockFrom(peers=(Peer("peer", ("10.77.0.2",)),)), BlockPorts(ports=(9092,)))
    assert node.run("tc", "qdisc", "show") == before
    us.heal(1, Outcome.DONE, "")
    assert node.run("tc", "qdisc", "show") == before


def test_a_family_that_somebody_keeps_from_healing_does_not_keep_the_other(node: Node, tmp_path: Path) -> None:
    us = performer(node, tmp_path)
    inject(us, 1, BlockFrom(peers=(Peer("peer", ("10.77.0.2", "fd77::2")),)))
    kept = our_chain(node, "iptables")
    node.run("iptables", "-A", "OUTPUT", "-p", "tcp", "-j", kept)
    with pytest.raises(CannotHealError, match=kept):
        us.heal(1, Outcome.DONE, "")
    assert "TB-" not in node.rules("ip6tables")
    node.run("iptables", "-D", "OUTPUT", "-p", "tcp", "-j", kept)
    us.heal(1, Outcome.DONE, "")
    assert "TB-" not in node.rules("iptables")


def test_a_process_that_somebody_stopped_stays_stopped(node: Node, tmp_path: Path) -> None:
    meant, other, ours = (node.sleeper(word) for word in ("meant-stopped", "other", "meant-running"))
    for pid in (meant, other):
        os.kill(pid, signal.SIGSTOP)

    def states() -> list[str]:
        return [psutil.Process(pid).status() for pid in (meant, other, ours)]

    wait_until(lambda: states()[:2] == ["stopped", "stopped"], what="both to be stopped")
    us = performer(node, tmp_path)
    inject(us, 1, Suspend(match=ProcessMatch(command="meant-")))
    assert states() == ["stopped"] * 3
    us.heal(1, Outcome.DONE, "")
    assert states()[:2] == ["stopped"] * 2 and states()[2] != "stopped"


# --- the lock of the legacy iptables is held --------------------------------------------------------------------------


@pytest.fixture
def legacy(box: Sandbox) -> Sandbox:
    require(find_tool("iptables-legacy") is not None, "no iptables-legacy", "apt-get install iptables")
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        box.run(f"{tool}-restore", stdin=FOREIGN)
    return box


def both(box: Sandbox) -> list[list[str]]:
    return [box.rules("iptables-legacy"), box.rules("ip6tables-legacy")]


def test_under_a_held_lock_a_fault_is_refused_and_nothing_is_half_done(legacy: Sandbox, tmp_path: Path) -> None:
    before = both(legacy)
    with legacy.lock_held():
        began = time.monotonic()
        refused = legacy.perform("inject", tmp_path)
        assert time.monotonic() - began < 15
    assert "another program held the lock of iptables" in refused["error"] and "lslocks" in refused["error"]
    assert (refused["stuck"], refused["residue"]) == (False, [])
    assert entry_state(tmp_path) is JournalState.UNDONE
    assert both(legacy) == before


def test_an_undo_that_waits_for_the_lock_succeeds_when_it_is_released(legacy: Sandbox, tmp_path: Path) -> None:
    before = both(legacy)
    assert legacy.perform("inject", tmp_path) == []
    with legacy.lock_held() as holder, process(legacy.start(*legacy.performing("heal", tmp_path))) as healer:
        wait_until(lambda: restoring(healer.pid), what="iptables to wait for the lock")
        holder.kill()
        out, err = healer.communicate(timeout=30)
    assert out.endswith(", 0]\n"), out + err
    assert both(legacy) == before


def test_an_undo_under_a_lock_held_for_long_is_stuck_and_healed_later(legacy: Sandbox, tmp_path: Path) -> None:
    before = both(legacy)
    assert legacy.perform("inject", tmp_path) == []
    with legacy.lock_held():
        lines, code = legacy.perform("heal", tmp_path, lock_wait_s=1)
    assert code == 1 and "the fault may still be there: another program held the lock of iptables" in lines[0]
    assert entry_state(tmp_path) is JournalState.STUCK
    assert both(legacy) != before
    assert legacy.perform("heal", tmp_path)[1] == 0
    assert both(legacy) == before


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_killed_agent_without_a_guard_leaves_no_iptables_waiting(legacy: Sandbox, tmp_path: Path) -> None:
    require(find_tool("setpriv") is not None, "setpriv is not installed", "apt-get install util-linux")
    assert legacy.perform("inject", tmp_path) == []
    faulty = both(legacy)
    settings = AgentSettings(node="n", url="zmq://127.0.0.1", state_dir=tmp_path, keys=None)
    start = msgspec.json.encode(Start(settings=settings), enc_hook=str).decode()
    with legacy.lock_held() as holder:
        with process(legacy.start(sys.executable, "-m", "trogdor_bus.agents", "run", start)) as agent:
            wait_until(lambda: restoring(agent.pid), what="the agent to undo, and its iptables-restore to wait")
            helpers = restoring(agent.pid)
            agent.kill()
            killed = time.monotonic()
            wait_until(lambda: not any(map(lives, helpers)), 2, "the helpers to be gone")
            assert time.monotonic() - killed < 0.5
        holder.kill()
        holder.wait()
    assert both(legacy) == faulty  # nobody came after its death
    assert legacy.perform("heal", tmp_path)[1] == 0


# --- programs are missing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["iptables", "ip6tables", "iptables-nft-save", "ip6tables-nft-restore", "ip*tables*"])
def test_a_fault_is_refused_where_a_program_is_missing(box: Sandbox, tmp_path: Path, names: str) -> None:
    require(find_tool("iptables-nft") is not None, "no iptables-nft", "apt-get install iptables")
    box.run("sh", "-c", f"{HIDE} /usr/sbin/{names}")
    refused = box.perform("cut", tmp_path)
    missing = names.replace("ip*tables*", "iptables")
    assert f"{missing} is not installed on this machine; install the package iptables" in refused["error"]
    assert (refused["stuck"], refused["residue"]) == (False, [])
    assert Journal.read_only(FileDisk(tmp_path)).entries[1].steps == ()  # it was seen before anything was done
    box.run("umount", "/usr/sbin")
    assert not [line for tool in ("iptables", "ip6tables") for line in box.rules(tool) if "TB-" in line]


@pytest.mark.parametrize("names", ["iptables-nft-save", "ip6tables-nft-restore", "*tables*"])
def test_an_undo_without_its_program_is_stuck_and_healed_when_it_is_back(
    box: Sandbox, tmp_path: Path, names: str
) -> None:
    require(find_tool("iptables-nft") is not None, "no iptables-nft", "apt-get install iptables")
    assert box.perform("cut", tmp_path) == []
    box.run("sh", "-c", f"{HIDE} /usr/sbin/{names}")
    lines, code = box.perform("heal", tmp_path)
    missing = names.replace("*tables*", "iptables-nft-save")
    assert code == 1
    assert f"the fault may still be there: /usr/sbin/{missing} is not installed on this machine" in lines[0]
    assert "install the package iptables" in lines[0]
    assert entry_state(tmp_path) is JournalState.STUCK
    assert all("tables-nft -D INPUT -j TB-" in line for line in box.perform("by-hand", tmp_path))
    box.run("umount", "/usr/sbin")
    assert box.perform("heal", tmp_path)[1] == 0
    assert not [line for tool in ("iptables", "ip6tables") for line in box.rules(tool) if "TB-" in line]


# --- what a person types ----------------------------------------------------------------------------------------------


def pasted(line: str) -> None:
    subprocess.run(["sh", "-ec", line], check=True, capture_output=True, timeout=30)


def test_the_printed_line_works_when_pasted_into_a_shell_of_the_machine(node: Node) -> None:
    node.run("iptables-restore", stdin=THEIRS.format(address="10.9.9.9"))
    before = node.rules(), node.rules("ip6tables")
    attached = LinuxPlatform(f"pid:{node.sleeper('attached')}")
    for platform in (node.platform, attached):
        (made,) = prepare(node, BlockPorts(ports=(9092,), direction="both"))
        platform.do(made)
        line = platform.by_hand(made)
        assert line.count(f"nsenter --net=/run/netns/{node.name} /") == 12 == line.count(";") + 1
        pasted(line)
        assert (node.rules(), node.rules("ip6tables")) == before


def test_the_line_leads_into_a_namespace_without_a_name(box: Sandbox, tmp_path: Path) -> None:
    assert box.perform("inject", tmp_path) == []
    (line,) = box.perform("by-hand", tmp_path)
    assert "nsenter --net=/proc/" in line
    pasted(line)
    assert not [line for tool in ("iptables", "ip6tables") for line in box.rules(tool) if "TB-" in line]


def test_in_the_namespace_of_the_machine_nothing_has_to_be_entered(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    (made,) = prepare(node, BlockPorts(ports=(9092,)))
    monkeypatch.setattr(namespace, "MACHINE", f"/run/netns/{node.name}")
    line = node.platform.by_hand(made)
    assert "nsenter" not in line and re.match(r"/usr/sbin/iptables-(nft|legacy) -D INPUT -j TB-", line)


def test_for_a_namespace_that_is_gone_there_is_nothing_to_type(node: Node) -> None:
    (made,) = prepare(node, BlockPorts(ports=(9092,)))
    assert node.platform.by_hand(made)
    subprocess.run(["ip", "netns", "del", node.name], check=True)
    assert node.platform.by_hand(made) == ""
