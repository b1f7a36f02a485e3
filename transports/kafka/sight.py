"""What the coordinator's end sees of the cluster that carries its bus: brokers, replicas, controllers."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AdminClient,
    BrokerMetadata,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from trogdor_bus.bus import BusBroker, BusBrokers
from trogdor_bus.host import addresses_of
from trogdor_bus.transports.kafka.settings import Clients, reason

LOOK_S = 5.0
ASK_S = 2.0
ELSEWHERE = (-1,)
"""The quorum of controllers that are no brokers, of unknown ids (or of ZooKeeper)."""
MIN_IN_SYNC, VOTERS, ROLES = "min.insync.replicas", "controller.quorum.voters", "process.roles"
_VOTER = re.compile(r"(?:^|,)\s*(\d+)@")

log = logging.getLogger("trogdor_bus.transports.kafka")


class Sight:
    """Looks at the cluster each few seconds, in a thread of its own: names are resolved, brokers may be silent."""

    def __init__(self, clients: Clients, topics: Sequence[str]) -> None:
        self.seen = BusBrokers()
        """The last look that was answered; no brokers before the first."""
        self._topics = topics
        self._admin: AdminClient | None = clients.admin(lambda error: None)
        self._min_in_sync: int | None = None
        self._quorum: tuple[int, ...] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka sight", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except KafkaException as error:
                log.debug("cannot look at the brokers: %s", reason(error))
            except Exception:
                log.exception("a bug; the brokers are not looked at")
            self._stopping.wait(LOOK_S)
        self._admin = None  # ends the threads of librdkafka

    def _look(self) -> None:
        assert self._admin is not None
        replicas: dict[tuple[int, ...], None] = {}
        brokers: Mapping[int, BrokerMetadata] = {}
        for name in self._topics:  # by name: a cluster may have very many others
            answer: ClusterMetadata = self._admin.list_topics(name, timeout=ASK_S)
            brokers = answer.brokers
            for partition in answer.topics[name].partitions.values():
                replicas[tuple(sorted(partition.replicas))] = None
        if self._min_in_sync is None:
            self._min_in_sync = self._read_min_in_sync()
        if self._quorum is None:
            self._quorum = self._read_quorum(sorted(brokers))
        default = 2 if any(len(group) >= 3 for group in replicas) else 1
        self.seen = BusBrokers(
            brokers=tuple(_broker(one) for _, one in sorted(brokers.items())),
            replicas=tuple(sorted(replicas)),
            min_in_sync=self._min_in_sync or default,
            quorum=self._quorum or (),
        )

    def _read_min_in_sync(self) -> int | None:
        """Return what the most demanding topic needs, 0 if we may not know, None to ask again."""
        found = self._settings(ConfigResource(ResourceType.TOPIC, name) for name in self._topics)
        values = [int(entries[MIN_IN_SYNC].value or 0) for entries in found or () if MIN_IN_SYNC in entries]
        return max(values, default=0) if found is not None else None

    def _read_quorum(self, brokers: Sequence[int]) -> tuple[int, ...] | None:
        """Return the ids of the controllers, () if we may not know, None to ask again."""
        found = self._settings(ConfigResource(ResourceType.BROKER, str(broker)) for broker in brokers)
        return quorum_of(dict(zip(brokers, found, strict=True))) if found else (None if found is None else ())

    def _settings(self, resources: Iterable[ConfigResource]) -> list[Mapping[str, ConfigEntry]] | None:
        """Return the settings of each, [] without the right to know them, None if not all answer."""
        assert self._admin is not None
        futures = [
            future
            for one in resources  # one request each: a request is for one broker, or for no broker in particular
            for future in self._admin.describe_configs([one], request_timeout=ASK_S).values()
        ]
        try:
            return [future.result() for future in futures]
        except KafkaException as error:
            refused = (KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED)
            return [] if error.args[0].code() in refused else None


def quorum_of(brokers: Mapping[int, Mapping[str, ConfigEntry]]) -> tuple[int, ...]:
    """Return the ids of the controllers, as brokers are configured; ELSEWHERE for those of which no id is known."""
    told = {broker: {name: entry.value or "" for name, entry in entries.items()} for broker, entries in brokers.items()}
    voters = {int(one) for settings in told.values() for one in _VOTER.findall(settings.get(VOTERS, ""))}
    if voters:
        return tuple(sorted(voters))
    return tuple(sorted(b for b, settings in told.items() if "controller" in settings.get(ROLES, ""))) or ELSEWHERE


def _broker(one: BrokerMetadata) -> BusBroker:
    host = str(one.host)
    return BusBroker(id=one.id, host=host, port=one.port, addresses=tuple(sorted(addresses_of(host))))
