"""Keeps one child of an agent: holds it until it is released, hears it, ends it, and leaves nothing of it.

Standard input is a socket to the agent, with a line of JSON for each word. The agent's first one is the order, as
`launch.py` takes it; then come {"go": true}, and {"stop": GRACE_MS}. The end of the socket is the end of the agent:
then all of the child is killed, `linger_ms` of the order later. The keeper says {"pid": PID} when the child waits to be
released, {"runs": true} or {"failed": WHY} when it was, what `Hearing` makes of its output, {"exit": CODE} and
{"signal": NUMBER} when it has ended, and {"gone": true} when nothing of it is left, which is the keeper's own end.

Three descriptors that come with the order are the child's standard streams; then the keeper hears nothing of it.

The child leads a session of its own, and the kernel kills it when the keeper dies. The keeper is the subreaper of
whatever the child starts, so that nothing gets out from below it, however often it forks or changes its session.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from trogdor_bus import badge
from trogdor_bus.supervisor import tree
from trogdor_bus.supervisor.hearing import Hearing
from trogdor_bus.supervisor.launch import become
from trogdor_bus.title import set_title

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CHUNK = 64 * 1024
WALL = 0x40000000
"""__WALL of waitid(2): also those are waited for whose end sends no SIGCHLD."""
KILL_S = 0.02
"""How often whatever is left is killed."""
MOST_LEFT = 32
"""So many chunks are read of what a child left in a pipe at its end: more than a pipe holds."""
FLUSH_S = 1.0
"""How long the last word may take to be read."""


class Keeper:
    """One keeper, on the agent's socket."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent: socket.socket | None = agent
        self._heard, self._out = b"", b""
        self._hearing = Hearing(self._say)
        self._child = self._gate = self._stdin = 0
        self._input = b""
        self._read: dict[int, Any] = {}
        self._kill_at_s: float | None = None
        self._linger_s = 0.0
        self._look_at_s = 0.0
        self._released = self._exited = self._killed = False
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        """Keep the child of the agent's order until nothing is left of it."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)  # the agent says when
        assert self._agent is not None
        order, streams = _order(self._agent)
        set_title("trogdor-bus", "keeper")
        self._linger_s = order.get("linger_ms", 0) / 1000
        try:
            self._hold(order, streams)
        except OSError as error:
            self._agent.sendall(
                json.dumps({"failed": f"there can be no process for it: {error.strerror}"}).encode() + b"\n"
            )
            return
        self._agent.setblocking(False)
        while not self._gone():
            self._turn()
        self._say({"gone": True})
        if self._agent is not None:
            with contextlib.suppress(OSError):
                self._agent.settimeout(FLUSH_S)
                self._agent.sendall(self._out)

    # --- the child ----------------------------------------------------------------------------------------------------

    def _hold(self, order: dict[str, Any], streams: tuple[int, ...]) -> None:
        """Fork a child that waits to become the command, and say who it is."""
        gate, self._gate = os.pipe()
        report_r, report = os.pipe()
        self._read = {report_r: self._report}
        if not streams:
            stdin, self._stdin = os.pipe()
            stdout_r, stdout = os.pipe()
            stderr_r, stderr = os.pipe()
            streams = (stdin, stdout, stderr)
            self._read |= {stdout_r: self._hearing.stdout, stderr_r: self._hearing.stderr}
            os.set_blocking(self._stdin, False)
        keeper = os.getpid()
        self._child = os.fork()
        if not self._child:
            os.close(self._gate)
            _wait_and_become(order, keeper, gate, report, streams)
        for fd in (gate, *streams, report):
            os.close(fd)
        for fd in self._read:
            os.set_blocking(fd, False)
        self._input = bytes(order.get("input", ""), "utf-8")
        self._failed = b""
        self._say({"pid": self._child})

    def _report(self, data: bytes) -> None:
        """Take in why the child could not become the command; the end of it says that it runs, if it was let go."""
        self._failed += data
        if not data:
            failed = self._failed or (b"" if self._released else b"it was killed before it ran")
            self._say({"failed": failed.decode(errors="replace")} if failed else {"runs": True})

    def _obey(self, word: dict[str, Any]) -> None:
        if "go" in word and self._gate:
            with contextlib.suppress(BrokenPipeError):  # it was killed
                os.write(self._gate, b"g")
                self._released = True
            self._shut_gate()
        elif "stop" in word and self._kill_at_s is None:
            self._shut_gate()
            if word["stop"]:
                self._ask_to_end()
            self._kill_at_s = time.monotonic() + word["stop"] / 1000

    def _ask_to_end(self) -> None:
        """Tell the child and its group to end; its number is its own only while it is not reaped."""
        with contextlib.suppress(OSError):
            if not self._exited:
                os.killpg(self._child, signal.SIGTERM)
                return
            family = tree.living(marks=False)
            members = [pid for pid in tree.below([os.getpid()], family) if family[pid].group == self._child]
            tree.send(signal.SIGTERM, members, family)

    def _shut_gate(self) -> None:
        """Let nobody through any more: a child that still waits ends."""
        if self._gate:
            os.close(self._gate)
            self._gate = 0

    def _gone(self) -> bool:
        """Reap, and see to the end of the child, if it is to end; return whether nothing is left of it.

        A subreaper without children has nobody below it.
        """
        childless = self._reap()
        if self._kill_at_s is None:
            return False
        now_s = time.monotonic()
        if not childless and now_s >= self._look_at_s:
            if now_s >= self._kill_at_s:
                self._kill()
                now_s = time.monotonic()
            self._look_at_s = max(self._kill_at_s, now_s + KILL_S)
        return childless

    def _kill(self) -> None:
        """Kill the group of the child, and, from the second time on, whatever is below."""
        with contextlib.suppress(OSError):  # the machine refuses a descriptor: another time
            if not self._killed and not self._exited:
                self._killed = True
                os.killpg(self._child, signal.SIGKILL)
                return
            family = tree.living(marks=False, ancestor=os.getpid(), strike=lambda _: True)
            tree.kill(tree.below([os.getpid()], family), family)

    def _reap(self) -> bool:
        """Reap whoever died, and say how the child has ended; return whether there is nobody any more."""
        try:
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | WALL):
                if dead.si_pid == self._child and not self._exited:
                    self._exited = True
                    self._drain()
                    self._hearing.tell(time.monotonic(), at_once=True)
                    if dead.si_code == os.CLD_EXITED:
                        self._say({"exit": dead.si_status})
                    else:
                        self._say({"signal": dead.si_status, "exit": 128 + dead.si_status})  # as a shell
        except ChildProcessError:
            return True
        return False

    def _drain(self) -> None:
        """Take in what the child has said before its end."""
        for fd in tuple(self._read):
            for _ in range(MOST_LEFT):  # who lives on with its output may never be done
                if not self._take(fd):
                    break

    # --- one turn -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Wait until there is something to do, and do it."""
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        if self._agent is not None:
            poll.register(self._agent, select.POLLIN | (select.POLLOUT if self._out else 0))
        for fd in self._read:
            poll.register(fd, select.POLLIN)
        if self._stdin and self._input and not self._gate:
            poll.register(self._stdin, select.POLLOUT)
        for fd, _ in poll.poll(self._pause_ms()):
            if fd == self._wake_r:
                os.read(self._wake_r, CHUNK)
            elif fd == self._stdin:
                self._write()
            elif fd in self._read:
                self._take(fd)
            else:
                self._hear()
        self._hearing.tell(time.monotonic())
        self._flush()

    def _pause_ms(self) -> float | None:
        now_s = time.monotonic()
        due = [self._hearing.due_s(now_s)]
        if self._kill_at_s is not None:
            due.append(self._look_at_s - now_s)
        known = [one for one in due if one is not None]
        return max(1.0, min(known) * 1000) if known else None

    def _take(self, fd: int) -> bool:
        """Take in a part of what is said there; return whether there may be more."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        self._read[fd](data)
        if not data:
            del self._read[fd]
            os.close(fd)
        return bool(data)

    def _write(self) -> None:
        try:
            self._input = self._input[os.write(self._stdin, self._input) :]
        except BlockingIOError:
            pass
        except OSError:  # it does not want to know
            self._input = b""

    def _hear(self) -> None:
        assert self._agent is not None
        try:
            data = self._agent.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._abandon()
            return
        *words, self._heard = (self._heard + data).split(b"\n")
        for word in words:
            self._obey(json.loads(word))

    def _abandon(self) -> None:
        """Kill all of the child, as soon as it may not linger: the agent is gone."""
        self._shut_gate()
        self._agent, self._out, self._look_at_s = None, b"", 0.0
        self._kill_at_s = time.monotonic() + self._linger_s

    def _say(self, word: dict[str, Any]) -> None:
        if self._agent is not None:
            self._out += json.dumps(word).encode() + b"\n"

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):  # its end is heard
            while self._out and self._agent is not None:
                self._out = self._out[self._agent.send(self._out) :]
        self._hearing.full = len(self._out) > CHUNK


def _order(agent: socket.socket) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Return the agent's first word, and the descriptors that came with it; without a word there is nothing to do."""
    line, streams = b"", list[int]()
    while not line.endswith(b"\n"):  # it says no more before it is answered
        part, fds, _, _ = socket.recv_fds(agent, CHUNK, 3)
        if not part:
            os._exit(0)
        line += part
        streams += fds
    for fd in streams:
        os.set_inheritable(fd, False)
    return dict(json.loads(line)), tuple(streams)


def _wait_and_become(order: dict[str, Any], keeper: int, gate: int, report: int, streams: tuple[int, ...]) -> NoReturn:
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != keeper or os.read(gate, 1) != b"g":
            os._exit(0)
        try:
            become(order, streams)
        except OSError as error:
            os.write(report, b"%s: %s" % (error.filename or b"the process", (error.strerror or "").encode()))
    finally:
        os._exit(127)


def main() -> None:
    """Keep a child on the socket that is standard input."""
    badge.wear()
    Keeper(socket.socket(fileno=os.dup(0))).run()
    os._exit(0)  # what Python does at its end takes its time
