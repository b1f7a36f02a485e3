"""An agent that dies at one chosen step: the real guard and the real agent, with one call wrapped.

    python -m tests.crashes.daemon guard START PLAN               what `trogdor-bus agent` becomes, with a plan
    python -m tests.crashes.daemon run|heal START FD PLAN LIFE    what that guard spawns

Only the tests start this module: nothing in the agent itself can be told to fail. START is the agent's own JSON.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HELD_S = 60.0


class Plan:
    """What is to go wrong. Only the first life of `verb` dies; what heals forgets, and a strange boot, is for all.

    `folder` takes the story (one line for each step that was reached), `held` (the step is reached and waits for the
    file `go`) and `killed` (CLOCK_MONOTONIC seconds).
    """

    def __init__(self, folder: str, **given: str) -> None:
        self.folder = Path(folder)
        self.verb = given.get("verb", "run")
        self.step = given.get("step", "")
        self.signal = given.get("signal", "SIGKILL")
        self.boot = given.get("boot", "")
        self.disk = given.get("disk", "")
        self.leak = given.get("leak", "")


class Hooks:
    """Writes the story of one process, and ends it at the planned step."""

    def __init__(self, plan: Plan, verb: str, life: int) -> None:
        self.plan, self._who = plan, f"{verb} {life}"
        self._dies = life == 1 and verb == plan.verb
        self._pieces = {"do": 0, "undo": 0}
        self.tell(f"begins as pid {os.getpid()}")

    def tell(self, text: str) -> None:
        with (self.plan.folder / "story").open("a") as story:
            story.write(f"{time.monotonic():.4f} {self._who} {text}\n")

    def reach(self, step: str) -> None:
        """Come to a step: if it is the planned one, wait for the test and then die, or stop, here."""
        self.tell(step)
        if not self._dies or step != self.plan.step:
            return
        self._dies = False
        (self.plan.folder / "held").touch()
        deadline = time.monotonic() + HELD_S
        while not (self.plan.folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        (self.plan.folder / "killed").write_text(f"{time.monotonic()}")
        signal.pthread_kill(threading.get_ident(), signal.Signals[self.plan.signal])  # at once, in this very thread

    def piece(self, what: str) -> None:
        """Come to one of the system's pieces of a do or an undo; the second is the middle."""
        self._pieces[what] += 1
        if self._pieces[what] == 2:
            self.reach(f"middle of {what}")

    @contextmanager
    def writing(self, call: str, state: str) -> Iterator[None]:
        """Have the disk refuse as planned, such as "EIO sync intended": the errno comes from the system call."""
        if self.plan.disk and self.plan.disk.split()[1:] == [call, state]:
            number = int(getattr(errno, self.plan.disk.split()[0]))
            with replaced(os, {"create": "open", "sync": "fsync"}[call], _refusing(number)):
                yield
        else:
            yield


def main(verb: str, start: str, *rest: str) -> int:
    """Be the guard, the agent or the healer; return the exit code."""
    if verb == "guard":
        return guard(start, rest[0])
    fd, text, life = rest
    plan = Plan(**json.loads(text))
    if plan.boot:
        from trogdor_bus import host

        host.boot_id = lambda: plan.boot  # before anybody takes it by name
    hooks = Hooks(plan, verb, int(life))
    watch(hooks, verb)
    if verb == "run":
        from trogdor_bus.agents.__main__ import main as agent

        code = agent(start, fd)
    else:
        from trogdor_bus.agents.heal import main as heal

        code = heal(start)
    hooks.tell(f"ends with {code}")
    return code


def guard(start: str, plan: str) -> int:
    """Be the real guard, whose children know the plan; return its exit code."""
    from trogdor_bus.agents.guard import Guard

    lives = {"run": 0, "heal": 0}

    class PlannedGuard(Guard):
        def _command(self, verb: str, fd: int) -> list[str]:
            lives[verb] += 1
            given = [verb, start, str(fd), plan, str(lives[verb])]
            return [sys.executable, "-m", "tests.crashes.daemon", *given]

    return PlannedGuard(start).run()


