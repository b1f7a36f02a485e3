"""Configuration files, durations and addresses, as people mistype them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from tests.fuzz.judge import decoded, keeps_nothing
from tests.fuzz.mutants import mangled, mutated, scalars, written
from trogdor_bus import config
from trogdor_bus.agents.platforms.linux.namespace import parse_attachment
from trogdor_bus.cli import addresses
from trogdor_bus.errors import BusError, SpecError
from trogdor_bus.names import check_name
from trogdor_bus.transports import address

TROGDOR = {
    "_comment": ["x"],
    "platform": "org.apache.kafka.trogdor.basic.BasicPlatform",
    "nodes": {
        "node0": {"hostname": "localhost", "trogdor.agent.port": 8888, "trogdor.coordinator.port": 8889},
        "node1": {"hostname": "10.0.0.1", "tags": ["rack-a"], "log.dir": "/tmp", "list": [1, {"a": None}]},
    },
    "agent": {"lease": "30s", "ceiling": "24h", "allowCommands": [["systemctl", "start", "kafka"]]},
}
OURS = {
    "platform": "basic",
    "nodes": {
        "node1": {"hostname": "10.0.0.1", "tags": ["a"], "agent": False, "config": {"a": 1}},
        "node2": "10.0.0.2",
    },
    "agent": {"lease": "off", "ceiling": "1d", "allowCommands": [["true"]]},
}
YAML = b"""platform: basic
nodes:
  node1: {hostname: 10.0.0.1, tags: [rack-a]}
  node2: 10.0.0.2
  node3:
agent:
  lease: 10s
