"""After an agent's death its guard kills all that is left of its children, while it heals; no restarted service."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.supervisor.kept import DEEP, order, python
from trogdor_bus.supervisor import tree

GUARD = """
import os, sys
from trogdor_bus.agents import guard
guard.SILENCE_S = 1.5
class Under(guard.Guard):
    def _command(self, verb, fd):
        return [sys.executable, "-c", sys.argv[1 if verb == "run" else 2]]
    def _pause(self, seconds):
        self._ending = 1.0
sys.exit(Under("").run())
"""
AGENT = """
import json, os, signal, sys, time
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.starter import Command, Origin
from trogdor_bus.agents.platforms.linux.starter import waiting
from trogdor_bus.supervisor import tree
from trogdor_bus.supervisor.children import Child
given = json.loads({given!r})
command = Command("/bin/sleep", ("sleep", "3600"), NamespaceIdentity("", "", ""))
with waiting(command, lambda start: start()) as service:
    service.release()
children = [Child(one, given["mark"], "task t", lambda start: start(), lambda: None) for one in given["orders"]]
held = [Child(one, given["mark"], "task t", lambda start: start(), lambda: None) for one in given["orders"]]
for child in children:
    child.release()
while not os.path.exists(given["up"]):
    time.sleep(0.01)
family = tree.living()
keepers = [child.keeper for child in children + held]
pids = sorted(set(keepers) | tree.below(keepers, family))
with open(given["pids"], "w") as file:
    json.dump([service.identity.pid, pids], file)
for child in children:
    if given["keepers"]:
        os.kill(child.keeper, signal.Signals[given["keepers"]])
os.write(int(os.environ["TROGDOR_BUS_AGENT_GUARD_FD"]), b".")
os.kill(os.getpid(), signal.Signals[given["agent"]])
time.sleep(3600)
"""
HEALER = """
import json, time
from trogdor_bus.supervisor import tree
service, pids = json.load(open({pids!r}))
until = time.monotonic() + 10
while (family := tree.living(marks=False)).keys() & set(pids) and time.monotonic() < until:
    time.sleep(0.01)
json.dump([service in family, [pid for pid in pids if pid in family]], open({found!r}, "w"))
"""
HIDES = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN){DEEP}"
MARKED = """
import os, signal, sys, time
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    while os.fork() == 0:  # always another process, that nobody waits for
        time.sleep(0.001)
    os._exit(0)
"""
UNDYING = """
import os, sys
from trogdor_bus.agents import guard
class Under(guard.Guard):
    def _command(self, verb, fd):
        return [sys.executable, "-c", "" if verb == "run" else f"open({sys.argv[1]!r}, 'w')"]
    def _kill_programs(self):
        return [] if os.path.exists(sys.argv[1]) else [os.getpid()]
    def _pause(self, seconds):
        self._ending = 1.0
sys.exit(Under("").run())
"""


@pytest.mark.parametrize(
    ("script", "agent", "keepers"),
    [
        (HIDES, "SIGKILL", ""),
        (HIDES, "SIGSEGV", ""),
        (HIDES, "SIGSTOP", ""),
        (HIDES, "SIGKILL", "SIGSTOP"),
        (MARKED, "SIGKILL", "SIGKILL"),
        (MARKED, "SIGSTOP", "SIGKILL"),
    ],
    ids=[
        "agent killed",
        "agent crashes",
        "agent frozen",
        "agent killed, keepers frozen",
        "both killed, one forks for ever",
        "agent frozen, keepers killed",
    ],
)
def test_nothing_of_the_children_is_left_after_healing(tmp_path: Path, script: str, agent: str, keepers: str) -> None:
    up, pids, found = (str(tmp_path / name) for name in ("up", "pids", "found"))
    program = python(f"{script}open({up!r}, 'w')\ntime.sleep(3600)")
    mark = uuid.uuid4().hex
    given = json.dumps(
        {"orders": [order(program, mark)], "mark": mark, "up": up, "pids": pids, "agent": agent, "keepers": keepers}
    )
    argv = [sys.executable, "-c", GUARD, AGENT.format(given=given), HEALER.format(pids=pids, found=found)]
    began = time.monotonic()
    service = 0
    try:
        done = subprocess.run(argv, check=False, timeout=60, stderr=subprocess.PIPE, text=True)
        service, _ = json.loads(Path(pids).read_text())
        assert json.loads(Path(found).read_text()) == [True, []], done.stderr
        assert time.monotonic() - began < 20
        family = tree.living()
        assert not [pid for pid, kin in family.items() if kin.mark == mark]
        assert service in family, "what was started again lives on"
    finally:
        if service:
            with contextlib.suppress(ProcessLookupError):
                os.kill(service, signal.SIGKILL)


def test_programs_that_do_not_go_hold_up_no_healing(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", UNDYING, str(tmp_path / "healed")]
    done = subprocess.run(argv, check=False, timeout=60, stderr=subprocess.PIPE, text=True)
    assert (tmp_path / "healed").exists() and "still there after" not in done.stderr, done.stderr
