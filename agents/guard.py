"""The agent's guard: a small parent that undoes what a dead or frozen agent left behind.

It imports no library, talks to no bus, and is pid 1 in a container and systemd's main process. It spawns the agent,
hears a byte each half second over a socket pair, and passes signals on. When the agent dies, or says nothing for
`SILENCE_S`, the guard kills it and the tools that it runs, waits until they are gone, has the journal healed, kills its
supervisor's children with all that they started meanwhile, and only then starts the agent again. What a fault had to
start again at its end lives on. An agent whose guard dies reads the end of the socket and ends itself.

Only two things end a guard: a signal, and an agent that cannot even start the first time, if no fault is left. What
the machine refuses (processes, memory, descriptors) is tried again for ever, and what is told never holds it up.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time

from trogdor_bus import badge
from trogdor_bus.linewriter import LineWriter
from trogdor_bus.stacks import take
from trogdor_bus.supervisor import tree
from trogdor_bus.title import set_title

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself would be a tenth of its memory
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

SILENCE_S = 4.0
FIRST_BEAT_S = 30.0
"""How long a starting agent may be silent: it may have much to undo."""
END_S = 60.0
"""How long an agent that was told to end may take to undo everything."""
GONE_S = 10.0
LOOKS = 3
"""So many looks in a row must find no program: who forks and leaves all the time may be missed by one."""
STACK_S = 1.0
"""So long the disk of the state directory may take to give the stack of a dead agent."""
HEAL_S = 120.0
BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S = 60.0
"""An agent that lived so long is started again at once when it dies."""
INSIST_S = (0.05, 2.0)
"""The first and the longest pause between two attempts at what the machine refuses."""
SAY_AGAIN_S = 30.0
FAREWELL = b"X"
"""The byte by which an agent says that it ends as it was told to."""
HOPELESS = b"N"
"""The byte by which an agent says that it cannot start: settings, or its state directory."""
START = "TROGDOR_BUS_AGENT_START"
"""The variable that has the agent's START, the JSON that `trogdor_bus.agents` and its `heal` understand."""
GUARD_FD = "TROGDOR_BUS_AGENT_GUARD_FD"
"""The variable that names the agent's end of the socket pair."""
PR_SET_CHILD_SUBREAPER = 36
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SOMETHING_LEFT = 1
"""The exit code of a healer that could not undo everything."""


