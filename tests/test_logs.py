"""The log of a daemon."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from trogdor_bus import logs
from trogdor_bus.errors import SpecError


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("warning")
    logging.getLogger("x").info("unseen")
    logging.getLogger("x").warning("task %s\nends", "a\x1b[31m\r")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [r"WARNING task a\x1b[31m\r", "WARNING ends"]


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("DEBUG", as_json=True)
    try:
        raise ValueError("why\nnot")
    except ValueError:
        logging.getLogger("x.y").exception("it failed")
    found = json.loads(capsys.readouterr().err)
    assert (found["level"], found["logger"], found["message"]) == ("error", "x.y", "it failed")
    assert "ValueError: why\nnot" in found["error"]


def test_no_such_level() -> None:
    with pytest.raises(SpecError, match="there is no log level 'loud' \\(use one of debug, info, warning, error\\)"):
        logs.set_up("loud")


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
