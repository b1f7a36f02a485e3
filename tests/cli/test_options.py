"""Addresses as people write them, and which bus the options mean."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.command import run
from trogdor_bus.cli.addresses import join_address, parse_address, parse_addresses, zmq_url
from trogdor_bus.cli.reach import DEFAULT_PREFIX, Reach, Seat
from trogdor_bus.errors import NotFoundError, SpecError

BROKERS = "b1:9092,b2.example:9093,[fd00::3]:9092"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("node1", "node1", 5560),
        ("node1:7000", "node1", 7000),
        ("10.0.0.1", "10.0.0.1", 5560),
        ("::1", "::1", 5560),
        ("[::1]", "::1", 5560),
        ("[fd00::1]:7000", "fd00::1", 7000),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert parse_address(join_address(host, port)) == (host, port)
    assert zmq_url(host, port) == f"zmq://{join_address(host, port)}"


@pytest.mark.parametrize(
    "text", ["", ":", "a:", "a:0", "a:65533", "a:1x", "[::1", "[::1]7", "a:b:c", "a b", "a/b", "a@b", "a:٣"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(SpecError):
        zmq_url(*parse_address(text))
    with pytest.raises(SpecError):
        Reach(coordinator=f"10.0.0.1,{text}").url()


def test_several_addresses() -> None:
    assert parse_addresses("10.0.0.1, [::1]:7000,node1") == [("10.0.0.1", 5560), ("::1", 7000), ("node1", 5560)]
    with pytest.raises(SpecError, match="node1:5560 is given twice"):
        parse_addresses("node1,node2,node1:5560")


def test_the_urls_of_a_client() -> None:
    kafka = f"kafka://{BROKERS}/trogdor"
    assert Reach().url() == "zmq://127.0.0.1:5560"
    assert Reach(coordinator="10.0.0.1,10.0.0.2:7000").url() == "zmq://10.0.0.1:5560 zmq://10.0.0.2:7000"
    assert Reach(transport="kafka", bootstrap=BROKERS).url() == kafka
    both = Reach(transport="kafka+zmq", bootstrap=BROKERS, coordinator="10.0.0.1,::1")
    assert both.url() == f"{kafka} zmq://10.0.0.1:5560 zmq://[::1]:5560"
    assert both.where() == f"{kafka} or 10.0.0.1:5560 or [::1]:5560"
    assert Reach(transport="kafka", bootstrap="b1:9092", topic_prefix="a.b_c-1").url() == "kafka://b1:9092/a.b_c-1"


def test_the_urls_of_a_coordinator() -> None:
    assert Seat().url() == "zmq://127.0.0.1:5560"
    assert Seat(bind="[::]", port=7000).url() == "zmq://[::]:7000"
    assert Seat(transport="kafka", bootstrap="b1:9092").url() == "kafka://b1:9092/trogdor"
    both = Seat(transport="kafka+zmq", bootstrap="b1:9092", bind="10.0.0.1")
    assert both.url() == "kafka://b1:9092/trogdor zmq://10.0.0.1:5560"


def test_the_file_of_properties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a b?&%.properties"
    odd.touch()
    kafka = Reach(transport="kafka", bootstrap="b1:9092", kafka_config=odd)
    assert kafka.url() == f"kafka://b1:9092/trogdor?config={tmp_path}/a%20b%3F%26%25.properties"
    assert kafka.where() == "kafka://b1:9092/trogdor"
    monkeypatch.chdir(tmp_path)
    assert replace(kafka, kafka_config=Path(odd.name)).url() == kafka.url()
    with pytest.raises(NotFoundError, match=r"there is no file missing: check --kafka-config or TROGDOR_BUS_KAFKA_"):
        replace(kafka, kafka_config=Path("missing")).url()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"transport": "memory"}, "inside one process only"),
        ({"transport": "zmq+kafka"}, r"no transport is called 'zmq\+kafka' \(there are zmq, kafka, kafka\+zmq\)"),
        ({"transport": "kafka"}, r"where is it\? \(give --bootstrap-server HOST:PORT, or TROGDOR_BUS_BOOTSTRAP_SERVER"),
        ({"transport": "kafka+zmq"}, "--bootstrap-server"),
        ({"transport": "kafka", "bootstrap": "b1"}, r"'b1' is not the address of a broker \(write HOST:PORT"),
        ({"transport": "kafka", "bootstrap": "b1:9092,"}, "'' is not the address of a broker"),
        ({"transport": "kafka", "bootstrap": "b1:0"}, "'b1:0' is not"),
        ({"transport": "kafka", "bootstrap": "b1:9092/x"}, "is not the address of a broker"),
        ({"transport": "kafka", "bootstrap": "b1:9092", "topic_prefix": "a/b"}, "no topic begins with 'a/b'"),
        ({"transport": "kafka", "bootstrap": "b1:9092", "topic_prefix": ""}, "no topic begins with ''"),
    ],
)
def test_what_cannot_be_meant(options: dict[str, str], words: str) -> None:
    for group in (Reach, Seat):
        with pytest.raises(SpecError, match=words) as told:
            group(**options).url()  # type: ignore[arg-type]
        assert told.value.remedy


@pytest.mark.parametrize("command", [["nodes"], ["agent", "--node", "n1"], ["coordinator"]])
@pytest.mark.parametrize("option", ["--bootstrap-server", "--kafka-config", "--topic-prefix"])
def test_kafkas_options_without_kafka(command: list[str], option: str) -> None:
    ran = run(*command, option, "x:1")
    assert (ran.code, ran.out) == (2, "")
    remedy = f"add --transport kafka or --transport kafka+zmq, or drop {option}"
    assert ran.err == f"error: {option} is for Kafka, and the transport is zmq ({remedy})\n"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["nodes"], "--coordinator"),
        (["agent", "--node", "n1"], "--coordinator"),
        (["validate", '{"class": "noop"}'], "--coordinator"),
        (["coordinator"], "--bind"),
        (["coordinator"], "--port"),
    ],
)
def test_addresses_without_zeromq(command: list[str], option: str) -> None:
    ran = run(*command, "--transport", "kafka", "--bootstrap-server", "b1:9092", option, "7000")
    assert (ran.code, ran.out) == (2, "")
    remedy = f"drop {option}, or use --transport kafka+zmq"
    assert ran.err == f"error: {option} is for ZeroMQ, and the transport is kafka alone ({remedy})\n"


def test_variables_are_surroundings_and_contradict_nothing() -> None:
    surroundings = {
        "TROGDOR_BUS_COORDINATOR": "127.0.0.1:5",
        "TROGDOR_BUS_BOOTSTRAP_SERVER": "b1:9092",
        "TROGDOR_BUS_KAFKA_CONFIG": "/no/such/file",
    }
    ran = run("nodes", "--insecure", **surroundings)
    assert (ran.code, "no coordinator answered at 127.0.0.1:5 " in ran.err) == (4, True), ran
    ran = run("nodes", "--insecure", TROGDOR_BUS_TRANSPORT="kafka", **surroundings)
    assert (ran.code, ran.err.startswith("error: there is no file /no/such/file")) == (2, True), ran
    ran = run("nodes", "--insecure", "--transport", "zmq", TROGDOR_BUS_TRANSPORT="kafka", **surroundings)
    assert (ran.code, "127.0.0.1:5 " in ran.err) == (4, True), ran


def test_keys_and_insecure_exclude_each_other() -> None:
    ran = run("nodes", "--insecure", "--keys", "somewhere")
    assert (ran.code, ran.err) == (2, "error: --keys and --insecure exclude each other (drop one)\n")


def test_a_spec_is_checked_against_a_cluster_only_if_one_was_named() -> None:
    spec = '{"class": "noop", "durationMs": 1}'
    assert run("validate", spec).code == 0
    for named in ({"TROGDOR_BUS_COORDINATOR": "127.0.0.1:5"}, {"TROGDOR_BUS_TRANSPORT": "nonsense"}):
        asked = run("validate", spec, "--insecure", **named)
        assert asked.code == (4 if "TROGDOR_BUS_COORDINATOR" in named else 0), asked
    assert run("validate", spec, "--insecure", "--coordinator", "127.0.0.1:5").code == 4


def test_how_an_agent_is_started() -> None:
    agent = "trogdor-bus agent --node NAME"
    kafka = Reach(transport="kafka", bootstrap="b1:9092")
    assert Reach().agent() == f"{agent} --coordinator HOST"
    assert kafka.agent() == f"{agent} --transport kafka --bootstrap-server b1:9092"
    assert replace(kafka, transport="kafka+zmq").agent() == (
        f"{agent} --transport kafka+zmq --bootstrap-server b1:9092 --coordinator HOST"
    )


def test_the_advice_for_each_transport(tmp_path: Path) -> None:
    config = tmp_path / "client.properties"
    kafka = Reach(transport="kafka", bootstrap="b1:9092", kafka_config=config, topic_prefix="chaos", keys=tmp_path)
    config.touch()
    assert kafka.advice().splitlines()[1:] == [
        "  is one running there?   trogdor-bus coordinator --transport kafka --bootstrap-server b1:9092 "
        f"--kafka-config {config} --topic-prefix chaos",
        "  is it another address?  --bootstrap-server HOST:PORT or TROGDOR_BUS_BOOTSTRAP_SERVER "
        "(now kafka://b1:9092/chaos)",
        f"  are the keys right?     those in {tmp_path} must come from that coordinator (trogdor-bus keys export "
        "there, import here), or use --insecure on both sides",
    ]
    both = Reach(transport="kafka+zmq", bootstrap="b1:9092", coordinator="10.0.0.1:7000,10.0.0.2", insecure=True)
    assert both.topic_prefix == DEFAULT_PREFIX
    assert both.advice().splitlines()[1:3] == [
        "  is one running there?   trogdor-bus coordinator --transport kafka+zmq --bootstrap-server b1:9092 --port "
        "7000 --bind 10.0.0.1 --insecure   (on that host)",
        "  is it another address?  --coordinator HOST:PORT or TROGDOR_BUS_COORDINATOR, --bootstrap-server HOST:PORT or "
        "TROGDOR_BUS_BOOTSTRAP_SERVER (now kafka://b1:9092/trogdor or 10.0.0.1:7000 or 10.0.0.2:5560)",
    ]


def test_the_cluster_under_test_is_the_buss_own_unless_another_is_named(tmp_path: Path) -> None:
    properties = tmp_path / "tls.properties"
    properties.touch()
    on_kafka = Seat(transport="kafka+zmq", bootstrap="b1:9092", kafka_config=properties)
    assert on_kafka.cluster("", None) == ("b1:9092", properties)
    assert on_kafka.cluster("b2:9093", None) == ("b2:9093", None)
    assert Seat().cluster("", None) == ("", None)
    assert Seat().cluster(BROKERS, properties) == (BROKERS, properties)
    with pytest.raises(SpecError, match="give --cluster HOST:PORT, too"):
        Seat().cluster("", properties)
    with pytest.raises(SpecError, match="not the address of a broker"):
        Seat().cluster("b1", None)
    with pytest.raises(NotFoundError, match="check --cluster-config or TROGDOR_BUS_CLUSTER_CONFIG"):
        Seat().cluster("b1:9092", tmp_path / "none")


def test_more_settings_than_a_program_can_be_given_are_refused_in_words(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"agent": {"allowCommands": [["x" * 900_000]]}}))
    where = ["--coordinator", "127.0.0.1", "--insecure", "--state-dir", str(tmp_path / "state")]
    ran = run("agent", "--node", "n1", "--config", str(config), *where)
    assert ran.code == 2 and "Traceback" not in ran.err
    assert "agent.allowCommands: the agent's settings have 90" in " ".join(ran.err.split())
