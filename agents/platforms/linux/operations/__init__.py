"""What the Linux platform does, as classes: each is one half of a step, the `do` or the `undo`.

Operations are found, not listed: whatever class stands in a module of this folder, or in one that a package names as an
entry point of the group "trogdor_bus.operations". The journal holds them as JSON, by their tag; what it hands back is
converted to its class first, strictly, so that nothing else can reach the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec

from trogdor_bus.actions import Action
from trogdor_bus.errors import HostError
from trogdor_bus.names import shown
from trogdor_bus.platform import Operation as Plain
from trogdor_bus.platform import Prepared, Seen, Step, Surroundings, Verb
from trogdor_bus.plugins import Kinds

if TYPE_CHECKING:
    from trogdor_bus.agents.platforms.linux.node import Node

FIREWALL = "firewall"
PROCESSES = "processes"
SEARCH = "search"
"""Looking for processes, or for what is to be started: that asks who may not tell. No undo waits for it."""
START = "start"
"""Starting again what was killed; the words after it say what."""
Note = Callable[[Plain], None]


class Operation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    """One half of a step. A subclass has a tag of its own and says what it can; the rest is refused, or nothing.

    `on` is the node, `undo` and `do` are the other half. Every method may block, but for those about lanes.
    """

    performs: ClassVar[tuple[type[Action], ...]] = ()
    """The actions that become steps by `prepare`; no other class has them."""

    def __init_subclass__(cls) -> None:
        if not isinstance(cls.performs, tuple):
            raise TypeError(f"{cls.__name__}.performs is no tuple of actions")

    # --- from actions to steps ----------------------------------------------------------------------------------------

    @classmethod
    def prepares_in(cls, action: Any) -> str:
        """Return the lane in which an action is prepared."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, on: Node, worker: int, action: Any, around: Surroundings, held: Sequence[Step]) -> Prepared:
        """Read the machine and return the steps; nothing is changed. HostError or RefusedError if it cannot be done."""
        raise NotImplementedError

    # --- as the do of a step ------------------------------------------------------------------------------------------

    def do(self, on: Node, undo: Operation) -> Operation | None:
        """Perform it, and read back that it took; returns what is the undo from then on, None if that stays."""
        raise HostError(f"a {type(self).__name__} operation cannot be a do")

    def holds(self, on: Node) -> Seen:
        """Return whether it still holds, and what it met; it searches nothing, and may be unsure."""
        return Seen()

    def search(self, on: Node) -> Seen:
        """Return whether it still holds, where `holds` is unsure."""
        return Seen()

    def missed(self) -> str:
        """Return "", or how it has not done what it is for, when its time is over."""
        return ""

    def again(self, on: Node, step: Step, around: Surroundings) -> tuple[Step, ...]:
        """Return the steps that make it hold again where it does not; nothing is changed."""
        return ()

    # --- as the undo of a step ----------------------------------------------------------------------------------------

    def undo(self, on: Node, do: Operation, held: Sequence[Step], note: Note) -> str:
        """Take it back; see `trogdor_bus.platform.Platform.undo`."""
        raise HostError(f"a {type(self).__name__} operation cannot be an undo")

    def leftovers(self, on: Node, held: Sequence[Step]) -> tuple[str, ...]:
        """Return what is left after the undo; () is what everybody wants."""
        return ()

    def manual(self, on: Node, do: Operation) -> str:
        """Return what a person would type to undo it, "" for nothing."""
        return ""

    # --- lanes and batches --------------------------------------------------------------------------------------------

    def resource(self) -> str:
        """Return what it touches: its lane, and its lock. "" for nothing of its own."""
        return ""

    def lane(self, verb: Verb) -> str:
        """Return the lane of what must not wait for others that touch the same; "" for that of `resource`."""
        return ""

    def batch(self, verb: Verb) -> Hashable:
        """Return what those have in common that are done at once by the methods below; None: each by itself."""
        return None

    @classmethod
    def undo_together(cls, on: Node, many: Sequence[Self]) -> Sequence[str | Exception]:
        """Do what `undo` does for each of a batch."""
        raise NotImplementedError

    @classmethod
    def left_together(cls, on: Node, many: Sequence[Self]) -> Sequence[tuple[str, ...] | Exception]:
        """Do what `leftovers` does for each of a batch."""
        raise NotImplementedError

    @classmethod
    def search_together(cls, on: Node, many: Sequence[Self]) -> Sequence[Seen | Exception]:
        """Do what `search` does for each of a batch."""
        raise NotImplementedError

    @classmethod
    def hold_together(cls, on: Node, many: Sequence[Self]) -> Sequence[Seen | Exception]:
        """Do what `holds` does for each of a batch."""
        raise NotImplementedError


class Nothing(Operation, frozen=True, tag="nothing"):
    """There is nothing to take back."""

    def undo(self, on: Node, do: Operation, held: Sequence[Step], note: Note) -> str:
        """Do nothing."""
        return ""


def step(do: Operation, undo: Operation) -> Step:
    """Return the step exactly as the journal gives it back."""
    return Step(do=plain(do), undo=plain(undo))


def plain(operation: Operation) -> Plain:
    """Return the operation as JSON has it."""
    return msgspec.json.decode(msgspec.json.encode(operation), type=Plain)


def read(operation: Plain) -> Operation:
    """Return the typed operation; HostError if it is none that is known here."""
    tag = operation.get("op") if isinstance(operation, dict) else operation
    kind = KINDS.of(tag)
    if kind is None:
        raise HostError("; ".join((f"not an operation of the Linux platform: {shown(str(tag))}", *KINDS.broken)))
    try:
        return msgspec.convert(operation, kind)
    except msgspec.ValidationError as error:
        raise HostError(f"not an operation of the Linux platform: {shown(str(error))}") from None


def performing(action: Action) -> type[Operation]:
    """Return the class that prepares an action; HostError if nobody can."""
    for kinds in (KINDS.ours, KINDS.others[0]):
        for kind in kinds.values():
            if type(action) in kind.performs:
                return kind
    raise HostError("; ".join((f"this agent cannot perform {type(action).__name__}", *KINDS.broken)))


KINDS = Kinds(Operation, __name__, "trogdor_bus.operations")
"""Every operation."""
