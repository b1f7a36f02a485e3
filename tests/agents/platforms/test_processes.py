from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agents.platforms.nodes import SLEEP, Node, end, from_journal, inside, known, one_node, prepare
from tests.supervisor.kept import LEADERLESS, has_lost_its_main_thread
from tests.support import require_namespaces, wait_until
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.process import Kill, Suspend
from trogdor_bus.agents.platforms.linux import processes, signals
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.errors import HostError, RefusedError
from trogdor_bus.platform import Prepared, ProcessIdentity, Step, Surroundings
from trogdor_bus.testing import unnoted

THREADS = f"""
import threading
def busy():
    while True:
        pass
for _ in range(8):
    threading.Thread(target=busy, daemon=True).start()
{SLEEP}
"""


def freeze_of(token: str) -> Suspend:
    return Suspend(match=ProcessMatch(command=token))


def stopped(pid: int) -> bool:
    return signals.is_stopped(known(pid))


def stop_from_outside(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)  # a pid that this test started and holds alive
    wait_until(lambda: stopped(pid), what="the stop")


def test_a_process_stops_with_all_its_threads_and_runs_again(node: Node) -> None:
    pid = node.sleeper("busy-threads", THREADS)
    wait_until(lambda: len(list(Path(f"/proc/{pid}/task").iterdir())) == 9, what="nine threads")
    (step,) = prepare(node, freeze_of("busy-threads"))
    assert not stopped(pid)
    node.platform.do(step)
    assert stopped(pid)
    assert node.platform.disturbance(step) == ""
    assert len(node.platform.residue(step, [])) == 1
    assert node.platform.undo(step, [], unnoted) == ""
    assert not stopped(pid)
    assert node.platform.disturbance(step).endswith("runs again: somebody else let it")
    assert node.platform.undo(step, [], unnoted) == ""
    assert node.platform.residue(step, []) == ()


def test_every_match_is_a_step_of_its_own(node: Node) -> None:
    pids = {node.sleeper("several") for _ in range(3)}
    steps = prepare(node, freeze_of("several"))
    assert {step.do["process"]["pid"] for step in steps} == pids


def test_processes_of_other_namespaces_are_not_hit(pair: tuple[Node, Node]) -> None:
    here, there = pair
    theirs, ours = there.sleeper("same-words"), here.sleeper("same-words")
    (step,) = prepare(here, freeze_of("same-words"))
    assert step.do["process"]["pid"] == ours != theirs


def test_what_was_already_stopped_stays_stopped(node: Node) -> None:
    pid = node.sleeper("foreign")
    stop_from_outside(pid)
    (first,) = prepare(node, freeze_of("foreign"))
    node.platform.do(first)
    (second,) = prepare(node, freeze_of("foreign"), held=[first], worker=2)
    node.platform.do(second)
    node.platform.undo(first, [second], unnoted)
    assert "left so" in node.platform.undo(second, [], unnoted)
    assert stopped(pid)
    assert node.platform.residue(second, []) == ()


@pytest.fixture(scope="module")
def lone() -> Iterator[Node]:
    require_namespaces()
    with one_node() as alone:
        yield alone


@settings(max_examples=40, deadline=None)
@given(moves=st.lists(st.integers(0, 3), max_size=12), foreign=st.booleans())
def test_a_process_stands_as_long_as_any_worker_wants_it(lone: Node, moves: list[int], foreign: bool) -> None:
    pid = lone.sleeper("counted")
    try:
        if foreign:
            stop_from_outside(pid)
        live: dict[int, Step] = {}
        for worker in [*moves, *range(4)]:
            if worker in live:
                step = live.pop(worker)
                lone.platform.undo(step, list(live.values()), unnoted)
                assert lone.platform.residue(step, list(live.values())) == ()
            else:
                (live[worker],) = prepare(lone, freeze_of("counted"), held=list(live.values()), worker=worker)
                lone.platform.do(live[worker])
            assert stopped(pid) is (foreign or bool(live))
        for worker in list(live):
            lone.platform.undo(live.pop(worker), list(live.values()), unnoted)
        assert stopped(pid) is foreign
    finally:
        end(known(pid))


