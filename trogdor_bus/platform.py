"""The port between an agent and the machine that it acts on.

A platform lowers actions to steps. A step is plain data, `do` and `undo`, each a JSON object that only the platform
reads; the journal writes it down before it is done and hands the same undo back later, perhaps in another life.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import msgspec

from trogdor_bus.actions import Action

Operation = dict[str, Any]
Verb = Literal["prepare", "do", "undo", "look", "search", "missed", "again", "residue", "by-hand", "strays"]
"""What is asked of a platform."""


class Step(msgspec.Struct, frozen=True):
    """One change to the machine and its exact inverse; nothing is resolved again when it is undone."""

    do: Operation
    undo: Operation


class Prepared(msgspec.Struct, frozen=True):
    """The steps of one action, and what a person should know about them."""

    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()


class Endpoint(msgspec.Struct, frozen=True):
    """An address (text) and its TCP ports."""

    address: str
    ports: tuple[int, ...]


class ProcessIdentity(msgspec.Struct, frozen=True):
    """A process that cannot be confused with a later one: boot, pid, and start time in clock ticks since boot."""

    boot_id: str
    pid: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    start_ticks: Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a platform must know beside the action: control traffic to spare, the coordinator's process, the task."""

    control: tuple[Endpoint, ...] = ()
    coordinator: ProcessIdentity | None = None
    force: bool = False
    task: str = ""


class Platform(Protocol):
    """Performs steps on one node. Every method may block, and holds up what comes after it in its lane.

    The agent calls them one at a time, unless the platform knows lanes; only `addresses` is called beside them.
    """

    def addresses(self) -> tuple[str, ...]:
        """Return the node's own IP addresses, loopback and link-local excluded."""
        ...

    def boot_id(self) -> str:
        """Return an id that changes at each boot of the machine."""
        ...

    def alone(self, steps: Sequence[Step]) -> AbstractContextManager[None]:
        """Hold the lock of what the steps act on, so that two healers never fight.

        Entering waits for another holder; HostError names it if that takes too long. It cannot be nested.
        """
        ...

    def prepare(self, worker: int, action: Action, surroundings: Surroundings, held: Sequence[Step]) -> Prepared:
        """Read the machine and return the steps; nothing is changed. HostError or RefusedError if it cannot be done."""
        ...

    def do(self, step: Step) -> Operation | None:
        """Perform the step and read back that it took. HostError if it did not; the caller then undoes.

        Returns what is the undo from then on, None if that is still the step's own. It may tell more, but a life that
        dies before it is written down has the step's own undone. NotYetError: it goes on by itself, and is called again
        soon, or undone; so does `prepare`.
        """
        ...

    def undo(self, step: Step, held: Sequence[Step], note: Callable[[Operation], None]) -> str:
        """Take the step back; calling it twice is harmless. `held` are the live steps of every other worker.

        An undo that starts something hands `note` what a later life must know of it, as the undo from then on; when
        `note` returns, that was written down, as far as it can be. Returns "" or a note for people, such as "gone: the
        process ended". CannotHealError if it is still there. NotYetError if it goes on by itself: then it is called
        again soon, perhaps by another life. It should not wait for long: the undoes of other workers wait meanwhile.
        """
        ...

    def disturbance(self, step: Step) -> str:
        """Return "" while the step still holds, else what changed it."""
        ...

    def again(self, step: Step, surroundings: Surroundings, held: Sequence[Step]) -> tuple[Step, ...]:
        """Return the steps that make a disturbed step hold again, () if there is nothing to do; nothing is changed.

        It may be the same step, or new ones beside it, for what has taken the place of the old.
        """
        ...

    def residue(self, step: Step, held: Sequence[Step]) -> tuple[str, ...]:
        """Return what is left of an undone step; () is what everybody wants."""
        ...

    def by_hand(self, step: Step) -> str:
        """Return what a person would type to undo the step, "" if there is nothing to type."""
        ...


