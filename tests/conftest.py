"""One real Kafka cluster for all tests that ask for it; `make test-kafka` brings what it runs on."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from confluent_kafka.admin import AdminClient
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests import part
from tests.support import require
from trogdor_bus.errors import HostError, RefusedError
from trogdor_bus.lab.containers import Containers
from trogdor_bus.lab.kafka import DEFAULT_VERSION, KafkaCluster
from trogdor_bus.lab.kafka_lab import KafkaLab

Made = TypeVar("Made", KafkaCluster, KafkaLab)

CLUSTERS = {
    "bus": ("contract/test_bus.py", "contract/test_log.py", "transports/test_kafka_days.py"),
    "brokers": tuple(
        f"kafka/test_{name}.py"
        for name in ("broken_kafka", "brokers_cut", "cluster", "daemons", "reader", "stream", "take_over")
    ),
    "lab": tuple(f"kafka/test_{name}.py" for name in ("experiments", "kafka_faults", "lab", "move_leader")),
}
"""Files of tests that share a cluster; every other file has its own. All on one would take as long as one by one."""
KAFKA_S = 300.0
"""How long a test on Kafka may take that says nothing else: the first one starts the cluster."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is in other parts of the long suites."""
    try:
        asked = part.asked()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    elsewhere = [item for item in items if not item.get_closest_marker("core") and not asked.has(_name(item))]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in set(elsewhere)]
    for item in items:
        if item.get_closest_marker("kafka") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(KAFKA_S))


def _name(item: pytest.Item) -> str:
    """Return the name by which a test is put into a part: its own, or its module's if all of that are together."""
    return item.nodeid.split("::")[0] if item.get_closest_marker("together") else item.nodeid


class ByCluster(LoadFileScheduling):
    """Gives the files whose tests run on one cluster to one process, which makes that cluster once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", maxsplit=1)[0]
        return next((cluster for cluster, files in CLUSTERS.items() if file.removeprefix("tests/") in files), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByCluster | None:
    """Have the tests on Kafka, which are told to run by files, run by clusters."""
    return ByCluster(config, log) if config.getoption("dist") == "loadfile" else None


PASSING = ("test-", "day-")
"""What the names of topics begin with that only one test uses."""
SEATS = ("coordinator", "apart", "outside")
SESSION_MS = 6000
"""After so long without a heartbeat a dead broker's partitions get new leaders; Kafka's own is 9 s."""
SETTINGS = {
    # Nobody commits, and each partition is a burden on brokers that come back.
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    # What a test waits for comes sooner than by Kafka's own settings: 9, 2, 30, 30 and 30 s.
    "broker.session.timeout.ms": str(SESSION_MS),
    "broker.heartbeat.interval.ms": "1000",
    "replica.lag.time.max.ms": "10000",
    "controller.socket.timeout.ms": "10000",
    "replica.socket.timeout.ms": "10000",
}
"""What the brokers of all tests are told that need nothing else."""


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


@contextlib.contextmanager
def started(made: Made) -> Iterator[Made]:
    """Give a cluster or lab that is up, and take it away after; side by side their JVMs would starve each other."""
    with Path(tempfile.gettempdir(), "tb-kafka-starts").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        made.up()
    try:
        yield made
    finally:
        made.down()


_made: list[KafkaCluster] = []


@pytest.fixture(scope="session")
def made_kafka_cluster() -> Iterator[KafkaCluster]:
    """Three combined brokers of the newest line, and seats for daemons that are to be cut off alone."""
    require_kafka()
    with started(KafkaCluster(3, f"k{os.getpid()}", print, seats=SEATS, settings=SETTINGS)) as cluster:
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
