"""What the kernel refuses to an agent is told with what is missing, never "be root" to root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agents.platforms.nodes import SLEEP, Node
from tests.support import wait_until
from trogdor_bus.agents.platforms.linux import privileges

PREPARE = """
import sys
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.actions.process import Suspend
from trogdor_bus.agents.platforms import open_platform
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Surroundings
what, attach = sys.argv[1:]
action = BlockPorts(ports=(9,)) if what == "ports" else Suspend(match=ProcessMatch(command=what))
try:
    platform = open_platform("basic", {"attach": attach})
    for step in platform.prepare(1, action, Surroundings(), []).steps:
        platform.do(step)
except HostError as error:
    print(error)
"""


def refused(node: Node, *without: str, what: str, attach: str = "") -> str:
    """Return what an agent says that is root in the node (or attached to it), with something taken away."""
    inside = [] if attach else ["ip", "netns", "exec", node.name]
    argv = [*inside, *without, sys.executable, "-c", PREPARE, what, attach]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def dropping(*names: str) -> tuple[str, ...]:
    taken = ",".join(f"-{name}" for name in names)
    return ("setpriv", f"--bounding-set={taken}", f"--inh-caps={taken}")


@pytest.mark.e2e
def test_root_that_may_not_look_at_processes(node: Node) -> None:
    node.sleeper("of-somebody")
    said = refused(node, *dropping("sys_ptrace"), what="of-somebody")
    assert "processes may not be looked at: the agent lacks CAP_SYS_PTRACE: give it to its container" in said
    assert "as root" not in said


@pytest.mark.e2e
def test_root_that_may_not_signal(node: Node) -> None:
    pid = node.sleeper("of-nobody", f"import os; os.setuid(65534); {SLEEP}")
    wait_until(lambda: "Uid:\t65534" in Path(f"/proc/{pid}/status").read_text(), what="another user")
    said = refused(node, *dropping("kill"), what="of-nobody")
    assert "Operation not permitted; the agent lacks CAP_KILL: " in said
    assert "docker run --cap-add KILL" in said and "as root" not in said


@pytest.mark.e2e
def test_root_that_may_not_change_the_firewall(node: Node) -> None:
    said = refused(node, *dropping("net_admin"), what="ports")
    assert "ermi" in said  # permission denied, not permitted: the words are the tool's
    assert "; the agent lacks CAP_NET_ADMIN: give it" in said


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("without", "because"),
    [
        (dropping("sys_admin"), "the agent lacks CAP_SYS_ADMIN: give it"),
        (("unshare", "--user", "--map-root-user"), "root of a user namespace only: run it as root of the machine"),
    ],
)
def test_root_that_may_not_enter_a_namespace(node: Node, without: tuple[str, ...], because: str) -> None:
    said = refused(node, *without, what="ports", attach=f"netns:{node.name}")
    assert because in said, said
    assert "the agent as root" not in said


def test_who_is_not_root_is_told_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nCapEff:\t0000000000000000\n")
    monkeypatch.setattr(privileges, "STATUS", status)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert privileges.missing("CAP_KILL") == "run the agent as root"
    status.write_text("CapEff:\t0000000000000020\n")
    assert "SELinux" in privileges.missing("CAP_KILL"), "it has the capability without being root"


def test_root_with_every_right_is_told_what_else_forbids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status, uid_map = tmp_path / "status", tmp_path / "uid_map"
    status.write_text("CapEff:\t000001ffffffffff\n")
    uid_map.write_text("         0          0 4294967295\n")
    monkeypatch.setattr(privileges, "STATUS", status)
    monkeypatch.setattr(privileges, "UID_MAP", uid_map)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "a read-only mount, SELinux, AppArmor or a seccomp profile" in privileges.missing("CAP_KILL")
    status.unlink()
    assert "SELinux" in privileges.missing("CAP_KILL"), "nothing is claimed that /proc does not tell"