def test_another_process_under_the_same_pid_is_not_touched(node: Node) -> None:
    pid = node.sleeper("reused")
    stop_from_outside(pid)
    (step,) = prepare(node, freeze_of("reused"))
    earlier = {**step.undo["process"], "start_ticks": step.undo["process"]["start_ticks"] - 1}
    undo, do = ({**part, "process": earlier, "leave": False} for part in (step.undo, step.do))
    assert node.platform.undo(Step(do={}, undo=undo), [], unnoted).startswith("gone:")
    assert stopped(pid)
    os.kill(pid, signal.SIGCONT)  # still the pid that this test started
    with pytest.raises(HostError, match="ended, or its pid belongs to another"):
        node.platform.do(Step(do=do, undo=undo))
    assert not stopped(pid)
    assert node.platform.disturbance(Step(do=do, undo=undo)).endswith("ended")


def test_a_process_that_ends_while_it_stands_is_gone(node: Node) -> None:
    pid = node.sleeper("mortal")
    (step,) = prepare(node, freeze_of("mortal"))
    node.platform.do(step)
    end(known(pid))
    assert node.platform.disturbance(step).endswith("ended")
    assert node.platform.undo(step, [], unnoted).startswith("gone:")
    assert node.platform.residue(step, []) == ()


def test_a_process_that_took_the_place_of_a_frozen_one_is_seen_and_frozen(node: Node) -> None:
    victims = [node.sleeper("replaced") for _ in range(2)]
    steps = prepare(node, freeze_of("replaced"))
    for step in steps:
        node.platform.do(step)
    end(known(victims[0]))
    first = next(step for step in steps if step.do["process"]["pid"] == victims[0])
    assert node.platform.disturbance(first).endswith("ended")  # the other victim stands, and is no newcomer
    assert node.platform.again(first, Surroundings(), []) == ()
    risen = node.sleeper("replaced")
    assert f"was replaced: pid {risen} (python" in node.platform.disturbance(first)
    (again,) = from_journal(Prepared(node.platform.again(first, Surroundings(), [])))
    node.platform.do(again)
    assert stopped(risen)
    assert [node.platform.disturbance(step) for step in [*steps, again]] == ["", "", ""]
    assert node.platform.undo(again, [], unnoted) == ""
    assert not stopped(risen)
    assert node.platform.residue(again, []) == ()


def test_a_process_that_somebody_let_run_is_frozen_again(node: Node) -> None:
    pid = node.sleeper("let-go")
    (step,) = prepare(node, freeze_of("let-go"))
    node.platform.do(step)
    os.kill(pid, signal.SIGCONT)  # a pid that this test started and holds alive
    assert node.platform.disturbance(step)
    assert node.platform.again(step, Surroundings(), []) == (step,)
    node.platform.do(step)
    assert stopped(pid)


def test_we_and_our_parents_and_children_are_never_hit() -> None:
    child = subprocess.Popen([sys.executable, "-c", SLEEP, "child-of-the-test"])
    try:
        parents = set()
        pid = os.getpid()
        while pid:
            parents.add(pid)
            stat = processes.read_stat(f"/proc/{pid}")
            assert stat is not None
            pid = stat.parent
        with Namespace("/proc/self/ns/net") as own:
            for letter in "aeiorst/ ":
                found = processes.find(ProcessMatch(command=letter), own, Surroundings()).processes
                assert not {process.pid for process in found} & {*parents, child.pid, 1}
        wait_until(lambda: b"child-of-the-test" in Path(f"/proc/{child.pid}/cmdline").read_bytes(), what="exec")
        with pytest.raises(HostError, match=r"never touched: \d+ \(python.*\) is a child of this agent"):
            LinuxPlatform().prepare(1, freeze_of("child-of-the-test"), Surroundings(), [])
    finally:
        child.kill()
        child.wait()


def test_the_coordinator_is_hit_only_with_force(node: Node) -> None:
    pid = node.spawn(sys.executable, "-c", SLEEP, "trogdor-bus", "coordinator")
    with pytest.raises(RefusedError, match="‹force›"):
        prepare(node, freeze_of("coordinator"), coordinator=known(pid))
    (step,) = prepare(node, freeze_of("coordinator"), coordinator=known(pid), force=True)
    assert step.do["process"]["pid"] == pid


