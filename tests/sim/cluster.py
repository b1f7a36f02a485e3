"""The Kafka cluster under test in the simulation: every node is a broker, and whoever looks may see nothing."""

from __future__ import annotations

from random import Random

from trogdor_bus.cluster import NOBODY, ClusterView, SeenBroker, SeenPartition
from trogdor_bus.coordinator.events import Sighting

ROLES = {
    "partition": {"partitions": [["leader(t, 0)"], ["not(leader(t, 0))"]]},
    "directed-partition": {"from": ["one-of"], "to": ["not(one-of)"]},
    "port-block": {"nodes": ["majority"]},
    "java-process-stop": {"nodeNames": ["isr-follower(t, 0)"]},
}
"""By kind of spec, what may stand in place of names."""


def sighting(nodes: int, random: Random) -> Sighting:
    """Return what somebody sees of a cluster of so many brokers."""
    if random.random() < 0.2:
        return Sighting(error="no broker answers", seed=random.getrandbits(32))
    ids = tuple(range(1, nodes + 1))
    leader = random.choice((*ids, NOBODY))
    return Sighting(
        view=ClusterView(
            brokers={one: SeenBroker(id=one, host=f"kafka{one}", port=9092) for one in ids},
            partitions=(SeenPartition(topic="t", number=0, leader=leader, replicas=ids, in_sync=ids),),
            controller=1,
        ),
        hosts={f"kafka{one}": (f"10.0.0.{one}",) for one in ids},
        seed=random.getrandbits(32),
    )
