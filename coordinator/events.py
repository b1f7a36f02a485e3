"""What happens to the coordinator's machine (past tense), and what it asks of its shell (verbs).

Beside these effects the machine emits the changes of `coordinator.changes`, to be stored before anything is published.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from trogdor_bus.bus import BusBrokers
from trogdor_bus.cluster import ClusterView
from trogdor_bus.coordinator.changes import Change
from trogdor_bus.messages import Beat, Snapshot
from trogdor_bus.roles import Wanted
from trogdor_bus.spec import TaskSpec
from trogdor_bus.states import Outcome


class CreateRequested(msgspec.Struct, frozen=True):
    """A client wants a task. `wire` is the spec as it goes on the wire, its identity; the others as in TaskRow."""

    id: str
    spec: TaskSpec
    wire: bytes
    force: bool = False
    allow: tuple[str, ...] = ()
    own_topics: tuple[str, ...] = ()
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


class ForgetRequested(msgspec.Struct, frozen=True):
    """A client wants a node forgotten whose agent is gone, or with `force` what a former agent of it may hold."""

    node: str
    force: bool = False


class BeatHeard(msgspec.Struct, frozen=True):
    """An agent's beat arrived."""

    beat: Beat


class StrangerHeard(msgspec.Struct, frozen=True):
    """A beat of another version of the protocol arrived; `version` is that of its agent, `why` says who must change."""

    node: str
    journal: str
    version: str
    why: str


class HostsResolved(msgspec.Struct, frozen=True):
    """The configured host names as IP addresses, by node name."""

    addresses: dict[str, tuple[str, ...]]


class BrokersSeen(msgspec.Struct, frozen=True):
    """The Kafka cluster that alone carries the bus is this now; None: the bus does not hang on Kafka."""

    brokers: BusBrokers | None


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the cluster under test has shown; `view` None: nothing, for the reason in `error`.

    `hosts` are the addresses of the host names in it, `seed` is a number that chance made, by which choices are made.
    """

    view: ClusterView | None = None
    error: str = ""
    hosts: Mapping[str, tuple[str, ...]] = {}
    seed: int = 0


class ClusterSeen(msgspec.Struct, frozen=True):
    """The cluster under test was looked at for a task; `number` as in the effect that asked for it."""

    task: str
    number: int
    sighting: Sighting


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
    | ForgetRequested
    | BeatHeard
    | StrangerHeard
    | HostsResolved
    | BrokersSeen
    | ClusterSeen
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


class OtherCluster(msgspec.Struct, frozen=True):
    """A cluster that an experiment names itself: brokers, and a file of librdkafka properties, "" for none."""

    bootstrap: str
    config: str = ""


class LookAtCluster(msgspec.Struct, frozen=True):
    """Look at the cluster under test after so many ms, and answer with `ClusterSeen`, whatever comes of it.

    `other` is that cluster if it is not the coordinator's own.
    """

    task: str
    number: int
    wanted: Wanted
    after_ms: int = 0
    other: OtherCluster | None = None


class StartExperiment(msgspec.Struct, frozen=True):
    """Start the program of an experiment; `ExperimentEnded` must follow, whatever happens."""

    id: str
    spec: TaskSpec


class EndExperiment(msgspec.Struct, frozen=True):
    """Tell the program of an experiment to end, and why, and kill it if it does not in time."""

    id: str
    why: str


Effect = Change | Publish | LookAtCluster | StartExperiment | EndExperiment | Exit