def test_no_match_is_an_error_unless_it_need_not_be(node: Node) -> None:
    match = ProcessMatch(java="kafka.Kafka")
    with pytest.raises(HostError, match="no process matches JVMs"):
        prepare(node, Suspend(match=match))
    prepared = node.platform.prepare(1, Suspend(match=match, required=False), Surroundings(), [])
    assert prepared.steps == ()
    assert "no process matches JVMs" in prepared.warnings[0]


def test_an_empty_match_is_refused(node: Node) -> None:
    with pytest.raises(HostError, match="every process"):
        prepare(node, Suspend(match=ProcessMatch()))


def test_a_process_is_found_by_its_port(node: Node) -> None:
    code = "import socket, time; s = socket.create_server(('::', 9092), family=socket.AF_INET6); time.sleep(600)"
    pid = node.sleeper("listener", code)
    node.sleeper("bystander")
    wait_until(lambda: ":9092" in node.run("ss", "-Hltn"), what="the listener")
    (step,) = prepare(node, Suspend(match=ProcessMatch(port=9092)))
    assert step.do["process"]["pid"] == pid
    with pytest.raises(HostError, match="listens on TCP port 9093"):
        prepare(node, Suspend(match=ProcessMatch(port=9093)))


def test_a_process_is_found_by_its_pid_file(node: Node, tmp_path: Path) -> None:
    pid = node.sleeper("filed")
    file = tmp_path / "it.pid"
    action = Suspend(match=ProcessMatch(pid_file=str(file)))
    with pytest.raises(HostError, match="cannot be read: No such file"):
        prepare(node, action)
    file.write_text(f"{pid}\n")
    (step,) = prepare(node, action)
    assert step.do["process"]["pid"] == pid
    file.write_text(f"{os.getpid()}\n")  # not of this node
    with pytest.raises(HostError, match="no process matches"):
        prepare(node, action)
    file.write_text("secret words")
    with pytest.raises(HostError, match=r"holds no pid$"):
        prepare(node, action)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(HostError, match="not a regular file"):
        prepare(node, action)


def test_attached_to_a_pid_the_pid_file_speaks_its_language(node: Node, tmp_path: Path) -> None:
    pid = inside(node, "contained")
    (tmp_path / "it.pid").write_text("1\n")
    platform = LinuxPlatform(f"pid:{pid}")
    assert set(platform.addresses()) == {node.v4, node.v6}
    action = Suspend(match=ProcessMatch(pid_file=str(tmp_path / "it.pid")))
    (step,) = from_journal(platform.prepare(1, action, Surroundings(), []))
    assert step.do["process"]["pid"] == pid
    platform.do(step)
    assert stopped(pid)
    platform.undo(step, [], unnoted)
    assert not stopped(pid)


