from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fcntl import flock
from pathlib import Path

import psutil
import pytest

from tests.agents.platforms.nodes import Node, prepare
from tests.agents.platforms.sandbox import FOREIGN, process, restoring, sandbox
from tests.support import require, require_namespaces, wait_until
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents.platforms.linux import locking
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.locking import hold
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.errors import HostError
from trogdor_bus.host import boot_id

HOLDS = """
import subprocess, sys, time
from trogdor_bus.agents.platforms.linux.locking import hold
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.host import boot_id
with hold([NamespaceIdentity(boot_id(), sys.argv[1], "")]):
    child = subprocess.Popen(["sleep", "600"], close_fds=False, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(600)
"""
COUNTS = """
import pathlib, sys
from trogdor_bus.agents.platforms.linux.locking import hold
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.host import boot_id
count = pathlib.Path(sys.argv[2])
for _ in range(50):
    with hold([NamespaceIdentity(boot_id(), sys.argv[1], "")]):
        count.write_text(str(int(count.read_text()) + 1))
"""


def named(name: str) -> NamespaceIdentity:
    """A namespace that nobody has."""
    return NamespaceIdentity(boot_id(), f"test {os.getpid()} {name}", "/nowhere")


@contextlib.contextmanager
def holder(identity: NamespaceIdentity) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the lock, and the pid of its child."""
    argv = [sys.executable, "-c", HOLDS, identity.cookie]
    with process(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)) as other:
        assert other.stdout is not None
        child = int(other.stdout.readline())
        try:
            yield other, child
        finally:
            psutil.Process(child).kill()


def test_another_holder_is_waited_for_and_named() -> None:
    with holder(named("a")) as (other, _):
        began = time.monotonic()
        with pytest.raises(HostError, match=f"^process {other.pid} injects or undoes a fault"), hold([named("a")], 0.3):
            pass
        assert 0.3 <= time.monotonic() - began < 2


def test_a_killed_holder_frees_it_though_its_child_lives() -> None:
    with holder(named("a")) as (other, child):
        other.kill()
        other.wait()
        with hold([named("a")], 5):
            assert psutil.Process(child).status() != psutil.STATUS_ZOMBIE


def test_different_namespaces_do_not_wait_for_each_other() -> None:
    with holder(named("a")), hold([named("b")], 0), hold([named("c")], 0):
        pass


def test_what_is_freed_is_gone_and_nothing_is_lost_between_many(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("0")
    argv = [sys.executable, "-c", COUNTS, named("a").cookie, str(count)]
    counting = [subprocess.Popen(argv) for _ in range(4)]
    assert [one.wait(60) for one in counting] == [0] * 4
    assert count.read_text() == "200"
    for directory in (locking.DIRECTORY, locking.OLD):
        assert not (directory / locking._name(named("a"))).exists()


def test_a_lock_that_was_freed_between_opening_and_locking_is_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    path = locking.DIRECTORY / locking._name(named("a"))
    freed: list[str] = []

    def late(fd: int, how: int) -> None:
        if not freed:
            freed.append("by the holder before, just now")
            path.unlink()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with hold([named("a")], 5), pytest.raises(HostError, match=f"^process {os.getpid()} "), hold([named("a")], 0):
        pass


def test_no_order_of_two_is_a_deadlock() -> None:
    done: list[str] = []

    def work(*names: str) -> None:
        for _ in range(20):
            with hold([named(name) for name in names], 20):
                done.append(names[0])

    threads = [threading.Thread(target=work, args=names) for names in (("a", "b"), ("b", "a"), ("b", "a", "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 60


def test_one_of_an_earlier_boot_needs_none() -> None:
    old = NamespaceIdentity("another boot", "1", "/nowhere")
    with hold([old], 0), hold([old], 0):
        pass


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The directories of the locks, in one of the test."""
    require(os.geteuid() == 0, "needs root", "run it with sudo")
    monkeypatch.setattr(locking, "DIRECTORY", tmp_path / "locks")
    monkeypatch.setattr(locking, "OLD", tmp_path / "lock" / "trogdor-bus")
    (tmp_path / "lock").mkdir()
    return locking.DIRECTORY, locking.OLD


def taken_over(path: Path, how: str) -> None:
    """Make a directory of locks before root does, as any user may."""
    if how == "symlink":
        path.with_name("elsewhere").mkdir(mode=0o700)
        path.symlink_to(path.with_name("elsewhere"))
    elif how == "file":
        path.touch()
    else:
        path.mkdir(mode=0o700)
        os.chown(path, 65534, 65534)


