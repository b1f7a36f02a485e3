"""Programs that run while a task lasts: each is a child of the supervisor, and nothing is left of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import msgspec

from trogdor_bus.actions.process import MOST_GRACE_MS
from trogdor_bus.actions.program import RunCommand
from trogdor_bus.agents.platforms.linux import endings, signals
from trogdor_bus.agents.platforms.linux.namespace import open_again
from trogdor_bus.agents.platforms.linux.operations import SEARCH, Note, Nothing, Operation, step
from trogdor_bus.agents.platforms.linux.patience import LOOK_S, wait
from trogdor_bus.agents.platforms.linux.processes import identify
from trogdor_bus.agents.platforms.linux.reader import find_program
from trogdor_bus.agents.platforms.linux.restart import check_allowed
from trogdor_bus.agents.platforms.linux.starter import Command, order
from trogdor_bus.errors import HostError, NotYetError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Prepared, ProcessIdentity, Seen, Step, Surroundings, Verb
from trogdor_bus.supervisor import tree
from trogdor_bus.supervisor.children import Child

if TYPE_CHECKING:
    from trogdor_bus.agents.platforms.linux.node import Node

GraceMs = Annotated[int, msgspec.Meta(ge=0, le=MOST_GRACE_MS)]
Mark = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
PROGRAM = "program"
ENDS = "ends"
NOT_STARTED = "Unable to start process: {}"
"""As Trogdor words it."""


class Hold(Operation, frozen=True, tag="hold"):
    """Start a child that waits to become a command; `mark` is carried by all that belongs to it. `input` it can read.

    It belongs to a task, and to a worker.
    """

    command: Command
    mark: Mark
    task: str
    worker: int
    input: str

    performs = (RunCommand,)

    @classmethod
    def prepares_in(cls, action: RunCommand) -> str:
        """Return the lane of the search for the command."""
        return f"{SEARCH} {' '.join(action.command)}"

    @classmethod
    def prepare(cls, on: Node, worker: int, action: RunCommand, around: Surroundings, held: Sequence[Step]) -> Prepared:
        """Return two steps, to hold and to release; RefusedError says what to allow."""
        argv, mark = action.command, uuid.uuid4().hex
        if not argv:
            raise HostError(NOT_STARTED.format("No command specified"))
        check_allowed(argv, on.allowed)
        try:
            program = find_program(argv[0], str(Path.cwd()))
        except HostError as error:
            raise HostError(NOT_STARTED.format(error)) from None
        if not program:
            raise HostError(NOT_STARTED.format(f"{argv[0]!r} does not exist on this machine or cannot be executed"))
        told = msgspec.json.encode({"id": around.task, "workload": action.workload}).decode()
        with on.open() as namespace:
            command = Command(program, argv, namespace.identity)
        hold = cls(command, mark, around.task, worker, f"{told}\n")
        grace_ms = min(max(0, action.grace_ms), MOST_GRACE_MS)
        end = End(boot_id=boot_id(), mark=mark, name=Path(argv[0]).name[:64], grace_ms=grace_ms)
        return Prepared((step(hold, end), step(Release(mark), Nothing())))

    def do(self, on: Node, undo: Operation) -> Operation:
        """Start the child; returns the undo that says who it is."""
        assert isinstance(undo, End)
        namespace = open_again(self.command.namespace)
        if namespace is None:
            raise HostError("the network namespace is gone since the program was prepared")
        what = order(self.command, str(Path.cwd()), **{tree.CHILD: self.mark})
        with namespace:
            child = Child(
                {**what, "input": self.input},
                self.mark,
                f"task {self.task}",
                namespace.call,
                lambda: on.stirred(self.worker),
            )
        on.memory(_Children).living[self.mark] = child
        return msgspec.structs.replace(undo, process=child.identity)

    def holds(self, on: Node) -> Seen:
        """Return what the program says of itself, and how it ended if it did."""
        child = on.memory(_Children).living.get(self.mark)
        return Seen(ended=child.ended, status=child.status) if child else Seen()

    def resource(self) -> str:
        """Return this program."""
        return f"{PROGRAM} {self.mark}"


class Release(Operation, frozen=True, tag="release"):
    """Let the child with that mark become its command."""

    mark: Mark

    def do(self, on: Node, undo: Operation) -> None:
        """Let it; HostError says why it cannot."""
        child = on.memory(_Children).living.get(self.mark)
        try:
            if child is None:
                raise HostError("it was killed before it ran")
            child.release()
        except HostError as error:
            raise HostError(NOT_STARTED.format(error)) from None

    def resource(self) -> str:
        """Return this program."""
        return f"{PROGRAM} {self.mark}"


class End(Operation, frozen=True, kw_only=True, tag="end"):
    """Have a child end: SIGTERM, and `grace_ms` later SIGKILL to all of it; `process` is who it is, once it waits."""

    boot_id: str
    mark: Mark
    name: str
    grace_ms: GraceMs
    process: ProcessIdentity | None = None

    def undo(self, on: Node, do: Operation, held: Sequence[Step], note: Note) -> str:
        """Have nothing be left of it; NotYetError while it may take its time, HostError names who survives."""
        if self.boot_id != boot_id():
            return "gone: the machine was booted since"
        children = on.memory(_Children)
        child = children.living.get(self.mark)
        if child:
            child.stop(self.grace_ms)
            if not _is_late(child):
                if not child.over:
                    raise NotYetError(f"{self.name} may take its time to end")
            elif not wait(lambda: child.over, LOOK_S):
                raise NotYetError(f"{self.name} was killed, and is not gone yet", overdue=True)
        if left := [process for pid in self._kill() if (process := identify(pid)) is not None]:
            began_s = children.killed_s.setdefault(self.mark, time.monotonic())
            if time.monotonic() - began_s < signals.KILL_S:
                raise NotYetError(f"{self.name} was killed, and is not gone yet", overdue=True)
            raise HostError(f"{endings.named(left)} ({self.name}) is still there {signals.KILL_S:g} s after SIGKILL")
        children.living.pop(self.mark, None)
        children.killed_s.pop(self.mark, None)
        return ""

    def leftovers(self, on: Node, held: Sequence[Step]) -> tuple[str, ...]:
        """Return a line for each process that is left."""
        return self.left_together(on, [self])[0]

    def manual(self, on: Node, do: Operation) -> str:
        """Return the commands that end all of it: what is below its keeper first, so that nothing gets out."""
        carry = "grep -lsaE '{}={}' /proc/[0-9]*/task/*/environ | cut -d/ -f3 | uniq"
        below = 'grep -ls "^PPid:.$k$" /proc/[0-9]*/task/*/status | xargs -r grep -Ls "^State:.Z" | cut -d/ -f3 | uniq'
        keepers = carry.format(tree.KEEPER, self.mark)
        all_of_it = carry.format(f"({tree.CHILD}|{tree.KEEPER})", self.mark)
        emptied = f'while p=$({below}); test "$p"; do kill -KILL $p; sleep 0.1; done'
        return f"for k in $({keepers}); do {emptied}; done; {all_of_it} | xargs -r kill -KILL"

    def resource(self) -> str:
        """Return this program: its lane has its thread also when it has used up all that the machine gives."""
        return f"{PROGRAM} {self.mark}"

    def lane(self, verb: Verb) -> str:
        """Return the lane of one look at all processes, for all programs whose end is due at once."""
        return ENDS if verb == "residue" else ""

    def batch(self, verb: Verb) -> Hashable:
        """Return the same for all that such a look is for."""
        return ENDS if verb == "residue" else None

    @classmethod
    def left_together(cls, on: Node, many: Sequence[Self]) -> Sequence[tuple[str, ...]]:
        """Return for each program a line for each process that is left of it."""
        family = tree.living()
        return [tuple(f"process {pid} of {one.name} is still there" for pid in one._left(family)) for one in many]

    def _kill(self) -> list[int]:
        """Kill what no keeper has, and return who is left a moment later."""
        left: list[int] = []

        def killed() -> bool:
            family = tree.living(strike=lambda kin: kin.mark == self.mark)
            left[:] = self._left(family)
            tree.kill(left, family)
            return not left

        wait(killed, LOOK_S)
        return left

    def _left(self, family: tree.Family) -> list[int]:
        if self.boot_id != boot_id():
            return []
        process, session = self.process, 0
        if process is not None and identify(process.pid) in (None, process):  # else the number was given anew
            session = process.pid
        return tree.of_child(self.mark, session, family)


def _is_late(child: Child) -> bool:
    """Return whether the time is over that a child has to end, since it was told to."""
    return child.kill_s is not None and time.monotonic() >= child.kill_s


class _Children:
    """The children of this life by their marks, and when what outlived its keeper was killed."""

    def __init__(self, _: Node) -> None:
        self.living: dict[str, Child] = {}
        self.killed_s: dict[str, float] = {}