"""


def judge(text: bytes, path: Path) -> None:
    path.write_bytes(text)
    found = decoded(lambda: config.load_config(path))
    assert isinstance(found, SpecError) or found[0] == config.load_cluster(path)
    if not isinstance(found, SpecError):
        cluster, agent = found
        assert all(name == node.name for name, node in cluster.nodes.items())
        assert agent.lease_ms is None or agent.lease_ms >= 1000
        json.dumps(cluster.platform).encode()


@examples(250)
@given(st.data())
def test_values_that_are_nearly_right(tmp_path: Path, data: st.DataObject) -> None:
    base, name = data.draw(st.sampled_from([(TROGDOR, "c.json"), (OURS, "c.yaml"), (TROGDOR, "c.conf")]))
    judge(written(data.draw(mutated(base))), tmp_path / name)


@examples(250)
@given(st.data())
def test_bytes_that_are_nearly_right(tmp_path: Path, data: st.DataObject) -> None:
    text, name = data.draw(st.sampled_from([(json.dumps(TROGDOR).encode(), "c.json"), (YAML, "c.yaml"), (YAML, "c")]))
    judge(data.draw(mangled(text)), tmp_path / name)


LONG = "n" * 20_000


@pytest.mark.parametrize(
    "value",
    [
        {"platform": "basic", "nodes": {LONG: {}}},
        {"platform": "basic", "nodes": {"a": {LONG: 1}}},
        {"platform": LONG, "nodes": {LONG + "/": {}}},
        {"platform": LONG + " ", "nodes": {}},
        {"platform": "basic", "nodes": {}, LONG: 1},
        {"platform": "basic", "nodes": {}, "agent": {LONG: 1}},
        {"platform": "basic", "nodes": {}, "agent": {"lease": LONG}},
        {"platform": "basic", "nodes": {"a\x1b[31m\n": {}}},
        {"platform": "basic", "nodes": {"a": {"hostname": LONG + "\n"}}},
    ],
    ids=["node", "node key", "slash", "platform", "key", "agent key", "lease", "control", "hostname"],
)
def test_what_is_too_long_is_not_repeated(tmp_path: Path, value: Any) -> None:
    for name in ("c.json", "c.yaml"):
        judge(json.dumps(value).encode(), tmp_path / name)


def test_bad_configuration_keeps_no_memory(tmp_path: Path) -> None:
    for text in (b"{", b"[]", b'{"platform": "basic", "nodes": {"a": 5}}', YAML + b"x: 1\n", YAML + b"\0"):
        for name in ("c.json", "c.yaml"):
            (tmp_path / name).write_bytes(text)
            keeps_nothing(lambda: config.load_config(tmp_path / name), calls=8)  # noqa: B023


times = st.one_of(
    st.from_regex(r"\A-?[0-9]{0,20}\.?[0-9]*(ms|s|m|h|d|S|)\n?\Z"),
    st.sampled_from(
        ["off", "OFF", "٣s", "1_0s", "1e3s", "0s", "999ms", "1000ms", "9" * 5_000 + "s", "1s\n", " 1s", "1 s"]
    ),
    st.text(max_size=6),
    scalars,
)


@examples(300)
@given(times)
def test_durations_and_leases(text: object) -> None:
    duration = decoded(lambda: config.parse_duration_ms(text, "the ceiling", "$.agent.ceiling"))
    if isinstance(duration, int):
        assert duration >= 0
    else:
        assert isinstance(duration, SpecError) and duration.path == "$.agent.ceiling" and duration.remedy
    lease = decoded(lambda: config.parse_lease_ms(text, "$.agent.lease"))
    if not (lease is None or isinstance(lease, int)):
        assert isinstance(lease, SpecError) and lease.path == "$.agent.lease" and lease.remedy
    elif lease is not None:
        assert lease == duration >= 1000
    else:
        assert text == "off" or text is False


hosts = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(
        ["", "localhost", "*", "a.b", "a_b", "::1", "[::1]", "[::1", "::1]", "::ffff:1.2.3.4", "fe80::1%lo"]
    ),
    st.sampled_from(["a b", "a\nb", "\0", "a\0b", "é", "a/b", "a@b", "a#b", "a?b", "x" * 300, "[", "]", "%", "[v1.x]"]),
    st.text(max_size=8),
)
ports = st.one_of(
    st.just(""),
    st.integers(-1, 70_000).map(":{}".format),
    st.sampled_from([":", ":٣", ":0x1", ":+5", ": 5", ":5:5", ":00080", ":1e3", ":" + "9" * 500]),
)


@examples(400)
@given(hosts, ports)
def test_addresses(host: str, port: str) -> None:
    found = decoded(lambda: addresses.parse_address(host + port))
    if isinstance(found, SpecError):
        assert found.remedy
        return
    assert 1 <= found[1] <= addresses.MAX_PORT
    url = decoded(lambda: addresses.zmq_url(*found))
    if isinstance(url, str):
        host_again, port_again = address.parse(url, 5560, 4)  # what the command line lets through, the bus can read
        assert (host_again, port_again) == (found[0].lower(), found[1])
    else:
        assert isinstance(url, SpecError) and url.remedy


@examples(300)
@given(st.tuples(st.sampled_from(["zmq://", "//", "", "zmq:"]), hosts, ports, st.text(max_size=3)).map("".join))
def test_urls(url: str) -> None:
    found = decoded(lambda: address.parse(url, 5560, 4))
    if not isinstance(found, BusError):
        assert found[0] and 1 <= found[1] <= 65532
        assert address.address_and_port(*found)


@examples(200)
@given(st.one_of(hosts, scalars))
def test_names(name: object) -> None:
    if isinstance(name, str):
        found = decoded(lambda: check_name(name, "node name", "$.nodes"))
        assert found == name or (isinstance(found, SpecError) and found.path == "$.nodes" and found.remedy)


@examples(150)
@given(
    st.tuples(st.sampled_from(["netns:", "pid:", "container:", "", ":", "x:"]), hosts | st.text(max_size=5)).map(
        "".join
    )
)
def test_attachments(text: str) -> None:
    found = decoded(lambda: parse_attachment(text))
    assert not isinstance(found, SpecError) or found.remedy


NOWHERE = ["a\0b", "\0", "a\ud800", "x" * 300, "é" * 80, "..", "a..b", "256.256.256.256.invalid"]


@pytest.mark.parametrize("host", NOWHERE, ids=ascii)
def test_hosts_that_cannot_be_resolved(host: str) -> None:
    assert isinstance(decoded(lambda: address.resolve(host), limit_s=2.0), BusError)
