"""An experiment: a liveness stream, a fault at intervals, and the time and the proof that each step is given."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from trogdor_bus.errors import SpecError
from trogdor_bus.faults.stream import ProbeSpec, StreamSpec, require
from trogdor_bus.names import check_name
from trogdor_bus.registry import registry
from trogdor_bus.roles import STREAM
from trogdor_bus.spec import Evidence, TaskSpec
from trogdor_bus.topology import Topology

SLACK_MS = 180_000
"""What the steps that nobody sets a time for may take: the topic, the re-read, reading the cluster, the outputs."""
MAX_FAULTS = 10_000

Ms = Annotated[int, msgspec.Meta(ge=0, le=7 * 24 * 3_600_000)]
"""Up to a week."""
Rule = Literal["below-min-isr", "no-quorum", "under-replicated"]


class LitmusSource(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The ChaosEngine that an experiment was translated from, and which of its keys mean nothing here."""

    engine: str = ""
    experiment: str = ""
    instance: str = ""
    not_used: tuple[str, ...] = ()


class ExperimentSpec(TaskSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.experiment.ExperimentSpec"):
    """Inject `fault` every `intervalMs` for `chaosMs` while records are written and read, and judge what came of it.

    `fault` is any other spec without `startMs`; its `durationMs` is how long each fault lasts. In it, and in a probe's
    `topic`, `$stream` stands for the experiment's own topic. `intervalMs` is counted from the start of one fault to the
    start of the next; with `intervalMaxMs` it is drawn anew each time between the two. `maxFaults` 0: as many as fit.
    `eachOf` are nodes or roles: the fault hits the node of each, one after another, that of the active controller last,
    as soon as the cluster is whole again, and all within `chaosMs`; it then has no `nodes` of its own.
    `evidence`: what must be seen for a fault to count as effective; left out, what fits the class of the fault. Where
    nothing fits (noop, some faults of other packages) and none is given, the verdict is Error: not proven.
    `baselineMs` is the time without a fault before the first, `rampMs` a pause before and after all faults, `quietMs`
    the time without a fault at the end; `recoveryMs` is how long the cluster may take to be whole again after a fault.
    `bootstrap` and `config` (a file of librdkafka properties where the coordinator runs) name another cluster than the
    coordinator's. `durationMs` bounds all of it; 0: computed.
    """

    name: str = ""
    fault: dict[str, Any] = {}
    chaos_ms: Ms = 60_000
    interval_ms: Ms = 20_000
    interval_max_ms: Ms = 0
    ramp_ms: Ms = 0
    max_faults: Annotated[int, msgspec.Meta(ge=0, le=MAX_FAULTS)] = 0
    each_of: tuple[str, ...] = ()
    stream: StreamSpec = StreamSpec()
    baseline_ms: Ms = 10_000
    quiet_ms: Ms = 5_000
    recovery_ms: Ms = 120_000
    evidence: tuple[Evidence, ...] = ()
    allow: tuple[Rule, ...] = ()
    probes: tuple[ProbeSpec, ...] = ()
    bootstrap: str = ""
    config: str = ""
    keep_topic: bool = False
    litmus: LitmusSource | None = None

    is_experiment = True
    aliases = ("experiment",)
    summary = "Write and read a stream of records while faults are injected, and judge what came of it."
    example = {
        "class": "experiment",
        "name": "stop-a-process",
        "fault": {"class": "process-stop", "durationMs": 5000, "nodes": ["node1"], "port": 9092},
        "chaosMs": 30000,
        "intervalMs": 15000,
        "stream": {"replicationFactor": 3, "minInSync": 2, "consumerTimeoutMs": 20000},
    }

    def __post_init__(self) -> None:
        # As on the wire: what is empty in the fault stands for its default.
        msgspec.structs.force_setattr(self, "fault", _without_empty(self.fault))

    def check(self) -> None:
        """Raise SpecError for what cannot be meant, naming the field and the remedy."""
        if self.name:
            check_name(self.name, "name", "$.name")
        require(not self.each_of or "nodes" not in self.fault, "is chosen by eachOf", "$.fault.nodes", "leave it out")
        require(not self.each_of or not self.max_faults, "is for intervals", "$.maxFaults", "leave it out with eachOf")
        fault = self.fault_spec()
        self._check_times(fault)
        self.stream.check("$.stream")
        for number, probe in enumerate(self.probes):
            probe.check(f"$.probes[{number}]")
            same = [one.name for one in self.probes].count(probe.name)
            require(
                same == 1, f"two probes are named {probe.name}", f"$.probes[{number}].name", "give each its own name"
            )
        source = self.litmus
        require(source is None or bool(source.experiment), "is missing", "$.litmus.experiment", "name it")
        require(
            not self.bootstrap or re.fullmatch(r"[^\s,]+:\d{1,5}(,[^\s,]+:\d{1,5})*", self.bootstrap) is not None,
            "is not a list of HOST:PORT",
            "$.bootstrap",
            "such as broker1:9092,broker2:9092",
        )
        require(
            not self.config or self.config.startswith("/"), "is not an absolute path", "$.config", "start it with '/'"
        )

    def _check_times(self, fault: TaskSpec) -> None:
        lasts, several = fault.duration_ms, self.faults_planned() > 1
        require(fault.start_ms == 0, "is not for a fault of an experiment", "$.fault.startMs", "leave it out")
        require(lasts > 0, "is missing: how long does each fault last?", "$.fault.durationMs", "give it in ms")
        require(self.chaos_ms > 0, "leaves no time for a fault", "$.chaosMs", "give it in ms")
        require(self.interval_ms > 0, "is not a time", "$.intervalMs", "for one fault make it as long as chaosMs")
        require(
            self.interval_max_ms == 0 or self.interval_max_ms >= self.interval_ms,
            f"is below intervalMs = {self.interval_ms} ms",
            "$.intervalMaxMs",
            "make it the longest interval, or leave it out",
        )
        require(
            not several or lasts <= self.interval_ms,
            f"the next fault would begin after {self.interval_ms} ms, while this one still lasts ({lasts} ms)",
            "$.intervalMs",
            f"make it at least {lasts} ms, or say maxFaults: 1",
        )
        require(
            -(-self.chaos_ms // self.interval_ms) <= MAX_FAULTS or self.max_faults > 0 or bool(self.each_of),
            f"{self.chaos_ms} ms hold more than {MAX_FAULTS} intervals of {self.interval_ms} ms",
            "$.intervalMs",
            "make it longer, or set maxFaults",
        )
        least = self.total_ms()
        require(
            self.duration_ms == 0 or self.duration_ms >= least,
            f"{self.duration_ms} ms are less than the steps may take together: {self.arithmetic()} = {least} ms",
            "$.durationMs",
            "leave it out, or make it longer",
        )
        kept = self.stream.retention_ms
        require(
            kept >= least or self.stream.off,
            f"records are kept for {kept} ms, but all are read again at the end, after up to {least} ms",
            "$.stream.retentionMs",
            "make it longer",
        )

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return no node: the coordinator starts a program for an experiment, and that one submits the faults."""
        return frozenset()

    def faults_planned(self) -> int:
        """Return how many faults begin if no recovery takes longer than the interval: at 0, 1, 2 ... intervals.

        With `eachOf` there are no intervals: it is 1 then.
        """
        if self.each_of:
            return 1
        fit = -(-self.chaos_ms // max(1, self.interval_ms))
        return min(fit, self.max_faults) if self.max_faults else fit

    def longest_ms(self) -> int:
        """Return after how many ms it is ended if it has not ended by itself."""
        return self.duration_ms or self.total_ms()

    def total_ms(self) -> int:
        """Return an upper bound (ms) of all steps together, from the start to the verdict."""
        return sum(self._parts().values())

    def arithmetic(self) -> str:
        """Return the sum behind `total_ms` in words."""
        return " + ".join(f"{name} {value}" for name, value in self._parts().items() if value)

    def _parts(self) -> dict[str, int]:
        return {
            "baselineMs": self.baseline_ms,
            "2 x rampMs": 2 * self.ramp_ms,
            "chaosMs": self.chaos_ms,
            "fault.durationMs": self.fault_spec().duration_ms,
            "2 x recoveryMs": 2 * self.recovery_ms,
            "quietMs": self.quiet_ms,
            "stream.deliveryTimeoutMs": 0 if self.stream.off else self.stream.delivery_timeout_ms,
            "probes": sum(probe.longest_ms() for probe in self.probes),
            "all other steps": SLACK_MS,
        }

    def fault_on(self, topic: str, node: str = "") -> dict[str, Any]:
        """Return the fault as it is submitted, `$stream` replaced by `topic` wherever it stands in a text.

        With `eachOf` it is for that `node`, "": for all.
        """
        nodes = {"nodes": [node] if node else list(self.each_of)} if self.each_of else {}
        return {key: _replaced(value, topic) for key, value in (self.fault | nodes).items()}

    def fault_spec(self) -> TaskSpec:
        """Return the fault, decoded and checked, on a topic such as it will have; SpecError names the field."""
        require(bool(self.fault), "is missing", "$.fault", 'give a spec, such as {"class": "kafka-kill-leader", ...}')
        try:
            nested = "class" in self.fault and registry().lookup(self.fault["class"]).is_experiment
            require(not nested, "is an experiment itself", "$.class", "name a fault")
            spec = registry().decode(self.fault_on(f"{self.stream.topic_prefix}0"))
        except SpecError as error:
            raise SpecError(error.message, path=f"$.fault{error.path[1:]}", remedy=error.remedy) from None
        except RecursionError:
            raise SpecError("is nested too deeply", path="$.fault", remedy="make it flatter") from None
        uses = STREAM in repr(self.fault) or any(STREAM in probe.topic for probe in self.probes)
        require(not (uses and self.stream.off), f"{STREAM} stands for no topic", "$.stream.off", "name a topic")
        return spec

    def evidence_wanted(self) -> tuple[Evidence, ...]:
        """Return what must be seen for a fault to count as effective; (): nothing is known that would show it."""
        return self.evidence or registry().lookup(self.fault["class"]).proven_by


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        pruned = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in pruned.items() if item is not None and item not in ("", [])}
    return [_without_empty(item) for item in value] if isinstance(value, list | tuple) else value


def _replaced(value: Any, topic: str) -> Any:
    if isinstance(value, str):
        return value.replace(STREAM, topic)
    if isinstance(value, dict):
        return {key: _replaced(item, topic) for key, item in value.items()}
    return [_replaced(item, topic) for item in value] if isinstance(value, list | tuple) else value
