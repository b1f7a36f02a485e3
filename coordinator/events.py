"""What happens to the coordinator's machine (past tense), and what it asks of its shell (verbs).

Beside these effects the machine emits the changes of `coordinator.changes`, to be stored before anything is published.
"""

from __future__ import annotations

import msgspec

from trogdor_bus.bus import BusBrokers
from trogdor_bus.coordinator.changes import Change
from trogdor_bus.messages import Beat, Snapshot
from trogdor_bus.spec import TaskSpec
from trogdor_bus.states import Outcome


class CreateRequested(msgspec.Struct, frozen=True):
    """A client wants a task. `wire` is the spec as it goes on the wire, its identity.

    `parent` is the experiment that it belongs to, "" for none.
    """

    id: str
    spec: TaskSpec
    wire: bytes
    force: bool = False
    parent: str = ""


class StopRequested(msgspec.Struct, frozen=True):
    """A client wants a task to stop; an unknown id is no error."""

    id: str


class DestroyRequested(msgspec.Struct, frozen=True):
    """A client wants a task stopped and forgotten; an unknown id is no error."""

    id: str


class AbortRequested(msgspec.Struct, frozen=True):
    """A client wants everything ended on a node, or ("") on all; `latch` is the id under which nothing may start."""

    latch: str
    node: str = ""


class ResumeRequested(msgspec.Struct, frozen=True):
    """A client lets faults start again on a node, or ("") on all."""

    node: str = ""


class BeatHeard(msgspec.Struct, frozen=True):
    """An agent's beat arrived."""

    beat: Beat


class HostsResolved(msgspec.Struct, frozen=True):
    """The configured host names as IP addresses, by node name."""

    addresses: dict[str, tuple[str, ...]]


class BrokersSeen(msgspec.Struct, frozen=True):
    """The Kafka cluster that alone carries the bus is this now; None: the bus does not hang on Kafka."""

    brokers: BusBrokers | None


class LinksSeen(msgspec.Struct, frozen=True):
    """By node, each link to its agent and whether it is alive."""

    links: dict[str, dict[str, bool]]


class ExperimentEnded(msgspec.Struct, frozen=True):
    """The program of an experiment has ended, and everything that it left is done; `error` in words, "" for none."""

    id: str
    outcome: Outcome
    error: str = ""


class Ticked(msgspec.Struct, frozen=True):
    """The deadline has come."""


Event = (
    CreateRequested
    | StopRequested
    | DestroyRequested
    | AbortRequested
    | ResumeRequested
    | BeatHeard
    | HostsResolved
    | BrokersSeen
    | LinksSeen
    | ExperimentEnded
    | Ticked
)


class Publish(msgspec.Struct, frozen=True):
    """Publish the snapshot to its node."""

    snapshot: Snapshot


class Exit(msgspec.Struct, frozen=True):
    """Stop publishing and end, for the reason given; `fenced`: another coordinator is in charge."""

    reason: str
    fenced: bool = False


class StartExperiment(msgspec.Struct, frozen=True):
    """Start the program of an experiment; `ExperimentEnded` must follow, whatever happens."""

    id: str
    spec: TaskSpec


class EndExperiment(msgspec.Struct, frozen=True):
    """Tell the program of an experiment to end, and why, and kill it if it does not in time."""

    id: str
    why: str


Effect = Change | Publish | Exit | StartExperiment | EndExperiment
