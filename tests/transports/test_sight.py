"""Who the controllers are, by what brokers are configured with."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from confluent_kafka.admin import ConfigEntry

from trogdor_bus.transports.kafka.sight import ELSEWHERE, quorum_of


@pytest.mark.parametrize(
    ("brokers", "quorum"),
    [
        ({1: {"controller.quorum.voters": "1@a:9093,2@b:9093, 3@[::1]:9093", "process.roles": "broker"}}, (1, 2, 3)),
        ({1: {"controller.quorum.voters": "101@10.0.0.9:9093", "process.roles": "broker"}}, (101,)),
        (
            {
                1: {"controller.quorum.voters": "", "process.roles": "broker,controller"},
                2: {"process.roles": "broker"},
                3: {"process.roles": "controller,broker"},
            },
            (1, 3),
        ),
        ({1: {"process.roles": "broker"}, 2: {"process.roles": "broker"}}, ELSEWHERE),
        ({1: {"zookeeper.connect": "z:2181"}}, ELSEWHERE),
        ({1: {"process.roles": None}}, ELSEWHERE),
    ],
)
def test_the_quorum(brokers: Mapping[int, Mapping[str, str | None]], quorum: tuple[int, ...]) -> None:
    told = {
        broker: {name: ConfigEntry(name, value) for name, value in settings.items()}
        for broker, settings in brokers.items()
    }
    assert quorum_of(told) == quorum
