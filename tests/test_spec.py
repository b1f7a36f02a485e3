"""The specs: Trogdor's bytes, Trogdor's texts, and what each fault refuses and asks for."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from trogdor_bus.actions import Peer, ProcessMatch
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.actions.process import Kill, Restart, Suspend
from trogdor_bus.cluster import ClusterView, Quorum, SeenBroker, SeenController, SeenPartition
from trogdor_bus.errors import SpecError
from trogdor_bus.registry import Registry, registry
from trogdor_bus.roles import Places, Scene
from trogdor_bus.spec import MAX_DURATION_MS, FaultSpec, TaskSpec, Texts, wire
from trogdor_bus.topology import Node, Topology

README = (
    '{"class":"org.apache.kafka.trogdor.fault.NetworkPartitionFaultSpec","startMs":1000,"durationMs":30000,'
    '"partitions":[["node1","node2"],["node3"]]}'
)
TROGDOR_BYTES = [
    README,
    '{"class":"org.apache.kafka.trogdor.fault.NetworkPartitionFaultSpec","startMs":0,"durationMs":0,"partitions":[[],["a"]]}',
    '{"class":"org.apache.kafka.trogdor.task.NoOpTaskSpec","startMs":2,"durationMs":2}',
    '{"class":"org.apache.kafka.trogdor.task.NoOpTaskSpec","startMs":-9223372036854775808,"durationMs":1000000000000000}',
    '{"class":"org.apache.kafka.trogdor.fault.ProcessStopFaultSpec","startMs":0,"durationMs":10000,"nodeNames":["b","a"],'
    '"javaProcessName":"kafka.Kafka \\"ünï\\" \\\\"}',
]


def decode(alias: str, **fields: Any) -> TaskSpec:
    return registry().decode({"class": alias, **fields})


def refusal(alias: str, **fields: Any) -> tuple[str, str]:
    with pytest.raises(SpecError) as caught:
        decode(alias, **fields)
    assert caught.value.remedy
    return caught.value.path, caught.value.message


@pytest.mark.parametrize("text", TROGDOR_BYTES)
def test_trogdors_specs_come_back_byte_for_byte(text: str) -> None:
    assert wire(registry().decode(json.loads(text))).decode() == text


def test_trogdors_defaults_are_filled_in_and_empty_values_dropped() -> None:
    partition = "org.apache.kafka.trogdor.fault.NetworkPartitionFaultSpec"
    cases: list[dict[str, Any]] = [{}, {"partitions": []}, {"partitions": None, "startMs": None}]
    for fields in cases:
        text = wire(decode(partition, **fields)).decode()
        assert text == f'{{"class":"{partition}","startMs":0,"durationMs":0}}'


class OddSpec(TaskSpec, frozen=True, kw_only=True, tag="example.Odd"):
    """One field of every kind of value, for Jackson's NON_EMPTY."""

    text: str = ""
    maybe: str | None = None
    flag: bool = False
    number: float = 0.0
    items: tuple[str, ...] = ()
    table: dict[str, str | int | None] = {}
    nested: dict[str, dict[str, str]] = {}
    free: Any = None


HEAD = '{"class":"example.Odd","startMs":0,"durationMs":0,'


@pytest.mark.parametrize(
    ("spec", "rest"),
    [
        (OddSpec(), '"flag":false,"number":0.0}'),
        (OddSpec(items=("",)), '"flag":false,"number":0.0,"items":[""]}'),
        (OddSpec(table={"a": "", "b": 0, "c": None}), '"flag":false,"number":0.0,"table":{"b":0}}'),
        (OddSpec(table={"a": ""}), '"flag":false,"number":0.0}'),
        (OddSpec(nested={"a": {}, "b": {"c": ""}}), '"flag":false,"number":0.0}'),
        (
            OddSpec(free={"list": [{}, [], None, {"x": ""}]}),
            '"flag":false,"number":0.0,"free":{"list":[{},[],null,{}]}}',
        ),
        (OddSpec(text="x", maybe="y", flag=True), '"text":"x","maybe":"y","flag":true,"number":0.0}'),
    ],
)
def test_empty_values_are_dropped_and_zero_and_false_stay(spec: OddSpec, rest: str) -> None:
    assert wire(spec).decode() == HEAD + rest


