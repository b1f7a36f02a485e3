"""One real Kafka cluster for all tests that ask for it; `make test-kafka` brings what it runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support import require
from trogdor_bus.errors import HostError, RefusedError
from trogdor_bus.lab.containers import Containers
from trogdor_bus.lab.kafka import DEFAULT_VERSION, KafkaCluster

SEATS = ("coordinator", "apart", "outside")
SETTINGS = {"offsets.topic.num.partitions": "1"}  # nobody commits, and each one is a burden on brokers that come back


def require_kafka(version: str = DEFAULT_VERSION) -> None:
    """Skip unless Docker answers and has an image of Kafka."""
    containers = Containers("none")
    try:
        image = containers.find_image(version, pull=False)
    except (HostError, RefusedError) as error:
        require(False, str(error), "make test-kafka")
    finally:
        containers.close()
    require(bool(image), f"there is no image of Kafka {version}", "make test-kafka, or contrib/kafka-image/build")


@pytest.fixture(scope="session")
def made_kafka_cluster() -> Iterator[KafkaCluster]:
    """Three combined brokers of the newest line, and seats for daemons that are to be cut off alone."""
    require_kafka()
    with KafkaCluster(3, f"k{os.getpid()}", print, seats=SEATS, settings=SETTINGS) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def bootstrap(made_kafka_cluster: KafkaCluster) -> str:
    """HOST:PORT,... of the cluster that all tests share, as this machine reaches it."""
    return made_kafka_cluster.bootstrap


@pytest.fixture
def kafka_cluster(made_kafka_cluster: KafkaCluster) -> Iterator[KafkaCluster]:
    """The shared cluster, for tests that break it: what they leave stopped or paused is started again."""
    yield made_kafka_cluster
    made_kafka_cluster.mend()
