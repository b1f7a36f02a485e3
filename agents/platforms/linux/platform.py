"""The Linux platform: lowers actions to steps, and performs them, by operations that are found in their folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from trogdor_bus.actions import Action
from trogdor_bus.agents.platforms.linux import batches, lanes, locking, owners, processes, strays
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.agents.platforms.linux.node import Node
from trogdor_bus.agents.platforms.linux.operations import FIREWALL, Nothing, Operation, performing, plain, read
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Operation as Plain
from trogdor_bus.platform import Prepared, ProcessIdentity, Seen, Step, Surroundings, Verb
from trogdor_bus.supervisor import tree


class LinuxPlatform:
    """Acts on one network namespace of this machine and on the processes in it (see `trogdor_bus.platform.Platform`).

    `attach` says which: "" the agent's own, "netns:NAME", "pid:PID" or "container:NAME". `allow_commands` are the only
    commands that a spec may have run.
    """

    def __init__(self, attach: str = "", allow_commands: Sequence[Sequence[str]] = ()) -> None:
        self._node = Node(attach, allow_commands)
        self._broker: int | None = None
        self._controller: int | None = None

    def addresses(self) -> tuple[str, ...]:
        """Return the node's own IP addresses, loopback and link-local excluded."""
        with self._node.open() as namespace:
            said = namespace.said
            self._broker, self._controller = (said.broker, said.controller) if said else (None, None)
            return namespace.addresses()

    def broker(self) -> int | None:
        """Return which Kafka broker the attached container said that it is when the addresses were last read."""
        return self._broker

    def controller(self) -> int | None:
        """Return which Kafka controller the attached container said that it is when the addresses were last read."""
        return self._controller

    def call_when_stirred(self, stirred: Callable[[int], None]) -> None:
        """Have `stirred` called with a worker when a program of it has ended; from any thread."""
        self._node.stirred = stirred

    def boot_id(self) -> str:
        """Return the id of this boot of the machine."""
        return boot_id()

    @contextlib.contextmanager
    def alone(self, steps: Sequence[Step]) -> Iterator[None]:
        """Hold the locks of what the steps act on, in the namespaces where that is; a lost one has none.

        HostError names the process that does not give one back.
        """
        kinds: dict[str, list[Step]] = {}
        for one in steps:
            kinds.setdefault(lanes.resource_of(one), []).append(one)
        with contextlib.ExitStack() as held:
            for kind, some in sorted(kinds.items()):
                held.enter_context(locking.hold(self._concerned(some), kind="" if kind == FIREWALL else kind))
            yield

    def lane(self, verb: Verb, what: Step | Action | None) -> str:
        """Return the lane of a call: by what it touches."""
        return lanes.lane(verb, what)

    def prepare(self, worker: int, action: Action, surroundings: Surroundings, held: Sequence[Step]) -> Prepared:
        """Read the machine and return the steps; nothing is changed. HostError or RefusedError if it cannot be done."""
        return performing(action).prepare(self._node, worker, action, surroundings, held)

    def do(self, step: Step) -> Plain | None:
        """Perform the step and read back that it took. HostError if it did not; the caller then undoes.

        Returns the undo from then on, such as that of a program, which says who that is.
        """
        undo = read(step.do).do(self._node, read(step.undo))
        return plain(undo) if undo is not None else None

    def undo(self, step: Step, held: Sequence[Step], note: Callable[[Plain], None]) -> str:
        """Take the step back; calling it twice is harmless. Returns a note for people; CannotHealError if it stays."""
        try:
            return _text(read(step.undo).undo(self._node, _readable(step.do), held, note))
        except CannotHealError:
            raise
        except HostError as error:
            raise CannotHealError(str(error)) from error

    def disturbance(self, step: Step) -> str:
        """Return "" while the step still holds, else what changed it."""
        seen = self.look(step)
        return (self.search(step) if seen.unsure else seen).disturbance

    def look(self, step: Step) -> Seen:
        """Return how the step is, what its rules dropped, and what a program says of itself; it searches nothing."""
        return _seen(read(step.do).holds(self._node))

    def search(self, step: Step) -> Seen:
        """Return how the step is by a search for those that took the place of its process."""
        return _seen(read(step.do).search(self._node))

    def undo_many(
        self, many: Sequence[tuple[Step, Sequence[Step], Callable[[Plain], None]]]
    ) -> Sequence[str | Exception]:
        """Take steps back, those of one batch at once."""
        undos = [step.undo for step, _, _ in many]
        return batches.done("undo", undos, self._undo_together, lambda at: self.undo(*many[at]))

    def residue_many(self, many: Sequence[tuple[Step, Sequence[Step]]]) -> Sequence[tuple[str, ...] | Exception]:
        """Return what is left of undone steps, those of one batch at once."""
        undos = [step.undo for step, _ in many]
        return batches.done("residue", undos, self._left_together, lambda at: self.residue(*many[at]))

    def look_many(self, steps: Sequence[Step]) -> Sequence[Seen | Exception]:
        """Return how applied steps are, those of one batch at once."""
        return batches.done("look", [step.do for step in steps], self._hold_together, lambda at: self.look(steps[at]))

    def search_many(self, steps: Sequence[Step]) -> Sequence[Seen | Exception]:
        """Return how steps are by one search."""
        return batches.done(
            "search", [step.do for step in steps], self._search_together, lambda at: self.search(steps[at])
        )

    def missed(self, step: Step) -> str:
        """Return "", or how a step whose time is over has not done what it is for."""
        return _text(read(step.do).missed())

    def again(self, step: Step, surroundings: Surroundings, held: Sequence[Step]) -> tuple[Step, ...]:
        """Return the steps that make a disturbed step hold again; nothing is changed. RefusedError if that may not be.

        Rules and a process that lives are done again as they were; what took the place of a process gets new steps.
        """
        return tuple(read(step.do).again(self._node, step, surroundings))

    def strays(self, held: Sequence[Step], directory: str) -> tuple[str, ...]:
        """Return the chains of nobody in the attached namespace, a line each; HostError if it cannot be looked."""
        owners.register(directory)
        with self._node.open() as namespace:
            return strays.find(namespace, held, directory)

    def residue(self, step: Step, held: Sequence[Step]) -> tuple[str, ...]:
        """Return what is left of an undone step; () is what everybody wants."""
        return _texts(read(step.undo).leftovers(self._node, held))

    def by_hand(self, step: Step) -> str:
        """Return what a person would type on this machine to undo the step, "" if there is nothing to type."""
        return _text(read(step.undo).manual(self._node, _readable(step.do)))

    def _undo_together(self, many: Sequence[Operation]) -> Iterable[str | Exception]:
        told = type(many[0]).undo_together(self._node, many)
        return (one if isinstance(one, Exception) else _text(one) for one in told)

    def _left_together(self, many: Sequence[Operation]) -> Iterable[tuple[str, ...] | Exception]:
        told = type(many[0]).left_together(self._node, many)
        return (one if isinstance(one, Exception) else _texts(one) for one in told)

    def _search_together(self, many: Sequence[Operation]) -> Iterable[Seen | Exception]:
        told = type(many[0]).search_together(self._node, many)
        return (one if isinstance(one, Exception) else _seen(one) for one in told)

    def _hold_together(self, many: Sequence[Operation]) -> Iterable[Seen | Exception]:
        told = type(many[0]).hold_together(self._node, many)
        return (one if isinstance(one, Exception) else _seen(one) for one in told)

    def _concerned(self, steps: Sequence[Step]) -> Iterator[NamespaceIdentity]:
        """Yield the namespaces that the steps act on; the attached one if a step (or no step at all) names none."""
        attached = not steps
        seen: set[str] = set()
        for one in steps:
            operation: object = None
            with contextlib.suppress(HostError):  # it cannot be read: its undo says so
                operation = read(one.undo)
            match operation:
                case object(namespace=NamespaceIdentity() as identity):
                    yield identity
                case object(process=ProcessIdentity(pid=pid)):
                    if (place := processes.network_of(pid)) not in seen:  # each is entered once, not for each process
                        seen.add(place)
                        with contextlib.suppress(HostError), Namespace(f"{tree.folder(pid)}/ns/net") as namespace:
                            yield namespace.identity
                case _:
                    attached = True
        if attached:
            with contextlib.suppress(HostError), self._node.open() as namespace:
                yield namespace.identity


def _readable(operation: Plain) -> Operation:
    """Return the typed operation, one that does nothing if it cannot be read."""
    try:
        return read(operation)
    except HostError:
        return Nothing()


def _text(told: object) -> str:
    """Return what an operation tells people, as text that JSON carries: one of another package may return none."""
    return str(told or "").encode("utf-8", "backslashreplace").decode()


def _texts(told: Iterable[object]) -> tuple[str, ...]:
    """Return the lines that an operation tells people, as text."""
    return tuple(map(_text, told))


def _seen(told: object) -> Seen:
    """Return what an operation has seen; HostError if that is something else, as of another package."""
    match told:
        case Seen(dropped=int() | None, ended=str() | None, status=msgspec.Raw(), unsure=bool()):
            with contextlib.suppress(msgspec.DecodeError):
                msgspec.json.decode(told.status)
                ended = None if told.ended is None else _text(told.ended)
                return msgspec.structs.replace(told, disturbance=_text(told.disturbance), ended=ended)
    raise HostError(f"its package does not say what it has seen, but {told!r}")