def test_durations_are_clamped_as_trogdor_does() -> None:
    assert decode("noop", durationMs=-1).duration_ms == 0
    assert decode("noop", durationMs=MAX_DURATION_MS).duration_ms == MAX_DURATION_MS
    assert decode("noop", durationMs=MAX_DURATION_MS + 1).duration_ms == MAX_DURATION_MS
    assert decode("noop", startMs=-1).start_ms == -1, "the start is not clamped here"


def test_starts_beyond_javas_long_are_refused() -> None:
    for start in (2**63, -(2**63) - 1, 10**30):
        with pytest.raises(SpecError, match=r"^startMs: expected int [<>]= "):
            decode("noop", startMs=start)


# --- each fault -------------------------------------------------------------------------------------------------------

CLUSTER = Topology(nodes={name: Node(name=name, addresses=(f"10.0.0.{n}",)) for n, name in enumerate("abcd", start=1)})


def peers(*names: str) -> tuple[Peer, ...]:
    return tuple(Peer(name, CLUSTER.nodes[name].addresses) for name in names)


def test_partition() -> None:
    spec = decode("partition", partitions=[["b"], ["a", "d"], ["c"]])
    assert spec.targets(CLUSTER) == frozenset("abcd")
    assert spec.actions("a", CLUSTER) == (BlockFrom(peers=peers("b", "c")),)
    assert spec.actions("b", CLUSTER) == (BlockFrom(peers=peers("a", "c", "d")),)
    assert spec.texts("x") == Texts(
        "creating network partition x",
        "created network partition x",
        "removing network partition x",
        "removed network partition x",
    )
    assert decode("partition", partitions=[["a", "b"]]).actions("a", CLUSTER) == ()
    for twice in ([["a"], ["a"]], [["a", "a"]]):
        assert refusal("partition", partitions=twice) == (
            "$.partitions",
            "Node a appears in more than one partition.",
        )


def test_directed_partition() -> None:
    spec = decode("directed-partition", **{"from": ["b", "a"], "to": "c"})
    assert spec.targets(CLUSTER) == frozenset("abc")
    assert spec.actions("c", CLUSTER) == (BlockFrom(peers=peers("a", "b")),)
    assert spec.actions("a", CLUSTER) == ()
    assert refusal("directed-partition", to=["a"]) == ("$.from", "names no node")
    assert refusal("directed-partition", **{"from": ["a"]}) == ("$.to", "names no node")
    assert refusal("directed-partition", **{"from": ["a", "b"], "to": ["b"]}) == ("$.to", "node b is in 'from' as well")
    assert refusal("directed-partition", **{"from": ["a", "a"], "to": ["b"]}) == ("$.from", "names node a twice")


def test_port_block() -> None:
    spec = decode("port-block", nodes=["a"], ports=[9093, 9092, 9093], protocol="udp", direction="both")
    assert spec.actions("a", CLUSTER) == (BlockPorts(ports=(9092, 9093), protocol="udp", direction="both"),)
    assert refusal("port-block", ports=[1]) == ("$.nodes", "names no node")
    assert refusal("port-block", nodes="a") == ("$.ports", "names no port")
    assert refusal("port-block", nodes="a", ports=1, protocol="icmp") == ("$.protocol", "invalid enum value 'icmp'")
    for port in (0, -1, 65536, 10**30):
        with pytest.raises(SpecError, match=r"^ports\[1\]: expected int [<>]= "):
            decode("port-block", nodes="a", ports=[1, port])


def test_trogdors_process_stop() -> None:
    spec = decode("java-process-stop", nodeNames=["a", "b"], javaProcessName="kafka.Kafka")
    assert spec.targets(CLUSTER) == frozenset("ab")
    assert spec.actions("a", CLUSTER) == (Suspend(match=ProcessMatch(java="kafka.Kafka"), required=False),)
    assert spec.texts("id") == Texts(
        "stopping kafka.Kafka", "stopped kafka.Kafka", "resuming kafka.Kafka", "resumed kafka.Kafka"
    )
    for blank in ("", " "):
        path, message = refusal("java-process-stop", nodeNames=["a"], javaProcessName=blank)
        assert (path, message) == ("$.javaProcessName", "is empty and would match every JVM")
    assert refusal("java-process-stop", javaProcessName="x") == ("$.nodeNames", "names no node")


