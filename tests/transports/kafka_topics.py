"""Topics as an administrator makes, changes, fills and measures them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)


class Administrator:
    """Somebody who may do everything."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.admin = AdminClient({"bootstrap.servers": bootstrap})

    def make(self, name: str, partitions: int, settings: Mapping[str, str] | None = None) -> None:
        replicas = min(3, len(self.admin.list_topics(timeout=10).brokers))
        topic = NewTopic(name, partitions, replicas, config=dict(settings or {}))
        self.admin.create_topics([topic], operation_timeout=10)[name].result()

    def remove(self, name: str) -> None:
        self.admin.delete_topics([name], operation_timeout=10)[name].result()

    def grow(self, name: str, partitions: int) -> None:
        self.admin.create_partitions([NewPartitions(name, partitions)])[name].result()

    def change(self, name: str, settings: Mapping[str, str]) -> None:
        entries = [
            ConfigEntry(key, text, incremental_operation=AlterConfigOpType.SET) for key, text in settings.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        self.admin.incremental_alter_configs([resource])[resource].result()

    def settings(self, name: str) -> dict[str, str]:
        resource = ConfigResource(ResourceType.TOPIC, name)
        return {key: entry.value for key, entry in self.admin.describe_configs([resource])[resource].result().items()}

    def partitions(self, name: str) -> int:
        return len(self.admin.list_topics(name, timeout=10).topics[name].partitions)

    def ends(self, name: str) -> dict[TopicPartition, int]:
        """Return where each partition ends."""
        consumer = self._consumer()
        places = [TopicPartition(name, number) for number in range(self.partitions(name))]
        ends = {place: consumer.get_watermark_offsets(place, timeout=10)[1] for place in places}
        consumer.close()
        return ends

    def eat(self, name: str) -> None:
        """Delete all records, as retention does."""
        for future in self.admin.delete_records(
            [TopicPartition(place.topic, place.partition, end) for place, end in self.ends(name).items() if end]
        ).values():
            future.result()

    def records(self, name: str) -> list[Message]:
        """Return all that is in a topic."""
        consumer = self._consumer()
        unread = {place.partition: end for place, end in self.ends(name).items() if end}
        consumer.assign([TopicPartition(name, number, 0) for number in unread])
        found: list[Message] = []
        while unread:
            message = consumer.poll(10)
            assert message is not None, f"{name} does not end"
            if message.error() is None:
                found.append(message)
            elif message.error().code() == KafkaError._PARTITION_EOF:
                unread.pop(message.partition(), None)
        consumer.close()
        return found

    def fill(
        self,
        name: str,
        records: Iterable[tuple[bytes, bytes]],
        headers: list[tuple[str, bytes]] | None = None,
        partition: int = 0,
    ) -> None:
        """Append records of key and value to one partition."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "acks": "all", "linger.ms": 5})
        for key, value in records:
            producer.produce(name, value, key, partition, headers=headers)
            producer.poll(0)
        assert producer.flush(60) == 0

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "unused",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
            }
        )
