"""What a cluster of each mode consists of; no Docker is asked."""

from __future__ import annotations

import pytest

from trogdor_bus.errors import SpecError
from trogdor_bus.lab.kafka import KafkaCluster


@pytest.mark.parametrize(
    ("mode", "version", "nodes"),
    [
        ("combined", "4.4.0", ["broker1", "broker2"]),
        ("isolated", "3.9.2", ["broker1", "broker2", "controller1"]),
        ("zookeeper", "3.9.2", ["broker1", "broker2", "zookeeper1"]),
    ],
)
def test_the_nodes_are_named_after_what_they_are(mode: str, version: str, nodes: list[str]) -> None:
    assert list(KafkaCluster(2, mode=mode, version=version).nodes) == nodes


@pytest.mark.parametrize(
    ("mode", "version", "said"),
    [
        ("zookeeper", "4.4.0", r"Kafka 4\.4\.0 does not speak to ZooKeeper \(use 3\.9\.2, or another mode\)"),
        ("kraft", "4.4.0", r"a cluster cannot be 'kraft' \(it is combined, isolated or zookeeper\)"),
    ],
)
def test_what_cannot_be_is_refused(mode: str, version: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        KafkaCluster(3, mode=mode, version=version)
