"""A command beside a Docker of its own: it sees a daemon and no network, and all is gone after, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docker import CGROUPS, require_daemon, sweep_groups
from tests.e2e.test_containers import host
from tests.house.repository import ROOT
from tests.support import require_namespaces, wait_until

pytestmark = pytest.mark.matrix

SLEEP = "sleep 734002"
SCRIPT = f"""
docker version >/dev/null && docker network create some >/dev/null && mkdir -p /run/with-docker &&
ls /run && echo ready && exec {SLEEP}
"""


@contextmanager
def beside(script: str = SCRIPT) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run a script beside a Docker until it says "ready"; yield the process and what it said."""
    argv = [str(ROOT / ".ci" / "with-docker"), "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            assert child.stdout is not None
            said = []
            for line in child.stdout:
                said.append(line.strip())
                if said[-1] == "ready":
                    break
            assert said[-1:] == ["ready"], said
            yield child, said
        finally:
            child.kill()


def inside(child: subprocess.Popen[str]) -> dict[int, str]:
    """Return the command lines of all processes in namespaces of the command, by pid."""
    first = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[0]
    network = Path(f"/proc/{first}/ns/net").readlink()
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns" / "net").readlink() == network:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """The machine's network and firewall are after as before, and nothing is in its /run."""
    require_namespaces()
    require_daemon()
    before = host()
    yield
    assert host() == before
    assert not Path("/run/with-docker").exists()


def groups(child: subprocess.Popen[str]) -> list[Path]:
    """Return the control groups that its daemon made."""
    return [path for at in ("", "*/") for path in CGROUPS.glob(f"{at}tb-docker-{child.pid}-*")]


def test_it_sees_a_daemon_and_no_network_but_its_own() -> None:
    with beside("ip -br link | cut -d' ' -f1; docker info --format '{{.Driver}}'; echo ready; exit 7") as (child, said):
        assert said[:2] == ["lo", "docker0"]
        assert child.wait(30) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_when_it_is_told_to_end_all_of_it_ends(number: signal.Signals) -> None:
    with beside() as (child, said):
        assert not {"trogdor-bus", "netns"} & set(said)
        wait_until(lambda: f"{SLEEP} " in inside(child).values(), what="the command to run")
        processes = inside(child)
        assert any("dockerd" in line for line in processes.values())
        child.send_signal(number)
        assert child.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), what="all of it to end")
    if number == signal.SIGKILL:
        sweep_groups()  # as the next one does
    assert groups(child) == []


@pytest.mark.parametrize("who", ["dockerd", "--inside"])
def test_when_one_of_its_parts_is_killed_nothing_is_left(who: str) -> None:
    with beside() as (child, _):
        wait_until(lambda: f"{SLEEP} " in inside(child).values(), what="the command to run")
        processes = inside(child)
        os.kill(min(pid for pid, line in processes.items() if who in line), signal.SIGKILL)
        if who == "dockerd":
            os.kill(next(pid for pid, line in processes.items() if line == f"{SLEEP} "), signal.SIGTERM)
        child.wait(30)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), what="all of it to end")
    assert groups(child) == []
