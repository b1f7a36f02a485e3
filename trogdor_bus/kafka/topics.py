"""Topics of our own on the cluster under test: made, found again by prefix, deleted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
from kafka.protocol.admin import CreateTopicsRequest, DeleteTopicsRequest

from trogdor_bus.cluster import NOBODY, ClusterView
from trogdor_bus.errors import ConflictError, HostError
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.asking import named
from trogdor_bus.kafka.brokers import AGAIN_S, BROKER_MS, TIMEOUT_S
from trogdor_bus.kafka.reader import Reader

UNKNOWN, EXISTS = 3, 36


class FoundTopic(msgspec.Struct, frozen=True, kw_only=True):
    """A topic that is there, its number of partitions and of replicas each."""

    name: str
    partitions: int
    replicas: int


class Topics:
    """Makes and deletes topics; each call waits until it shows. Several threads take turns."""

    def __init__(self, access: Access) -> None:
        self._reader = Reader(access)

    def create(
        self, name: str, partitions: int, replicas: int, settings: Mapping[str, str], timeout_s: float = TIMEOUT_S
    ) -> None:
        """Make a topic, and return when every partition has a leader and all its replicas.

        ConflictError if the name is taken; HostError with the cluster's words if it refuses, or if that takes too long.
        """
        deadline_s = time.monotonic() + timeout_s
        if self._read(name, deadline_s).partitions:
            raise ConflictError(f"there is a topic {name} already: take another name, or delete it")
        topic = CreateTopicsRequest.CreatableTopic(
            name=name,
            num_partitions=partitions,
            replication_factor=replicas,
            assignments=[],
            configs=[
                CreateTopicsRequest.CreatableTopic.CreatableTopicConfig(name=key, value=value)
                for key, value in settings.items()
            ],
        )
        make = lambda: CreateTopicsRequest(topics=[topic], timeout_ms=BROKER_MS)  # noqa: E731
        answer = self._reader.brokers.command(make, lambda answer: int(answer.topics[0].error_code), timeout_s)
        code, message = answer.topics[0].error_code, answer.topics[0].error_message
        if code not in (0, EXISTS):  # there was none: a command was carried out, and its answer lost
            raise HostError(f"the cluster does not make the topic {name}: {message or named(code)}")
        self._wait(
            name,
            lambda view: len(view.partitions) == partitions and not any(view.broken()),
            deadline_s,
            f"the topic {name} was made, but has not all leaders and replicas after {timeout_s:g} s",
        )

    def delete(self, name: str, timeout_s: float = TIMEOUT_S) -> bool:
        """Delete a topic, and return when nobody knows it any more: whether it was there. HostError if it cannot."""
        deadline_s = time.monotonic() + timeout_s
        make = lambda: DeleteTopicsRequest(  # noqa: E731
            topics=[DeleteTopicsRequest.DeleteTopicState(name=name)], timeout_ms=BROKER_MS
        )
        answer = self._reader.brokers.command(make, lambda answer: int(answer.responses[0].error_code), timeout_s)
        code = answer.responses[0].error_code
        if code not in (0, UNKNOWN):
            raise HostError(f"the cluster does not delete the topic {name}: {named(code)}")
        why = f"the topic {name} was deleted, but is still seen after {timeout_s:g} s"
        self._wait(name, lambda view: not view.partitions, deadline_s, why)
        return bool(code == 0)

    def named(self, prefix: str, timeout_s: float = 5.0) -> list[FoundTopic]:
        """Return the topics whose names begin so; HostError if no broker answers."""
        found: dict[str, list[int]] = {}
        for one in self._reader.read(timeout_s=timeout_s, quorum=False).partitions:
            if one.topic.startswith(prefix):
                found.setdefault(one.topic, []).append(len(one.replicas))
        return [FoundTopic(name=name, partitions=len(many), replicas=max(many)) for name, many in found.items()]

    def close(self) -> None:
        """Close all connections; harmless the second time."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self, name: str, deadline_s: float) -> ClusterView:
        return self._reader.read((name,), timeout_s=max(1.0, deadline_s - time.monotonic()), quorum=False)

    def _wait(self, name: str, reached: Callable[[ClusterView], bool], deadline_s: float, why: str) -> None:
        while not reached(view := self._read(name, deadline_s)):
            if time.monotonic() > deadline_s:
                lacking = ", ".join(_state(one) for one in view.broken())
                raise HostError(f"{why}: {lacking}" if lacking else why)
            time.sleep(AGAIN_S)


def _state(partition: Any) -> str:
    leader = "no leader" if partition.leader == NOBODY else f"leader {partition.leader}"
    return f"{partition.name} has {leader} and in sync {list(partition.in_sync)} of {list(partition.replicas)}"
