"""One cell as it runs: an agent with a plan, a task, what must be seen, and what must be left."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.crashes.cases import CASES, DYING, STEADY, alias, spec_of
from tests.crashes.slot import Slot, read_json, until
from trogdor_bus.errors import NotFoundError
from trogdor_bus.host import identity
from trogdor_bus.lab.demo import whole
from trogdor_bus.lab.namespaces import COORDINATOR
from trogdor_bus.lab.processes import LabProcess
from trogdor_bus.messages import TaskInfo
from trogdor_bus.spec import TaskSpec
from trogdor_bus.states import Outcome, TaskState, WorkerRow
from trogdor_bus.supervisor import tree

WAIT_CLEAN_S = 15.0
TOOLS = {"": ("iptables", "ip6tables"), "-legacy": ("iptables-legacy", "ip6tables-legacy")}


class Run:
    """A cell in a slot. Every method asserts what it says; `healed_s` is how long healing took, if it was measured."""

    def __init__(self, slot: Slot, fault: type[TaskSpec], name: str, *, backend: str = "", leak: str = "") -> None:
        self.slot, self.fault, self.case = slot, fault, CASES[fault]
        self.task = f"{alias(fault)}-{name}"
        self.folder = slot.lab.directory / self.task
        self.folder.mkdir()
        self.state = self.folder / "state"
        self.healed_s: float | None = None
        self.tools, self._starts = TOOLS[backend], slot.starts()
        self._leak = leak
        self._logged = len(slot.lab.log("agent", DYING))
        self._prefix: list[str] = []
        self._anchor: LabProcess | None = None

    # --- the agent ----------------------------------------------------------------------------------------------------

    def start_agent(self, wait: bool = True, **plan: str) -> LabProcess:
        """Start the guard and its agent with a plan; return when the coordinator hears it."""
        (self.folder / "go").unlink(missing_ok=True)
        text = json.dumps({"folder": str(self.folder), "leak": self._leak, **plan})
        argv = [sys.executable, "-m", "tests.crashes.daemon", "guard", self.slot.start(self.state), text]
        guard = self.slot.lab.start_process("agent", DYING, [*self._prefix, *argv])
        if wait:
            self.await_heard(guard)
        return guard

    def await_heard(self, guard: LabProcess) -> None:
        """Return when the coordinator hears the agent under that guard."""

        def heard() -> bool:
            assert guard.state() != "gone", "the guard ended"
            try:
                return self.slot.heard(self.journal("journal.json")["id"])
            except (NotFoundError, json.JSONDecodeError):
                return False

        until(heard, "the agent to be heard")

    def journal(self, name: str) -> dict[str, Any]:
        """Return a file of the journal."""
        return read_json(self.inner(self.state) / name)

    def inner(self, path: Path) -> Path:
        """Return the path by which the test reaches a file as the agent sees it."""
        return Path(f"/proc/{self._anchor.pid}/root{path}") if self._anchor else path

    def worker_file(self) -> Path:
        """Return the journal's file of the one worker."""
        (found,) = self.inner(self.state).glob("worker-*.json")
        return found

    def mount_small_disk(self) -> None:
        """Give the agent a state directory on a file system of its own, in a mount namespace of its own."""
        self.state.mkdir(mode=0o700)
        self._mount(f"mount -t tmpfs -o size=128k,mode=700 tb {self.state}")

    def own_lock(self) -> Path:
        """Give the agent a lock of iptables-legacy of its own, and return its file."""
        lock = self.folder / "xtables.lock"
        lock.touch(mode=0o600)
        self._mount(f"mount --bind {lock} /run/xtables.lock")
        return lock

    def _mount(self, mount: str) -> None:
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{mount} && exec sleep 100000"]
        self._anchor = anchor = self.slot.lab.start_process(f"mounts of {self.task}", COORDINATOR, argv)
        until(lambda: Path(f"/proc/{anchor.pid}/comm").read_text() == "sleep\n", "the mount")
        self._prefix = ["nsenter", f"--mount=/proc/{anchor.pid}/ns/mnt", "--"]

    def in_place(self, *argv: str) -> Any:
        """Run a command on the dying node, where the agent's disk is mounted."""
        return self.slot.lab.run(DYING, *self._prefix, *argv)

    def agent(self) -> LabProcess:
        """Return the working agent of the latest life."""
        pid = int(re.findall(r" run \d+ begins as pid (\d+)", self.story())[-1])
        return LabProcess("working agent", DYING, pid, identity(pid).start_ticks)

    def guard(self) -> LabProcess:
        """Return the guard of the latest start."""
        return self.slot.lab.process("agent", DYING)

    def kill_both(self) -> None:
        """Kill guard and agent in an order that leaves nobody to undo anything."""
        guard, agent = self.guard(), self.agent()
        guard.send(signal.SIGSTOP)
        agent.send(signal.SIGKILL)
        until(lambda: agent.state() == "gone", "the agent to die")
        self.slot.lab.end(guard, signal.SIGKILL)

    def log(self) -> str:
        """Return what guard, agents and healers of this slot wrote."""
        return self.slot.lab.log("agent", DYING)[self._logged :]

    # --- the task -----------------------------------------------------------------------------------------------------

    def submit(self) -> None:
        """Create the task."""
        spec = json.dumps(spec_of(self.fault, self.slot.lab.directory)).encode()
        self.slot.asker.ask(lambda client: client.create(self.task, spec))

    def show(self) -> TaskInfo:
        """Return the task as the coordinator knows it."""
        return self.slot.asker.ask(lambda client: client.show(self.task))

    def worker(self) -> WorkerRow:
        """Return the dying node's worker."""
        (found,) = (one for one in self.show().workers if one.node == DYING)
        return found

    def stop(self) -> None:
        """Ask for the end of the task."""
        self.slot.asker.ask(lambda client: client.stop(self.task))

    def await_active(self) -> None:
        """Wait until the task is in force on its nodes, and see that it is."""
        until(lambda: self.show().task.active, "the task to be in force")
        self.must_hold()

    def must_end(self, outcome: Outcome, timeout_s: float = 30) -> WorkerRow:
        """Wait for the end of the task and see that the worker ended so; return the worker."""
        until(lambda: self.show().task.state is TaskState.DONE, "the task to be DONE", timeout_s, 0.1)
        worker = self.worker()
        assert worker.outcome is outcome, f"the worker ended {worker.outcome!r}, not {outcome!r}: {worker}"
        assert not worker.residue, worker
        return worker

    # --- looking ------------------------------------------------------------------------------------------------------

    def story(self) -> str:
        """Return what the processes of this cell did, a line for each step that they reached."""
        file = self.folder / "story"
        return file.read_text() if file.exists() else ""

    def must_hold(self) -> None:
        """See the fault in force: who reaches whom, the states of processes, our chains, the journal."""
        until(lambda: self.slot.lab.matrix().agrees(self.case.seen), "everybody to reach whom the fault allows")
        now = self.slot.states()
        wanted = {**dict.fromkeys(now, "running"), "sleeper": "stopped", **self.case.processes}
        assert now == wanted, f"the processes are {now}, not {wanted}"
        if self.case.kind == "firewall":
            assert len(self.slot.chains(self.tools)) == 1, "our chain is not there"
        elif self.case.kind == "nothing":
            assert self.worker_file().exists()
        elif self.case.kind == "program":
            until(lambda: len(self.slot.programs()) == 2, "the program to run, and what it started")

    def must_be_untouched(self) -> None:
        """See that nothing was begun on the node."""
        assert (changed := self.slot.changed()) == [], f"something was begun: {changed}"
        assert self.count(" did ") == 0
        assert not self._of_the_program(), "a program was started"

    def must_be_half(self) -> None:
        """See that some of the fault is there, but not all; a program that waits, or is to be ended, has its keeper."""
        if self.case.kind == "program":
            assert self._of_the_program(), "nothing of the program is there"
            return
        assert self.slot.changed(), "nothing is there yet"
        if self.case.kind == "firewall":
            tables = [bool(self.slot.chains((tool,))) for tool in self.tools]
            assert sorted(tables) == [False, True], tables
        else:
            now = self.slot.states()
            assert len({now[role] for role in self.case.processes}) == 2, now

    def must_be_there(self) -> None:
        """See that what the fault changed on the node is there; a program went with its agent."""
        if self.case.kind == "program":
            until(lambda: not self._of_the_program(), "the program to go with its agent", 5)
        else:
            assert self.case.kind == "nothing" or self.slot.changed(), "the fault is not there"

    def clean(self) -> bool:
        """Return whether nothing of the fault is left on the node, as fast as it can be told."""
        if self.case.kind == "firewall":
            return not self.slot.chains(self.tools)
        if self.case.kind == "restart":
            return self._service_runs()
        if self.case.kind == "program":
            return not self._of_the_program()
        if self.case.kind == "nothing":
            undone = self.count("before undone is written") + self.count("heal 1 ends")
            return bool(undone) or self._is_undone()
        now = self.slot.states()
        return all(now[role] == "running" for role in self.case.processes)

    def _of_the_program(self) -> set[int]:
        """Return all that is left of a program: what it is, and what carries its mark, its keeper too."""
        marked: list[int] = []
        with contextlib.suppress(OSError, ValueError, NotFoundError, KeyError, IndexError):
            mark = read_json(self.worker_file())["steps"][0]["undo"]["mark"]
            marked = tree.of_child(mark, 0, tree.living())
        return self.slot.programs() | set(marked)

    def _is_undone(self) -> bool:
        try:
            return bool(read_json(self.worker_file())["state"] == "undone")
        except (ValueError, NotFoundError):
            return True

    def await_clean(self, since_s: float | None = None, timeout_s: float = WAIT_CLEAN_S) -> None:
        """Wait until nothing is left; measured from the kill (or from `since_s`, CLOCK_MONOTONIC)."""
        killed = self.folder / "killed"
        if since_s is None:
            until(lambda: killed.exists() and killed.read_text(), "the agent to reach its end")
            since_s = float(killed.read_text())
        gone_already = self.case.kind == "program" and self.clean()  # with its agent
        until(self.clean, "the fault to be gone", timeout_s, 0.002)
        if self.case.kind != "nothing" and not gone_already:
            self.healed_s = time.monotonic() - since_s

    def undone(self) -> int:
        """Return how many steps were undone of which something could be said."""
        return self.count(" undid ") - self.count(" undid nothing:")

    def count(self, words: str) -> int:
        """Return how many lines of the story hold the words."""
        return sum(words in line for line in self.story().splitlines())

    def must_be_as_before(self) -> None:
        """See that both nodes are as they were, that everybody reaches everybody, and that nothing was done twice."""
        if self.case.kind == "restart":
            self.slot.adopt_echo()
        for node in (DYING, STEADY):
            changed = self.slot.changed(node)
            assert not changed, f"{node} is not as before: {changed}"
        until(lambda: self.slot.lab.matrix().agrees(whole), "everybody to reach everybody")
        done = self.count(" did ")
        steps = 1 if self.case.kind in ("firewall", "restart") else self.case.pieces
        assert done <= steps, f"{done} steps were done, the fault has {steps}"
        assert not self.slot.programs(), "a program runs"
        starts = self.slot.starts() - self._starts
        assert starts <= 1, f"the service was started {starts} times"

    def _service_runs(self) -> bool:
        file = self.slot.directory / "echo.pid"
        if self.slot.lab.process("echo", DYING).state() == "running":
            return True
        if self.slot.starts() == self._starts:
            return False
        pid = file.read_text().strip()
        if not pid or int(pid) == self.slot.lab.process("echo", DYING).pid:
            return False
        try:
            return b"trogdor_bus.lab.echo" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    # --- the end ------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Tell the agent to end; it must do so without an error, and nothing of it may be left running."""
        guard = self.guard()
        if guard.state() != "gone":
            assert self.slot.lab.end(guard, signal.SIGTERM, 20) == 0, "the agent ended with an error"
        if self._anchor:
            self.slot.lab.end(self._anchor, signal.SIGKILL)
        until(lambda: not self.slot.strays(), "everything that the agent started to end", 5)
        shutil.rmtree(self.folder)

    def told(self) -> str:
        """Return all that is known, for a person who asks why the cell failed."""
        lines = ["the story:", *self.story().splitlines(), "the log:", *self.log().splitlines()[-40:]]
        with contextlib.suppress(Exception):  # a lab that is broken has nothing more to tell
            lines += ["the task:", str(self.show()), "what is left:", *self.slot.changed()]
        return "\n    ".join(lines)
