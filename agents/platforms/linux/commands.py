"""Running a tool of the system: argument lists, never a shell's parsing, a deadline, and the tool's own words."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from trogdor_bus import badge
from trogdor_bus.errors import HostError

log = logging.getLogger("trogdor_bus.agents")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S = 20.0
REAP_S = 5.0
"""How long a killed tool may take to be gone: one that waits for a device dies late."""
UNLESS_ORPHAN = 'test "$PPID" = "$0" && exec "$@"'
"""Runs the tool if its parent is still process $0: an agent that died before the signal was asked for sends none."""


class ToolFailedError(HostError):
    """A tool ended with an exit code other than 0; `code` is that, negative for a signal, `words` are its own."""

    def __init__(self, text: str, code: int, words: str = "") -> None:
        self.code, self.words = code, words
        super().__init__(text)


def find_tool(name: str) -> str | None:
    """Return the absolute path of a tool, or None; the sbin directories are searched whatever PATH says."""
    return shutil.which(name, path=search_path())


def require_tool(name: str, package: str) -> str:
    """Return the absolute path of a tool; HostError names the package to install."""
    path = find_tool(name)
    if path is None:
        raise HostError(f"{name} is not installed on this machine; install the package {package}")
    return path


def run(
    argv: Sequence[str], stdin: str = "", timeout_s: float = TIMEOUT_S, environment: Mapping[str, str] | None = None
) -> str:
    """Run a tool and return what it printed; HostError carries its own words.

    The kernel kills it when this process dies; after `timeout_s` it is killed with everything it started. Of the
    agent's environment it sees PATH only, and what `environment` adds.
    """
    tool = Path(argv[0]).name
    own = {"PATH": search_path(), "LC_ALL": "C"}
    try:
        path = find_tool(argv[0])
        if path is None or not Path(path).stat().st_size:  # a shell would run an empty file, with success
            raise HostError(f"{argv[0]} is not on this machine, or is not a program")
        child = subprocess.Popen(
            [*_dies_with(os.getpid()), path, *argv[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={**(environment or {}), **own},
            pass_fds=badge.handed(),  # no fault hits it, of whatever agent
            process_group=0,  # of its own, to be killed as one; the session stays the agent's, which the guard kills
        )
    except (OSError, ValueError) as error:
        raise HostError(f"{tool} cannot be run: {error}") from None
    try:
        out, err = child.communicate(stdin.encode(), timeout_s)
    except subprocess.TimeoutExpired:
        raise HostError(f"{tool} did not end within {timeout_s:g} s; {_kill(child)}") from None
    except BaseException:
        _kill(child)
        raise
    if child.returncode != 0:
        words = " ".join(err.decode(errors="replace").split())
        text = f"{tool} failed ({child.returncode}): {words or 'it gave no reason'}"
        raise ToolFailedError(text, child.returncode, words)
    return out.decode(errors="replace")


def _kill(child: subprocess.Popen[bytes]) -> str:
    """Kill a tool that was not waited for and all of its process group; return what became of it."""
    if child.returncode is None:  # once it is reaped, its number may be somebody else's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    for pipe in (child.stdin, child.stdout, child.stderr):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    try:
        child.wait(REAP_S)
    except subprocess.TimeoutExpired:
        return f"killed, but process {child.pid} is still there after {REAP_S:g} s: it waits for a device"
    return "killed"


def _dies_with(parent: int) -> tuple[str, ...]:
    """Return the words before a command by which the kernel kills it when `parent`, who starts it, dies."""
    setpriv, shell = find_tool("setpriv"), find_tool("sh")
    if setpriv is None or shell is None or not _knows_pdeathsig(setpriv):
        _warn_of_orphans()
        return ()
    return (setpriv, "--pdeathsig", "KILL", "--", shell, "-c", UNLESS_ORPHAN, str(parent))


@functools.cache
def _knows_pdeathsig(setpriv: str) -> bool:
    """Return whether that setpriv is the one of util-linux, and answers; BusyBox has another."""
    asked = [setpriv, "--pdeathsig", "KILL", "--", setpriv, "--version"]
    null = subprocess.DEVNULL
    try:
        return not subprocess.run(
            asked, stdin=null, stdout=null, stderr=null, check=False, timeout=TIMEOUT_S
        ).returncode
    except subprocess.TimeoutExpired:
        return False


@functools.cache
def _warn_of_orphans() -> None:
    log.warning(
        "there is no setpriv that knows --pdeathsig: a tool that runs at the moment when this agent is killed is "
        "ended by the guard, but not by the kernel; install the package util-linux"
    )


def search_path() -> str:
    """Return the directories in which tools are, as PATH has them."""
    return f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
