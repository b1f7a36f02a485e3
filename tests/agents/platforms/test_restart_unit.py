"""Restart by unit. The control groups are real; `systemctl` is a script that starts a process, for want of a systemd.

So these tests show who may be started and how it is asked for, not what systemd itself makes of it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.platforms.nodes import SLEEP, Node, from_journal, undone
from tests.support import require
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.process import Kill, Restart
from trogdor_bus.agents.platforms.linux import commands, processes
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.errors import CannotHealError, HostError, RefusedError
from trogdor_bus.platform import Step, Surroundings

UNIT = "tbt-service.service"
SYSTEMCTL = f"""#!/bin/sh
echo "$@" >>{{folder}}/asked
case "$1" in
show) cat {{folder}}/state ;;
start) [ -e {{folder}}/broken ] ||
    ip netns exec {{node}} setsid --fork {sys.executable} -c "{SLEEP}" of-the-unit >/dev/null 2>&1 </dev/null ;;
esac
"""


class Systemd:
    """A systemctl that knows one unit, and control groups to put processes into."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node, self.folder = node, folder
        self._made: list[Path] = []
        self._pids: list[int] = []
        self.state("loaded")
        script = folder / "systemctl"
        script.write_text(SYSTEMCTL.format(folder=folder, node=node.name))
        script.chmod(0o755)

    def state(self, state: str) -> None:
        (self.folder / "state").write_text(f"{state}\n")

    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()

    def process_in(self, path: str) -> int:
        """Start a process in a control group of that path, below a slice of the test."""
        group = self._root()
        for part in (f"tbt{os.getpid()}.slice", *path.split("/")):
            group /= part
            if not group.exists():
                group.mkdir()
                self._made.append(group)
        pid = self.node.sleeper("of-the-unit")
        self._pids.append(pid)
        (group / "cgroup.procs").write_text(str(pid))
        return pid

    def platform(self, *allowed: list[str]) -> LinuxPlatform:
        return LinuxPlatform(f"netns:{self.node.name}", allowed)

    def running(self) -> list[int]:
        with Namespace(f"/run/netns/{self.node.name}") as namespace:
            found = processes.find(ProcessMatch(command="of-the-unit"), namespace, Surroundings()).processes
        for process in found:
            self.node.own(process.pid)
        return [process.pid for process in found]

    def close(self) -> None:
        self.running()
        self.node.close()
        for group in reversed(self._made):
            with contextlib.suppress(FileNotFoundError):
                group.rmdir()

    def _root(self) -> Path:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split(" - ")
            if fields[1].startswith("cgroup2 ") or "name=systemd" in fields[1]:
                root = Path(fields[0].split()[4])
                if os.access(root, os.W_OK):
                    return root
        require(False, "no control groups of systemd's hierarchy can be made here", "mount cgroup2 for writing")
        raise AssertionError


