"""The log of a daemon: lines on standard error, for people or as JSON. Nobody waits until they are written."""

from __future__ import annotations

import datetime
import io
import json
import logging
import os
import signal
import sys
from typing import TextIO

from trogdor_bus.errors import SpecError
from trogdor_bus.linewriter import LineWriter
from trogdor_bus.printable import escape
from trogdor_bus.remedies import Words, worded

LEVELS = ("debug", "info", "warning", "error")


def set_up(level: str = "info", as_json: bool = False, *, daemon: bool = True, words: Words | None = None) -> None:
    """Send every log record of at least `level` to standard error; SpecError if there is no such level.

    Remedies are told in these `words`. Of a daemon so goes whatever is printed there, tracebacks and warnings of Python
    included.
    """
    check(level)
    handler = _Handler(_Json(words or {}) if as_json else _Human(words or {}))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))
    quiet_drivers()
    if daemon and _is_ours(sys.stderr):
        sys.stderr = _Stderr(handler.writer)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else a terminal may stop who writes to it in the background


def _is_ours(stream: TextIO) -> bool:
    """Return whether it writes to standard error itself; a test has another one."""
    try:
        return stream.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


def quiet_drivers() -> None:
    """Silence kafka-python in a process of our own: what matters of its words comes as errors, too."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL + 1)


def check(level: str) -> None:
    """Raise SpecError if there is no such log level."""
    if level.lower() not in LEVELS:
        raise SpecError(f"there is no log level {level!r}", remedy=f"use one of {', '.join(LEVELS)}")


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that a daemon ends at, those that it was started to ignore left out (nohup)."""
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return tuple(number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN)


def terminating(number: signal.Signals) -> str:
    """Return what Trogdor logs at a signal."""
    return f"Terminating process due to signal {number.name}"


class _Handler(logging.Handler):
    """Gives each record to a writer that never holds anybody up; `flush`, and so the end, waits half a second."""

    def __init__(self, form: logging.Formatter) -> None:
        super().__init__()
        self.formatter = form
        self.writer = LineWriter(2, self._own)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record."""
        try:
            self.writer.put(_encoded(self.format(record)))
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all is written, for half a second at most."""
        self.writer.flush()

    def _own(self, text: str) -> bytes:
        return _encoded(self.format(logging.makeLogRecord({"levelname": "WARNING", "name": __name__, "msg": text})))


class _Stderr(io.TextIOBase):
    """Standard error as a daemon's other code prints to it: whole lines, through the same queue."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, writer: LineWriter) -> None:
        self._writer, self._begun = writer, ""

    def write(self, text: str) -> int:
        """Queue all lines that are whole."""
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            self._writer.put(_encoded("\n".join(lines)))
        return len(text)

    def flush(self) -> None:
        """Queue a line that is not whole."""
        begun, self._begun = self._begun, ""
        if begun:
            self._writer.put(_encoded(begun))

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return 2."""
        return 2

    def isatty(self) -> bool:
        """Return whether a person reads it."""
        return os.isatty(2)


def _encoded(text: str) -> bytes:
    return f"{text}\n".encode("utf-8", "backslashreplace")


class _Worded(logging.Formatter):
    """What both forms have in common: remedies in the words of an interface."""

    def __init__(self, words: Words) -> None:
        super().__init__()
        self._words = words

    def message(self, record: logging.LogRecord) -> str:
        return worded(record.getMessage(), self._words)


class _Human(_Worded):
    def format(self, record: logging.LogRecord) -> str:
        """Return one line per line of the message: time with offset, level, text."""
        head = f"{_time(record)} {record.levelname:<7} "
        lines = self.message(record).split("\n")
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        return "\n".join(head + escape(line) for line in lines)


class _Json(_Worded):
    def format(self, record: logging.LogRecord) -> str:
        """Return one JSON object: time, level, logger, message, and error if there is one."""
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.message(record),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _time(record: logging.LogRecord) -> str:
    return datetime.datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
