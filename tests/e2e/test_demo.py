"""The demo as people run it: seen through, interrupted at any moment, and without root."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import require, require_namespaces, wait_until
from trogdor_bus.lab import namespaces
from trogdor_bus.lab.demo import NAME
from trogdor_bus.lab.labs import remove
from trogdor_bus.lab.site import ROOT

pytestmark = pytest.mark.e2e

DEMO = [sys.executable, "-m", "trogdor_bus", "demo", "--json"]


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Skip without root; after the test no namespace, directory or process of the demo's lab is there."""
    require_namespaces()
    with (Path(tempfile.gettempdir()) / "trogdor-bus-test-demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # there is one demo at a time, but perhaps several workers of pytest
        yield from _nothing_left()


def _nothing_left() -> Iterator[None]:
    require(
        not (ROOT / f"lab-{NAME}").exists(), "a demo is running here", "end it, or `trogdor-bus lab down --name demo`"
    )
    try:
        yield
        assert not [name for name in namespaces.listed() if name.startswith(f"tb-{NAME}-")]
        assert not (ROOT / f"lab-{NAME}").exists()
        assert not [line for line in command_lines() if f"lab-{NAME}/" in line]
    finally:
        remove(NAME)


def command_lines() -> list[str]:
    """Return what every process was started with: agents have it in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for file in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    found.append((entry / file).read_text(errors="replace").replace("\0", " "))
    return found


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_demo_sees_everything_it_expects(nothing_left: None) -> None:
    done = subprocess.run(DEMO, capture_output=True, text=True, timeout=100, check=False)
    told = events(done.stdout)
    missed = [event for event in told if event["event"] == "expectation" and not event["seen"]]
    assert missed == []
    assert (done.returncode, done.stderr) == (0, "")
    assert told[-1]["event"] == "verdict" and told[-1]["ok"]
    reached = [event["reached"] for event in told if event["event"] == "matrix"]
    assert any(row["node1"]["node3"] == row["node3"]["node1"] == [] and row["node1"]["node2"] for row in reached)
    assert any(row["node1"]["node3"] == ["ping4", "ping6"] for row in reached)


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGTERM, "making a lab"), (signal.SIGHUP, "agents started"), (signal.SIGINT, "submit partition.json")],
)
def test_interrupted_it_cleans_up(nothing_left: None, number: signal.Signals, after: str) -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True, start_new_session=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if after in line:
                break
        if after == "agents started":
            other = subprocess.run(DEMO, capture_output=True, text=True, timeout=30, check=False)
            assert other.returncode == 2 and f"pid {demo.pid}" in other.stderr
        time.sleep(0.02 if after == "making a lab" else 0.7)
        os.killpg(demo.pid, number)  # as a terminal does, to whoever is in the foreground
        time.sleep(0.01)
        os.killpg(demo.pid, number)  # impatience does not stop the cleaning
        told = events(demo.stdout.read())
        assert demo.wait(20) == 128 + number
    assert number.name in told[-1]["text"] and not told[-1]["ok"]


def test_after_a_kill_9_lab_down_removes_everything(nothing_left: None) -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True, start_new_session=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "agents started" in line:
                break
        demo.kill()
    assert namespaces.exists(f"tb-{NAME}-node1")
    down = [sys.executable, "-m", "trogdor_bus", "lab", "down", "--name", NAME]
    done = subprocess.run(down, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, f"lab {NAME} is gone\n")


def test_without_root_it_freezes_a_process_on_loopback() -> None:
    nobody = ["unshare", "--user", "--"]  # no capabilities, and no name
    runs = subprocess.run([*nobody, "true"], capture_output=True, check=False)
    require(runs.returncode == 0, "no user namespaces here", "allow them (sysctl user.max_user_namespaces)")
    done = subprocess.run([*nobody, *DEMO], capture_output=True, text=True, timeout=60, check=False)
    told = events(done.stdout)
    missed = [event for event in told if event["event"] == "expectation" and not event["seen"]]
    assert missed == []
    assert (done.returncode, done.stderr) == (0, "")
    assert any("needs root" in event["text"] for event in told)
    assert any(event["event"] == "matrix" and event["reached"]["you"]["victim"] == [] for event in told)
    wait_until(lambda: not [line for line in command_lines() if "trogdor-bus-demo-" in line], what="all of it to end")
