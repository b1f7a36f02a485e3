"""What the brokers say about the topic of a stream."""

from __future__ import annotations

import time

from confluent_kafka import Consumer, KafkaException, Producer

from trogdor_bus.experiment.stream.settings import Troubles
from trogdor_bus.transports.kafka.settings import reason, words

ASK_S = 2.0
PAUSE_S = 0.1


class Topic:
    """A topic with so many partitions, asked about by a client whose complaints are heard in `troubles`.

    It is asked for its leaders before anything else: librdkafka (2.16) went on saying "unknown partition" when it was
    asked for end offsets alone, for a minute after a leader was back.
    """

    def __init__(self, client: Producer | Consumer, name: str, partitions: int, troubles: Troubles) -> None:
        self._client, self._name, self._partitions, self._troubles = client, name, partitions, troubles

    def wait_led(self, deadline_s: float) -> str:
        """Return "" when each partition has a leader, or what is missing when the monotonic clock says `deadline_s`."""
        while why := self._missing(max(0.1, min(ASK_S, deadline_s - time.monotonic()))):
            if time.monotonic() > deadline_s:
                return why
            self._client.poll(PAUSE_S)
        return ""

    def _missing(self, timeout_s: float) -> str:
        try:
            topic = self._client.list_topics(self._name, timeout_s).topics[self._name]
        except KafkaException as error:
            return f"no broker answers: {self.complaint(error)}"
        if topic.error is not None:
            return f"topic {self._name}: {words(topic.error)}"
        if len(topic.partitions) != self._partitions:
            return f"topic {self._name} has {len(topic.partitions)} partitions, not {self._partitions}"
        without = [str(number) for number, one in sorted(topic.partitions.items()) if one.leader < 0]
        return f"topic {self._name} has no leader of partition {', '.join(without)}" if without else ""

    def complaint(self, error: KafkaException) -> str:
        """Return what is wrong: librdkafka complains of more than its exception says."""
        self._client.poll(0)
        return self._troubles.last or reason(error)
