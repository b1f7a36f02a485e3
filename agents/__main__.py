"""`python -m trogdor_bus.agents SETTINGS`: the agent without the command line's libraries, which it does not need."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from trogdor_bus import logs
from trogdor_bus.config import AgentSettings
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.exits import report


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """All that the new process must know."""

    settings: AgentSettings
    log_level: str = "info"
    log_json: bool = False


def become(start: Start) -> NoReturn:
    """Replace this process by the agent: the same pid, a smaller memory."""
    text = msgspec.json.encode(start, enc_hook=str).decode()
    os.execv(sys.executable, [sys.executable, "-m", "trogdor_bus.agents", text])  # noqa: S606 (no shell is wanted)


def main(text: str) -> int:
    """Run the agent that `text` (the JSON of a Start) describes; return the exit code."""
    start = msgspec.json.decode(text, type=Start, dec_hook=_path)
    logs.set_up(start.log_level, start.log_json)
    from trogdor_bus.agents.service import run

    try:
        return run(start.settings)
    except TrogdorBusError as error:
        return report(error)


def _path(kind: type[Any], value: Any) -> Any:
    return kind(value) if kind is Path else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
