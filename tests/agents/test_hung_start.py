"""An agent whose container engine hangs: it comes up, and goes, on time; the test stands in for its guard."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.agents.guarded import stands, start_text, write
from tests.support import require_namespaces, wait_until
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.agents.guard import FAREWELL, GUARD_FD, SILENCE_S, START
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.operations import Nothing, step
from trogdor_bus.agents.platforms.linux.operations.restarts import Restart
from trogdor_bus.agents.platforms.linux.starter import Command
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Step

ENGINE = """#!/bin/sh
while test -e {hangs}; do sleep 0.05; done
echo "no such container" >&2
exit 1
"""


class Hung:
    """An agent that is attached to a container of an engine that hangs; `said` is what its guard heard."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.state = directory, directory / "state"
        self.state.mkdir(mode=0o700)
        (directory / "bin").mkdir()
        self.hangs, engine = directory / "hangs", directory / "bin" / "docker"
        self.hangs.touch()
        engine.write_text(ENGINE.format(hangs=self.hangs))
        engine.chmod(0o755)
        self.said, self.longest_s = b"", 0.0

    def start(self, **settings: Any) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        os.set_inheritable(theirs.fileno(), True)
        with theirs, (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trogdor_bus.agents", "--node", "n1"],
                stderr=log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={
                    **os.environ,
                    "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
                    START: start_text(self.state, platform="linux", attach="container:x", **settings),
                    GUARD_FD: str(theirs.fileno()),
                },
            )

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def hear(self, seconds: float) -> None:
        """Listen for so long, or until it has ended, and note its longest silence after its first word."""
        now = time.monotonic()
        end, last = now + seconds, now
        while now < end and self.process.poll() is None:
            time.sleep(0.02)
            now = time.monotonic()
            with contextlib.suppress(BlockingIOError):
                if word := self._ours.recv(4096):
                    self.said += word
                    last = now
            if self.said:
                self.longest_s = max(self.longest_s, now - last)
        with contextlib.suppress(BlockingIOError):
            self.said += self._ours.recv(4096)

    def close(self) -> None:
        self._ours.close()
        if self.process.poll() is not None:
            return
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[Hung]:
    require_namespaces()
    made = Hung(tmp_path)
    try:
        yield made
    finally:
        made.hangs.unlink(missing_ok=True)
        made.close()


def restart() -> Step:
    """Return what cannot be undone while the engine hangs, and is not found when it answers."""
    there = NamespaceIdentity(boot_id(), "1", "/nowhere")
    how = Command("/bin/true", ("true",), there)
    return step(Nothing(), Restart(boot_id=boot_id(), how=how, unless=ProcessMatch(command="x"), alive_ms=500))


def test_an_engine_that_hangs_keeps_no_agent_from_coming_up_and_no_other_fault_from_being_undone(hung: Hung) -> None:
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        try:
            write(hung.state, 1, sleeper.pid)
            write(hung.state, 2, sleeper.pid, steps=(restart(),))
            frozen = psutil.Process(sleeper.pid)
            frozen.suspend()
            wait_until(lambda: stands(frozen), what="the process to stop")
            hung.start()
            hung.hear(12)
            assert not stands(frozen)
            assert b"." in hung.said and hung.longest_s < SILENCE_S, hung.log()
            assert "Starting agent process." in hung.log()
            hung.hangs.unlink()
            hung.process.terminate()
            hung.hear(30)
        finally:
            sleeper.kill()
    assert hung.said.endswith(FAREWELL) and hung.process.returncode == 1, hung.log()
    assert hung.longest_s < SILENCE_S
    assert "agent ended, faults are left" in hung.log() and "nothing is left" not in hung.log()


def test_an_engine_that_hangs_keeps_no_agent_from_ending(hung: Hung) -> None:
    hung.start()
    wait_until(lambda: "Starting agent process." in hung.log(), 20, "the agent to serve")
    hung.hear(3)
    hung.process.terminate()
    hung.hear(SILENCE_S)
    assert hung.process.poll() == 0, hung.log()
    assert hung.said.endswith(FAREWELL) and "agent ended, nothing is left" in hung.log()


def test_an_agent_that_is_told_to_end_before_it_reaches_anybody_tells_of_what_is_left(hung: Hung) -> None:
    write(hung.state, 1, 1, steps=(restart(),))
    hung.start(url="zmq://nobody.invalid:9")
    hung.hear(8)
    hung.process.terminate()
    hung.hear(3)
    assert hung.process.poll() is None and "agent ended" not in hung.log(), "it is not undone yet"
    hung.hangs.unlink()
    hung.hear(30)
    assert hung.said.endswith(FAREWELL) and hung.process.returncode == 1, hung.log()
    assert hung.longest_s < SILENCE_S
    assert "agent ended, faults are left" in hung.log()
