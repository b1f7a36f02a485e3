"""What an experiment watches with: its stream of records, and its probes."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from trogdor_bus.errors import SpecError
from trogdor_bus.names import check_name

MAX_TOPIC_CHARS = 249
"""Kafka's own limit (org.apache.kafka.common.internals.Topic)."""
RUN_CHARS = 49
"""What the run id may add to the prefix of a topic."""

Ms = Annotated[int, msgspec.Meta(ge=0, le=7 * 24 * 3_600_000)]
ShortMs = Annotated[int, msgspec.Meta(ge=10, le=3_600_000)]
Mode = Literal["before", "after", "edge", "continuous", "during"]


class StreamSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The liveness stream: a topic of its own, a producer of numbered records, an auditor that reads them.

    `rate` is in records a second over all partitions. `minInSync` left out: one less than `replicationFactor`.
    `idempotent` left out: as far as `acks` allows. The longest time without a record is held against
    `consumerTimeoutMs`. `group`: a consumer group reads too, and is reported apart.
    """

    off: bool = False
    partitions: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    replication_factor: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    min_in_sync: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    unclean: bool = False
    rate: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 100
    record_bytes: Annotated[int, msgspec.Meta(ge=100, le=900_000)] = 256
    acks: Literal["all", "1", "0"] = "all"
    idempotent: bool | None = None
    topic_prefix: str = "trogdor-bus-experiment-"
    consumer_timeout_ms: ShortMs = 60_000
    request_timeout_ms: ShortMs = 5_000
    delivery_timeout_ms: ShortMs = 30_000
    group: bool = False
    retention_ms: Ms = 24 * 3_600_000

    @property
    def is_idempotent(self) -> bool:
        """Return whether the producer is idempotent: if acks is "all" and nobody said otherwise."""
        return self.acks == "all" if self.idempotent is None else self.idempotent

    @property
    def least_in_sync(self) -> int:
        """Return min.insync.replicas of the topic: left out, one less than the replicas (at least 1)."""
        return max(1, self.replication_factor - 1) if self.min_in_sync is None else self.min_in_sync

    def check(self, path: str) -> None:
        """Raise SpecError for what cannot be meant; `path` is where the stream stands."""
        require(
            not (self.idempotent and self.acks != "all"),
            f"an idempotent producer needs acks all, not {self.acks}",
            f"{path}.idempotent",
            "leave it out, or say acks: all",
        )
        require(
            self.least_in_sync <= self.replication_factor,
            f"{self.least_in_sync} of {self.replication_factor} replicas can never be in sync",
            f"{path}.minInSync",
            "make it at most replicationFactor",
        )
        longest = MAX_TOPIC_CHARS - RUN_CHARS
        require(
            re.fullmatch(rf"(?![_-])[A-Za-z0-9._-]{{1,{longest}}}", self.topic_prefix) is not None,
            "cannot begin the name of a topic",
            f"{path}.topicPrefix",
            f"use at most {longest} of a-z A-Z 0-9 . _ and -, neither _ nor - first",
        )
        require(
            self.request_timeout_ms <= self.delivery_timeout_ms,
            f"a request may take longer ({self.request_timeout_ms} ms) than the delivery of its records",
            f"{path}.requestTimeoutMs",
            f"make it at most deliveryTimeoutMs = {self.delivery_timeout_ms} ms",
        )


class ProbeSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One thing to look at: `before` the faults, `after` them, at both ends (`edge`), `during` them, or always.

    kafka: every partition of `topic` (all topics if left out) is whole; with `group`, its lag is at most `maxLag`.
    http: `url` answers with `status` and, if given, a body that contains `contains`. command: the words of `command`
    end with 0 and, if given, print `contains`. tcp: `address` (HOST:PORT) takes a connection. One look may take
    `timeoutMs` and is repeated up to `attempts` times; `intervalMs` lies between two looks. `halt`: a `continuous` or
    `during` probe that fails ends the experiment.
    """

    name: str
    type: Literal["kafka", "http", "command", "tcp"]
    mode: Mode = "edge"
    topic: str = ""
    group: str = ""
    max_lag: Annotated[int, msgspec.Meta(ge=0)] | None = None
    url: str = ""
    status: Annotated[int, msgspec.Meta(ge=100, le=599)] = 200
    command: tuple[str, ...] = ()
    contains: str = ""
    address: str = ""
    timeout_ms: ShortMs = 5_000
    interval_ms: ShortMs = 1_000
    attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    halt: bool = False

    def check(self, path: str) -> None:
        """Raise SpecError unless exactly what its type needs is given; `path` is where the probe stands."""
        check_name(self.name, "name", f"{path}.name")
        needed = {"http": "url", "command": "command", "tcp": "address"}
        for kind, field in needed.items():
            given = bool(getattr(self, field))
            require(given or kind != self.type, "is missing", f"{path}.{field}", f"a probe of type {kind} needs it")
            require(not given or kind == self.type, f"is for type {kind}", f"{path}.{field}", "leave it out")
        for field, given in (("topic", bool(self.topic)), ("group", bool(self.group))):
            require(not given or self.type == "kafka", "is for type kafka", f"{path}.{field}", "leave it out")
        require(
            not self.url or re.fullmatch(r"https?://[^\s/]+\S*", self.url) is not None,
            "is no address of a page",
            f"{path}.url",
            "begin it with http:// or https://",
        )
        require(
            not self.address or re.fullmatch(r"\S+:\d{1,5}", self.address) is not None,
            "is not HOST:PORT",
            f"{path}.address",
            "such as broker1:9092",
        )
        require(
            not self.command or bool(self.command[0].strip()),
            "names no program",
            f"{path}.command[0]",
            "put the program first",
        )
        require(
            not self.contains or self.type in ("http", "command"),
            "is for types http and command",
            f"{path}.contains",
            "leave it out",
        )
        require(
            (self.max_lag is not None) == bool(self.group),
            "group and maxLag belong together",
            f"{path}.maxLag" if self.group else f"{path}.group",
            "give both, or neither",
        )
        require(
            not self.halt or self.mode in ("continuous", "during"),
            f"a probe of mode {self.mode} halts nothing",
            f"{path}.halt",
            "leave it out, or say mode: continuous",
        )

    def place(self) -> str:
        """Return where it connects, HOST:PORT; "" if it connects nowhere, or nobody knows where that is."""
        if self.type != "http":
            return self.address
        try:
            url = urlsplit(self.url)
            port = url.port or {"https": 443}.get(url.scheme, 80)
        except ValueError:
            return ""
        return f"[{url.hostname}]:{port}" if ":" in (url.hostname or "") else f"{url.hostname or ''}:{port}"

    def longest_ms(self) -> int:
        """Return how long (ms) the looks may take that the steps of the experiment wait for."""
        ends = {"before": 1, "after": 1, "edge": 2}.get(self.mode, 0)
        return ends * self.attempts * (self.timeout_ms + self.interval_ms)


def require(holds: bool, message: str, path: str, remedy: str) -> None:
    """Raise SpecError with these words unless it holds."""
    if not holds:
        raise SpecError(message, path=path, remedy=remedy)
