"""Programs that run while a task lasts: each is a child of the supervisor, and nothing is left of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from trogdor_bus.actions import MOST_GRACE_MS, RunCommand
from trogdor_bus.agents.platforms.linux import endings, signals
from trogdor_bus.agents.platforms.linux.namespace import Namespace, open_again
from trogdor_bus.agents.platforms.linux.operations import Command, End, Hold, Nothing, Release, step
from trogdor_bus.agents.platforms.linux.patience import LOOK_S, wait
from trogdor_bus.agents.platforms.linux.processes import identify
from trogdor_bus.agents.platforms.linux.reader import find_program
from trogdor_bus.agents.platforms.linux.restart import check_allowed
from trogdor_bus.agents.platforms.linux.starter import order
from trogdor_bus.errors import HostError, NotYetError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Seen, Step, Surroundings
from trogdor_bus.supervisor import tree
from trogdor_bus.supervisor.children import Child

NOT_STARTED = "Unable to start process: {}"
"""As Trogdor words it."""


class Programs:
    """The programs of one agent; `stirred` is called with the worker when one has ended."""

    def __init__(self) -> None:
        self.stirred: Callable[[int], None] = lambda _: None
        self._children: dict[str, Child] = {}
        self._killed_s: dict[str, float] = {}

    def prepare(
        self,
        worker: int,
        action: RunCommand,
        namespace: Namespace,
        surroundings: Surroundings,
        allowed: set[tuple[str, ...]],
    ) -> tuple[Step, ...]:
        """Return the steps; RefusedError says what to allow, HostError that there is no such program."""
        argv, mark = action.command, uuid.uuid4().hex
        if not argv:
            raise HostError(NOT_STARTED.format("No command specified"))
        check_allowed(argv, allowed)
        try:
            program = find_program(argv[0], str(Path.cwd()))
        except HostError as error:
            raise HostError(NOT_STARTED.format(error)) from None
        if not program:
            raise HostError(NOT_STARTED.format(f"{argv[0]!r} does not exist on this machine or cannot be executed"))
        told = {"id": surroundings.task, "workload": action.workload}
        hold = Hold(
            Command(program, argv, namespace.identity),
            mark,
            surroundings.task,
            worker,
            f"{msgspec.json.encode(told).decode()}\n",
        )
        grace_ms = min(max(0, action.grace_ms), MOST_GRACE_MS)
        end = End(boot_id=boot_id(), mark=mark, name=Path(argv[0]).name[:64], grace_ms=grace_ms)
        return (step(hold, end), step(Release(mark), Nothing()))

    def hold(self, operation: Hold, end: End) -> End:
        """Start a child that waits, and return its undo."""
        namespace = open_again(operation.command.namespace)
        if namespace is None:
            raise HostError("the network namespace is gone since the program was prepared")
        what = order(operation.command, str(Path.cwd()), **{tree.CHILD: operation.mark})
        with namespace:
            child = Child(
                {**what, "input": operation.input},
                operation.mark,
                f"task {operation.task}",
                namespace.call,
                lambda: self.stirred(operation.worker),
            )
        self._children[operation.mark] = child
        return msgspec.structs.replace(end, process=child.identity)

    def release(self, operation: Release) -> None:
        """Let the child run its command; HostError says why it cannot."""
        child = self._children.get(operation.mark)
        try:
            if child is None:
                raise HostError("it was killed before it ran")
            child.release()
        except HostError as error:
            raise HostError(NOT_STARTED.format(error)) from None

    def look(self, operation: Hold) -> Seen:
        """Return what the program says of itself, and how it ended if it did."""
        child = self._children.get(operation.mark)
        return Seen(ended=child.ended, status=child.status) if child else Seen()

    def end(self, operation: End) -> str:
        """Have nothing be left of the child; NotYetError while it may take its time, HostError names who survives."""
        if operation.boot_id != boot_id():
            return "gone: the machine was booted since"
        child, who = self._children.get(operation.mark), operation.name
        if child:
            child.stop(operation.grace_ms)
            if not _is_late(child):
                if not child.over:
                    raise NotYetError(f"{who} may take its time to end")
            elif not wait(lambda: child.over, LOOK_S):
                raise NotYetError(f"{who} was killed, and is not gone yet", overdue=True)
        if left := [process for pid in self._kill(operation) if (process := identify(pid)) is not None]:
            began_s = self._killed_s.setdefault(operation.mark, time.monotonic())
            if time.monotonic() - began_s < signals.KILL_S:
                raise NotYetError(f"{who} was killed, and is not gone yet", overdue=True)
            raise HostError(f"{endings.named(left)} ({who}) is still there {signals.KILL_S:g} s after SIGKILL")
        self._children.pop(operation.mark, None)
        self._killed_s.pop(operation.mark, None)
        return ""

    def residue(self, operations: Sequence[End]) -> list[tuple[str, ...]]:
        """Return for each child a line for each process that is left of it."""
        family = tree.living()
        return [
            tuple(f"process {pid} of {operation.name} is still there" for pid in _left(operation, family))
            for operation in operations
        ]

    def _kill(self, operation: End) -> list[int]:
        """Kill what no keeper has, and return who is left a moment later."""
        left: list[int] = []

        def killed() -> bool:
            family = tree.living(strike=lambda kin: kin.mark == operation.mark)
            left[:] = _left(operation, family)
            tree.kill(left, family)
            return not left

        wait(killed, LOOK_S)
        return left


def typed(operation: End) -> str:
    """Return what a person would type to end all of it: what is below its keeper first, so that nothing gets out."""
    carry = "grep -lsaE '{}={}' /proc/[0-9]*/environ | cut -d/ -f3"
    below = 'grep -ls "^PPid:.$k$" /proc/[0-9]*/status | xargs -r grep -Ls "^State:.Z" | cut -d/ -f3'
    keepers = carry.format(tree.KEEPER, operation.mark)
    all_of_it = carry.format(f"({tree.CHILD}|{tree.KEEPER})", operation.mark)
    emptied = f'while p=$({below}); test "$p"; do kill -KILL $p; sleep 0.1; done'
    return f"for k in $({keepers}); do {emptied}; done; {all_of_it} | xargs -r kill -KILL"


def _is_late(child: Child) -> bool:
    """Return whether the time is over that a child has to end, since it was told to."""
    return child.kill_s is not None and time.monotonic() >= child.kill_s


def _left(operation: End, family: tree.Family) -> list[int]:
    if operation.boot_id != boot_id():
        return []
    process, session = operation.process, 0
    if process is not None and identify(process.pid) in (None, process):  # else the number was given anew
        session = process.pid
    return tree.of_child(operation.mark, session, family)
