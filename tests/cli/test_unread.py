"""Daemons of whom nobody reads what they say, and an agent that cannot read its journal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.agents.guarded import stands
from tests.cli.command import clean_environment
from tests.cli.test_aborts import Site
from tests.support import wait_until

pytestmark = pytest.mark.daemons


class Unread(Site):
    """A site whose daemons write to a terminal that Ctrl-S has stopped, and to a pipe that is full."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._ours, terminal = os.openpty()
        termios.tcflow(terminal, termios.TCOOFF)
        self._reader, pipe = os.pipe()
        os.set_blocking(pipe, False)
        while True:
            try:
                os.write(pipe, b"x" * 4096)
            except BlockingIOError:
                break
        os.set_blocking(pipe, True)
        self._outputs = {"coordinator": pipe}
        self._terminal = terminal

    def start(self, name: str) -> None:
        output = self._outputs.get(name, self._terminal)
        command = [*self.command(name), "--state-dir", str(self.directory / name), *self.trust]
        self.daemons[name] = subprocess.Popen(
            [sys.executable, "-m", "trogdor_bus", *command], stdout=output, stderr=output, env=clean_environment()
        )

    def close(self) -> None:
        for fd in (self._ours, self._terminal, self._reader, self._outputs["coordinator"]):
            os.close(fd)


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[Unread]:
    made = Unread(tmp_path)
    try:
        yield made
    finally:
        made.down()
        made.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        yield made
    finally:
        made.down()


def test_daemons_that_nobody_reads_do_all_their_work_and_end(unread: Unread) -> None:
    unread.up("n1")
    victim = subprocess.Popen(["sleep", "3600"])
    unread.victims.append(victim)
    (unread.directory / "pid").write_text(str(victim.pid))
    spec = {"class": "process-stop", "durationMs": 1_000, "nodes": ["n1"], "pidFile": str(unread.directory / "pid")}
    ran = unread.run("submit", json.dumps(spec), "--wait")
    assert ran.code == 0, ran
    assert not stands(psutil.Process(victim.pid))
    task, frozen = unread.freeze("n1")
    _, agent = unread.family(unread.daemons["n1"])
    agent.kill()
    wait_until(lambda: not stands(frozen), 10, "the guard to undo")
    unread.await_alive("n1")
    wait_until(lambda: unread.json("show", task)["outcome"] == "agent-restarted", 20, "the agent to say so")
    assert unread.end("n1", signal.SIGHUP) == 0
    assert unread.end("coordinator", signal.SIGHUP) == 0


def test_an_entry_that_cannot_be_read_makes_the_node_dirty_and_says_what_to_look_at(site: Site) -> None:
    site.up()
    state = site.directory / "n1"
    state.mkdir(mode=0o700)
    (state / "worker-7.json").write_text('{"v":99,"task":"of-tomorrow"}')
    site.start("n1")
    site.await_alive("n1")
    wait_until(lambda: site.nodes()["n1"]["dirty"], 10, "the node to be dirty")
    (dirty,) = site.nodes()["n1"]["dirty"]
    assert "of-tomorrow" in dirty and f"cat {state}/worker-7.json" in dirty and f"rm {state}/worker-7.json" in dirty
    ran = site.run("submit", '{"class":"noop","durationMs":100}', "--wait")
    assert ran.code == 1 and "node n1 is dirty, the undo of task of-tomorrow is stuck" in " ".join(ran.out.split()), ran
