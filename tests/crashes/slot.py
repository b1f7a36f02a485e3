"""A lab in which one cell after the other runs: a node whose agent crashes, a steady one, and a coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.crashes.cases import DYING, JAVA, STEADY, program_command, program_file, restart_command
from trogdor_bus.agents.__main__ import Start
from trogdor_bus.client import Client
from trogdor_bus.config import AgentSettings
from trogdor_bus.errors import NotFoundError
from trogdor_bus.host import identity
from trogdor_bus.lab import namespaces
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.namespaces import COORDINATOR
from trogdor_bus.lab.processes import LabProcess, with_token
from trogdor_bus.lab.snapshot import NodeState, difference, mounts_below
from trogdor_bus.transports import transport
from trogdor_bus.transports.zmq.sockets import DEFAULT_PORT

T = TypeVar("T")
WAIT_S = 20.0
LATE_MS = 5_000
"""Cells run side by side, and hold each other up: two at once undo within 260 ms, six on two cores within 1,500."""


def until(predicate: Callable[[], object], what: str, timeout_s: float = WAIT_S, pause_s: float = 0.02) -> None:
    """Poll until `predicate()` is true; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
        time.sleep(pause_s)


class Asker:
    """A client in a lab, in a thread of its own inside the coordinator's namespace."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"asker of {lab.name}", daemon=True)

    def up(self) -> None:
        """Connect."""
        self._thread.start()
        assert self._ready.wait(WAIT_S), "the client did not start"

    def down(self) -> None:
        """Hang up; harmless if it was never up."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        else:
            self._loop.close()

    def ask(self, verb: Callable[[Client], Awaitable[T]]) -> T:
        """Return what the coordinator answers."""

        async def asked() -> T:
            return await verb(self._client)

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result(30)

    def _serve(self) -> None:
        namespaces.enter(self._lab.member(COORDINATOR).namespace)
        asyncio.set_event_loop(self._loop)

        async def connect() -> None:
            url = bus_url(self._lab)
            self._client = Client(transport(url).open_client(url, self._lab.directory / "keys"), url)
            self._ready.set()

        self._loop.run_until_complete(connect())
        self._loop.run_forever()
        self._loop.run_until_complete(self._client.__aexit__(None, None, None))
        self._loop.close()


def bus_url(lab: Lab) -> str:
    """Return the address of the coordinator as daemons are given it."""
    return f"zmq://{lab.member(COORDINATOR).ipv4}:{DEFAULT_PORT}"


