"""Who may import whom: the contracts hold, and each of them would notice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.house.repository import ROOT, copy_sources

PLANTED = {
    "rooms": ("agents/machine.py", "import trogdor_bus.coordinator.plan"),
    "frames": ("transports/memory.py", "import trogdor_bus.messages"),
    "pure": ("coordinator/machine.py", "import time"),
    "pure-deep": ("trogdor_bus/names.py", "import socket"),
    "zmq": ("trogdor_bus/bus.py", "import zmq"),
    "kafka": ("coordinator/store.py", "import confluent_kafka"),
    "docker": ("trogdor_bus/lab/cluster.py", "import docker"),
    "machine-under-test": ("coordinator/store.py", "import psutil"),
    "programs": ("coordinator/plan.py", "import subprocess"),
    "front-door": ("agents/service.py", "import rich"),
}


def contracts() -> dict[str, str]:
    """Return the names of the contracts by id."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return {contract["id"]: contract["name"] for contract in found}


def lint(root: Path) -> tuple[int, str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "1000"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_contracts_hold() -> None:
    code, said = lint(ROOT)
    assert code == 0, said


def test_each_contract_notices_a_planted_violation(tmp_path: Path) -> None:
    root = copy_sources(tmp_path)
    for file, line in PLANTED.values():
        path = root / file
        path.write_text(f"{path.read_text()}\n{line}\n")
    code, said = lint(root)
    assert code == 1, said
    broken = set(re.findall(r"^(.*) BROKEN$", said, re.M))
    assert PLANTED.keys() == contracts().keys()
    assert broken == set(contracts().values()), said


@pytest.mark.parametrize("room", ["agents", "coordinator", "transports"])
def test_a_bare_room_may_not_be_imported(room: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", "trogdor_bus/x.py", "-"]
    source = f"import {room}\nfrom trogdor_bus import {room}\n"
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True, check=False)
    assert f"import trogdor_bus.{room}" in done.stdout
    assert done.stdout.count("TID251") == 1
