"""What brokers tell, as our data."""

from __future__ import annotations

import pytest

from trogdor_bus.kafka.answers import listening


@pytest.mark.parametrize(
    ("listeners", "more", "found"),
    [
        ("BROKER://10.0.0.1:9092,HOST://:9094", {"inter.broker.listener.name": "BROKER"}, (9092, (9094,))),
        ("inside://[::1]:1, out://0.0.0.0:3,MORE://h:2", {"inter.broker.listener.name": "INSIDE"}, (1, (2, 3))),
        (
            "PLAINTEXT://:9092,SSL://:9093,CONTROLLER://:9094",
            {"security.inter.broker.protocol": "PLAINTEXT", "controller.listener.names": "CONTROLLER"},
            (9092, (9093,)),
        ),
        ("PLAINTEXT://:9092", {"security.inter.broker.protocol": "PLAINTEXT"}, (9092, ())),
        ("PLAINTEXT://:0,SSL://:9093", {"inter.broker.listener.name": "PLAINTEXT"}, (0, ())),
        ("PLAINTEXT://:9092", {}, (0, ())),
        ("", {"inter.broker.listener.name": "BROKER"}, (0, ())),
    ],
)
def test_where_a_broker_listens_for_others_and_for_clients(
    listeners: str, more: dict[str, str], found: tuple[int, tuple[int, ...]]
) -> None:
    assert listening({"listeners": listeners, **more}) == found
