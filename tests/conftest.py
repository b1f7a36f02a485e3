"""One real Kafka cluster for all tests that ask for it; `make test-kafka` brings what it runs on."""

from __future__ import annotations

import concurrent.futures
import os
import signal
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient
from hypothesis import HealthCheck, settings

from tests.support import require
from trogdor_bus.errors import HostError, RefusedError
from trogdor_bus.lab.containers import Containers
from trogdor_bus.lab.kafka import DEFAULT_VERSION, KafkaCluster

PASSING = ("test-", "day-")
"""What the names of topics begin with that only one test uses."""
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


settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")  # how fast this machine is says nothing of what is tested

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the programs that tests interrupt inherit it

_made: list[KafkaCluster] = []


@pytest.fixture(scope="session")
def made_kafka_cluster() -> Iterator[KafkaCluster]:
    """Three combined brokers of the newest line, and seats for daemons that are to be cut off alone."""
    require_kafka()
    with KafkaCluster(3, f"k{os.getpid()}", print, seats=SEATS, settings=SETTINGS) as cluster:
        _made.append(cluster)
        yield cluster
        _made.clear()


@pytest.fixture(autouse=True)
def forgotten_topics(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test on the shared cluster its topics are removed: a hundred tests' would be too much for its heaps."""
    yield
    for cluster in _made if request.node.get_closest_marker("kafka") else []:
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
        if names := [name for name in admin.list_topics(timeout=30).topics if name.startswith(PASSING)]:
            concurrent.futures.wait(admin.delete_topics(names, operation_timeout=10).values(), 30)


@pytest.fixture(scope="session")
def bootstrap(made_kafka_cluster: KafkaCluster) -> str:
    """HOST:PORT,... of the cluster that all tests share, as this machine reaches it."""
    return made_kafka_cluster.bootstrap


@pytest.fixture
def kafka_cluster(made_kafka_cluster: KafkaCluster) -> Iterator[KafkaCluster]:
    """The shared cluster, for tests that break it: what they leave stopped or paused is started again."""
    yield made_kafka_cluster
    made_kafka_cluster.mend()
