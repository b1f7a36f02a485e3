"""What an agent is attached to: one process for ever, and a namespace that lives as long as anything holds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agents.platforms.nodes import Node, prepare
from tests.support import require_namespaces
from trogdor_bus.actions import Peer
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.agents.platforms.linux import holders
from trogdor_bus.agents.platforms.linux.namespace import Namespace, parse_attachment, pinned
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.errors import GoneError, HostError, SpecError
from trogdor_bus.host import identity
from trogdor_bus.platform import Step, Surroundings
from trogdor_bus.testing import unnoted

REUSED = """
import subprocess, time
from pathlib import Path
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents.platforms.linux.namespace import pinned
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.errors import GoneError
from trogdor_bus.platform import Surroundings

def start(address):
    return subprocess.Popen(["unshare", "--net", "sh", "-c", f"ip addr add {address}/32 dev lo && exec sleep 600"])

def told(platform, address):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if platform.addresses() == (address,):
            return True
        time.sleep(0.02)

first = start("10.1.0.1")
text = pinned(f"pid:{first.pid}")
agents = [LinuxPlatform(f"pid:{first.pid}"), LinuxPlatform(text)]
assert all(told(agent, "10.1.0.1") for agent in agents)
first.kill()
for when in ("not reaped", "reaped", "reused"):
    if when == "reaped":
        first.wait()
    if when == "reused":
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
        second = start("10.1.0.2")
        assert second.pid == first.pid
        assert told(LinuxPlatform(f"pid:{second.pid}"), "10.1.0.2")
    else:
        end = time.monotonic() + 20
        while Path(f"/proc/{first.pid}/stat").exists() and ") Z " not in Path(f"/proc/{first.pid}/stat").read_text():
            assert time.monotonic() < end
    for agent in [*agents, LinuxPlatform(text)]:
        for ask in (agent.addresses, lambda: agent.prepare(1, BlockPorts(ports=(9092,)), Surroundings(), [])):
            try:
                print(when, ask())
            except GoneError as error:
                print(when, error)
