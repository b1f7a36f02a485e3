"""What happens to an agent's machine (past tense), and what it asks of its shell (verbs)."""

from __future__ import annotations

import msgspec

from trogdor_bus.messages import Beat, Order, Snapshot
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.states import Outcome

# --- events -----------------------------------------------------------------------------------------------------------


class SnapshotHeard(msgspec.Struct, frozen=True):
    """A frame of the coordinator arrived."""

    snapshot: Snapshot


class Injected(msgspec.Struct, frozen=True):
    """The worker's steps are done and read back."""

    worker: int
    warnings: tuple[str, ...] = ()


class NotInjected(msgspec.Struct, frozen=True):
    """The worker's steps failed; what was done is undone again, unless `stuck`: then `by_hand` would undo it."""

    worker: int
    error: str
    residue: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    stuck: bool = False


class Healed(msgspec.Struct, frozen=True):
    """The worker's steps are undone, and nothing is left."""

    worker: int
    notes: tuple[str, ...] = ()
    dropped: int = 0


class NotHealed(msgspec.Struct, frozen=True):
    """The undo failed, after its retries; `by_hand` are the commands that a person would type."""

    worker: int
    error: str
    residue: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()


class Looked(msgspec.Struct, frozen=True):
    """What the read-back of running workers found: worker id to disturbances (() = holds), and to packets dropped."""

    found: dict[int, tuple[str, ...]]
    dropped: dict[int, int] = {}


class Reapplied(msgspec.Struct, frozen=True):
    """What no longer held of a running worker was done again; `error` says why not."""

    worker: int
    error: str = ""


class LatchKept(msgspec.Struct, frozen=True):
    """The latch of that id is on disk, or ("") the absence of one."""

    id: str


class AddressesRead(msgspec.Struct, frozen=True):
    """The node's own addresses, and the ids of the Kafka broker and of the controller that it is, if they are known."""

    addresses: tuple[str, ...]
    broker: int | None = None
    controller: int | None = None


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
    | Looked
    | Reapplied
    | LatchKept
    | AddressesRead
    | StraysSeen
    | EndRequested
    | Ticked
)

# --- effects ----------------------------------------------------------------------------------------------------------


class Inject(msgspec.Struct, frozen=True):
    """Perform the order; answer with Injected or NotInjected."""

    order: Order
    ends_ms: int
    coordinator: ProcessIdentity | None


class Heal(msgspec.Struct, frozen=True):
    """Undo the worker; answer with Healed or NotHealed."""

    worker: int
    outcome: Outcome
    error: str


class Look(msgspec.Struct, frozen=True):
    """Read back whether the workers' steps still hold; answer with Looked."""

    workers: tuple[int, ...]


class Reapply(msgspec.Struct, frozen=True):
    """Do again what no longer holds of a running worker; answer with Reapplied."""

    worker: int


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