@runtime_checkable
class LanedPlatform(Protocol):
    """What a Platform may offer beside: what of it may be called at the same time."""

    def lane(self, verb: Verb, what: Step | Action | None) -> str:
        """Return the lane of a call: those of one lane come one at a time, those of two do not wait for each other.

        `what` is the step, or the action to prepare. It is called often, and neither blocks nor raises.
        """
        ...


@runtime_checkable
class BatchPlatform(Protocol):
    """What a Platform may offer beside: to do at once what waits in a lane at the same time.

    Each method returns, in their order, what the one for a single step would, or the Exception that it would raise.
    """

    def undo_many(
        self, many: Sequence[tuple[Step, Sequence[Step], Callable[[Operation], None]]]
    ) -> Sequence[str | Exception]:
        """Take steps back, each with what `undo` is given; see there."""
        ...

    def residue_many(self, many: Sequence[tuple[Step, Sequence[Step]]]) -> Sequence[tuple[str, ...] | Exception]:
        """Return what is left of undone steps, each with what `residue` is given; see there."""
        ...

    def look_many(self, steps: Sequence[Step]) -> Sequence[Seen | Exception]:
        """Return how applied steps are; see `CountingPlatform`."""
        ...


@runtime_checkable
class BrokerPlatform(Protocol):
    """What a Platform may offer beside: which Kafka broker its node is."""

    def broker(self) -> int | None:
        """Return the id of the broker, as it was when `addresses` was last called; None if it is not known."""
        ...


@runtime_checkable
class ControllerPlatform(Protocol):
    """What a Platform may offer beside: which Kafka controller (KRaft) its node is."""

    def controller(self) -> int | None:
        """Return the id of the controller, as it was when `addresses` was last called; None if it is not known."""
        ...


class Seen(msgspec.Struct, frozen=True):
    """What one look at a step found: what changed it, "" while it holds, and how many packets its rules dropped.

    The count begins anew when the rules are put back. `dropped` is None if it has no rules, or they are out of reach.
    Of what runs for it: `status` is the latest that it says of itself (JSON, null for nothing), `ended` how it ended by
    itself: its error, "" for none, None while it goes on. It is `unsure` whether it holds if only a search can tell.
    """

    disturbance: str = ""
    dropped: int | None = None
    ended: str | None = None
    status: msgspec.Raw = msgspec.Raw(b"null")
    unsure: bool = False


@runtime_checkable
class CountingPlatform(Protocol):
    """What a Platform may offer beside: to see in one look whether a step holds and whether it meets any packets."""

    def look(self, step: Step) -> Seen:
        """Return what `disturbance` returns, and what the step's rules dropped since they are there."""
        ...


@runtime_checkable
class SearchingPlatform(Protocol):
    """What a Platform may offer beside: looks that take their time, apart from those that do not."""

    def search(self, step: Step) -> Seen:
        """Return how a step is of which `look` was unsure; an undo does not wait for it for long."""
        ...

    def search_many(self, steps: Sequence[Step]) -> Sequence[Seen | Exception]:
        """Do what `search` does for each, at once."""
        ...


@runtime_checkable
class StirringPlatform(Protocol):
    """What a Platform may offer beside: to say when it is worth to look at a worker before its time."""

    def call_when_stirred(self, stirred: Callable[[int], None]) -> None:
        """Have `stirred` called with a worker whenever something that runs for it has ended; from any thread."""
        ...


@runtime_checkable
class JudgingPlatform(Protocol):
    """What a Platform may offer beside: whether a step that is not disturbed has done what it is for."""

    def missed(self, step: Step) -> str:
        """Return "", or how a step whose time is over has missed what it was meant for."""
        ...


@runtime_checkable
class StrayPlatform(Protocol):
    """What a Platform may offer beside: whether something looks like its work and is in nobody's journal."""

    def strays(self, held: Sequence[Step], directory: str) -> tuple[str, ...]:
        """Return what is in force and neither of the steps held nor another agent's, a line each; nothing is changed.

        `directory` is the state directory of the agent that asks. HostError if it cannot be looked.
        """
        ...


PlatformFactory = Callable[[Mapping[str, Any]], Platform]
"""Makes a platform from the agent's settings: {"attach": "", "allowCommands": [[...]], ...}."""
