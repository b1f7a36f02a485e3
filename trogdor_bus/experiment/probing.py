"""How a probe of type kafka looks at the cluster: are the partitions whole, does a group keep up."""

from __future__ import annotations

import asyncio

from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.experiment.health import lacking
from trogdor_bus.experiment.probes import KafkaLook
from trogdor_bus.experiment.watch import Watch
from trogdor_bus.faults.stream import ProbeSpec
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.lag import lag
from trogdor_bus.roles import STREAM


def kafka_look(access: Access, watch: Watch, topic: str) -> KafkaLook:
    """Return the look; `topic` is what the experiment's own topic is called."""

    async def look(probe: ProbeSpec) -> str:
        name = topic if probe.topic == STREAM else probe.topic
        try:
            if probe.group:
                behind = await asyncio.to_thread(lag, access, probe.group, name, probe.timeout_ms / 1000)
                most = probe.max_lag or 0
                return f"group {probe.group} is {behind} records behind, more than {most}" if behind > most else ""
            view = await watch.whole()
        except TrogdorBusError as error:
            return str(error)
        if name and not any(one.topic == name for one in view.partitions):
            return f"there is no topic {name}"
        topics = {name} if name else {one.topic for one in view.partitions}
        return "; ".join(lacking(view, {}, only=topics))

    return look
