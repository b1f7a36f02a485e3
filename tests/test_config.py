"""Configuration: Trogdor's JSON as it is, and our YAML form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trogdor_bus import config
from trogdor_bus.errors import NotFoundError, SpecError
from trogdor_bus.topology import Node

TROGDOR = """
{
    "_comment": ["Licensed to the Apache Software Foundation"],
    "platform": "org.apache.kafka.trogdor.basic.BasicPlatform", // the default
    "nodes": {
        "node0": {
            "hostname": "localhost",
            "trogdor.agent.port": 8888,
            "trogdor.coordinator.port": 8889
        },
        "node1": {"hostname": "10.0.0.1", "tags": ["rack-a"], "log.dir": "/tmp"},
        "node2": {"trogdor.coordinator.port": 8889}
    }
}
"""
OURS = """
platform: basic
nodes:
  node1: {hostname: 10.0.0.1, tags: [rack-a]}
  node2: 10.0.0.2
  node3:
  node4: {agent: false, config: {log.dir: /tmp, port: 1}}
agent:
  lease: 5m
  ceiling: 2h
  allowCommands: [[systemctl, start, kafka]]
"""


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_trogdors_file_as_it_is(tmp_path: Path) -> None:
    found = config.load_cluster(write(tmp_path, "trogdor.conf", TROGDOR))
    assert found.platform == "basic"
    assert found.nodes == {
        "node0": Node(
            name="node0",
            hostname="localhost",
            config={"trogdor.agent.port": "8888", "trogdor.coordinator.port": "8889"},
        ),
        "node1": Node(name="node1", hostname="10.0.0.1", tags=("rack-a",), config={"log.dir": "/tmp"}),
        "node2": Node(name="node2", agent=False, config={"trogdor.coordinator.port": "8889"}),
    }


def test_our_form(tmp_path: Path) -> None:
    cluster, agent = config.load_config(write(tmp_path, "cluster.yaml", OURS))
    assert cluster.platform == "basic"
    assert cluster.nodes == {
        "node1": Node(name="node1", hostname="10.0.0.1", tags=("rack-a",)),
        "node2": Node(name="node2", hostname="10.0.0.2"),
        "node3": Node(name="node3"),
        "node4": Node(name="node4", agent=False, config={"log.dir": "/tmp", "port": "1"}),
    }
    assert agent == config.AgentSection(
        lease_ms=300_000, ceiling_ms=7_200_000, allow_commands=(("systemctl", "start", "kafka"),)
    )


def test_the_broker_of_a_node_and_of_a_host(tmp_path: Path) -> None:
    ours = "nodes: {a: {broker: 1}, b: {hostname: h, broker: 0}, c: }\nagent: {broker: 3}"
    cluster, agent = config.load_config(write(tmp_path, "cluster.yaml", ours))
    assert [node.broker for node in cluster.nodes.values()] == [1, 0, None]
    assert agent.broker == 3
    trogdors = {"platform": "basic", "nodes": {"a": {"trogdor.broker.id": "2"}, "b": {"trogdor.broker.id": 3}}}
    cluster = config.load_cluster(write(tmp_path, "trogdor.json", json.dumps(trogdors)))
    assert {name: (node.broker, node.config) for name, node in cluster.nodes.items()} == {
        "a": (2, {"trogdor.broker.id": "2"}),
        "b": (3, {"trogdor.broker.id": "3"}),
    }


def test_the_controller_of_a_node_and_of_a_host(tmp_path: Path) -> None:
    ours = "nodes: {a: {broker: 1, controller: 1}, b: {controller: 101}, c: }\nagent: {controller: 3}"
    cluster, agent = config.load_config(write(tmp_path, "cluster.yaml", ours))
    assert [node.controller for node in cluster.nodes.values()] == [1, 101, None]
    assert agent.controller == 3
    trogdors = {"platform": "basic", "nodes": {"a": {"trogdor.controller.id": "2"}}}
    assert config.load_cluster(write(tmp_path, "t.json", json.dumps(trogdors))).nodes["a"].controller == 2


def test_a_node_that_is_not_there_in_trogdors_words(tmp_path: Path) -> None:
    found = config.load_cluster(write(tmp_path, "cluster.yaml", OURS))
    assert found.require("node1").hostname == "10.0.0.1"
    with pytest.raises(NotFoundError) as raised:
        found.require("x")
    assert str(raised.value) == "No node named x found in the cluster!  Cluster nodes are: node1,node2,node3,node4"


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ({"nodes": {}}, "Expected to find a 'platform' field in the root JSON configuration object"),
        ({"platform": "basic"}, "Expected to find a 'nodes' field"),
        ({"platform": "basic", "nodes": []}, "nodes: Expected the 'nodes' field to be a JSON object."),
        ({"platform": 1, "nodes": {}}, "platform: expected a name without blanks, found 1"),
        ({"platform": "basic", "nodes": {"a": 1}}, "nodes.a: Expected the node to be a JSON object."),
        (
            {"platform": "basic", "nodes": {"a": {"tags": "x"}}},
            "nodes.a.tags: Expected the 'tags' field to be an array of strings.",
        ),
        ({"platform": "basic", "nodes": {"a\nb": {}}}, "the node name 'a\\nb' holds the control character U+000A"),
        ({"platform": "basic", "nodes": {"a": {"hostname": "a b"}}}, "nodes.a.hostname: expected a name"),
        ([], "the configuration is not an object"),
    ],
)
def test_mistakes_in_trogdors_form(tmp_path: Path, root: Any, expected: str) -> None:
    with pytest.raises(SpecError) as raised:
        config.load_cluster(write(tmp_path, "trogdor.json", json.dumps(root)))
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node: {}", "node: unknown key [in {file}] (did you mean 'nodes'?)"),
        ("nodes: {a: {hostnam: b}}", "nodes.a.hostnam: unknown key [in {file}] (did you mean 'hostname'?)"),
        (
            "nodes: {a: {zzz: b}}",
            "nodes.a.zzz: unknown key [in {file}] (the keys are hostname, tags, agent, config, broker, controller)",
        ),
        ("nodes: [a]", "nodes: expected a node per line"),
        ("nodes: {a: 3}", "nodes.a: expected an address"),
        ("nodes: {a: {agent: maybe}}", "nodes.a.agent: expected true or false"),
        ("agent: {lease: 30}", "agent.lease: the lease is 30 (write a number and ms, s, m, h or d: 30s)"),
        ("agent: {lease: 1ms}", 'agent.lease: the lease is 1ms (use at least 1s, or "off" for none)'),
        ("agent: {allowCommands: [reboot]}", "agent.allowCommands[0]: expected a list of words"),
        ("nodes: {a: {broker: x}}", "nodes.a.broker: expected the id of a broker, found 'x' [in {file}] (such as 1)"),
        ("nodes: {a: {broker: -1}}", "nodes.a.broker: expected the id of a broker, found -1"),
        ("nodes: {a: {broker: true}}", "nodes.a.broker: expected the id of a broker, found True"),
        (
            "nodes: {a: {broker: 1}, c: {broker: 2}, b: {broker: 1}}",
            "nodes.b: broker 1 is node a as well [in {file}] (give each broker one node)",
        ),
        (
            "nodes: {a: {controller: 1, broker: 1}, b: {controller: 1}}",
            "nodes.b: controller 1 is node a as well [in {file}] (give each controller one node)",
        ),
        ("nodes: {a: {controller: x}}", "nodes.a.controller: expected the id of a controller, found 'x'"),
        ("agent: {broker: 1.5}", "agent.broker: expected the id of a broker, found 1.5"),
        ("agent: {allowCommands: [[]]}", "agent.allowCommands[0]: expected a list of words"),
        ("a: [", "{file}, line 1, column 5: "),
    ],
)
def test_mistakes_in_our_form(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, "cluster.yaml", text)
    with pytest.raises(SpecError) as raised:
        config.load_cluster(path)
    assert str(raised.value).startswith(expected.replace("{file}", str(path)))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        config.load_cluster(tmp_path / "absent.yaml")


def test_durations() -> None:
    texts = ("500ms", "30s", "5m", "2h", "1d")
    assert [config.parse_duration_ms(text) for text in texts] == [500, 30_000, 300_000, 7_200_000, 86_400_000]
    assert config.parse_lease_ms("off") is None
    for wrong in ("", "s", "-1s", "1.5s", "1 s", "1s\n", "٣s", None, 30, "9" * 30 + "s"):
        with pytest.raises(SpecError, match="write a number and ms, s, m, h or d"):
            config.parse_duration_ms(wrong)
