"""A child of this life of an agent, as it sees it: what it said last, how it ended, whether all of it is gone."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

import trogdor_bus
from trogdor_bus.errors import HostError, NotFoundError
from trogdor_bus.host import identity
from trogdor_bus.limits import flaw
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.supervisor import tree
from trogdor_bus.supervisor.tree import KEEPER

log = logging.getLogger("trogdor_bus.agents")
Door = Callable[[Callable[[], "subprocess.Popen[bytes]"]], "subprocess.Popen[bytes]"]
"""Calls a function somewhere else, in a namespace, and returns what it returns."""
PATIENCE_S = 10.0
"""How long a keeper may take to read, or to answer; its Python starts in some 30 ms."""
KILL_S = 5.0
"""How long after the grace a keeper may take to have killed all; then it is killed itself: somebody has frozen it."""
SWEEP_S = 5.0
"""How long what a killed keeper has left may take to be gone."""
MOST_WORD = 1 << 20
"""So long may one word of a keeper be."""
LOST = "its keeper was killed, and so was it"
_ROOT = str(Path(trogdor_bus.__file__).parents[1])
_RUN = "import sys; sys.path.append(sys.argv[1]); from trogdor_bus.supervisor.keeper import main; main()"


class Child:
    """A child that waits to be released; `name` is for the log, `stirred` is called when it has, and all of it.

    `order` is what `launch.py` takes, and `input`, the text on its standard input. `enter` starts the keeper where the
    child is to live. With `streams` these descriptors are its standard streams, and nobody hears what it says; they may
    be closed afterwards. HostError if there can be no such child; it ends if it is not released, or if we die.
    """

    def __init__(
        self,
        order: dict[str, Any],
        mark: str,
        name: str,
        enter: Door,
        stirred: Callable[[], None],
        *,
        streams: Sequence[int] = (),
    ) -> None:
        self.status = msgspec.Raw(b"null")
        """What it said last of how it goes, JSON."""
        self.ended: str | None = None
        """Its error, "" for none, once it has ended by itself; one that said that it failed may still run."""
        self.exit: int | None = None
        """Its exit status, once it has ended, or minus the number of the signal that killed it."""
        self.gone = False
        """Whether nothing of it is left, as its keeper saw."""
        self.kill_s: float | None = None
        """When it was told to end, its grace added (CLOCK_MONOTONIC)."""
        self._mark = mark
        self._name, self._stirred, self._identity, self._failed = name, stirred, list[ProcessIdentity](), ""
        self._waits, self._runs, self._over = threading.Event(), threading.Event(), threading.Event()
        self._told = threading.Event()
        self._socket, theirs = socket.socketpair()
        hears = False
        try:
            with theirs:
                self._keeper = enter(lambda: _spawn(theirs, mark))
            for target in (self._hear, self._see_to_end):  # both now: at the end the machine may refuse a thread
                threading.Thread(target=target, name="child", daemon=True).start()
                hears = True
            if streams:
                socket.send_fds(self._socket, [b" "], streams)
            self._say(order)
            self._await(self._waits)
            if self._failed:
                raise HostError(self._failed)
        except (OSError, RuntimeError) as error:  # it is refused a process, a descriptor, a thread
            self._leave()
            if not hears:
                self._socket.close()
            raise HostError(f"its keeper cannot be started: {error}") from None
        except BaseException:
            self._leave()
            raise

    @property
    def identity(self) -> ProcessIdentity:
        """Who it is."""
        return self._identity[0]

    @property
    def keeper(self) -> int:
        """The pid of its keeper."""
        return self._keeper.pid

    def release(self) -> None:
        """Let it run the command; HostError says why it cannot."""
        self._say({"go": True})
        self._await(self._runs)
        if self._failed:
            raise HostError(self._failed)

    def stop(self, grace_ms: int) -> None:
        """Tell it to end, and have all of it killed when the grace is over; telling it twice changes nothing."""
        if self.kill_s is None:
            self.kill_s = time.monotonic() + grace_ms / 1000
            self._told.set()
            with contextlib.suppress(HostError):
                self._say({"stop": grace_ms})

    def sweep(self) -> bool:
        """Kill what is left of it once its keeper is over; return whether nothing is, as far as is known."""
        deadline_s = time.monotonic() + SWEEP_S
        while not self.gone:
            with contextlib.suppress(OSError):  # the machine refuses a descriptor: another time
                family, keeper = tree.living(strike=lambda kin: kin.mark == self._mark), self._keeper.pid
                if keeper in family and self._keeper.poll() is None:  # on a busy machine it may not have told its mark
                    family[keeper] = family[keeper]._replace(mark=self._mark, keeper=True)
                left = tree.of_child(self._mark, self.identity.pid if self._identity else 0, family)
                if not left:
                    return True
                tree.kill(left, family)
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.02)
        return True

    @property
    def over(self) -> bool:
        """Whether its keeper is done, or dead, or was given up: what is left then is not its to end."""
        return self._over.is_set()

    def _say(self, word: dict[str, Any]) -> None:
        left = memoryview(json.dumps(word).encode() + b"\n")
        deadline_s = time.monotonic() + PATIENCE_S
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            while left:
                if not poll.poll(1000 * max(0.0, deadline_s - time.monotonic())):
                    self._leave()
                    raise HostError(f"its keeper did not read within {PATIENCE_S:g} s")
                with contextlib.suppress(BlockingIOError):
                    left = left[self._socket.send(left, socket.MSG_DONTWAIT) :]
        except (OSError, ValueError):  # ValueError: it is closed
            raise HostError(LOST) from None

    def _await(self, event: threading.Event) -> None:
        if not event.wait(PATIENCE_S):
            raise HostError(f"its keeper did not answer within {PATIENCE_S:g} s")
        if self._over.is_set() and not self.gone and self.ended in (None, LOST):
            raise HostError(LOST)

    def _leave(self) -> None:
        """Have the keeper kill whatever there is."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _see_to_end(self) -> None:
        """Do the work of a keeper that does not do it in time."""
        self._told.wait()
        grace_s = self.kill_s - time.monotonic() if self.kill_s is not None else 0.0
        if not self._over.wait(max(0.0, grace_s) + KILL_S):
            log.warning("%s: its keeper does not end it, so all of it is killed", self._name)
            self.sweep()
            self._over.set()
            self._stirred()

    # --- what its keeper says, in a thread of its own -----------------------------------------------------------------

    def _hear(self) -> None:
        heard = b""
        try:
            with contextlib.suppress(OSError):
                while len(heard) < MOST_WORD and (part := self._socket.recv(1 << 16)):
                    *words, heard = (heard + part).split(b"\n")
                    for word in words:
                        self._take(word)
        finally:
            if not self.gone:
                self._end(LOST)
            self._socket.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(PATIENCE_S)
            for event in (self._over, self._waits, self._runs, self._told):
                event.set()
            self._stirred()

    def _take(self, word: bytes) -> None:
        for what, value in self._read(word).items():
            match what:
                case "pid":
                    with contextlib.suppress(NotFoundError):
                        self._identity.append(identity(value))
                        self._waits.set()
                case "runs":
                    self._runs.set()
                case "failed":
                    self._failed = value
                    self._waits.set()
                    self._runs.set()
                case "status":
                    self.status = msgspec.Raw(msgspec.json.encode(value))
                case "log":
                    log.info("%s: %s", self._name, value)
                case "stderr":
                    log.warning("%s: standard error: %s", self._name, value)
                case "error":
                    if value:  # else it is the end without one
                        log.warning("%s: error: %s", self._name, value)
                    self._end(value)
                case "signal":
                    self.exit = -value
                case "exit":
                    self.exit = value if self.exit is None else self.exit
                    self._end(f"exited with return code {value}" if value else "")
                case "gone":
                    self.gone = True

    def _read(self, word: bytes) -> dict[str, Any]:
        """Return a word of its keeper; an empty one for a word that not each of us can read."""
        try:
            told = msgspec.json.decode(word, type=dict[str, Any])
            why = flaw(told.get("status"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            why = f"cannot be read: {error}"
        if not why:
            return told
        log.warning("%s: a word of its keeper %s, and is dropped", self._name, why)
        return {}

    def _end(self, error: str) -> None:
        """Note how it ended by itself; the first word of it counts, and none after it was told to."""
        if self.ended is None and self.kill_s is None and not self._failed:
            self.ended = error
            self._stirred()


def order(argv: Sequence[str], cwd: str, environment: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return what `launch.py` takes to run a command as whom we are; the first word is the path of its program."""
    return {
        "program": text(os.fsencode(argv[0])),
        "argv": [text(os.fsencode(word)) for word in argv],
        "cwd": text(os.fsencode(cwd)),
        "who": [os.geteuid(), os.getegid(), os.getgroups()],
        "environment": [text(key + b"=" + value) for key, value in environment.items()],
    }


def text(raw: bytes) -> str:
    """Return bytes as `launch.py` takes them."""
    return raw.decode("latin-1")


def _spawn(theirs: socket.socket, mark: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _RUN, _ROOT],
        stdin=theirs.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={KEEPER: mark},
        start_new_session=True,  # what is sent to the agent's session is not for it
    )