@pytest.mark.parametrize("alias", ["process-stop", "process-kill"])
def test_process_faults_want_exactly_one_way_to_find_the_process(alias: str) -> None:
    path, message = refusal(alias, nodes=["a"])
    assert (path, message) == ("$", "exactly one of match, pidFile and port says which process; found none of them")
    _, message = refusal(alias, nodes=["a"], match="x", port=1)
    assert message.endswith("found match and port")
    assert refusal(alias, nodes=["a"], match="  ")[0] == "$.match"
    assert refusal(alias, nodes=["a"], pidFile="run/x.pid") == ("$.pidFile", "is not an absolute path")
    assert refusal(alias, match="x") == ("$.nodes", "names no node")
    assert refusal(alias, nodes=["a"], pidFile="/run/\0x") == ("$.pidFile", "holds the character U+0000")
    with pytest.raises(SpecError, match=r"^port: expected int >= 1"):
        decode(alias, nodes=["a"], port=0)


def test_process_stop_and_kill() -> None:
    assert decode("process-stop", nodes="a", port="9092").actions("a", CLUSTER) == (
        Suspend(match=ProcessMatch(port=9092), required=True),
    )
    kill = decode("process-kill", nodes="a", pidFile="/run/x", signal="SIGTERM", restart=["systemctl", "start", "x"])
    assert kill.actions("a", CLUSTER) == (
        Kill(
            match=ProcessMatch(pid_file="/run/x"),
            signal="SIGTERM",
            restart=Restart(command=("systemctl", "start", "x")),
        ),
    )
    kill = decode("process-kill", nodes="a", port=1, signal="SIGINT", graceMs=30_000)
    assert kill.actions("a", CLUSTER) == (Kill(match=ProcessMatch(port=1), signal="SIGINT", grace_ms=30_000),)
    assert refusal("process-kill", nodes="a", port=1, graceMs=1) == (
        "$.graceMs",
        "is for a signal that asks a process to end, not for SIGKILL",
    )
    with pytest.raises(SpecError, match=r"^graceMs: expected int <= 60000"):
        decode("process-kill", nodes="a", port=1, signal="SIGTERM", graceMs=60_001)
    assert refusal("process-kill", nodes="a", port=1, signal="SIGSTOP") == (
        "$.signal",
        "invalid enum value 'SIGSTOP'",
    )
    assert refusal("process-kill", nodes="a", port=1, restart=["x", "\0"])[0] == "$.restart[1]"
    assert refusal("process-kill", nodes="a", port=1, restart=["", "x"]) == ("$.restart[0]", "names no program")


