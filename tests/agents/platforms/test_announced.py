"""Which broker a container says that it is, and nonsense that says nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trogdor_bus.agents.platforms.linux.announced import broker_id, controller_id


def told(labels: Any, environment: Any) -> str:
    return f"{json.dumps(labels)}\n{json.dumps(environment)}\n"


@pytest.mark.parametrize(
    ("labels", "environment", "expected"),
    [
        ({"trogdor-bus.broker-id": "3"}, ["KAFKA_NODE_ID=1"], 3),
        ({"trogdor-bus.broker-id": "none"}, ["KAFKA_NODE_ID=1"], None),
        ({"other": "3"}, ["PATH=/bin", "KAFKA_NODE_ID=1", "KAFKA_BROKER_ID=2"], 1),
        (None, ["KAFKA_BROKER_ID=2"], 2),
        (None, ["KAFKA_NODE_ID=4", "KAFKA_PROCESS_ROLES=broker,controller"], 4),
        (None, ["KAFKA_NODE_ID=4", "KAFKA_PROCESS_ROLES=controller"], None),
        ({}, ["KAFKA_NODE_ID=-1"], None),
        ({}, ["KAFKA_NODE_ID=\u0663"], None),
        ({}, ["KAFKA_NODE_ID=99999999999"], None),
        ({}, [], None),
        (None, None, None),
    ],
)
def test_label_then_environment(labels: Any, environment: Any, expected: int | None) -> None:
    assert broker_id(told(labels, environment)) == expected


@pytest.mark.parametrize(
    ("labels", "environment", "expected"),
    [
        (None, ["KAFKA_NODE_ID=4", "KAFKA_PROCESS_ROLES=broker,controller"], 4),
        ({"trogdor-bus.broker-id": "3"}, ["KAFKA_NODE_ID=4", "KAFKA_PROCESS_ROLES=controller"], 4),
        (None, ["KAFKA_NODE_ID=4", "KAFKA_PROCESS_ROLES=broker"], None),
        (None, ["KAFKA_NODE_ID=4"], None),
        (None, ["KAFKA_PROCESS_ROLES=controller"], None),
        (None, None, None),
    ],
)
def test_a_controller_by_its_roles(labels: Any, environment: Any, expected: int | None) -> None:
    assert controller_id(told(labels, environment)) == expected


json_values = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(st.text() | st.builds(told, json_values, json_values))
def test_nothing_that_an_engine_prints_is_an_error(text: str) -> None:
    assert broker_id(text) is None
    assert controller_id(text) is None