@pytest.mark.parametrize("how", ["directory", "symlink", "file"])
def test_who_made_the_old_directory_first_switches_no_lock_off(
    places: tuple[Path, Path], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    taken_over(places[1], how)
    with hold([named("a")]), pytest.raises(HostError, match=f"^process {os.getpid()} injects"), hold([named("a")], 0):
        pass
    assert caplog.text == ""
    assert places[1].is_file() or list(places[1].iterdir()) == []


def test_an_agent_of_the_first_versions_is_waited_for_and_waits(places: tuple[Path, Path]) -> None:
    file = places[1] / locking._name(named("a"))
    with hold([named("a")]):
        assert places[1].stat().st_mode & 0o777 == 0o700
        assert file.exists()
    with file.open("w") as theirs:
        flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="injects or undoes a fault"), hold([named("a")], 0):
            pass
        with hold([named("b")], 0):
            pass


def test_only_root_can_make_the_directory_of_its_locks() -> None:
    require(os.geteuid() == 0, "needs root", "run it with sudo")
    status = locking.DIRECTORY.parent.stat()
    assert (status.st_uid, status.st_mode & 0o022) == (0, 0)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o704])
def test_a_directory_that_others_may_enter_is_not_used(
    places: tuple[Path, Path], caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    with hold([named("a")]):
        for path in places:
            assert path.stat().st_mode & 0o777 == 0o700
            assert len(list(path.iterdir())) == 1
    for path in places:
        path.chmod(mode)
    with hold([named("a")]):
        assert [list(path.iterdir()) for path in places] == [[], []]
    assert f"with mode {mode:04o}" in caplog.text and "going on without the lock" in caplog.text


def test_the_platform_locks_what_the_steps_act_on_where_it_is(
    fresh_pair: tuple[Node, Node],
) -> None:
    here, there = fresh_pair
    with Namespace(f"/run/netns/{here.name}") as mine, Namespace(f"/run/netns/{there.name}") as theirs:
        identities = [mine.identity, theirs.identity]
    steps = prepare(there, BlockPorts(ports=(1,)))
    sleeper = there.sleeper("asleep")

    def locked(kind: str = "") -> list[bool]:
        found = []
        for identity in identities:
            try:
                with hold([identity], 0, kind):
                    found.append(False)
            except HostError:
                found.append(True)
        return found

    with here.platform.alone(steps):
        assert (locked(), locked("processes")) == ([False, True], [False, False])
    thaw = {
        "op": "thaw",
        "process": {"boot_id": boot_id(), "pid": sleeper, "start_ticks": 1},
        "name": "",
        "leave": False,
    }
    with here.platform.alone([type(steps[0])(do={}, undo=thaw)]):
        assert (locked(), locked("processes")) == ([False, False], [False, True])
    nothing = type(steps[0])(do={}, undo={"op": "nothing"})
    with here.platform.alone([*steps, nothing]):
        assert (locked(), locked("processes")) == ([False, True], [True, False])
    assert (locked(), locked("processes")) == ([False, False], [False, False])
    subprocess.run(["ip", "netns", "del", here.name], check=True)
    with here.platform.alone([nothing]), here.platform.alone([nothing]):  # nothing to lock
        pass


def test_two_healers_of_one_namespace_undo_one_after_the_other(tmp_path: Path) -> None:
    require_namespaces()
    with sandbox() as box:
        box.run("iptables-legacy-restore", stdin=FOREIGN)
        before = box.rules("iptables-legacy")
        states = [tmp_path / "1", tmp_path / "2"]
        for state in states:
            assert box.perform("inject", state) == []
        with contextlib.ExitStack() as held:
            with box.lock_held():  # whoever undoes waits here, if it is let so far
                healers = [held.enter_context(process(box.start(*box.performing("heal", state)))) for state in states]

                def undoing() -> list[psutil.Process]:
                    return [helper for healer in healers for helper in restoring(healer.pid)]

                wait_until(undoing, what="one to undo")
                deadline = time.monotonic() + 1.5
                while time.monotonic() < deadline:
                    assert len(undoing()) == 1
                    time.sleep(0.02)
                assert [healer.poll() for healer in healers] == [None, None]
            for healer in healers:
                out, err = healer.communicate(timeout=30)
                assert '"worker 1 of task t: agent restarted, fault undone"], 0]' in out, out + err
        assert box.rules("iptables-legacy") == before


def test_where_run_cannot_be_written_faults_go_in_and_out_with_a_warning(tmp_path: Path) -> None:
    require_namespaces()
    with sandbox() as box:
        box.run("mount", "-o", "remount,ro", "/run")
        for verb in ("inject", "heal"):
            done = subprocess.run(
                [*box.enter, *box.performing(verb, tmp_path)], capture_output=True, text=True, check=True, timeout=60
            )
            assert "going on without the lock of the network namespace" in done.stderr
            assert "Read-only file system" in done.stderr
        assert done.stdout.endswith(", 0]\n")
        assert "TB-" not in "".join(box.rules("iptables"))
