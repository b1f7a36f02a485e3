"""The lab without daemons: what it makes, what it measures, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.supervisor.kept import LEADERLESS, has_lost_its_main_thread
from tests.support import require, require_namespaces, wait_until
from trogdor_bus.errors import ConflictError, HostError, NotFoundError, SpecError
from trogdor_bus.lab import namespaces
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.demo import whole
from trogdor_bus.lab.labs import existing, remove
from trogdor_bus.lab.probe import PING, WAYS
from trogdor_bus.lab.processes import TOKEN, with_token
from trogdor_bus.lab.snapshot import difference

NAME = f"t{os.getpid()}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    require_namespaces()
    with Lab(2, NAME, daemons=False) as made:
        yield made


def cli(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trogdor_bus", *argv], capture_output=True, text=True, timeout=60, check=False
    )


def host_network() -> list[str]:
    commands = ("ip -o link", "ip -o address", "ip route", "ip -6 route", "ip rule", "iptables-save", "ip6tables-save")
    shown = [subprocess.run(line.split(), capture_output=True, text=True, check=False).stdout for line in commands]
    steady = [line for text in shown for line in text.splitlines() if not line.startswith("#")]
    return [line.partition(" valid_lft ")[0] for line in steady]


def made_by(lab: Lab) -> set[str]:
    return {name for name in namespaces.listed() if name.startswith(f"tb-{lab.name}-")}


def test_members_have_addresses_of_their_own() -> None:
    found = namespaces.members("x", 2)
    assert [(one.name, one.namespace, one.ipv4) for one in found] == [
        ("node1", "tb-x-node1", "10.89.0.1"),
        ("node2", "tb-x-node2", "10.89.0.2"),
        ("coordinator", "tb-x-coordinator", "10.89.0.254"),
    ]
    assert len({one.ipv6 for one in found}) == 3


@pytest.mark.parametrize(("name", "nodes"), [("", 3), ("a b", 3), ("../x", 3), ("x" * 33, 3), ("x", 0), ("x", 201)])
def test_a_name_or_size_that_cannot_be_is_refused(name: str, nodes: int) -> None:
    with pytest.raises(SpecError):
        Lab(nodes, name)


def test_everybody_reaches_everybody_in_every_way(lab: Lab) -> None:
    assert lab.matrix().agrees(whole)


def test_the_matrix_shows_a_cut_of_one_family_only(lab: Lab) -> None:
    rule = ["INPUT", "-s", lab.member("node2").ipv4, "-j", "DROP"]
    assert lab.run("node1", "iptables", "-I", *rule).returncode == 0
    try:
        matrix = lab.matrix()
    finally:
        lab.run("node1", "iptables", "-D", *rule)
    assert matrix.reached("node1", "node2") == matrix.reached("node2", "node1") == {"tcp6", "udp6", "ping6"}
    assert matrix.reached("node1", "coordinator") == set(WAYS)


def test_a_frozen_service_still_answers_ping(lab: Lab) -> None:
    echo = lab.process("echo", "node2")
    lab.kill(echo, signal.SIGSTOP)
    try:
        wait_until(lambda: echo.state() == "stopped", what="the echo service to stop")
        assert lab.matrix().reached("node1", "node2") == set(PING)
        assert lab.snapshot("node2").processes["echo"] == "stopped"
    finally:
        lab.kill(echo, signal.SIGCONT)
    wait_until(lambda: lab.matrix().agrees(whole), what="everybody to answer again")


def test_nodes_carry_what_is_foreign(lab: Lab) -> None:
    state = lab.snapshot("node1")
    text = "\n".join(state.lines())
    for family in ("iptables", "ip6tables"):
        lines = "\n".join(line for line in state.lines() if line.startswith(family + "-"))
        assert "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT" in lines
        assert "-A FOREIGN -j DROP" in lines
    assert "qdisc tbf 77: dev eth0 root" in text
    assert state.processes == {"echo": "running", "sleeper": "stopped"}


def test_a_snapshot_sees_a_rule_that_was_left_and_ignores_an_empty_table(lab: Lab) -> None:
    before = lab.snapshot("node1")
    rule = ["FORWARD", "-s", "198.51.100.1", "-j", "DROP"]
    lab.run("node1", "ip6tables", "-t", "mangle", "-L")  # makes an empty table
    assert lab.snapshot("node1") == before
    assert lab.run("node1", "iptables", "-A", *rule).returncode == 0
    try:
        changed = difference(before, lab.snapshot("node1"))
        assert [line for line in changed if "198.51.100.1" in line and line.startswith("+")]
    finally:
        lab.run("node1", "iptables", "-D", *rule)
    assert lab.snapshot("node1") == before


def test_sockets_made_on_a_member_stay_there(lab: Lab) -> None:
    with lab.call_on("node1", lambda: socket.create_connection((lab.member("node2").ipv4, 9092), 2)) as connection:
        connection.sendall(b"hello")
        assert connection.getsockname()[0] == lab.member("node1").ipv4
        assert connection.recv(5) == b"hello"


def test_a_signal_never_goes_to_another_process_with_the_same_pid(lab: Lab) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        impostor = msgspec.structs.replace(lab.process("echo", "node1"), pid=bystander.pid)
        assert impostor.state() == "gone"
        with pytest.raises(HostError, match="is gone"):
            lab.kill(impostor, signal.SIGKILL)
        assert bystander.poll() is None
        bystander.terminate()


def test_the_same_name_twice_is_a_conflict_and_harms_nothing(lab: Lab) -> None:
    with pytest.raises(ConflictError, match="lab down"):
        Lab(2, NAME, daemons=False).up()
    assert lab.matrix().agrees(whole)


def test_status_and_exec(lab: Lab) -> None:
    told = json.loads(cli("lab", "status", "--name", NAME, "--json").stdout)
    assert [member["name"] for member in told["members"]] == ["node1", "node2", "coordinator"]
    assert told["members"][0]["processes"]["sleeper"]["state"] == "stopped"
    assert told["reached"]["node1"]["node2"] == sorted(WAYS)
    shown = cli("lab", "status", "--name", NAME)
    assert shown.returncode == 0
    assert "10.89.0.1" in shown.stdout
    inside = cli("lab", "exec", "--name", NAME, "node2", "--", "sh", "-c", "ip -o -4 address show dev eth0; exit 7")
    assert inside.returncode == 7
    assert "10.89.0.2/24" in inside.stdout
    assert cli("lab", "exec", "--name", NAME, "node9", "--", "true").returncode == 2
    assert cli("lab", "status", "--name", "nobody-made-it").returncode == 2


def test_two_labs_and_the_host_stays_as_it_was(lab: Lab) -> None:
    network = host_network()
    other = Lab(1, f"{NAME}b", daemons=False)
    other.up()
    try:
        assert host_network() == network
        sysctl = other.run("node1", "cat", "/proc/sys/net/ipv4/ip_forward").stdout
        assert sysctl == Path("/proc/sys/net/ipv4/ip_forward").read_text()
        processes = list(other.state.processes)
        assert made_by(other) == {f"tb-{NAME}b-{name}" for name in ("bridge", "node1", "coordinator")}
    finally:
        other.down()
    assert [one.state() for one in processes] == ["gone"] * 3
    assert not made_by(other)
    assert host_network() == network
    assert not other.directory.exists()
    other.down()  # twice is harmless
    assert lab.matrix().agrees(whole)


def test_what_a_killed_lab_up_left_is_removed_with_processes_it_never_wrote_down() -> None:
    require_namespaces()
    name = f"{NAME}c"
    lab = Lab(1, name, daemons=False)
    lab.up()
    try:
        unwritten = subprocess.Popen(["sleep", "600"], env=lab.environment(), start_new_session=True)
        written = lab.state.processes
        lab.state.processes = []
        (lab.directory / "lab.json").write_bytes(msgspec.json.encode(lab.state))
        assert existing(name).state.processes == []
        assert remove(name)
        assert unwritten.wait(5) == -signal.SIGKILL
        assert [one.state() for one in written] == ["gone"] * 3
        assert not made_by(lab)
        assert not remove(name)
    finally:
        lab.down()


def test_a_lab_that_cannot_be_finished_is_taken_down(monkeypatch: pytest.MonkeyPatch) -> None:
    require_namespaces()
    lab = Lab(2, f"{NAME}d", daemons=False)
    monkeypatch.setattr("trogdor_bus.lab.cluster.SLEEPER", ["sleep", "600"])  # it never comes to be stopped
    monkeypatch.setattr(Lab.wait_usable, "__defaults__", (0.5,))
    with pytest.raises(HostError):
        lab.up()
    assert not lab.directory.exists()
    assert not made_by(lab)


def test_a_namespace_that_is_not_ours_is_left_alone() -> None:
    require_namespaces()
    taken = f"tb-{NAME}e-node1"
    namespaces.run(["ip", "netns", "add", taken])
    try:
        with pytest.raises(ConflictError, match=taken):
            Lab(1, f"{NAME}e", daemons=False).up()
        assert not remove(f"{NAME}e")
        assert namespaces.exists(taken)
    finally:
        namespaces.run(["ip", "netns", "delete", taken])


def test_a_namespace_that_somebody_made_anew_under_our_name_is_left_alone() -> None:
    require_namespaces()
    lab = Lab(1, f"{NAME}f", daemons=False)
    lab.up()
    again = lab.member("node1").namespace
    try:
        namespaces.delete(again)
        namespaces.run(["ip", "netns", "add", again])
        theirs = namespaces.identity(again)
        lab.down()
        assert namespaces.identity(again) == theirs
        assert not namespaces.exists(lab.member("coordinator").namespace)
    finally:
        namespaces.delete(again)


def test_without_root_it_says_what_is_missing() -> None:
    nobody = ["unshare", "--user", "--"]  # no capabilities, and no name
    runs = subprocess.run([*nobody, "true"], capture_output=True, check=False)
    require(runs.returncode == 0, "no user namespaces here", "allow them (sysctl user.max_user_namespaces)")
    done = subprocess.run(
        [*nobody, sys.executable, "-m", "trogdor_bus", "lab", "up"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "needs root" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_member_is_not_found(lab: Lab) -> None:
    with pytest.raises(NotFoundError, match="node1"):
        lab.member("node9")


def test_the_token_is_only_in_what_the_lab_started(lab: Lab) -> None:
    environment = Path(f"/proc/{lab.process('echo', 'node1').pid}/environ").read_bytes()
    assert f"{TOKEN}={lab.state.token}".encode() in environment
    assert lab.directory.stat().st_mode & 0o777 == 0o700


def test_a_process_with_a_hostile_name_is_no_trouble(lab: Lab) -> None:
    rename = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'\\xff) R (\\xfe', 0, 0, 0)\ntime.sleep(60)"
    with lab.begin("node1", sys.executable, "-c", rename) as hostile:
        stat = Path(f"/proc/{hostile.pid}/stat")
        wait_until(lambda: b"\xff" in stat.read_bytes(), what="the process to take its name")
        found = [one for one in with_token(lab.state.token) if one.pid == hostile.pid]
        assert [one.state() for one in found] == ["running"]
        lab.kill(found[0], signal.SIGKILL)


def test_a_process_whose_main_thread_has_ended_is_ended_with_the_others(lab: Lab) -> None:
    with lab.begin("node1", sys.executable, "-c", LEADERLESS) as hidden:
        wait_until(lambda: has_lost_its_main_thread(hidden.pid), what="the end of its main thread")
        found = [one for one in with_token(lab.state.token) if one.pid == hidden.pid]
        assert [one.state() for one in found] == ["running"]
        lab.kill(found[0], signal.SIGKILL)
        wait_until(lambda: found[0].state() == "gone", what="its end")
