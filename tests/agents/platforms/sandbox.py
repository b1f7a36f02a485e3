"""A mount and a network namespace with a /run of its own, and a performer in it: for locks and missing programs.

`python -m tests.agents.platforms.sandbox inject|cut|heal|by-hand STATE_DIRECTORY` is what runs inside.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.agents.inline import Inline
from tests.support import require
from trogdor_bus.actions import Action, Peer
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.heal import heal
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.perform import NotInjectedError
from trogdor_bus.agents.platforms.linux import firewall
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.messages import Order
from trogdor_bus.platform import Surroundings

ROOT = Path(__file__).parents[3]
LOCK = "exec 9>/run/xtables.lock && flock 9 && echo held && exec sleep 600"
FOREIGN = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n"


class Sandbox:
    """The two namespaces, kept by a process."""

    def __init__(self, keeper: subprocess.Popen[str]) -> None:
        self.pid = keeper.pid
        self.enter = ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", f"--net=/proc/{self.pid}/ns/net", f"--wd={ROOT}"]

    def run(self, *argv: str, stdin: str = "") -> str:
        done = subprocess.run(
            [*self.enter, *argv], input=stdin, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Start a program; `nsenter` becomes it, so its pid is that of the program."""
        return subprocess.Popen([*self.enter, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def rules(self, tool: str) -> list[str]:
        return [re.sub(r"\[\d+:\d+\]", "", line) for line in self.run(f"{tool}-save").splitlines() if line[:1] != "#"]

    def perform(self, verb: str, state: Path, lock_wait_s: int = firewall.LOCK_WAIT_S) -> Any:
        return json.loads(self.run(*self.performing(verb, state), str(lock_wait_s)))

    def performing(self, verb: str, state: Path) -> list[str]:
        return [sys.executable, "-m", "tests.agents.platforms.sandbox", verb, str(state)]

    @contextlib.contextmanager
    def lock_held(self) -> Iterator[subprocess.Popen[str]]:
        """Hold the lock of the legacy iptables in here; the one of the machine is another file."""
        with process(self.start("sh", "-c", LOCK)) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            yield holder


def restoring(pid: int) -> list[psutil.Process]:
    """The iptables-restore processes that a process has started and that live."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "".join(child.cmdline()[:1]).endswith("tables-legacy-restore"):  # a dead one has no words
                found.append(child)
    return found


@contextlib.contextmanager
def process(started: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End a process of the test afterwards, whatever happens."""
    with started:
        try:
            yield started
        finally:
            started.kill()


@contextlib.contextmanager
def sandbox() -> Iterator[Sandbox]:
    """Make the namespaces; they are gone afterwards."""
    for tool in ("unshare", "nsenter", "flock", "mount"):
        require(shutil.which(tool) is not None, f"{tool} is not installed", "apt-get install util-linux mount")
    keep = "mount -t tmpfs tmpfs /run && echo ready && exec sleep 600"
    argv = ["unshare", "--mount", "--net", "sh", "-c", keep]
    with process(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)) as keeper:
        assert keeper.stdout is not None and keeper.stdout.readline() == "ready\n"
        yield Sandbox(keeper)


def _main(verb: str, directory: str, lock_wait_s: str = str(firewall.LOCK_WAIT_S)) -> object:
    logging.basicConfig(stream=sys.stderr)
    firewall.LOCK_WAIT_S = int(lock_wait_s)
    state, platform = Path(directory), LinuxPlatform()
    if verb == "heal":
        return heal(state, sleep=lambda _: None)
    if verb == "by-hand":
        return [platform.by_hand(step) for entry in Journal.read_only(FileDisk(state)).live() for step in entry.steps]
    ports, peer = BlockPorts(ports=(9092,)), BlockFrom(peers=(Peer("peer", ("10.77.0.2", "fd77::2")),))
    actions: tuple[Action, ...] = (ports if verb == "inject" else peer,)
    order = Order(worker=1, task="t", journal="j", remaining_ms=60_000, actions=actions)
    try:
        return Inline(Journal(FileDisk(state)), platform).inject(order, 60_000, Surroundings())
    except NotInjectedError as error:
        return {"error": str(error), "stuck": error.stuck, "residue": error.residue}


if __name__ == "__main__":
    print(json.dumps(_main(*sys.argv[1:])))
