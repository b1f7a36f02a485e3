"""Starting again what was killed, unless it runs already."""

from __future__ import annotations

import subprocess
import time

from trogdor_bus.agents.platforms.linux import processes
from trogdor_bus.agents.platforms.linux.commands import find_tool, require_tool
from trogdor_bus.agents.platforms.linux.namespace import Attachment, open_attached
from trogdor_bus.agents.platforms.linux.operations import Restart
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Surroundings

APPEAR_S = 5.0


def check_command(argv: tuple[str, ...]) -> None:
    """Raise HostError unless the command and what is needed to run it on its own exist on this machine."""
    require_tool("setsid", "util-linux")
    if find_tool(argv[0]) is None:
        raise HostError(f"the restart command {argv[0]!r} does not exist on this machine or cannot be executed")


def restart(operation: Restart, attachment: Attachment) -> str:
    """Run the command in the node's namespace and wait until a process matches; CannotHealError if none appears.

    Returns a note if one runs already. The command lives on by itself: in its own session, no child of the agent.
    """
    if operation.boot_id != boot_id():
        return "gone: the machine was booted since, and started what it starts"
    if _runs(operation, attachment):
        return f"already running: {operation.match.describe()}"
    check_command(operation.argv)
    _start(operation.argv, attachment)
    deadline = time.monotonic() + APPEAR_S
    while not _runs(operation, attachment):
        if time.monotonic() > deadline:
            raise CannotHealError(
                f"ran {' '.join(operation.argv)}, but no process matches {operation.match.describe()} "
                f"after {APPEAR_S:g} s"
            )
        time.sleep(0.02)
    return ""


def _runs(operation: Restart, attachment: Attachment) -> bool:
    try:
        with open_attached(attachment) as namespace:
            return bool(processes.find(operation.match, namespace, Surroundings(force=True)).processes)
    except HostError:  # its container is down, or its pid file is gone
        return False


def _start(argv: tuple[str, ...], attachment: Attachment) -> None:
    def start() -> None:
        subprocess.run(
            [require_tool("setsid", "util-linux"), "--fork", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            check=False,
        )

    try:
        namespace = open_attached(attachment)
    except HostError:  # its container went down with the process: the command brings it back from outside
        start()
        return
    with namespace:
        namespace.call(start)
