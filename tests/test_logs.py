"""The log of a daemon."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from trogdor_bus import logs
from trogdor_bus.errors import SpecError
from trogdor_bus.linewriter import MAX_BYTES, MAX_LINES, LineWriter

DAEMON = """
import logging, sys, warnings
from trogdor_bus import logs
logs.set_up("info")
for number in range(3000):
    logging.getLogger("x").info("line %d", number)
print("printed", file=sys.stderr)
warnings.warn("warned")
print("said", flush=True)
sys.stdin.readline()
logging.getLogger("x").info("the last")
raise ValueError("the end")
"""


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def test_lines_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up("warning")
    logging.getLogger("x").info("unseen")
    logging.getLogger("x").warning("task %s\nends", "a\x1b[31m\r")
    logging.getLogger().handlers[0].flush()
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [r"WARNING task a\x1b[31m\r", "WARNING ends"]


def test_json_lines(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up("DEBUG", as_json=True)
    try:
        raise ValueError("why\nnot")
    except ValueError:
        logging.getLogger("x.y").exception("it failed")
    logging.getLogger().handlers[0].flush()
    found = json.loads(capfd.readouterr().err)
    assert (found["level"], found["logger"], found["message"]) == ("error", "x.y", "it failed")
    assert "ValueError: why\nnot" in found["error"]


def test_no_such_level() -> None:
    with pytest.raises(SpecError, match="there is no log level 'loud' \\(use one of debug, info, warning, error\\)"):
        logs.set_up("loud")


# --- nobody waits -----------------------------------------------------------------------------------------------------


def full_pipe() -> tuple[int, int]:
    """A pipe that takes nothing more, and blocks who writes to it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (65_536, 1):
        try:
            while True:
                os.write(writer, b"x" * size)
        except BlockingIOError:
            continue
    os.set_blocking(writer, True)
    return reader, writer


def drained(reader: int) -> list[str]:
    """What can be read, until nothing comes for a while; the lines after what filled the pipe."""
    os.set_blocking(reader, False)
    text, deadline = b"", time.monotonic() + 0.5
    while time.monotonic() < deadline:
        try:
            if not (part := os.read(reader, 65_536)):
                break
        except BlockingIOError:
            time.sleep(0.01)
            continue
        text, deadline = text + part, time.monotonic() + 0.5
    return text.decode().lstrip("x").splitlines()


def test_a_full_pipe_holds_nobody_up_and_what_was_dropped_is_counted_in_its_place() -> None:
    reader, fd = full_pipe()
    writer = LineWriter(fd, lambda text: f"{text}\n".encode())
    began = time.monotonic()
    for number in range(MAX_LINES + 7):
        writer.put(f"{number}\n".encode())
    assert not writer.flush(0.05)
    assert time.monotonic() - began < 2
    assert os.get_blocking(fd), "the mode of the descriptor is not ours: the shell has it, too"
    lines = drained(reader)
    assert lines[:MAX_LINES] == [str(number) for number in range(MAX_LINES)]
    assert lines[MAX_LINES:] == ["7 log lines were dropped because standard error was blocked"]
    writer.put(b"later\n")
    assert writer.flush(5)
    assert drained(reader) == ["later"]
    os.close(reader)
    writer.put(b"to nobody\n")
    assert writer.flush(5)  # a broken pipe is no end
    os.close(fd)


def test_a_disk_that_is_full_is_told_once_there_is_room() -> None:
    full, room = os.open("/dev/full", os.O_WRONLY), os.pipe()
    fd = os.dup(full)
    writer = LineWriter(fd, lambda text: f"{text}\n".encode())
    for number in range(3):
        writer.put(f"{number}\n".encode())
    assert writer.flush(5)
    os.dup2(room[1], fd)
    writer.put(b"again\n")
    assert writer.flush(5)
    why = "standard error could not be written: No space left on device"
    assert drained(room[0]) == [f"3 log lines were dropped because {why}", "again"]


def test_a_line_without_end_is_cut() -> None:
    reader, fd = os.pipe()
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 2 * MAX_BYTES)
    writer = LineWriter(fd, lambda text: text.encode())
    writer.put(b"y" * 1_000_000)
    assert writer.flush(5)
    (line,) = drained(reader)
    assert len(line) == MAX_BYTES - 1 and line.endswith("y ... (cut)")


def test_where_no_thread_can_be_had_the_line_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, fd = os.pipe()

    def refused(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", refused)
        writer = LineWriter(fd, lambda text: text.encode())
        writer.put(b"one\n")
        assert not writer.flush(0.05)
    writer.put(b"two\n")
    assert writer.flush(5)
    assert drained(reader) == ["one", "two"]


def test_a_daemon_on_a_stopped_terminal_goes_on_and_ends() -> None:
    ours, terminal = os.openpty()
    termios.tcflow(terminal, termios.TCOOFF)  # as Ctrl-S does
    argv = [sys.executable, "-c", DAEMON]
    with subprocess.Popen(argv, stderr=terminal, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None and daemon.stdin is not None
        assert daemon.stdout.readline() == "said\n"
        daemon.stdin.close()
        assert daemon.wait(20) == 1, "it did not end while its terminal was stopped"
    os.close(ours)
    os.close(terminal)


def test_whatever_a_daemon_prints_goes_through_the_queue() -> None:
    argv = [sys.executable, "-c", DAEMON.replace("3000", "3")]
    done = subprocess.run(argv, input="", capture_output=True, text=True, check=False, timeout=60)
    words = [line.split()[-1] for line in done.stderr.splitlines() if "INFO" in line or line == "printed"]
    assert words == ["0", "1", "2", "printed", "last"]
    assert "warned" in done.stderr and done.stderr.endswith("ValueError: the end\n")


def test_a_daemon_ends_at_these_signals_unless_it_was_started_to_ignore_one() -> None:
    program = "from trogdor_bus import logs; print(*[number.name for number in logs.ending_signals()])"
    argv = [sys.executable, "-c", program]
    assert subprocess.check_output(argv, text=True).split() == ["SIGTERM", "SIGINT", "SIGHUP"]
    assert subprocess.check_output(["nohup", *argv], text=True).split() == ["SIGTERM", "SIGINT"]
    assert logs.terminating(signal.SIGHUP) == "Terminating process due to signal SIGHUP"


def test_importing_our_modules_leaves_the_loggers_of_the_importing_program_alone() -> None:
    program = """
import importlib, logging, pkgutil
import trogdor_bus
logging.getLogger("kafka").setLevel(logging.INFO)
before = (logging.root.level, list(logging.root.handlers))
for info in pkgutil.walk_packages(trogdor_bus.__path__, "trogdor_bus."):
    if "__main__" not in info.name:
        importlib.import_module(info.name)
changed = {name: log.level for name, log in logging.root.manager.loggerDict.items()
           if isinstance(log, logging.Logger) and log.level and name != "kafka" and name.split(".")[0] != "asyncio"}
after = (logging.root.level, list(logging.root.handlers))
print(logging.getLogger("kafka").level == logging.INFO, before == after, changed)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("True True {}\n", "")
