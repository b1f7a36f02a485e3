"""Makes the topics, and puts right those that are wrong: what a coordinator does when it starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewTopic,
    ResourceType,
)

from trogdor_bus.errors import BusError
from trogdor_bus.transports.kafka.address import Address
from trogdor_bus.transports.kafka.settings import TELLS_NOTHING, Clients, code, reason, words
from trogdor_bus.transports.kafka.topics import (
    LARGEST,
    MAX_REPLICAS,
    POLICY,
    Topic,
    alter_command,
    create_command,
    settings,
)

ASK_S = 1.0
ANSWER_S = 5.0
AGAIN_S = 0.1
FORBIDDEN = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)
PASSING = (
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_CONTROLLER,
    KafkaError.INVALID_REPLICATION_FACTOR,  # brokers are still starting
)
TOO_OLD = (KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION)
OLDEST = "the bus needs Kafka 2.3 or newer"

log = logging.getLogger("trogdor_bus.transports.kafka")


def make_topics(clients: Clients, address: Address, topics: Sequence[Topic], timeout_s: float) -> None:
    """Make what is missing and repair what is wrong, waiting so long for brokers; BusError says what to paste."""
    making = Making(clients, address, timeout_s)
    try:
        making.make(topics)
    finally:
        making.close()


class Making:
    """One attempt, until a deadline."""

    def __init__(self, clients: Clients, address: Address, timeout_s: float) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._answer_s = min(ANSWER_S, max(ASK_S, timeout_s))
        self._lost = ""
        self._admin: AdminClient = clients.admin(self._on_error)

    def make(self, topics: Sequence[Topic]) -> None:
        """Do it."""
        replicas = min(MAX_REPLICAS, self._brokers())
        missing = [topic for topic in topics if not self._there(topic)]
        if missing:
            self._create(missing, replicas)
        for topic, found in self._described([topic for topic in topics if topic not in missing]).items():
            self._repair(topic, found)

    def close(self) -> None:
        """Let go of librdkafka's threads, which last as long as the client."""
        del self._admin

    def _on_error(self, error: KafkaError) -> None:
        if error.code() not in TELLS_NOTHING:
            self._lost = words(error)

    def _brokers(self) -> int:
        while True:
            try:
                count = len(self._admin.list_topics(timeout=ASK_S).brokers)
            except KafkaException as error:
                self._again(error)
                continue
            if count:
                return count
            self._again(None)

    def _there(self, topic: Topic) -> bool:
        name = self._address.topic(topic.name)
        while True:
            try:
                found = self._admin.list_topics(name, timeout=ASK_S).topics[name]
            except KafkaException as error:
                self._again(error)
                continue
            if found.error is None and found.partitions:
                return True
            if found.error is None or found.error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, *FORBIDDEN):
                return False
            self._again(KafkaException(found.error))

    def _create(self, topics: Sequence[Topic], replicas: int) -> None:
        """Make topics and wait until they are there."""
        refused: dict[Topic, str] = {}
        left = list(topics)
        while left:
            news = [
                NewTopic(self._address.topic(topic.name), topic.partitions, replicas, config=settings(topic, replicas))
                for topic in left
            ]
            futures = self._admin.create_topics(news, operation_timeout=self._answer_s, request_timeout=self._answer_s)
            again: list[Topic] = []
            for topic in left:
                try:
                    futures[self._address.topic(topic.name)].result()
                except KafkaException as error:
                    if code(error) in PASSING:
                        again.append(topic)
                        self._again(error)
                    elif code(error) in TOO_OLD:
                        raise BusError(f"{self._address}: {reason(error)}: {OLDEST}") from None
                    elif code(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                        refused[topic] = reason(error)
            left = again
        if refused:
            names = ", ".join(self._address.topic(topic.name) for topic in refused)
            commands = "\n".join(create_command(self._address, topic, replicas) for topic in refused)
            why = "; ".join(dict.fromkeys(refused.values()))
            raise BusError(f"{self._address}: cannot make the topics {names} ({why}). Make them with\n{commands}")
        while not all(self._there(topic) for topic in topics):
            self._again(None)

    def _described(self, topics: Sequence[Topic]) -> dict[Topic, Mapping[str, ConfigEntry]]:
        """Return the settings that topics have; without the right to know them, none."""
        resources = {ConfigResource(ResourceType.TOPIC, self._address.topic(topic.name)): topic for topic in topics}
        if not resources:
            return {}
        found: dict[Topic, Mapping[str, ConfigEntry]] = {}
        for resource, future in self._admin.describe_configs(list(resources), request_timeout=self._answer_s).items():
            try:
                found[resources[resource]] = future.result()
            except KafkaException as error:
                log.warning(
                    "%s: cannot see the settings of %s, hoping that they are right: %s",
                    self._address,
                    resource.name,
                    reason(error),
                )
        return found

    def _repair(self, topic: Topic, found: Mapping[str, ConfigEntry]) -> None:
        """Change what nobody chose, and what cannot stay as somebody chose it; what else somebody chose stays."""
        needed = {name: value for name, value in topic.settings.items() if _wrong(name, value, found)}
        wanted = {
            name: value
            for name, value in topic.settings.items()
            if name in found
            and ConfigSource(found[name].source) is not ConfigSource.DYNAMIC_TOPIC_CONFIG
            and found[name].value != value
        }
        changes = wanted | needed
        if not changes:
            return
        name = self._address.topic(topic.name)
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in changes.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        try:
            self._admin.incremental_alter_configs([resource], request_timeout=self._answer_s)[resource].result()
        except KafkaException as error:
            old = f" ({OLDEST})" if code(error) in TOO_OLD else ""
            text = (
                f"{self._address}: the topic {name} has {_listed(found, changes)} and we may not change it: "
                f"{reason(error)}{old}. Change it with\n{alter_command(self._address, topic, changes)}"
            )
            if needed:
                raise BusError(text) from None
            log.warning("%s", text)
            return
        log.info("%s: changed the topic %s, it had %s", self._address, name, _listed(found, changes))

    def _again(self, error: KafkaException | None) -> None:
        """Wait a moment, or give up if the time is over."""
        self._admin.poll(0)
        if time.monotonic() > self._deadline_s:
            why = self._lost or (reason(error) if error is not None else "the topics do not appear")
            raise BusError(
                f"no answer from {self._address} within {self._timeout_s:g} s: {why}. Is Kafka running, and is this "
                "where it listens (‹bootstrap›)?"
            )
        time.sleep(AGAIN_S)


def _wrong(name: str, value: str, found: Mapping[str, ConfigEntry]) -> bool:
    """Tell whether the bus cannot live with a setting as it is."""
    if name not in found:
        return False
    has = found[name].value or ""
    if name == POLICY:
        return set(has.split(",")) != {value}
    return name == LARGEST and int(has) < int(value)


def _listed(found: Mapping[str, ConfigEntry], changes: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={found[name].value}" for name in changes)
