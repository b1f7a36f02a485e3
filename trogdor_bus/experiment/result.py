"""What came of an experiment: the one source of the verdict and of every file that tells it. Data only.

Times named `at_ms`, `start_ms` and `end_ms` are epoch ms on the clock of the experiment's program; -1 is "not known".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from trogdor_bus.faults.experiment import ExperimentSpec
from trogdor_bus.printable import escape_json
from trogdor_bus.roles import Chosen

Verdict = Literal["Pass", "Fail", "Error", "Stopped"]
Phase = Literal["before", "during", "after"]
EXIT_CODES: Mapping[Verdict, int] = {"Pass": 0, "Fail": 1, "Error": 5, "Stopped": 6}
MOST_LISTED = 100
"""How many record numbers a result names of each kind; the count is always whole."""

UNKNOWN = -1
HELD_ROLE = "held-role"
"""The kind of evidence that says whom a fault hit, and not what came of it."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of a result: camelCase in JSON; fields of a later version are passed over."""


class Reason(_Part, frozen=True, kw_only=True):
    """One reason for the verdict, with its numbers; `kind` is one of verdict.KINDS, `about` such as "fault 2" or ""."""

    kind: str
    text: str
    about: str = ""


class ErrorOutput(_Part, frozen=True, kw_only=True):
    """How the experiment itself broke; `code` in Litmus' words, such as STATUS_CHECKS_ERROR. Both "": it did not."""

    code: str = ""
    reason: str = ""


class Evidence(_Part, frozen=True, kw_only=True):
    """One thing that was looked for to prove that a fault took effect, and whether it was seen."""

    kind: str
    held: bool
    text: str = ""


class FaultWindow(_Part, frozen=True, kw_only=True):
    """One fault: from its injection to its undo. `line` tells how its target was found, `error` how it failed.
    `holders` and `seed` are those of its task: who was chosen, for which role, and by which number.

    `new_leader_ms` counts from `start_ms` to a new leader, `recovered_ms` from `end_ms` to the cluster being whole.
    `missed` tells what was not whole at the recovery's deadline, "" if it was whole or nobody waited for it.
    """

    number: int
    start_ms: int
    end_ms: int = UNKNOWN
    target: str = ""
    line: str = ""
    holders: tuple[Chosen, ...] = ()
    seed: int | None = None
    evidence: tuple[Evidence, ...] = ()
    new_leader_ms: int = UNKNOWN
    recovered_ms: int = UNKNOWN
    missed: str = ""
    error: str = ""
    task_id: str = ""


class Listed(_Part, frozen=True, kw_only=True):
    """How many there are, and the first of them (at most MOST_LISTED): numbers of records, or texts."""

    count: int = 0
    first: tuple[int | str, ...] = ()

    @classmethod
    def of(cls, found: Iterable[int | str]) -> Listed:
        """Return the count of all and the first of them."""
        every = tuple(found)
        return cls(count=len(every), first=every[:MOST_LISTED])


class StreamFindings(_Part, frozen=True, kw_only=True):
    """The audit of the stream: every record sent against the full re-read."""

    sent: int = 0
    acked: int = 0
    indeterminate: int = 0
    indeterminate_found: int = 0
    failed: int = 0
    read: int = 0
    lost: Listed = Listed()
    corrupted: Listed = Listed()
    duplicated: Listed = Listed()
    reordered: Listed = Listed()
    foreign: Listed = Listed()


class Gap(_Part, frozen=True, kw_only=True):
    """A time in which the auditor got no record of one partition."""

    partition: int
    start_ms: int
    end_ms: int

    @property
    def ms(self) -> int:
        """Return how long it was, in ms."""
        return self.end_ms - self.start_ms


class Percentiles(_Part, frozen=True, kw_only=True):
    """Percentiles of `count` latencies in ms, by nearest rank; -1 if nothing was measured.

    The p-th percentile of n values is the ceil(p / 100 * n)-th smallest: a value that was measured, and that at least
    p percent of all do not exceed.
    """

    count: int = 0
    p50_ms: float = UNKNOWN
    p99_ms: float = UNKNOWN
    p999_ms: float = UNKNOWN


