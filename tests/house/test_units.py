"""The systemd units name commands and options that exist, and leave the guard the time that it takes."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import reference
from tests.house.repository import ROOT
from tests.support import require
from trogdor_bus.agents import guard

UNITS = sorted((ROOT / "contrib" / "systemd").iterdir())
PROGRAM = "/opt/trogdor-bus/bin/trogdor-bus"  # where the documents install it


def service(path: Path) -> configparser.SectionProxy:
    parsed = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parsed.read_string(path.read_text())
    assert parsed.sections() == ["Unit", "Service", "Install"]
    return parsed["Service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_runs_commands_that_exist_with_options_that_they_take(unit: Path) -> None:
    known = reference.commands()
    lines = [line for key, line in service(unit).items() if key.startswith("exec")]
    assert lines
    for program, verb, *words in map(shlex.split, lines):
        assert program == PROGRAM
        asked = {word for word in words if word.startswith("-")}
        assert verb in known and asked <= reference.options(known[verb]), (verb, words)


def test_systemd_lets_the_guard_finish() -> None:
    (unit,) = (unit for unit in UNITS if "agent" in unit.name)
    found = service(unit)
    assert int(found["TimeoutStopSec"]) > guard.END_S + guard.GONE_S + guard.HEAL_S
    assert found["KillMode"] == "mixed"  # the guard alone hears SIGTERM; nothing frozen outlives it and holds the lock


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_reads_a_unit_without_a_word(unit: Path, tmp_path: Path) -> None:
    require(shutil.which("systemd-analyze") is not None, "systemd-analyze is not installed", "apt-get install systemd")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, sys.executable))  # it looks whether the program is there
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