class Slot:
    """The lab, a client in it, and the state of its nodes from before."""

    def __init__(self, name: str, backend: str = "") -> None:
        self.lab = Lab(2, name, backend=backend)
        self.before: dict[str, NodeState] = {}
        self.asker = Asker(self.lab)
        self._inside = self._enter()

    def up(self) -> None:
        """Make the lab, with an agent on the steady node only, and remember its state."""
        self.lab.up()
        self.lab.end(self.lab.process("agent", DYING))
        self._make_java()
        program_file(self.lab.directory).touch()
        self.start_more()
        self.asker.up()
        self.before = {node: self.lab.snapshot(node) for node in (DYING, STEADY)}

    def down(self) -> None:
        """Take everything away."""
        self.asker.down()
        self._inside.shutdown()
        for mount in reversed(mounts_below(self.lab.directory)):
            namespaces.run(["umount", mount])  # only a cell that failed leaves one
        self.lab.down()

    @property
    def directory(self) -> Path:
        """Return the directory of the dying node."""
        return self.lab.directory / DYING

    def reboot(self) -> None:
        """Make the dying node's namespace anew, and start its processes."""
        self._inside.shutdown()  # it would hold the old namespace
        self.lab.remake(DYING)
        self._inside = self._enter()
        self.start_all()

    def _enter(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "inside", lambda: namespaces.enter(self.lab.member(DYING).namespace))

    # --- the node's own processes -------------------------------------------------------------------------------------

    def start_more(self) -> None:
        """Start the processes of the dying node that the lab itself does not have."""
        second = [sys.executable, "-m", "trogdor_bus.lab.echo", "::", "9093", str(self.directory / "echo2.pid")]
        self.lab.start_process("echo2", DYING, second)
        for role in ("java1", "java2"):
            self.lab.start_process(role, DYING, [str(self.directory / "java"), str(self.directory / JAVA)])
        until((self.directory / "echo2.pid").exists, "the second service to start")

    def start_all(self) -> None:
        """Start every process of the dying node, as after a boot."""
        self.lab.start_sleeper(DYING)
        self.start_echo()
        self.start_more()
        until(lambda: self.lab.process("sleeper", DYING).state() == "stopped", "the sleeper to stop itself")

    def start_echo(self) -> None:
        """Start the service of the dying node."""
        pid_file = self.directory / "echo.pid"
        pid_file.unlink(missing_ok=True)
        self.lab.start_echo(DYING)
        until(lambda: pid_file.exists() and pid_file.read_text(), "the service to start")

    def adopt_echo(self) -> None:
        """Take the service that runs now, whoever started it, for the lab's own."""
        pid = int((self.directory / "echo.pid").read_text())
        others = [one for one in self.lab.state.processes if (one.role, one.member) != ("echo", DYING)]
        service = LabProcess("echo", DYING, pid, identity(pid).start_ticks, str(self.directory / "echo.log"))
        self.lab.state.processes = [*others, service]

    def starts(self) -> int:
        """Return how often an undo has started the service."""
        file = self.directory / "echo.pid.starts"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def states(self) -> dict[str, str]:
        """Return the state of each process of the dying node, by role."""
        return {one.role: one.state() for one in self.lab.state.processes_of(DYING) if one.role != "agent"}

    def _make_java(self) -> None:
        """Make a program called java and a main class that waits for ever."""
        shutil.copy(shutil.which("sh") or "/bin/sh", self.directory / "java")
        os.mkfifo(self.directory / "never")
        (self.directory / JAVA).write_text(f"read line <{self.directory}/never\n")

    # --- looking ------------------------------------------------------------------------------------------------------

    def changed(self, node: str = DYING) -> list[str]:
        """Return what differs from before, as lines."""
        return difference(self.before[node], self.lab.snapshot(node))

    def chains(self, tools: tuple[str, ...]) -> set[str]:
        """Return the chains of ours in the dying node, as fast as it can be told."""
        return set(self._inside.submit(_chains, tools).result())

    def programs(self) -> set[int]:
        """Return the processes of the program that a task runs there, also those that hide."""
        return reading(program_file(self.lab.directory))

    def strays(self) -> list[int]:
        """Return the processes of the lab that nobody should have left running."""
        known = {one.pid for one in self.lab.state.processes}
        steady = self.lab.process("agent", STEADY).pid
        return [one.pid for one in with_token(self.lab.state.token) if one.pid not in known and _parent(one) != steady]

    # --- the agent to be ----------------------------------------------------------------------------------------------

    def start(self, state: Path) -> str:
        """Return the START of an agent of the dying node that keeps its journal in `state`."""
        settings = AgentSettings(
            node=DYING,
            url=bus_url(self.lab),
            state_dir=state,
            keys=self.lab.directory / "keys",
            late_ms=LATE_MS,
            allow_commands=(tuple(restart_command(self.lab.directory)), tuple(program_command(self.lab.directory))),
        )
        return msgspec.json.encode(Start(settings=settings), enc_hook=str).decode()

    def heard(self, journal: str) -> bool:
        """Return whether the coordinator hears the dying node's agent of that journal."""
        rows = {row.name: row for row in self.asker.ask(lambda client: client.nodes())}
        return DYING in rows and rows[DYING].alive and rows[DYING].journal == journal


def reading(file: Path) -> set[int]:
    """Return the processes called `tail` that read a file, by their command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes() == f"tail\0-f\0{file}\0".encode():
                found.add(int(entry.name))
    return found


def _chains(tools: tuple[str, ...]) -> list[str]:
    saved = [namespaces.run([f"{tool}-save", "-t", "filter"]) for tool in tools]
    return [line.split()[0][1:] for text in saved for line in text.splitlines() if line.startswith(":TB-")]


def _parent(process: LabProcess) -> int:
    try:
        return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a file of the journal; NotFoundError if it is not there yet."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path}") from None
    return found