class Guard:
    """One guard and the agent under it. `start` is the agent's START, `node` and `state_dir` are of its settings."""

    def __init__(self, start: str, *, log_json: bool = False, node: str = "", state_dir: str = "") -> None:
        self._start, self._log_json, self._node, self._state_dir = start, log_json, node, state_dir
        self._lines = LineWriter(2, self._line)
        self._leader = self._agent = 0
        self._ending = 0.0
        self._asked = signal.SIGTERM
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as of nohup

    def run(self) -> int:
        """Keep an agent alive until told to end, or until it ends on purpose; return its exit code."""
        code = self._run()
        self._lines.flush()
        return code

    def _run(self) -> int:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # helpers of a dead agent become ours to reap
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else a terminal may stop who writes to it in the background
        for number in self._heard:
            signal.signal(number, self._pass_on)
        deaths, first = 0, True
        while True:
            began = time.monotonic()
            code, why, said = self._live()
            if FAREWELL in said:
                return code
            if HOPELESS in said and first:
                why = ""  # it has said why
            elif not why:
                why = f"the agent ended by itself with exit code {code}"
            if why:
                self._say(f"{why}; killing what it started, then undoing")
            self._clear_away()
            hopeless = HOPELESS in said and first
            left = self._heal(hopeless)
            if self._ending:
                return int(left != 0)
            if hopeless and left != _SOMETHING_LEFT:
                return code
            first = False
            deaths = 0 if time.monotonic() - began > STEADY_S else min(deaths + 1, len(BACKOFF_S) - 1)
            self._pause(BACKOFF_S[deaths])
            if self._ending:
                return int(left != 0)

    def _live(self) -> tuple[int, str, bytes]:
        """Spawn an agent and watch it; return its exit code, why it needs the guard's help, and its last words."""
        try:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                self._leader = self._agent = self._spawn("run", theirs.fileno())
                theirs.close()
                if self._ending:
                    self._tell()
                return self._watch(ours)
        except (OSError, MemoryError) as error:
            return 1, f"the agent cannot be started: {_words(error)}", b""

    def _watch(self, ours: socket.socket) -> tuple[int, str, bytes]:
        silent_at, said, looked = time.monotonic() + FIRST_BEAT_S, b"", time.monotonic()
        while True:
            ready, _, _ = select.select([ours.fileno(), self._wake_r], [], [], 0.5)
            self._awake()
            now = time.monotonic()
            if now - looked > SILENCE_S / 2:  # we were frozen ourselves: give the agent its time again
                silent_at = max(silent_at, now + SILENCE_S)
            looked = now
            if ours.fileno() in ready and (word := _receive(ours)):
                said += word.strip(b".")
                silent_at = now + SILENCE_S
            code = self._reap()
            if code is not None:
                said += _receive(ours).strip(b".")
                if said:
                    self._bury()
                    return code, "", said
                return 1, f"the agent (pid {self._agent}) died: {_how(code)}", b""
            if now > silent_at:
                return 1, f"the agent (pid {self._agent}) was silent for {SILENCE_S:g} s", b""
            if self._ending and now - self._ending > END_S:
                return 1, f"the agent (pid {self._agent}) did not end within {END_S:g} s", b""

    def _command(self, verb: str, fd: int) -> list[str]:  # the crash matrix has another
        module = "trogdor_bus.agents" if verb == "run" else "trogdor_bus.agents.heal"
        return [sys.executable, "-m", module, "--node", self._node]

    def _spawn(self, verb: str, fd: int = -1) -> int:
        """Start an agent or a healer in a session of its own and return its pid; OSError if the machine refuses."""
        argv = self._command(verb, fd)
        environment = {**os.environ, START: self._start, GUARD_FD: str(fd)}
        if fd >= 0:
            os.set_inheritable(fd, True)
        default = [*self._heard, signal.SIGCHLD, signal.SIGTTOU]
        return os.posix_spawn(argv[0], argv, environment, setsid=True, setsigdef=default)  # a fork needs more memory

    def _spawn_healer(self) -> int:
        try:
            return self._spawn("heal")
        except (OSError, MemoryError):
            self._kill_programs()  # they may have what it needs
            raise

    def _insist(self, what: str, work: Callable[[], T]) -> T | None:
        """Return what `work` returns, however often the machine refuses it before; None if the end cannot wait."""
        pause, said = INSIST_S[0], 0.0
        while True:
            try:
                return work()
            except (OSError, MemoryError) as error:
                now = time.monotonic()
                if self._ending and now - self._ending > END_S + HEAL_S:
                    self._say(f"cannot {what}: {_words(error)}; it is left to the next start")
                    return None
                if not said or now - said > SAY_AGAIN_S:
                    said = now
                    self._say(f"cannot {what}: {_words(error)}; trying on until it can be done")
            self._reap()  # the dead count as processes as well
            time.sleep(pause)
            pause = min(2 * pause, INSIST_S[1])

    # --- words --------------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self._lines.put(self._line(text))

    def _line(self, text: str) -> bytes:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if self._log_json:
            fields = {"time": now, "level": "warning", "logger": "trogdor_bus.guard", "message": text}
            line = "{" + ", ".join(f'"{name}": {_quoted(value)}' for name, value in fields.items()) + "}"
        else:
            line = f"{now} GUARD   " + "".join(c if c.isprintable() else _escaped(c) for c in text)
        return f"{line}\n".encode("utf-8", "backslashreplace")

    # --- the dead, and the living -------------------------------------------------------------------------------------

    def _reap(self) -> int | None:
        """Reap whoever has died, but not the leader of the session, so that its number stays taken.

        Return the leader's exit code if it has died; a negative one is the signal that killed it.
        """
        with contextlib.suppress(ChildProcessError):
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if dead.si_pid == self._leader:
                    return dead.si_status if dead.si_code == os.CLD_EXITED else -dead.si_status
                os.waitpid(dead.si_pid, os.WNOHANG)
        return None

    def _bury(self) -> None:
        """Reap the leader of a session in which nobody is left; from now on its number may be anybody's."""
        leader, self._leader, self._agent = self._leader, 0, 0
        if leader:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(leader, os.WNOHANG)

    def _clear_away(self) -> None:
        """Kill the agent and its tools, reap them, and report the stack that it may have left."""
        if self._leader:
            self._kill_session(self._leader)
            self._bury()
        if self._state_dir:
            self._tell_stack()

    def _tell_stack(self) -> None:
        """Report the stack; a disk that hangs is given up soon, and what it tells later is reported then."""
        told = _thread.allocate_lock()
        told.acquire()

        def tell() -> None:
            for line in take(self._state_dir):
                self._say(f"stack: {line}")
            told.release()

        with contextlib.suppress(RuntimeError):  # no thread can be had now; the next agent reports it
            _thread.start_new_thread(tell, ())
            told.acquire(timeout=STACK_S)

    def _pass_on(self, number: int, _frame: object) -> None:
        """Tell the agent to end: it undoes everything first. A second signal changes nothing."""
        if not self._ending:
            self._ending, self._asked = time.monotonic(), signal.Signals(number)
            self._say(f"Terminating process due to signal {self._asked.name}: telling the agent to end")
        self._tell()

    def _tell(self) -> None:
        if self._agent:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._agent, self._asked)

    def _kill_session(self, session: int) -> None:
        """Kill the agent and the tools that it runs (they share its session), and wait until every one is gone."""

        def kill() -> list[int]:
            family = tree.living(marks=False)
            left = [pid for pid, kin in family.items() if kin.session == session]
            tree.kill(left, family)
            return left

        self._kill(kill)

    def _kill_programs(self) -> list[int]:
        """Kill the children of the agent's supervisor with all that they started; return who was there."""
        mine = os.environ.get(tree.KEEPER) or os.environ.get(tree.CHILD) or ""
        for _ in range(LOOKS):
            family = tree.living(ancestor=os.getpid(), strike=lambda kin: kin.mark not in ("", mine))
            if left := tree.of_children(os.getpid(), family, but=mine):
                tree.kill(left, family)
                return left
        return []

    def _kill(self, kill: Callable[[], list[int]]) -> None:
        """Kill until nobody is left; `kill` returns who was."""
        deadline = time.monotonic() + GONE_S
        while left := self._insist("look for what is left of the agent", kill):
            for pid in left:
                _thaw(pid)  # only now: what runs again before it is killed could go on with what it was about to do
            self._reap()
            if time.monotonic() > deadline:
                self._say(f"still there after {GONE_S:g} s: {', '.join(map(str, left))}; going on all the same")
                return
            time.sleep(0.005)

    def _heal(self, hopeless: bool) -> int:
        """Have a process of its own heal the journal, killed if it takes too long; return its exit code.

        Programs are killed meanwhile: those that do not go hold up nothing else. After a `hopeless` start there may be
        nothing to heal, which that one has said.
        """
        healer = self._insist("start the undo", self._spawn_healer)
        deadline = time.monotonic() + HEAL_S
        self._leader = healer or 0
        self._kill(self._kill_programs)
        if healer is None:
            return _SOMETHING_LEFT
        while (code := self._reap()) is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if code is None:
            self._say(f"the undo took more than {HEAL_S:g} s and is ended")
        elif code and not (hopeless and code != _SOMETHING_LEFT):
            self._say(f"the undo did not succeed ({_how(code)}); it is tried again at the next start")
        if code != 0:
            self._kill_session(healer)
        self._bury()
        return _SOMETHING_LEFT if code is None or code < 0 else code

    def _pause(self, seconds: float) -> None:
        """Wait, but not through a signal to end."""
        deadline = time.monotonic() + seconds
        while not self._ending and (left := deadline - time.monotonic()) > 0:
            select.select([self._wake_r], [], [], min(left, 0.5))
            self._awake()
            self._reap()

    def _awake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)


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
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def _words(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or "no memory"


def _quoted(text: str) -> str:
    """Return the text as a JSON string; importing json would cost a megabyte."""
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else _escaped(c, long=True) for c in text) + '"'


def _escaped(char: str, *, long: bool = False) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    codes = [int.from_bytes(units[index : index + 2], "big") for index in range(0, len(units), 2)]
    return "".join(f"\\u{code:04x}" if long or code > 255 else f"\\x{code:02x}" for code in codes)


def main(argv: list[str]) -> int:
    """Be the guard that `trogdor-bus agent` becomes; return the exit code."""
    given = dict(zip(argv[::2], argv[1::2], strict=True))
    start, node = os.environ.pop(START), given["--node"]
    badge.wear()
    set_title("trogdor-bus", "watchdog", "--node", node)
    return Guard(start, log_json=given["--log"] == "json", node=node, state_dir=given["--state-dir"]).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
