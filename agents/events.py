"""What happens to an agent's machine (past tense), and what it asks of its shell (verbs)."""

from __future__ import annotations

import msgspec

from trogdor_bus.actions import Peer
from trogdor_bus.messages import Beat, Order, Snapshot
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.states import Disturbance, Outcome, ended

# --- events -----------------------------------------------------------------------------------------------------------


class SnapshotHeard(msgspec.Struct, frozen=True):
    """A frame of the coordinator arrived."""

    snapshot: Snapshot


class Injected(msgspec.Struct, frozen=True):
    """The worker's steps are done and read back; `met_nothing` says why there was nothing to do, "" if there was."""

    worker: int
    warnings: tuple[str, ...] = ()
    met_nothing: str = ""


class NotInjected(msgspec.Struct, frozen=True):
    """The worker's steps failed; what was done is undone again, unless `stuck`: then `by_hand` would undo it."""

    worker: int
    error: str
    residue: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    stuck: bool = False


class ReadBack(msgspec.Struct, frozen=True):
    """What one look at a worker found: what changed it, what could not be looked at, and how many packets it dropped.

    `found` and `unseen` are () while it holds. `dropped`: since its rules are there; None if that is not to be known.
    `ended` and `status` are those of what runs for it, see `trogdor_bus.platform.Seen`.
    """

    found: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    dropped: int | None = None
    ended: str | None = None
    status: msgspec.Raw = msgspec.Raw(b"null")

    def judge(self, held_ms: int, met_nothing: str) -> tuple[Outcome, str]:
        """Return how a worker ended that was to end now, held for so long, and was seen so directly before."""
        if self.ended:
            return Outcome.FAILED, self.ended
        return ended(Outcome.DONE, "", self.disturbances(held_ms), met_nothing)

    def disturbances(self, after_ms: int) -> tuple[Disturbance, ...]:
        """Return what was found, so long after the worker took hold."""
        found = (Disturbance(after_ms, text) for text in self.found)
        return (*found, *(Disturbance(after_ms, text, unseen=True) for text in self.unseen))


class Healed(msgspec.Struct, frozen=True):
    """The worker's steps are undone, and nothing is left; `last` is the last look at it, directly before the undo,
    None if there was one before.

    `outcome` and `error` are how it ended as the journal has it, NONE if as it was asked. `late_ms`: how long after
    the `due_ms` of `Heal` nothing of it was left.
    """

    worker: int
    notes: tuple[str, ...] = ()
    last: ReadBack | None = ReadBack()
    outcome: Outcome = Outcome.NONE
    error: str = ""
    late_ms: int = 0


class NotHealed(msgspec.Struct, frozen=True):
    """The undo failed, after its retries; `by_hand` are the commands that a person would type."""

    worker: int
    error: str
    residue: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    last: ReadBack | None = ReadBack()


class NotYet(msgspec.Struct, frozen=True):
    """What `Inject` or `Heal` asked for goes on by itself, and is to be asked for again soon; `why` is what it awaits.

    `notes` and `last` are those of `Healed` so far. `overdue`: what is awaited should have happened by now.
    """

    worker: int
    why: str
    notes: tuple[str, ...] = ()
    last: ReadBack | None = None
    overdue: bool = False


class Looked(msgspec.Struct, frozen=True):
    """What the read-back of running workers found, by worker id."""

    found: dict[int, ReadBack]


class Reapplied(msgspec.Struct, frozen=True):
    """What no longer held of a running worker was done again, and the peers' new addresses are in `blocked`, too.

    `error` says why not all of it, `after` how it is now.
    """

    worker: int
    error: str = ""
    after: ReadBack = ReadBack()
    blocked: tuple[Peer, ...] = ()


class Stirred(msgspec.Struct, frozen=True):
    """What runs for a worker may have ended: it is worth a look, or what waits for that is to be asked for again."""

    worker: int


class LatchKept(msgspec.Struct, frozen=True):
    """The latch of that id is on disk, or ("") the absence of one; `error`: it is not, and holds for this life."""

    id: str
    error: str = ""


class AddressesRead(msgspec.Struct, frozen=True):
    """The node's own addresses, and the ids of the Kafka broker and of the controller that it is, if they are known.

    `trouble`: why there is nothing that a fault could hit, "" while there is.
    """

    addresses: tuple[str, ...]
    broker: int | None = None
    controller: int | None = None
    trouble: str = ""


class StraysSeen(msgspec.Struct, frozen=True):
    """What looks like ours on the node and is in nobody's journal, a line each with what a person would type."""

    lines: tuple[str, ...] = ()


class EndRequested(msgspec.Struct, frozen=True):
    """The agent must undo everything, report, and end."""


class Ticked(msgspec.Struct, frozen=True):
    """The deadline has come."""


Event = (
    SnapshotHeard
    | Injected
    | NotInjected
    | Healed
    | NotHealed
    | NotYet
    | Looked
    | Reapplied
    | Stirred
    | LatchKept
    | AddressesRead
    | StraysSeen
    | EndRequested
    | Ticked
)

# --- effects ----------------------------------------------------------------------------------------------------------


class Inject(msgspec.Struct, frozen=True):
    """Perform the order, or go on with it; answer with Injected, NotInjected or NotYet."""

    order: Order
    ends_ms: int
    coordinator: ProcessIdentity | None


class Heal(msgspec.Struct, frozen=True):
    """Undo the worker, which has held for `held_ms`, or go on with it; answer with Healed, NotHealed or NotYet.

    `due_ms` (CLOCK_BOOTTIME): when it was to be gone, or to be asked for again.
    """

    worker: int
    outcome: Outcome
    error: str
    held_ms: int = 0
    due_ms: int = 0


class Look(msgspec.Struct, frozen=True):
    """Read back whether the workers' steps still hold; answer with Looked, as often as it takes to tell of all."""

    workers: tuple[int, ...]


class Reapply(msgspec.Struct, frozen=True):
    """Do again what no longer holds of a running worker, and block the `drift` beside it; answer with Reapplied."""

    worker: int
    drift: tuple[Peer, ...] = ()


class KeepLatch(msgspec.Struct, frozen=True):
    """Write the id of the latch down, or ("") remove it; answer with LatchKept."""

    id: str


class Forget(msgspec.Struct, frozen=True):
    """Remove the finished worker from the journal, if it is there."""

    worker: int


class SendBeat(msgspec.Struct, frozen=True):
    """Send the beat."""

    beat: Beat


class Exit(msgspec.Struct, frozen=True):
    """Everything is undone and said: end."""


Effect = Inject | Heal | Look | Reapply | KeepLatch | Forget | SendBeat | Exit