class PhaseLatencies(_Part, frozen=True, kw_only=True):
    """The latencies of the records sent in one phase: to the acknowledgement, and to the auditor.

    Each is of those that got there; how many did not is the audit's matter.
    """

    phase: Phase
    produce: Percentiles = Percentiles()
    end_to_end: Percentiles = Percentiles()


class Bin(_Part, frozen=True, kw_only=True):
    """A slice of time: records a second acknowledged and delivered, and the 99th percentiles (ms, -1 for none)."""

    start_ms: int
    end_ms: int
    acked: float = 0
    delivered: float = 0
    produce_p99_ms: float = UNKNOWN
    end_to_end_p99_ms: float = UNKNOWN


class LeaderChange(_Part, frozen=True, kw_only=True):
    """A new leader, as it was first seen: of a partition of the stream's topic, or (-1) of the controllers' quorum."""

    at_ms: int
    partition: int
    before: int
    after: int
    epoch: int = UNKNOWN


class ProbeResult(_Part, frozen=True, kw_only=True):
    """What became of a probe: `passed` is None if it never looked. `text` tells of the look that decided."""

    name: str
    type: str
    mode: str
    passed: bool | None = None
    text: str = ""


class Topic(_Part, frozen=True, kw_only=True):
    """The experiment's own topic; `error` tells why it is still there if that was not wanted."""

    name: str = ""
    deleted: bool = False
    error: str = ""


class Limits(_Part, frozen=True, kw_only=True):
    """What the stream and the cluster are held against; `proof`: it is known what shows that a fault took effect."""

    proof: bool = True
    stream: bool = True
    idempotent: bool = True
    consumer_timeout_ms: int = 60_000
    recovery_ms: int = 120_000

    @classmethod
    def of(cls, spec: ExperimentSpec) -> Limits:
        """Return the limits that an experiment sets."""
        return cls(
            proof=bool(spec.evidence_wanted()),
            stream=not spec.stream.off,
            idempotent=spec.stream.is_idempotent,
            consumer_timeout_ms=spec.stream.consumer_timeout_ms,
            recovery_ms=spec.recovery_ms,
        )


class Result(_Part, frozen=True, kw_only=True):
    """Everything that is known of an experiment. `verdict` and `reasons` are what verdict.judge makes of the rest.

    `phase` is the last step that began, `fail_step` the one in which the experiment broke or was stopped. `stopped`
    tells who stopped it and why, `halted` which probe ended it, `producer_error` the producer's fatal error; "" for
    none. `findings` is None without a full re-read. `timeouts` are settings of the cluster by their names, in ms;
    `resolution_ms` is how often its leaders were looked at. `seed` is the number by which it was chosen when to fire,
    and whom of `eachOf`; None if nothing was to be fired. `notes` is what is told apart, such as of a group.
    """

    id: str
    name: str = ""
    verdict: Verdict = "Error"
    reasons: tuple[Reason, ...] = ()
    phase: str = ""
    fail_step: str = ""
    error_output: ErrorOutput = ErrorOutput()
    stopped: str = ""
    halted: str = ""
    producer_error: str = ""
    started_ms: int = UNKNOWN
    ended_ms: int = UNKNOWN
    spec: dict[str, Any] = {}
    limits: Limits = Limits()
    cluster_id: str = ""
    timeouts: dict[str, int] = {}
    resolution_ms: int = UNKNOWN
    seed: int | None = None
    faults: tuple[FaultWindow, ...] = ()
    findings: StreamFindings | None = None
    gaps: tuple[Gap, ...] = ()
    latencies: tuple[PhaseLatencies, ...] = ()
    bins: tuple[Bin, ...] = ()
    leader_changes: tuple[LeaderChange, ...] = ()
    probes: tuple[ProbeResult, ...] = ()
    topic: Topic = Topic()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    not_used_here: tuple[str, ...] = ()
    version: str = ""


def encode(result: Result) -> bytes:
    """Return the result as JSON, indented for people."""
    return escape_json(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n").encode()


def decode(data: bytes) -> Result:
    """Return the result that `encode` wrote; msgspec.ValidationError or DecodeError if it is none."""
    return msgspec.json.decode(data, type=Result)
