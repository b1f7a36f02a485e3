"""Results to judge and to show: a clean one, and those that something is wrong with."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
from hypothesis import strategies as st

from trogdor_bus.experiment.result import (
    Bin,
    ErrorOutput,
    Evidence,
    FaultWindow,
    Gap,
    LeaderChange,
    Limits,
    Listed,
    Percentiles,
    PhaseLatencies,
    ProbeResult,
    Result,
    StreamFindings,
    Topic,
)
from trogdor_bus.faults.experiment import ExperimentSpec
from trogdor_bus.spec import wire

START_MS = 1_790_000_000_000
PHASES: tuple[tuple[Literal["before", "during", "after"], float], ...] = (
    ("before", 9.0),
    ("during", 9_400.0),
    ("after", 11.0),
)
LIMITS = Limits(consumer_timeout_ms=20_000, recovery_ms=60_000)


def fault(number: int, **changed: Any) -> FaultWindow:
    start_ms = START_MS + 10_000 + (number - 1) * 20_000
    return msgspec.structs.replace(
        FaultWindow(
            number=number,
            start_ms=start_ms,
            end_ms=start_ms + 5_000,
            target=f"node{number}",
            line=f"leader(stream, 0) is broker {number} (leader epoch {number + 4})",
            evidence=(
                Evidence(kind="process-stopped", held=True, text="pid 4711 ended by SIGKILL"),
                Evidence(kind="leader-moved", held=True, text=f"leader epoch {number + 4} -> {number + 5}"),
            ),
            new_leader_ms=9_250,
            recovered_ms=14_300,
        ),
        **changed,
    )


def bins(until_ms: int = 60_000, step_ms: int = 250) -> tuple[Bin, ...]:
    made = []
    for at in range(0, until_ms, step_ms):
        dead = any(begin <= at < begin + 9_000 for begin in (10_000, 30_000))
        rate = 0.0 if dead else 100.0 + 6 * math.sin(at / 900)
        burst = any(begin + 9_000 <= at < begin + 9_500 for begin in (10_000, 30_000))
        ms = -1.0 if dead else 9_400.0 if burst else 3.5 + math.sin(at / 700)
        made.append(
            Bin(
                start_ms=START_MS + at,
                end_ms=START_MS + at + step_ms,
                acked=rate * (8 if burst else 1),
                delivered=rate * (7 if burst else 1),
                produce_p99_ms=ms,
                end_to_end_p99_ms=ms if ms < 0 else ms * 1.8,
            )
        )
    return tuple(made)


def clean(**changed: Any) -> Result:
    """Return a result in which everything went well, but for what is changed."""
    spec = ExperimentSpec(name="kill the leader", fault={"class": "noop", "durationMs": 5000})
    latencies = tuple(
        PhaseLatencies(
            phase=phase,
            produce=Percentiles(count=1000, p50_ms=2.1, p99_ms=worst, p999_ms=worst * 1.2),
            end_to_end=Percentiles(count=1000, p50_ms=3.4, p99_ms=worst * 1.1, p999_ms=worst * 1.3),
        )
        for phase, worst in PHASES
    )
    return msgspec.structs.replace(
        Result(
            id="kill-the-leader-1",
            name="kill the leader",
            phase="done",
            started_ms=START_MS,
            ended_ms=START_MS + 75_000,
            spec=msgspec.json.decode(wire(spec)),
            limits=LIMITS,
            cluster_id="4L6g3nShT-eMCtK--X86sw",
            timeouts={"broker.session.timeout.ms": 9_000},
            resolution_ms=100,
            faults=(fault(1), fault(2)),
            findings=StreamFindings(sent=6_020, acked=6_000, indeterminate=20, indeterminate_found=4, read=6_004),
            gaps=(Gap(partition=0, start_ms=START_MS + 10_100, end_ms=START_MS + 19_300),),
            latencies=latencies,
            bins=bins(),
            leader_changes=(
                LeaderChange(at_ms=START_MS + 19_250, partition=0, before=1, after=2, epoch=6),
                LeaderChange(at_ms=START_MS + 39_250, partition=0, before=2, after=3, epoch=7),
            ),
            probes=(ProbeResult(name="page", type="http", mode="edge", passed=True, text="2 of 2 looks were good"),),
            topic=Topic(name="trogdor-bus-experiment-1", deleted=True),
            version="0.5.0",
        ),
        **changed,
    )


def found(result: Result, **changed: Any) -> Result:
    """Return the result with other findings."""
    assert result.findings is not None
    return msgspec.structs.replace(result, findings=msgspec.structs.replace(result.findings, **changed))


def listed(count: int) -> Listed:
    return Listed.of(range(count))


BROKEN = ErrorOutput(code="STATUS_CHECKS_ERROR", reason="orders-0 has 2 of 3 replicas in sync")

TEXTS = st.text(max_size=30)
"""Anything that a broker, a person or a program may have said, characters that steer a terminal among it."""
TIMES = st.integers(-1, 100_000).map(lambda ms: ms if ms < 0 else START_MS + ms)

evidence = st.builds(Evidence, kind=st.sampled_from(["leader-moved", "cut-off"]), held=st.booleans(), text=TEXTS)
faults = st.lists(
    st.builds(
        FaultWindow,
        number=st.integers(1, 1_000),
        start_ms=TIMES.filter(lambda ms: ms > 0),
        end_ms=TIMES,
        target=TEXTS,
        line=TEXTS,
        evidence=st.lists(evidence, max_size=2).map(tuple),
        new_leader_ms=st.integers(-1, 99_999),
        recovered_ms=st.integers(-1, 99_999),
        missed=TEXTS | st.just(""),
        error=TEXTS | st.just(""),
    ),
    max_size=3,
    unique_by=lambda one: one.number,
).map(tuple)
numbers = st.lists(st.integers(0, 10**9) | TEXTS, max_size=12).map(Listed.of) | st.just(Listed())
findings = st.none() | st.builds(
    StreamFindings,
    sent=st.integers(0, 9_999),
    acked=st.integers(0, 9_999),
    lost=numbers,
    corrupted=numbers,
    duplicated=numbers,
    reordered=numbers,
    foreign=numbers,
)
gaps = st.lists(
    st.builds(
        lambda partition, start, ms: Gap(partition=partition, start_ms=START_MS + start, end_ms=START_MS + start + ms),
        st.integers(0, 5),
        st.integers(0, 90_000),
        st.integers(0, 40_000),
    ),
    max_size=4,
).map(tuple)
probes = st.lists(
    st.builds(
        ProbeResult,
        name=TEXTS,
        type=st.sampled_from(["kafka", "http", "command", "tcp"]),
        mode=st.sampled_from(["before", "after", "edge", "continuous", "during"]),
        passed=st.none() | st.booleans(),
        text=TEXTS,
    ),
    max_size=3,
    unique_by=lambda one: one.name,
).map(tuple)
rates = st.floats(0, 1e9) | st.just(0.0)
latencies_ms = st.floats(0, 1e9) | st.just(-1.0)
slices = st.lists(st.tuples(rates, rates, latencies_ms, latencies_ms), max_size=5).map(
    lambda given: tuple(
        Bin(
            start_ms=START_MS + 500 * number,
            end_ms=START_MS + 500 * number + 500,
            acked=acked,
            delivered=delivered,
            produce_p99_ms=produce,
            end_to_end_p99_ms=end_to_end,
        )
        for number, (acked, delivered, produce, end_to_end) in enumerate(given)
    )
)
results = st.builds(
    Result,
    id=TEXTS,
    name=TEXTS,
    phase=TEXTS,
    fail_step=TEXTS | st.just("pre-check"),
    error_output=st.just(ErrorOutput()) | st.builds(ErrorOutput, code=TEXTS, reason=TEXTS),
    stopped=st.just("") | TEXTS,
    halted=st.just("") | TEXTS,
    producer_error=st.just("") | TEXTS,
    started_ms=TIMES,
    ended_ms=TIMES,
    spec=st.sampled_from([{}, {"class": "experiment", "name": "<b>"}, {"fault": {"class": "zzz"}}]),
    limits=st.builds(Limits, stream=st.booleans(), idempotent=st.booleans(), consumer_timeout_ms=st.just(20_000)),
    timeouts=st.dictionaries(TEXTS, st.integers(0, 10**6), max_size=2),
    faults=faults,
    findings=findings,
    gaps=gaps,
    bins=slices,
    leader_changes=st.lists(
        st.builds(
            LeaderChange,
            at_ms=TIMES.filter(lambda ms: ms > 0),
            partition=st.integers(-1, 3),
            before=st.integers(-1, 9),
            after=st.integers(-1, 9),
        ),
        max_size=3,
    ).map(tuple),
    probes=probes,
    topic=st.builds(Topic, name=TEXTS, deleted=st.booleans(), error=TEXTS),
    warnings=st.lists(TEXTS, max_size=2).map(tuple),
    notes=st.lists(TEXTS, max_size=2).map(tuple),
    not_used_here=st.lists(TEXTS, max_size=2).map(tuple),
)
"""Results of any kind, not judged yet."""
