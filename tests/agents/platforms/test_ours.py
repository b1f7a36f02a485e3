"""We never stop ourselves: processes of ours are known by who they are, not by what their command line says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.guarded import guarded
from tests.agents.platforms.nodes import SLEEP, known
from tests.supervisor.kept import order, python
from tests.support import wait_until
from trogdor_bus import badge
from trogdor_bus.supervisor import tree

LOOKER = """
import json, sys
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.agents.platforms.linux import processes
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.platform import Surroundings
with Namespace("/proc/self/ns/net") as own:
    for word in sys.argv[1:]:
        found = processes.find(ProcessMatch(command=word), own, Surroundings())
        print(json.dumps([[process.pid for process in found.processes], found.why_none]))
"""
"""Another agent of this machine, as far as it looks for whom a fault would hit; it touches nobody."""
HOLDER = """
import json, sys, time
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.starter import Command
from trogdor_bus.agents.platforms.linux.starter import waiting
from trogdor_bus.supervisor.children import Child
given = json.loads(sys.argv[1])
child = Child(given, "m" * 32, "task t", lambda start: start(), lambda: None)
held = Child(given, "m" * 32, "task t", lambda start: start(), lambda: None)
child.release()
with waiting(Command("/bin/sleep", ("sleep", "1"), NamespaceIdentity("", "", "")), lambda start: start()) as launcher:
    pids = [child.keeper, child.identity.pid, held.keeper, held.identity.pid, launcher.identity.pid]
    print(json.dumps(pids), flush=True)
    time.sleep(3600)
"""
"""What an agent holds: a child that runs, one that waits, and a command that waits to be started again."""
TITLED = """
import sys, time
from trogdor_bus import badge
from trogdor_bus.title import set_title
badge.wear()
set_title(*sys.argv[1].split())
print(flush=True)
time.sleep(3600)
"""
TOOLS = """
from trogdor_bus import badge
badge.wear()
from trogdor_bus.agents.platforms.linux.commands import run
from trogdor_bus.agents.platforms.linux.reader import Reader
with Reader() as reader:
    reader.read("/etc/hostname", 10)
    print(reader._child.pid, flush=True)
    run(["sleep", "3604"], timeout_s=3600)
