"""`python -m trogdor_bus.agents run START [FD]`: the agent as its guard spawns it, without the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from trogdor_bus import logs
from trogdor_bus.agents.leash import Leash
from trogdor_bus.config import AgentSettings
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.exits import report


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """All that the processes of an agent must know."""

    settings: AgentSettings
    log_level: str = "info"
    log_json: bool = False


def become_guard(start: Start) -> NoReturn:
    """Replace this process by a guard with an agent under it: the same pid, a smaller memory."""
    text = msgspec.json.encode(start, enc_hook=str).decode()
    form = "json" if start.log_json else "text"
    os.execv(sys.executable, [sys.executable, "-m", "trogdor_bus.agents.guard", text, form])  # noqa: S606 (no shell)


def main(text: str, guard_fd: str = "-1") -> int:
    """Run the agent; return the exit code."""
    start = msgspec.json.decode(text, type=Start, dec_hook=_path)
    logs.set_up(start.log_level, start.log_json)
    leash = Leash(int(guard_fd))
    try:
        from trogdor_bus.agents.service import run

        code = run(start.settings, leash)
    except TrogdorBusError as error:
        code = report(error)
    leash.farewell()
    return code


def _path(kind: type[Any], value: Any) -> Any:
    return kind(value) if kind is Path else value


if __name__ == "__main__":
    sys.exit(main(*sys.argv[2:]))