@pytest.mark.parametrize(
    ("given", "action"),
    [
        (None, None),
        ([], None),
        ({"unit": "kafka"}, Restart(unit="kafka.service")),
        ({"unit": "kafka@1.service", "aliveMs": "60000"}, Restart(unit="kafka@1.service", alive_ms=60_000)),
        (
            {"container": "broker1", "unless": {"port": 9092}},
            Restart(container="broker1", unless=ProcessMatch(port=9092)),
        ),
        (
            {"command": ["run", "it"], "unless": {"pidFile": "/run/x"}},
            Restart(command=("run", "it"), unless=ProcessMatch(pid_file="/run/x")),
        ),
        ({"command": ["run"], "unless": {"match": "x"}}, Restart(command=("run",), unless=ProcessMatch(command="x"))),
        ({"found": True, "aliveMs": 60_000}, Restart(found=True, alive_ms=60_000)),
    ],
)
def test_a_restart_is_a_unit_a_container_a_command_or_what_it_was(given: object, action: Restart | None) -> None:
    spec = decode("process-kill", nodes="a", port=1, restart=given)
    assert spec.actions("a", CLUSTER) == (Kill(match=ProcessMatch(port=1), restart=action),)
    assert registry().decode(json.loads(wire(spec))) == spec


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({}, "$.restart", "exactly one of unit, container, command and found says how to start; found none of them"),
        ({"found": False}, "$.restart", "found none of them"),
        ({"found": True, "container": "x"}, "$.restart", "found container and found"),
        ({"unit": "x", "command": ["x"]}, "$.restart", "found unit and command"),
        ({"unit": "x y"}, "$.restart.unit", "is not the name of a unit"),
        ({"unit": "-x"}, "$.restart.unit", "is not the name of a unit"),
        ({"unit": "../x"}, "$.restart.unit", "is not the name of a unit"),
        ({"unit": "x\n"}, "$.restart.unit", "is not the name of a unit"),
        ({"unit": "x" * 256}, "$.restart.unit", "is not the name of a unit"),
        ({"unit": "kafka.socket"}, "$.restart.unit", "is not a service"),
        ({"container": "-f"}, "$.restart.container", "is not the name of a container"),
        ({"command": [" "]}, "$.restart.command[0]", "names no program"),
        ({"unit": "x", "unless": {}}, "$.restart.unless", "found none of them"),
        ({"unit": "x", "unless": {"port": 1, "match": "x"}}, "$.restart.unless", "found match and port"),
        ({"unit": "x", "unless": {"pidFile": "run/x"}}, "$.restart.unless.pidFile", "is not an absolute path"),
        ({"unit": "x", "unless": {"match": " "}}, "$.restart.unless.match", "is blank"),
        ({"unit": "x", "unles": {}}, "$.restart.unles", "unknown field"),
    ],
)
def test_a_restart_that_cannot_be_meant_is_refused(given: object, path: str, message: str) -> None:
    found = refusal("process-kill", nodes="a", port=1, restart=given)
    assert found[0] == path
    assert message in found[1]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"unit": "x", "aliveMs": 99}, "restart.aliveMs: expected int >= 100"),
        ({"unit": "x", "aliveMs": 60_001}, "restart.aliveMs: expected int <= 60000"),
        (7, "restart: expected "),
        ("systemctl start x", "restart: expected "),
    ],
)
def test_a_restart_of_another_type_or_size_is_refused(given: object, error: str) -> None:
    with pytest.raises(SpecError, match=f"^{error}"):
        decode("process-kill", nodes="a", port=1, restart=given)


def kafka_on(cluster: Topology) -> Scene:
    """Return a Kafka cluster whose brokers and controllers are these nodes."""
    places = dict(enumerate(cluster.names(), 1))
    view = ClusterView(
        brokers={one: SeenBroker(id=one, port=9092) for one in places},
        partitions=(SeenPartition(topic="orders", number=0, leader=1, replicas=(1, 2), in_sync=(1, 2)),),
        quorum=Quorum(leader=2, epoch=1, voters=tuple(SeenController(id=one) for one in places)),
        controller=2,
    )
    return Scene(view=view, places=Places(places, places), topology=cluster)


@pytest.mark.parametrize("cls", registry().by_tag.values(), ids=lambda cls: cls.__name__)
def test_every_spec_answers_every_question(cls: type[TaskSpec]) -> None:
    assert cls.summary.endswith(".")
    assert cls.aliases
    spec = registry().decode(cls.example)
    assert type(spec) is cls
    assert spec.longest_ms() > 0, "an example shows something that lasts"
    again = registry().decode(json.loads(wire(spec)))
    assert again == spec
    nodes = {f"node{n}": Node(name=f"node{n}", addresses=(f"10.0.0.{n}",)) for n in (1, 2, 3)}
    cluster = Topology(nodes=nodes, cluster="kafka:9092")
    if spec.needs_cluster(cluster.nodes):
        spec, chosen = spec.resolved(kafka_on(cluster))
        assert chosen
    targets = spec.targets(cluster)
    assert targets <= set(cluster.names())
    actions = [action for node in sorted(targets) for action in spec.actions(node, cluster)]
    assert bool(actions) == (issubclass(cls, FaultSpec) or "command" in cls.__struct_fields__)
    for action in actions:
        assert all(line and "\n" not in line for line in action.describe())
        assert msgspec.json.decode(msgspec.json.encode(action), type=type(action)) == action
    assert all(msgspec.structs.astuple(spec.texts("id")))


def test_a_fault_must_say_what_it_does() -> None:
    class Lazy(FaultSpec, frozen=True, kw_only=True, tag="example.Lazy"):
        pass

    spec = Registry([Lazy]).decode({"class": "example.Lazy"})
    with pytest.raises(NotImplementedError):
        spec.actions("a", CLUSTER)
    with pytest.raises(NotImplementedError):
        spec.targets(CLUSTER)