second.kill()
second.wait()
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks through all processes has time for it: the machine may be slow, and full of them."""
    monkeypatch.setattr(holders, "LOOK_S", 60.0)


def test_a_pid_that_another_process_has_by_now_is_not_meant() -> None:
    require_namespaces()
    argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", REUSED]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert len(lines) == 18
    for line in lines:
        assert " has ended" in line and "no fault can hit this node until an agent is attached anew" in line
        assert ("another process has that pid now, and is not meant" in line) == line.startswith("reused"), line


def test_a_pid_is_pinned_to_its_process() -> None:
    me = identity(os.getpid())
    text = pinned(f"pid:{me.pid}")
    assert parse_attachment(text).process == parse_attachment(f"pid:{me.pid}").process == me
    assert pinned(text) == text
    assert pinned("netns:x") == "netns:x" and pinned("container:x") == "container:x" and pinned("") == ""
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
        with pytest.raises(SpecError, match=f"no process has the pid {ended.pid}"):
            pinned(f"pid:{ended.pid}")
    for bad in ("pid:1:2", "pid:1:2:x", "pid:0", "pid:1:x:" + "0" * 36):
        with pytest.raises(SpecError, match="cannot attach"):
            parse_attachment(bad)


def test_a_name_that_is_not_there_is_gone_and_is_followed_when_it_comes_back(node: Node) -> None:
    assert node.platform.addresses()
    subprocess.run(["ip", "netns", "del", node.name], check=True)
    with pytest.raises(GoneError, match=f"no network namespace is called {node.name}"):
        node.platform.addresses()
    subprocess.run(["ip", "netns", "add", node.name], check=True)
    assert node.platform.addresses() == ()


def held_open(node: Node) -> subprocess.Popen[bytes]:
    """Start a process outside that holds the namespace by an open file and by nothing else."""
    program = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", program, f"/run/netns/{node.name}"]
    holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout
    assert holder.stdout.readline() == b"open\n"
    return holder


def die(platform: LinuxPlatform) -> None:
    """Close what the platform holds open, as its process would by dying."""
    for held, _ in platform._node.namespaces._open.values():
        held.close()


@pytest.mark.parametrize("life", ["this", "the next"])
def test_rules_in_a_namespace_that_only_an_open_file_holds_are_removed(node: Node, life: str) -> None:
    with held_open(node) as holder:
        (step,) = prepare(node, BlockPorts(ports=(9092,)))
        platform = node.platform
        platform.do(step)
        if life == "the next":
            die(platform)
            platform = LinuxPlatform(f"netns:{node.name}")
        subprocess.run(["ip", "netns", "del", node.name], check=True)
        where = f"/proc/{holder.pid}/fd/3"
        seen = ["nsenter", f"--net={where}", "iptables-save"]
        assert "TB-" in subprocess.check_output(seen, text=True)
        assert platform.disturbance(step).startswith("the network namespace is gone")
        assert len(platform.residue(step, [])) == 2
        assert "nsenter --net=/proc/" in platform.by_hand(step)
        said = platform.undo(step, [], unnoted)
        assert said.startswith("gone: ") and said.endswith("the rules were taken out of it")
        assert "TB-" not in subprocess.check_output(seen, text=True)
        assert platform.residue(step, []) == ()
        holder.communicate()


def test_a_namespace_that_only_a_mount_elsewhere_holds_is_found(node: Node, tmp_path: Path) -> None:
    program = f"touch '{tmp_path}/a name' && mount --bind /run/netns/{node.name} '{tmp_path}/a name' && echo on && cat"
    argv = ["unshare", "--mount", "sh", "-ec", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"on\n"
        (step,) = prepare(node, BlockPorts(ports=(9092,)))
        node.platform.do(step)
        die(node.platform)
        subprocess.run(["ip", "netns", "del", node.name], check=True)
        # the other mount namespace had a copy of the first mount, too
        assert len(LinuxPlatform().residue(step, [])) == 2
        assert LinuxPlatform().undo(step, [], unnoted).endswith("the rules were taken out of it")
        assert LinuxPlatform().residue(step, []) == ()
        holder.communicate()


def test_of_a_namespace_that_nothing_leads_to_it_is_said_that_this_cannot_be_known(node: Node) -> None:
    (step,) = prepare(node, BlockPorts(ports=(9092,)))
    node.platform.do(step)
    lost = LinuxPlatform()
    assert node.platform.undo(step, [], unnoted) == "" and node.platform.residue(step, []) == ()
    subprocess.run(["ip", "netns", "del", node.name], check=True)
    said = lost.undo(step, [], unnoted)
    assert said.startswith("gone: ") and said.endswith("cannot be known")
    assert lost.residue(step, []) == ()
    earlier = {**step.undo, "namespace": {**step.undo["namespace"], "boot_id": "another"}}
    assert lost.undo(Step(do={}, undo=earlier), [], unnoted).endswith("booted since, and the rules went with it")


def test_a_namespace_is_held_as_long_as_rules_of_ours_are_in_it(node: Node) -> None:
    def holds() -> bool:
        with Namespace(f"/run/netns/{node.name}") as namespace:
            inode = namespace.inode[1]
        return any(fd.exists() and fd.stat().st_ino == inode for fd in Path("/proc/self/fd").iterdir())

    steps = [prepare(node, BlockPorts(ports=(port,)), worker=port)[0] for port in (9092, 9093)]
    assert not holds()
    for step in steps:
        node.platform.do(step)
    for left in (True, False):
        step = steps.pop()
        node.platform.undo(step, [], unnoted)
        node.platform.residue(step, [])
        assert holds() is left


def test_looking_for_holders_ends(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "LOOK_S", 0.0)
    with Namespace(f"/run/netns/{node.name}") as namespace:
        assert holders.open_held(namespace.identity) is None


def test_an_address_that_the_node_has_itself_is_left_out_with_a_warning(node: Node) -> None:
    action = BlockFrom(peers=(Peer("n2", ("10.77.0.2", node.v4)),))
    prepared = node.platform.prepare(1, action, Surroundings(), [])
    assert prepared.warnings == (f"{node.v4} of n2 is left out: this node has it itself",)
    sources = [rule.get("source") for table in prepared.steps[0].do["tables"] for rule in table["chains"][0]["rules"]]
    assert sources == ["10.77.0.2"]
    with pytest.raises(HostError, match=r"there is nothing to block: .* this node has it itself"):
        node.platform.prepare(1, BlockFrom(peers=(Peer("n2", (node.v4,)),)), Surroundings(), [])
