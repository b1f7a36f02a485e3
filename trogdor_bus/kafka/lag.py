"""How far a consumer group is behind."""

from __future__ import annotations

import time

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from trogdor_bus.errors import HostError
from trogdor_bus.kafka.access import Access


def lag(access: Access, group: str, topic: str, timeout_s: float) -> int:
    """Return how many records of a topic ("" for all that it reads) a group has not committed yet.

    HostError if that is not known in time, or the group has committed nothing there.
    """
    deadline_s = time.monotonic() + timeout_s
    admin = AdminClient({**access.librdkafka(), "log_level": 0})

    def left_s() -> float:
        return max(0.1, deadline_s - time.monotonic())

    try:
        asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)], request_timeout=left_s())
        told = asked[group].result(left_s()).topic_partitions or []
        committed = [one for one in told if one.topic == topic or not topic]
        if not committed:
            raise HostError(f"group {group} has committed nothing" + (f" in {topic}" if topic else ""))
        places = {TopicPartition(one.topic, one.partition): OffsetSpec.latest() for one in committed}  # type: ignore[no-untyped-call]
        ends = admin.list_offsets(places, request_timeout=left_s())
        by_place = {(place.topic, place.partition): end.result(left_s()).offset for place, end in ends.items()}
    except (KafkaException, TimeoutError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else f"no answer within {timeout_s:g} s"
        raise HostError(f"the lag of group {group} is not known: {reason}") from None
    return sum(max(0, by_place[one.topic, one.partition] - max(0, one.offset)) for one in committed)