"""
"""An agent that looks for processes, and runs a tool."""
WORDS = ("trogdor-bus", "trogdor", "python", "sleep", "a", "e", "o", "/", "-", " ")


def look(*words: str) -> list[tuple[set[int], str]]:
    """Return whom a fault would hit that matches a word, and why nobody."""
    told = subprocess.check_output([sys.executable, "-c", LOOKER, *words], text=True)
    return [(set(pids), why) for pids, why in map(json.loads, told.splitlines())]


@contextlib.contextmanager
def started(*argv: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_no_match_hits_agent_guard_coordinator_launcher_keeper_or_what_they_keep(tmp_path: Path) -> None:
    state = str(tmp_path / "coordinator")
    coordinating = [sys.executable, "-m", "trogdor_bus", "coordinator", "--insecure", "--state-dir", state]
    child = json.dumps(order(python("import time; time.sleep(3600)"), "m" * 32))
    with (
        guarded(tmp_path) as guard,
        started(*coordinating, "--port", str(min(free_port(), 65_000))) as coordinator,
        started(sys.executable, "-c", HOLDER, child) as holder,
        started(sys.executable, "-c", TITLED, "kafka Kafka") as titled,
        started(sys.executable, "-c", SLEEP, "trogdor-bus", "agent") as stranger,
    ):
        assert holder.stdout and titled.stdout
        titled.stdout.readline()
        held = json.loads(holder.stdout.readline())
        ours = {guard.process.pid, guard.agent(), coordinator.pid, titled.pid, *held}
        wait_until(lambda: badge.worn(coordinator.pid), what="the coordinator to start")
        wait_until(lambda: tree.mark_of(held[1])[0] and not badge.worn(held[1]), what="the child to run")
        for word, (pids, _) in zip(WORDS, look(*WORDS), strict=True):
            assert not pids & ours, word
            assert (stranger.pid in pids) == (word != "sleep" or word in SLEEP), word
        assert Path(f"/proc/{titled.pid}/cmdline").read_bytes().startswith(b"kafka\0Kafka\0")
        ((pids, why),) = look("kafka\0Kafka".replace("\0", " "))
        assert titled.pid not in pids and "is trogdor-bus itself" in why


def test_the_reader_and_the_tools_of_another_agent_are_missed() -> None:
    with started(sys.executable, "-c", TOOLS) as other:
        assert other.stdout
        reader = int(other.stdout.readline())
        tools = list[int]()

        def runs() -> bool:
            below = tree.below([other.pid], tree.living()) - {reader}
            for pid in below:
                with contextlib.suppress(OSError):  # it has ended
                    if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"/sleep\x003604\0"):
                        tools.append(pid)
            return bool(tools)

        wait_until(runs, what="the tool to run")
        readers, (sleepers, why) = look("files.py", "sleep 3604")
        assert reader not in readers[0]  # those of other tests, which nobody calls ours, may be
        assert not sleepers and "is trogdor-bus itself" in why


def test_orphans_of_a_dead_agent_are_still_its_children() -> None:
    child = json.dumps(order(["/bin/sh", "-c", "setsid sleep 3601 & exec sleep 3601"], "m" * 32))
    orphan = 0
    with started(sys.executable, "-c", HOLDER, child) as holder:
        assert holder.stdout
        keeper, first, *_ = json.loads(holder.stdout.readline())

        def others() -> list[int]:
            return [pid for pid in tree.below([keeper], tree.living()) if pid != first]

        wait_until(lambda: len(others()) == 1 and not tree.mark_of(others()[0])[1], what="both to run")
        (orphan,) = others()
        identity = known(orphan)
        os.kill(keeper, signal.SIGKILL)
    try:
        wait_until(lambda: keeper not in tree.living(), what="the keeper to be gone")
        assert known(orphan) == identity
        ((pids, why),) = look("sleep 3601")
        assert orphan not in pids and f"{orphan} (sleep) is a child of an agent" in why
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)


def test_a_parent_of_ours_is_missed_and_one_that_only_speaks_of_us_is_not() -> None:
    above = f"{sys.executable} -c \"$0\" 'x y'; :"
    with (
        started("sh", "-c", above, TITLED, "a-parent-of-ours") as parent,
        started(sys.executable, "-c", SLEEP, "trogdor-bus", "-m", "trogdor_bus.agents.guard", "speaks-of-us") as other,
    ):
        assert parent.stdout
        parent.stdout.readline()
        (titled,) = tree.below([parent.pid], tree.living(marks=False))
        try:
            (mine, why), (theirs, _) = look("a-parent-of-ours", "speaks-of-us")
            assert parent.pid not in mine and f"{parent.pid} (sh) is a parent of trogdor-bus" in why
            assert other.pid in theirs
        finally:
            os.kill(titled, signal.SIGKILL)


def test_a_restarted_service_wears_no_badge_and_no_mark() -> None:
    script = HOLDER.replace("time.sleep(3600)", "launcher.release()\n    time.sleep(3600)").replace('"1"', '"3602"')
    child = json.dumps(order(["/bin/sleep", "3600"], "m" * 32))
    service = 0
    try:
        with started(sys.executable, "-c", script, child) as holder:
            assert holder.stdout
            *_, service = json.loads(holder.stdout.readline())
            wait_until(lambda: b"3602" in Path(f"/proc/{service}/cmdline").read_bytes(), what="it to run")
            assert not badge.worn(service) and tree.mark_of(service) == ("", False)
            ((pids, _),) = look("sleep 3602")
            assert service in pids
    finally:
        if service:
            os.kill(service, signal.SIGKILL)


def test_a_guard_and_its_agent_wear_the_badge_from_their_first_moment_on() -> None:
    inherited = "import os; from trogdor_bus import badge; print(badge.worn(os.getpid()))"
    script = f"""
import os, sys
from trogdor_bus import badge
os.set_inheritable(badge.wear(), True)
os.execv(sys.executable, [sys.executable, "-c", {inherited!r}])
"""
    assert subprocess.check_output(python(script), text=True) == "True\n"


@pytest.mark.parametrize("module", ["trogdor_bus.agents.__main__"])
def test_becoming_a_guard_hands_the_badge_on(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    seen: list[bool] = []
    made = importlib.import_module(module)
    monkeypatch.setattr(os, "execve", lambda *_: seen.append(os.get_inheritable(badge.wear())))
    from trogdor_bus.config import AgentSettings

    try:
        made.become_guard(made.Start(settings=AgentSettings(node="n", url="zmq://x", state_dir=Path("/x"), keys=None)))
    finally:
        os.set_inheritable(badge.wear(), False)
        os.close(badge._worn.pop())
    assert seen == [True]