@pytest.fixture
def systemd(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    made = Systemd(node, tmp_path)
    try:
        yield made
    finally:
        made.close()


def kill(platform: LinuxPlatform, alive_ms: int = 10_000, restart: Restart | None = None) -> Step:
    restart = restart or Restart(unit=UNIT, alive_ms=alive_ms)
    action = Kill(match=ProcessMatch(command="of-the-unit"), restart=restart)
    (step,) = from_journal(platform.prepare(1, action, Surroundings(), []))
    return step


@pytest.mark.parametrize("path", [UNIT, f"system-tbt.slice/{UNIT}", f"{UNIT}/part-of-it"])
def test_a_unit_whose_process_was_killed_is_started_unless_it_runs(systemd: Systemd, path: str) -> None:
    pid = systemd.process_in(path)
    platform = systemd.platform()
    step = kill(platform)
    assert platform.by_hand(step) == f"systemctl start {UNIT}"
    platform.do(step)
    assert systemd.running() == []
    assert undone(platform, step) == ""
    (reborn,) = systemd.running()
    assert reborn != pid
    assert undone(platform, step).startswith("already running")
    assert systemd.running() == [reborn]
    assert systemd.asked() == [f"show --property=LoadState --value {UNIT}", f"start --no-block {UNIT}"]


@pytest.mark.parametrize(
    "path",
    ["other.service", f"user@1000.service/app.slice/{UNIT}", f"docker-c0ffee.scope/system.slice/{UNIT}", f"x{UNIT}"],
)
def test_a_unit_to_which_nothing_killed_belongs_is_started_only_if_listed(systemd: Systemd, path: str) -> None:
    pid = systemd.process_in(path)
    said = rf'process {pid} \(python.*\) is not of the unit {UNIT}, .*lists \["systemctl", "start", "{UNIT}"\] under'
    with pytest.raises(RefusedError, match=said):
        kill(systemd.platform(["systemctl", "start", "another.service"]))
    for listed in (UNIT, UNIT.removesuffix(".service")):
        assert kill(systemd.platform(["systemctl", "start", listed])).undo["how"]["name"] == UNIT


@pytest.mark.parametrize("path", [UNIT, f"system-tbt.slice/{UNIT}", f"{UNIT}/part-of-it"])
def test_what_was_found_in_a_unit_is_started_as_that(systemd: Systemd, path: str) -> None:
    systemd.process_in(path)
    platform = systemd.platform()
    step = kill(platform, restart=Restart(found=True))
    assert platform.by_hand(step) == f"systemctl start {UNIT}"
    platform.do(step)
    assert systemd.running() == []
    assert undone(platform, step) == ""
    assert len(systemd.running()) == 1


@pytest.mark.parametrize("path", ["user@1000.service/app.slice/" + UNIT, "session-1.scope", "init.scope"])
def test_what_was_found_in_no_unit_of_the_machine_is_not_started(systemd: Systemd, path: str) -> None:
    pid = systemd.process_in(path)
    said = rf"process {pid} \(python.*\) is in no container and in no service .* restart.unit, restart.container or"
    with pytest.raises(RefusedError, match=said):
        kill(systemd.platform(), restart=Restart(found=True))


def test_what_was_found_in_the_unit_of_the_agent_itself_is_not_started(systemd: Systemd) -> None:
    systemd.process_in(UNIT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "unit_of", lambda _: UNIT)  # moving the tests into a control group would be rude
        with pytest.raises(RefusedError, match="is in no container and in no service"):
            kill(systemd.platform(), restart=Restart(found=True))


def test_what_was_found_in_several_places_is_not_started(systemd: Systemd) -> None:
    systemd.process_in(UNIT)
    systemd.process_in("another.service")
    with pytest.raises(RefusedError, match=r"not all in one container or unit, of which restart\.found starts one"):
        kill(systemd.platform(), restart=Restart(found=True))


def test_of_several_all_must_belong_to_the_unit(systemd: Systemd) -> None:
    systemd.process_in(UNIT)
    stranger = systemd.node.sleeper("of-the-unit")
    with pytest.raises(RefusedError, match=f"process {stranger} .* is not of the unit"):
        kill(systemd.platform())


def test_a_unit_that_systemd_cannot_start_is_no_restart(systemd: Systemd) -> None:
    systemd.process_in(UNIT)
    systemd.state("masked")
    with pytest.raises(HostError, match=f"cannot start the unit {UNIT}: it is masked"):
        kill(systemd.platform())


def test_without_systemd_there_is_no_restart_by_unit(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd.process_in(UNIT)
    (systemd.folder / "systemctl").unlink()
    monkeypatch.setenv("PATH", str(systemd.folder))
    monkeypatch.setattr(commands, "SYSTEM_PATH", "")
    with pytest.raises(HostError, match="systemctl is not installed on this machine; install the package systemd"):
        kill(systemd.platform())
    monkeypatch.undo()


def test_a_unit_that_does_not_come_alive_is_loud(systemd: Systemd) -> None:
    systemd.process_in(UNIT)
    platform = systemd.platform()
    step = kill(platform, alive_ms=300)
    platform.do(step)
    (systemd.folder / "broken").touch()
    said = rf"ran systemctl start {UNIT}, but .*of-the-unit' did not appear within 0.3 s; `systemctl status {UNIT}`"
    for _ in range(2):
        with pytest.raises(CannotHealError, match=said):
            undone(platform, step)
    assert len(systemd.asked()) == 2  # the second attempt, right after, only looks
