"""One lab of Kafka for all tests that ask for it; each module brings its own topic."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conftest import SETTINGS, require_kafka, started
from tests.support import require_namespaces
from trogdor_bus.lab.kafka_lab import KafkaLab


@pytest.fixture(scope="session")
def made_kafka_lab() -> Iterator[KafkaLab]:
    """Three combined brokers, an agent for each and a coordinator; each test must leave it whole."""
    require_namespaces()
    require_kafka()
    with started(KafkaLab(3, f"l{os.getpid()}", print, settings=SETTINGS)) as lab:
        yield lab
