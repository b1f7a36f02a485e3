"""What the end-to-end tests do again and again, by the command line as a user would."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
from typing import Any

import psutil

from tests.support import wait_until
from trogdor_bus.host import identity
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.demo import Expected
from trogdor_bus.lab.processes import LabProcess

_numbers = itertools.count(1)


def new_id(word: str) -> str:
    """Return an id that no other test uses."""
    return f"{word}-{next(_numbers)}"


def submit(lab: Lab, task: str, spec: dict[str, Any], *options: str) -> None:
    """Submit a spec; it must be accepted."""
    done = lab.trogdor("submit", "-", "--id", task, *options, given=json.dumps(spec))
    assert done.returncode == 0, done.stdout + done.stderr


def stop(lab: Lab, task: str) -> None:
    """Stop a task and wait until it is done."""
    done = lab.trogdor("stop", task, "--wait")
    assert done.returncode == 0, done.stdout + done.stderr


def await_matrix(lab: Lab, expected: Expected, what: str) -> None:
    """Wait until exactly the expected pairs reach each other."""
    wait_until(lambda: lab.matrix().agrees(expected), what=what)


def await_active(lab: Lab, task: str) -> None:
    """Wait until the task is in force on all of its nodes."""
    wait_until(lambda: lab.ask("show", task)["active"], 30, f"task {task} to be active")


def await_done(lab: Lab, task: str, timeout_s: float = 15) -> dict[str, Any]:
    """Wait until the task is DONE and return what `show` says."""
    shown: list[dict[str, Any]] = []

    def done() -> bool:
        shown.append(lab.ask("show", task))
        return bool(shown[-1]["state"] == "DONE")

    wait_until(done, timeout_s, f"task {task} to be DONE")
    return shown[-1]


def below_guard(lab: Lab, node: str) -> LabProcess:
    """Return the working agent of a node; its guard may have other children, which a restart left to it."""
    guard = lab.process("agent", node)
    wait_until(lambda: _children(guard.pid), what=f"the guard of {node} to spawn an agent")
    pid = _children(guard.pid)[0]
    return LabProcess("working agent", node, pid, identity(pid).start_ticks)


def kill_guard_and_agent(lab: Lab, node: str) -> None:
    """Kill both, in an order that leaves nobody to undo anything."""
    guard, agent = lab.process("agent", node), below_guard(lab, node)
    guard.send(signal.SIGSTOP)
    agent.send(signal.SIGKILL)
    wait_until(lambda: agent.state() == "gone", what="the agent to die")
    lab.end(guard, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if child.cmdline()[:2] == ["trogdor-bus", "agent"]:
                found.append(child.pid)
    return found


def partition(*groups: list[str], duration_ms: int = 60_000) -> dict[str, Any]:
    """Return the spec of a partition."""
    return {"class": "partition", "durationMs": duration_ms, "partitions": list(groups)}
