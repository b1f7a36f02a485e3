"""A real guard with a real agent under it, no coordinator, and a process that a fault of the journal has stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from tests.support import wait_until
from trogdor_bus.agents.__main__ import Start
from trogdor_bus.agents.guard import START
from trogdor_bus.agents.journal import Entry, JournalState
from trogdor_bus.agents.platforms.linux.operations import step
from trogdor_bus.agents.platforms.linux.operations.freezes import Freeze, Thaw
from trogdor_bus.config import AgentSettings
from trogdor_bus.host import identity
from trogdor_bus.spec import Texts

NOWHERE = "zmq://127.0.0.1:9"


class Guarded:
    """The guard, a process of the test, and the latest agent under it."""

    def __init__(self, process: subprocess.Popen[bytes], state: Path, log: Path) -> None:
        self.process, self._state, self._log = process, state, log
        self.sleepers: list[subprocess.Popen[bytes]] = []

    @property
    def state(self) -> Path:
        """The state directory as the guard sees it, which may have mounts of its own."""
        return Path(f"/proc/{self.process.pid}/root{self._state}") if self.process.poll() is None else self._state

    def log(self) -> str:
        return self._log.read_text()

    def agent(self, after: int = 0) -> int:
        """Return the pid of the agent once it serves, another one than `after`."""
        found: list[int] = []

        def serves() -> bool:
            assert self.process.poll() is None, f"the guard ended: {self.log()}"
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                pid = int((self.state / "lock").read_text())
                if pid != after and psutil.Process(pid).ppid() == self.process.pid and hears(pid, signal.SIGHUP):
                    found[:] = [pid]
            return bool(found)

        wait_until(serves, 40, "an agent to serve")
        return found[0]

    def frozen(self, worker: int = 1) -> psutil.Process:
        """Return a process of the test that a fault in the journal has stopped."""
        sleeper = subprocess.Popen(["sleep", "3600"])
        self.sleepers.append(sleeper)
        write(self.state, worker, sleeper.pid)
        os.kill(sleeper.pid, signal.SIGSTOP)
        found = psutil.Process(sleeper.pid)
        wait_until(lambda: stands(found), what="the process to stop")
        return found

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


def write(directory: Path, worker: int, pid: int, **fields: Any) -> None:
    """Write a journal's entry: that process was stopped by a fault that is in force."""
    given: dict[str, Any] = {
        "steps": (step(Freeze(identity(pid), "sleep", False), Thaw(identity(pid), "sleep", False)),),
        "state": JournalState.APPLIED,
        **fields,
    }
    told = Entry(
        worker=worker,
        task=f"t{worker}",
        boot_id="",
        ends_ms=2**40,
        spec=msgspec.Raw(b"{}"),
        texts=Texts("", "", "", ""),
        **given,
    )
    (directory / f"worker-{worker}.json").write_bytes(msgspec.json.encode(told))


def stands(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_STOPPED)


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for the signal."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def start_text(state: Path, **fields: Any) -> str:
    """Return START of an agent that reaches no coordinator."""
    settings = AgentSettings(**{"node": "n1", "url": NOWHERE, "state_dir": state, "keys": None, **fields})
    return msgspec.json.encode(Start(settings=settings), enc_hook=str).decode()


def command(state: Path) -> list[str]:
    """Return what `trogdor-bus agent` becomes."""
    options = ["--node", "n1", "--state-dir", str(state), "--log", "text"]
    return [sys.executable, "-m", "trogdor_bus.agents.guard", *options]


@contextlib.contextmanager
def guarded(
    tmp_path: Path, *, stderr: int | None = None, prefix: Sequence[str] = (), **settings: Any
) -> Iterator[Guarded]:
    """Start a guard whose state is in `tmp_path`; it and all that the test made are gone afterwards."""
    state, log = tmp_path / "state", tmp_path / "log"
    state.mkdir(mode=0o700, exist_ok=True)
    with log.open("ab") as lines:
        process = subprocess.Popen(
            [*prefix, *command(state)],
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=lines if stderr is None else stderr,
            env={**os.environ, START: start_text(state, **settings)},
        )
    made = Guarded(process, state, log)
    try:
        yield made
    finally:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        for sleeper in made.sleepers:
            sleeper.kill()
            sleeper.wait()
