"""The lab's own processes: started, found again and ended by identity, never by name.

Each carries the lab's token in its environment, so that what the lab started, and what that started in turn, is
known even if the lab died before it could write the pid down.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from trogdor_bus.errors import HostError
from trogdor_bus.supervisor import tree

TOKEN = "TROGDOR_BUS_LAB_TOKEN"  # noqa: S105 - the name of a variable
PROC = Path("/proc")


class LabProcess(msgspec.Struct, frozen=True):
    """One process of the lab: what it is for, on which member, and who it is (pid and start time, in ticks)."""

    role: str
    member: str
    pid: int
    start_ticks: int
    log: str = ""

    def state(self) -> str:
        """Return "running", "stopped" or "gone"."""
        letter, ticks = _stat(self.pid)
        if ticks != self.start_ticks or not tree.lives(self.pid):
            return "gone"
        return "stopped" if letter in "Tt" else "running"

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to exactly this process; False if it is gone."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if self.state() == "gone":  # the pid file descriptor pins the pid, so this look is not too early
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True


def start(
    role: str, member: str, argv: Sequence[str], environment: Mapping[str, str], log: Path
) -> tuple[LabProcess, subprocess.Popen[bytes]]:
    """Start a detached process whose output goes to `log`; HostError if it cannot be started."""
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(f"cannot start {argv[0]}: {error.strerror}") from None
    _, ticks = _stat(child.pid)
    return LabProcess(role, member, child.pid, ticks, str(log)), child


def ourselves() -> LabProcess:
    """Return this process."""
    return LabProcess("maker", "", os.getpid(), _stat(os.getpid())[1])


def with_token(token: str) -> list[LabProcess]:
    """Return every live process that carries the token, ourselves and our ancestors left out."""
    mine, found = _ancestry(), []
    wanted = f"{TOKEN}={token}".encode()
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) in mine:
            continue
        try:
            carries = wanted in tree.environment(int(entry.name)).split(b"\0")
        except OSError:
            continue
        if carries and tree.lives(int(entry.name)):
            found.append(LabProcess("found", "", int(entry.name), _stat(int(entry.name))[1]))
    return found


def end_all(token: str, deadline_s: float = 30.0) -> None:
    """Kill every process that carries the token; HostError names those that outlive the deadline."""
    deadline = time.monotonic() + deadline_s
    while left := with_token(token):
        if time.monotonic() > deadline:
            raise HostError(f"these processes of the lab do not die: {', '.join(str(one.pid) for one in left)}")
        for process in left:
            with contextlib.suppress(PermissionError):
                process.send(signal.SIGKILL)
        time.sleep(0.01)


def _ancestry() -> set[int]:
    pid, chain = os.getpid(), set()
    while pid > 0 and pid not in chain:
        chain.add(pid)
        try:
            pid = int(_stat_fields(pid)[1])
        except OSError:
            break
    return chain


def _stat(pid: int) -> tuple[str, int]:
    """Return the state letter and the start time in ticks, ("X", -1) for no such process."""
    try:
        fields = _stat_fields(pid)
    except OSError:
        return "X", -1
    return fields[0].decode(), int(fields[19])


def _stat_fields(pid: int) -> list[bytes]:
    """Return /proc/PID/stat from the state on; the name before may hold anything."""
    return (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
