"""The agent as its guard spawns it, without the command line: what it must know stands in its environment.

    TROGDOR_BUS_AGENT_START=... python -m trogdor_bus.agents --node NAME

A guard of an older version gives it as `run START FD`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from trogdor_bus import badge, logs
from trogdor_bus.agents.guard import GUARD_FD, START
from trogdor_bus.agents.leash import Leash
from trogdor_bus.config import AgentSettings
from trogdor_bus.errors import SpecError, TrogdorBusError
from trogdor_bus.exits import report
from trogdor_bus.title import set_title


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """All that the processes of an agent must know; `words` are for the remedies in its log."""

    settings: AgentSettings
    log_level: str = "info"
    log_json: bool = False
    words: dict[str, str] = {}


def become_guard(start: Start) -> NoReturn:
    """Replace this process by a guard with an agent under it: the same pid, a smaller memory.

    SpecError if the settings are more than Linux hands to a program.
    """
    text = msgspec.json.encode(start, enc_hook=str).decode()
    argv = [sys.executable, "-m", "trogdor_bus.agents.guard", "--node", start.settings.node]
    argv += ["--state-dir", str(start.settings.state_dir), "--log", "json" if start.log_json else "text"]
    if (worn := badge.wear()) >= 0:
        os.set_inheritable(worn, True)  # by the guard, and by whom it starts, from their first moment on
    try:
        os.execve(sys.executable, argv, {**os.environ, START: text})  # noqa: S606 (no shell)
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
        what = f"the agent's settings have {len(text)} bytes, and Linux hands a program 128 KiB at most"
        raise SpecError(what, path="$.agent.allowCommands", remedy="list fewer or shorter commands") from None


def main(text: str, guard_fd: str = "-1") -> int:
    """Run the agent; return the exit code."""
    badge.wear()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the loop hears it
    start = msgspec.json.decode(text, type=Start, dec_hook=_path)
    set_title("trogdor-bus", "agent", "--node", start.settings.node)
    logs.set_up(start.log_level, start.log_json, words=start.words)
    leash = Leash(int(guard_fd))
    try:
        from trogdor_bus.agents.service import run

        code = run(start.settings, leash)
    except TrogdorBusError as error:
        code = report(error, start.words)
        leash.hopeless()
    else:
        leash.farewell()
    return code


def _path(kind: type[Any], value: Any) -> Any:
    return kind(value) if kind is Path else value


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        sys.exit(main(*sys.argv[2:]))
    sys.exit(main(os.environ.pop(START), os.environ.pop(GUARD_FD, "-1")))
