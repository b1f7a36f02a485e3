"""A real container that says which broker it is, by label and by the official image's environment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.docker import IMAGE, Docker, require_docker
from tests.support import require_namespaces
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    require_namespaces()
    require_docker()
    with Docker() as running:
        yield running


@pytest.mark.parametrize(
    ("words", "broker"),
    [
        (("--label", "trogdor-bus.broker-id=3", "--env", "KAFKA_NODE_ID=4"), 3),
        (("--env", "KAFKA_NODE_ID=4", "--env", "KAFKA_PROCESS_ROLES=broker,controller"), 4),
        (("--env", "KAFKA_NODE_ID=4", "--env", "KAFKA_PROCESS_ROLES=controller"), None),
        ((), None),
    ],
)
def test_the_broker_of_a_container(
    docker: Docker, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], broker: int | None
) -> None:
    for name, value in docker.settings.items():
        monkeypatch.setenv(name, value)
    docker.run("run", "-d", "--name", "one", "--network", "none", "--stop-signal", "KILL", *words, IMAGE)
    try:
        platform = LinuxPlatform("container:one")
        assert platform.broker() is None
        platform.addresses()
        assert platform.broker() == broker
    finally:
        docker.run("rm", "-f", "one")