def test_attached_to_a_container_that_is_down_or_elsewhere_says_so(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = inside(node, "container")
    engine = tmp_path / "docker"  # stands for a running container engine: answers as `docker inspect` does
    engine.write_text(f'#!/bin/sh\n[ "$6" = broker ] && echo "c0ffee $(cat {tmp_path}/pid) /broker"\n')
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    platform = LinuxPlatform("container:broker")
    (tmp_path / "pid").write_text("0")
    with pytest.raises(HostError, match="container broker is not running"):
        platform.addresses()
    (tmp_path / "pid").write_text(str(pid))  # the pid is somebody here, the container is not
    with pytest.raises(HostError, match=f"process {pid} of this machine is not of container broker"):
        platform.addresses()
    with pytest.raises(HostError, match="docker failed"):
        LinuxPlatform("container:other").addresses()


def test_a_step_comes_back_from_the_journal_as_it_went_in(node: Node, tmp_path: Path) -> None:
    program = tmp_path / os.fsdecode(b"odd\xff\nname")
    program.symlink_to("/bin/sleep")
    node.spawn(str(program), "601.25")
    prepared = node.platform.prepare(1, freeze_of("601.25"), Surroundings(), [])
    assert len(prepared.steps) == 1
    assert from_journal(prepared) == list(prepared.steps)
    assert "\n" not in prepared.steps[0].do["name"]


@pytest.mark.parametrize("by", ["command", "port", "pid file"])
def test_a_process_is_found_stopped_and_let_go_though_its_main_thread_has_ended(
    node: Node, tmp_path: Path, by: str
) -> None:
    node.run("ip", "link", "set", "lo", "up")
    serve = "import os, socket\nos.setsid()\nserver = socket.create_server(('127.0.0.1', 9095))\n"
    pid = headless(node, serve)
    (tmp_path / "pid").write_text(f"{pid}")
    matches = {
        "command": ProcessMatch(command="headless"),
        "port": ProcessMatch(port=9095),
        "pid file": ProcessMatch(pid_file=str(tmp_path / "pid")),
    }
    (step,) = prepare(node, Suspend(match=matches[by]))
    node.platform.do(step)
    assert stopped(pid) and len(node.platform.residue(step, [])) == 1
    assert node.platform.undo(step, [], unnoted) == ""
    assert not stopped(pid) and processes.session_lives(known(pid))
    victim = known(pid)
    (step,) = prepare(node, Kill(match=matches[by], signal="SIGKILL"))
    node.platform.do(step)
    assert processes.thread_states(victim) == {}


def test_a_process_whose_main_thread_ends_while_it_stands_runs_again_at_the_end(node: Node) -> None:
    pid = node.sleeper("headless", f"import time; time.sleep(0.5)\n{LEADERLESS}")
    (step,) = prepare(node, freeze_of("headless"))
    node.platform.do(step)
    assert node.platform.undo(step, [], unnoted) == ""
    wait_until(lambda: has_lost_its_main_thread(pid), what="the end of its main thread")
    assert node.platform.again(step, Surroundings(), []) == (step,)
    node.platform.do(step)
    assert stopped(pid) and node.platform.disturbance(step) == ""
    assert node.platform.undo(step, [], unnoted) == ""
    assert not stopped(pid)


def test_a_node_is_reached_by_a_process_whose_main_thread_has_ended(node: Node) -> None:
    pid = headless(node)
    platform = LinuxPlatform(f"pid:{pid}")
    assert set(platform.addresses()) == {node.v4, node.v6}
    assert platform.prepare(1, freeze_of("headless"), Surroundings(), []).steps
    assert processes.network_of(pid).startswith("net:[") and processes.mounts_of(pid)


def headless(node: Node, code: str = "") -> int:
    """Start a process whose main thread ends while another one lives on."""
    pid = node.sleeper("headless", code + LEADERLESS)
    wait_until(lambda: has_lost_its_main_thread(pid), what="the end of its main thread")
    return pid


@pytest.mark.parametrize(
    ("lists", "ended", "told"),
    [
        (["7 8", "7 9"], "7 8", {9: "S"}),
        (["7 8", "7", "7 9"], "7 8", {9: "S"}),  # 9 is just being born
        (["7 8", "7 8 9"], "8", {7: "S", 9: "S"}),  # the first list ended where 8 did
        (["7"], "7", {}),
        (["7 8"], "", {7: "S", 8: "S"}),
        ([f"7 {task}" for task in range(8, 300)], " ".join(map(str, range(7, 300))), {7: "R"}),
    ],
)
def test_threads_that_hand_on_while_they_are_listed_are_a_process_that_lives(
    monkeypatch: pytest.MonkeyPatch, lists: list[str], ended: str, told: dict[int, str]
) -> None:
    process = ProcessIdentity("boot", 7, 99)
    coming, last = iter(lists), lists[-1]
    monkeypatch.setattr(processes, "identify", lambda pid: process)
    monkeypatch.setattr(os, "listdir", lambda path: next(coming, last).split())

    def stat(path: str) -> processes.Stat:
        return processes.Stat("x", "Z" if path.rpartition("/")[2] in ended.split() else "S", 1, 1, 0, 99)

    monkeypatch.setattr(processes, "read_stat", stat)
    assert processes.thread_states(process) == told