def watch(hooks: Hooks, verb: str) -> None:
    """Put the hooks around the disk, the platform and the performer of this process."""
    shell: Any = importlib.import_module(f"trogdor_bus.agents.{'service' if verb == 'run' else 'heal'}")
    firewall: Any = importlib.import_module("trogdor_bus.agents.platforms.linux.firewall")

    class WatchedDisk(shell.FileDisk):  # type: ignore[misc]
        state = ""

        def create(self, name: str, data: bytes) -> None:
            if name.startswith("worker-"):
                self.state = json.loads(data)["state"]
                hooks.reach(f"before {self.state} is written")
            with hooks.writing("create", self.state):
                super().create(name, data)
            if self.state:
                hooks.reach(f"{self.state} is in a temporary file")

        def sync(self, name: str) -> None:
            with hooks.writing("sync", self.state):
                super().sync(name)

        def rename(self, old: str, new: str) -> None:
            super().rename(old, new)
            if self.state:
                hooks.reach(f"{self.state} is renamed")

        def sync_directory(self) -> None:
            super().sync_directory()
            state, self.state = self.state, ""
            if state:
                hooks.reach(f"{state} is on disk")

    class WatchedPerformer(shell.Performer):  # type: ignore[misc]
        def heal(self, *args: Any, **more: Any) -> Any:
            hooks.reach("the undo begins")
            return super().heal(*args, **more)

    class WatchedPlatform:
        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def do(self, step: Any, *args: Any) -> Any:
            hooks.piece("do")
            answer = self._real.do(step, *args)
            hooks.tell(f"did {step.do['op']}")
            return answer

        def undo(self, step: Any, *args: Any) -> Any:
            hooks.piece("undo")
            answer = self._real.undo(step, *args)
            hooks.tell(f"undid {step.undo['op']}: {answer or 'nothing to add'}")
            return answer

        def undo_many(self, many: Any) -> Any:
            return [self._caught(*one) for one in many]

        def _caught(self, *one: Any) -> Any:
            try:
                return self.undo(*one)
            except Exception as error:
                return error

    opened = shell.open_platform
    shell.open_platform = lambda *args: WatchedPlatform(opened(*args))
    shell.FileDisk, shell.Performer = WatchedDisk, WatchedPerformer
    first_table, last_table = firewall.install, firewall.remove
    tables = {"do": 0, "undo": 0}

    def install(*args: Any) -> Any:
        tables["do"] += 1
        if tables["do"] > 1:  # the first one is a piece as its step already
            hooks.piece("do")
        return first_table(*args)

    def remove(*args: Any) -> Any:
        tables["undo"] += 1
        if tables["undo"] > 1:
            hooks.piece("undo")
        return last_table(*args)

    firewall.install, firewall.remove = install, remove
    if hooks.plan.leak and verb == "heal":
        plant(hooks.plan.leak, hooks.plan.folder)


def plant(leak: str, folder: Path) -> None:
    """Have whoever undoes forget something ("iptables", "ip6tables", "thaw"), or leave something ("qdisc", "mount")."""
    firewall: Any = importlib.import_module("trogdor_bus.agents.platforms.linux.firewall")
    signals: Any = importlib.import_module("trogdor_bus.agents.platforms.linux.signals")
    removed, left = firewall.remove, firewall.residue
    if leak in ("iptables", "ip6tables"):

        def forgotten(table: Any) -> bool:
            return Path(table.tool).name.split("-")[0] == leak

        firewall.remove = lambda space, table: None if forgotten(table) else removed(space, table)
        firewall.residue = lambda space, tables: [
            () if forgotten(table) else found for table, found in zip(tables, left(space, tables), strict=True)
        ]
    elif leak == "thaw":
        signals.thaw, signals.is_stopped = lambda *_, **__: "", lambda _: False
    else:
        command = {
            "qdisc": "tc qdisc add dev lo root handle 5: tbf rate 1gbit burst 1mb latency 50ms",
            "mount": f"mount -t tmpfs x {folder}/x",
        }
        (folder / "x").mkdir()
        subprocess.run(command[leak].split(), check=True)


@contextmanager
def replaced(owner: Any, name: str, other: Any) -> Iterator[None]:
    real = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, real)


def _refusing(number: int) -> Any:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
