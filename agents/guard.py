"""The agent's guard: a small parent that undoes what a dead or frozen agent left behind.

It imports no library, talks to no bus, and is pid 1 in a container and systemd's main process. It spawns the agent,
hears a byte each half second over a socket pair, and passes signals on. When the agent dies, or says nothing for
`SILENCE_S`, the guard kills it and everything that it started, waits until all of them are gone, has the journal
healed, and only then starts the agent again. An agent whose guard dies reads the end of the socket and ends itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time

SILENCE_S = 4.0
FIRST_BEAT_S = 30.0
"""How long a starting agent may be silent: it may have much to undo."""
END_S = 60.0
"""How long an agent that was told to end may take to undo everything."""
GONE_S = 10.0
HEAL_S = 120.0
BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S = 60.0
"""An agent that lived so long is started again at once when it dies."""
FAREWELL = b"X"
"""The byte by which an agent says that it ends on purpose."""
PR_SET_CHILD_SUBREAPER = 36


class Guard:
    """One guard and the agent under it. `start` is the JSON that `trogdor_bus.agents` and its `heal` understand."""

    def __init__(self, start: str, *, log_json: bool = False) -> None:
        self._start, self._log_json = start, log_json
        self._agent = 0
        self._ending = 0.0
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Keep an agent alive until told to end, or until it ends on purpose; return its exit code."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # helpers of a dead agent become ours to reap
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        deaths = 0
        while True:
            began = time.monotonic()
            code, why = self._life()
            if not why:
                return code
            self._say(f"{why}; killing what it started, then undoing")
            session, self._agent = self._agent, 0  # its pid may be somebody else's once it is reaped
            self._kill_session(session)
            healed = self._heal()
            if self._ending:
                return 0 if healed else 1
            deaths = 0 if time.monotonic() - began > STEADY_S else min(deaths + 1, len(BACKOFF_S) - 1)
            self._pause(BACKOFF_S[deaths])
            if self._ending:
                return 0 if healed else 1

    def _life(self) -> tuple[int, str]:
        """Spawn an agent and watch it; return its exit code, and "" or why it needs the guard's help."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._agent = self._spawn("run", theirs.fileno())
            theirs.close()
            silent_at, farewell, looked = time.monotonic() + FIRST_BEAT_S, False, time.monotonic()
            while True:
                ready, _, _ = select.select([ours.fileno(), self._wake_r], [], [], 0.5)
                if self._wake_r in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_r, 4096)
                now = time.monotonic()
                if now - looked > SILENCE_S / 2:  # we were frozen ourselves: give the agent its time again
                    silent_at = max(silent_at, now + SILENCE_S)
                looked = now
                if ours.fileno() in ready and (said := _receive(ours)):
                    farewell = farewell or FAREWELL in said
                    silent_at = now + SILENCE_S
                status = self._reap()
                if status is not None:
                    farewell = farewell or FAREWELL in _receive(ours)
                    code = os.waitstatus_to_exitcode(status)
                    return (code, "") if farewell else (1, f"the agent (pid {self._agent}) died: {_how(code)}")
                if now > silent_at:
                    return 1, f"the agent (pid {self._agent}) was silent for {SILENCE_S:g} s"
                if self._ending and now - self._ending > END_S:
                    return 1, f"the agent (pid {self._agent}) did not end within {END_S:g} s"

    def _command(self, verb: str, fd: int) -> list[str]:
        if verb == "heal":
            return [sys.executable, "-m", "trogdor_bus.agents.heal", self._start]
        return [sys.executable, "-m", "trogdor_bus.agents", verb, self._start, str(fd)]

    def _spawn(self, verb: str, fd: int = -1) -> int:
        """Start an agent or a healer in a session of its own and return its pid."""
        argv = self._command(verb, fd)
        pid = os.fork()
        if pid == 0:  # the child: nothing but system calls until exec
            try:
                os.setsid()
                if fd >= 0:
                    os.set_inheritable(fd, True)
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                    signal.signal(number, signal.SIG_DFL)
                os.execv(argv[0], argv)  # noqa: S606 (no shell is wanted)
            finally:
                os._exit(127)
        return pid

    def _say(self, text: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = f"{now} GUARD   {text}\n"
        if self._log_json:
            line = f'{{"time": "{now}", "level": "warning", "logger": "trogdor_bus.guard", "message": "{text}"}}\n'
        with contextlib.suppress(OSError):
            os.write(2, line.encode())

    def _reap(self) -> int | None:
        """Reap whoever has died; return the wait status of the agent if it is among them."""
        found = None
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._agent:
                    found = status
        return found

    def _pass_on(self, number: int, _frame: object) -> None:
        """Tell the agent to end: it undoes everything first. A second signal changes nothing."""
        if not self._ending:
            self._ending = time.monotonic()
            self._say(f"{signal.Signals(number).name} received, telling the agent to end")
        if self._agent:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._agent, signal.SIGTERM)

    def _kill_session(self, session: int) -> None:
        """Kill the agent and all that it started (they share its session), and wait until every one is gone."""
        deadline = time.monotonic() + GONE_S
        while left := _members(session):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in left:
                _thaw(pid)  # only now: what runs again before it is killed could go on with what it was about to do
            self._reap()
            if time.monotonic() > deadline:
                self._say(f"still there after {GONE_S:g} s: {', '.join(map(str, left))}; undoing all the same")
                return
            time.sleep(0.005)

    def _heal(self) -> bool:
        """Have a process of its own heal the journal, killed if it takes too long; return whether nothing is left."""
        healer = self._spawn("heal")
        deadline = time.monotonic() + HEAL_S
        while True:
            pid, status = os.waitpid(healer, os.WNOHANG)
            if pid:
                if code := os.waitstatus_to_exitcode(status):
                    self._say(f"the undo did not succeed ({_how(code)}); it is tried again at the next start")
                return code == 0
            if time.monotonic() > deadline:
                self._say(f"the undo took more than {HEAL_S:g} s and is ended")
                self._kill_session(healer)
                return False
            time.sleep(0.005)

    def _pause(self, seconds: float) -> None:
        """Wait, but not through a signal to end."""
        deadline = time.monotonic() + seconds
        while not self._ending and (left := deadline - time.monotonic()) > 0:
            select.select([self._wake_r], [], [], min(left, 0.5))
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_r, 4096)


def _members(session: int) -> list[int]:
    """Return the living processes of a session (proc(5), stat field 6); zombies only wait to be reaped."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in (b"Z", b"X"):
                found.append(int(name))
    return found


def _thaw(pid: int) -> None:
    """Thaw the cgroup of a process if it is not ours too: a frozen process dies only when it runs again."""
    try:
        with open(f"/proc/{pid}/cgroup") as theirs, open("/proc/self/cgroup") as ours:
            lines = set(theirs) - set(ours)
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.rstrip("\n").split(":", 2)
        for file, word in (
            (f"/sys/fs/cgroup{path}/cgroup.freeze", "0"),
            (f"/sys/fs/cgroup/unified{path}/cgroup.freeze", "0"),
            (f"/sys/fs/cgroup/freezer{path}/freezer.state", "THAWED"),
        ):
            if controllers in ("", "freezer"):
                with contextlib.suppress(OSError), open(file, "r+") as state:
                    if state.read().strip() not in ("0", "THAWED"):
                        state.write(word)


def _receive(sock: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        return sock.recv(4096, socket.MSG_DONTWAIT)
    return b""


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


if __name__ == "__main__":
    sys.exit(Guard(sys.argv[1], log_json=sys.argv[2] == "json").run())
