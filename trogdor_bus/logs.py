"""The log of a daemon: lines on standard error, for people or as JSON."""

from __future__ import annotations

import datetime
import json
import logging
import sys

from trogdor_bus.errors import SpecError
from trogdor_bus.printable import escape

LEVELS = ("debug", "info", "warning", "error")


def set_up(level: str = "info", as_json: bool = False) -> None:
    """Send every log record of at least `level` to standard error; SpecError if there is no such level."""
    check(level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Human())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))
    quiet_drivers()


def quiet_drivers() -> None:
    """Silence kafka-python in a process of our own: what matters of its words comes as errors, too."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL + 1)


def check(level: str) -> None:
    """Raise SpecError if there is no such log level."""
    if level.lower() not in LEVELS:
        raise SpecError(f"there is no log level {level!r}", remedy=f"use one of {', '.join(LEVELS)}")


class _Human(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return one line per line of the message: time with offset, level, text."""
        head = f"{_time(record)} {record.levelname:<7} "
        lines = record.getMessage().split("\n")
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        return "\n".join(head + escape(line) for line in lines)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return one JSON object: time, level, logger, message, and error if there is one."""
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _time(record: logging.LogRecord) -> str:
    return datetime.datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
