"""What of the Kafka bus needs no broker: addresses, properties files, seals, partitions, tickets, and silence."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path

import pytest

from tests.contract.buses import free_ports
from tests.support import wait_until
from tests.transports.old_broker import OldBroker
from trogdor_bus import keys
from trogdor_bus.errors import BusError, NoCoordinatorError, NotFoundError, SpecError
from trogdor_bus.properties import RELIED_ON, Properties
from trogdor_bus.transports import transport
from trogdor_bus.transports.kafka import open_agent, open_client, open_coordinator, open_log, open_monitor, topics
from trogdor_bus.transports.kafka.access import ROLES, commands
from trogdor_bus.transports.kafka.address import Address, parse
from trogdor_bus.transports.kafka.inbox import MAX_ITEMS, Inbox
from trogdor_bus.transports.kafka.presence import Presence, decode, encode
from trogdor_bus.transports.kafka.record import Record
from trogdor_bus.transports.kafka.seal import HEADER, TOLD, Seal
from trogdor_bus.transports.kafka.settings import Clients
from trogdor_bus.transports.kafka.tickets import LIFE_S, Tickets
from trogdor_bus.transports.zmq import new_key_pair

PAGE = Path(__file__).parents[2] / "docs/how-to/kafka-as-the-bus.md"


def keyed(directory: Path) -> Path:
    keys.ensure(directory, new_key_pair)
    return directory


def sealed(seal: Seal, record: Record) -> Record:
    return record._replace(fields={str(name): bytes(text) for name, text in seal.headers(record)})


def nobody() -> str:
    """Return the address of brokers that are not there."""
    return f"127.0.0.1:{free_ports()}"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("kafka://a:9092", Address(("a:9092",))),
        ("kafka://a", Address(("a:9092",))),
        ("kafka://a:1,b:2,[::1]:3/team.x-1_y", Address(("a:1", "b:2", "[::1]:3"), "team.x-1_y")),
        (
            "kafka://a/p?config=/etc/some%20where.properties",
            Address(("a:9092",), "p", Path("/etc/some where.properties")),
        ),
    ],
)
def test_an_address_is_read_from_its_url(url: str, address: Address) -> None:
    assert parse(url) == address
    assert transport(url).open_agent is open_agent


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("kafka://", "no broker"),
        ("kafka://a,,b/p", "no broker"),
        ("kafka://a:0/p", "out of range"),
        ("kafka://a:x/p", "HOST:PORT"),
        ("kafka://me@a/p", "no broker"),
        ("kafka://a/two words", "'two words' cannot begin a topic's name"),
        ("kafka://a/p/q", "cannot begin"),
        ("kafka://a/" + "p" * 201, "cannot begin"),
        ("kafka://a/p?acks=0", "means nothing"),
        ("kafka://a/p?config=", "means nothing"),
    ],
)
def test_a_url_that_is_no_address_is_refused_with_the_form(url: str, words: str) -> None:
    with pytest.raises(BusError, match=words):
        parse(url)


def test_properties_are_lines_of_key_and_value_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("# TLS\n\n ! too\nsecurity.protocol = sasl_ssl\nsasl.password=a=b # c\n")
    assert Properties(path) == {"security.protocol": "sasl_ssl", "sasl.password": "a=b # c"}
    assert Properties() == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\nsecurity.protocol\n", "line 2: this is no key=value .*one property a line"),
        ("=x\n", "line 1: this is no key=value"),
        ("acks=1\n", "line 1: acks may not be set: trogdor-bus relies on its own value .*remove the line"),
        ("bootstrap.servers=x\n", "‹bootstrap› says where"),
        ("linger.ms=1\nlinger.ms=2\n", "line 2: linger.ms is set in line 1 already"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "client.properties"
    path.write_text(text)
    with pytest.raises(SpecError, match=f"client.properties, {words}" if "line" in words else words):
        Properties(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "# x\nsecurity.protocoll=ssl\n",
            'line 2: No such configuration property: "security.protocoll" .*CONFIGURATION.md',
        ),
        ("security.protocol=tls\n", 'line 1: Invalid value "tls" for configuration property "security.protocol"'),
        ("sasl.jaas.config=x\n", "line 1: .*use sasl.username and sasl.password"),
        ("ssl.ca.location=/no/such/file\nsecurity.protocol=ssl\n", "line 1: .*ssl.ca.location failed"),
    ],
)
def test_a_property_that_librdkafka_refuses_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "client.properties"
    path.write_text(text)
    for make in (open_coordinator, open_client, open_monitor, open_log):
        with pytest.raises((SpecError, BusError), match=f"client.properties.*{words}"):
            make(f"kafka://{nobody()}/p?config={path}", None)


def test_a_properties_file_that_cannot_be_trusted_or_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    with pytest.raises(SpecError, match=r"cannot read .*No such file"):
        Properties(path)
    path.write_bytes(b"\xff=\n")
    with pytest.raises(SpecError, match="is no text"):
        Properties(path)
    path.write_text("linger.ms=1\n")
    path.chmod(0o666)
    with pytest.raises(SpecError, match="chmod go-w"):
        Properties(path)


@pytest.mark.parametrize("name", sorted(RELIED_ON))
def test_what_the_bus_relies_on_is_a_property_and_may_not_be_set(tmp_path: Path, name: str) -> None:
    path = tmp_path / "client.properties"
    path.write_text(f"{name}=nonsense\n")
    with pytest.raises(SpecError, match="may not be set"):
        Properties(path)
    try:
        Clients(Address((nobody(),))).consumer(lambda error: None, **{name: "nonsense"}).close()
    except BusError as error:
        assert "No such configuration property" not in str(error)


def test_a_seal_holds_topic_key_headers_and_value(tmp_path: Path) -> None:
    seal = Seal(keyed(tmp_path / "keys"))
    record = sealed(seal, Record("p.control", b"n1", {"number": b"1", "ticket": b""}, b"frame"))
    assert seal.trouble(record) == ""
    assert Seal(tmp_path / "keys").trouble(record) == ""
    for other in (
        record._replace(topic="p.status"),
        record._replace(key=b"n10"),
        record._replace(value=b"Frame"),
        record._replace(value=None),
        record._replace(key=b"n", value=b"1frame"),
        record._replace(fields={**record.fields, "number": b"2"}),
        record._replace(fields={**record.fields, "more": b""}),
        record._replace(fields={name: text for name, text in record.fields.items() if name != "ticket"}),
        record._replace(fields={**record.fields, HEADER: b""}),
        record._replace(fields={**record.fields, HEADER: bytes(32)}),
    ):
        assert "other keys" in seal.trouble(other)
    assert "no seal" in seal.trouble(record._replace(fields={}))


def test_a_tombstone_and_an_empty_value_have_different_seals(tmp_path: Path) -> None:
    seal = Seal(keyed(tmp_path / "keys"))
    tombstone = sealed(seal, Record("p.state", b"k", {}, None))
    assert seal.trouble(tombstone) == ""
    assert "other keys" in seal.trouble(tombstone._replace(value=b""))


def test_without_keys_records_are_plain_and_sealed_ones_are_dropped(tmp_path: Path) -> None:
    plain, record = Seal(None), Record("p.control", b"n1", {}, b"frame")
    assert plain.headers(record) == []
    assert plain.trouble(record) == ""
    assert "leave out ‹insecure›" in plain.trouble(sealed(Seal(keyed(tmp_path / "keys")), record))


def test_of_records_without_seal_the_first_ten_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seal = Seal(keyed(tmp_path / "keys"))
    for _ in range(TOLD + 5):
        assert seal.trouble(Record("p.control", b"n1", {}, b"frame"))
    assert len(caplog.records) == TOLD
    assert "more will not be told" in caplog.text


def test_keys_imported_while_running_count(tmp_path: Path) -> None:
    coordinator, agent = keyed(tmp_path / "coordinator"), keyed(tmp_path / "agent")
    seal = Seal(agent)
    record = sealed(Seal(coordinator), Record("p.control", b"n1", {}, b"frame"))
    assert "import-keys" in seal.trouble(record)
    keys.import_(agent, keys.export(coordinator), force=True)
    wait_until(lambda: seal.trouble(record) == "", what="the new keys to be used")


def test_an_end_needs_the_keys_it_is_told_to_use(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="import-keys"):
        open_agent(f"kafka://{nobody()}/p", "n1", tmp_path / "none")


def test_a_node_has_one_partition() -> None:
    assert [topics.partition_of(topics.node_key(node), 8) for node in ("n1", "n2", "größe")] == [4, 6, 1]
    assert topics.partition_of(b"anything", 1) == 0


def test_the_commands_make_what_the_coordinator_makes() -> None:
    address = Address(("a:1", "b:2"), "p")
    assert topics.create_command(address, topics.REQUESTS, 1) == (
        "kafka-topics --bootstrap-server a:1,b:2 --create --topic p.requests --partitions 1 --replication-factor 1 "
        "--config cleanup.policy=delete --config max.message.bytes=8454144 --config retention.ms=600000 "
        "--config segment.ms=300000 --config min.insync.replicas=1"
    )
    assert topics.alter_command(address, topics.STATE, {"cleanup.policy": "compact"}) == (
        "kafka-configs --bootstrap-server a:1,b:2 --alter --entity-type topics --entity-name p.state "
        "--add-config cleanup.policy=compact"
    )


def test_the_page_has_the_rights_and_the_topics() -> None:
    text, address = PAGE.read_text(), Address(("broker1:9092",))
    for role in ROLES:
        for command in commands(address, role, f"User:trogdor-{role}"):
            assert command in text
    for topic in topics.ALL:
        assert topics.create_command(address, topic) in text


def test_a_request_is_let_in_once_and_only_with_a_ticket_of_this_life() -> None:
    tickets = Tickets()
    first = tickets.now(0)
    assert tickets.knows(first, 0)
    assert not tickets.knows(b"", 0)
    assert not tickets.knows(Tickets().now(0), 0)
    assert [tickets.admit(first, b"c", b"1") for _ in range(2)] == [True, False]
    assert tickets.admit(first, b"c", b"2")
    assert tickets.admit(first, b"d", b"1")


def test_a_ticket_is_good_for_two_periods_and_remembers_what_it_let_in() -> None:
    tickets = Tickets()
    first = tickets.now(0)
    assert tickets.admit(first, b"c", b"1")
    second = tickets.now(LIFE_S)
    assert second != first
    assert tickets.knows(first, LIFE_S + 1)
    assert not tickets.admit(first, b"c", b"1")
    assert tickets.now(2 * LIFE_S) not in (first, second)
    assert not tickets.knows(first, 2 * LIFE_S)
    assert tickets.knows(second, 2 * LIFE_S)
    assert not tickets.knows(second, 10 * LIFE_S)


def test_a_presence_is_what_it_was() -> None:
    presence = Presence("id", 3, 8, gone=True)
    assert decode(encode(presence)) == presence
    assert decode(b"{") is None
    assert decode(b'{"x":' + b"[" * 100_000) is None
    assert decode(b'{"id":"\xff"}') is None


def test_a_loop_that_is_too_slow_loses_the_oldest_frames() -> None:
    inbox: Inbox[int] = Inbox()
    for number in range(MAX_ITEMS + 5):
        inbox.put(number, 1)
    got: list[int] = []

    async def scenario() -> None:
        inbox.open(got.append)
        while len(got) < MAX_ITEMS:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert got == list(range(5, MAX_ITEMS + 5))
    assert inbox.dropped == 5
    inbox.put(1, 1)  # the loop is closed: nobody hears, nothing fails


def test_without_brokers_everybody_says_so_in_time_and_closes(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    where = nobody()
    url = f"kafka://{where}/p"

    async def scenario() -> None:
        agent, monitor, client = open_agent(url, "n1", None), open_monitor(url, None), open_client(url, None)
        agent.receive(lambda frame: None)
        monitor.receive(lambda topic, frame: None)
        agent.send(b"x")
        try:
            with pytest.raises(NoCoordinatorError, match=rf"no coordinator answered at .*{where}.* within 1\.5 s"):
                await client.request(b"x", 1.5)
            assert f"{where}/bootstrap: Connect to ipv4#{where} failed: Connection refused" in agent.trouble()
            assert agent.control() == ()
        finally:
            begin = time.monotonic()
            for end in (agent, monitor, client):
                end.close()
            assert time.monotonic() - begin < 4

    with caplog.at_level(logging.DEBUG, "trogdor_bus.transports.kafka.librdkafka"):
        asyncio.run(scenario())
    assert threading.active_count() == 1
    assert "Connection refused" in caplog.text
    assert capfd.readouterr().err == ""


def test_a_coordinator_without_brokers_gives_up_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trogdor_bus.transports.kafka.coordinator.OPEN_S", 1.0)
    with pytest.raises(BusError, match=r"no answer from .* within 1 s: .*refused.*‹bootstrap›"):
        open_coordinator(f"kafka://{nobody()}/p", None)
    assert threading.active_count() == 1


def test_a_broker_that_is_too_old_is_told_with_what_it_lacks() -> None:
    with (
        OldBroker() as broker,
        pytest.raises(BusError, match=r"Admin API .* not supported by broker.*the bus needs Kafka 2\.3 or newer"),
    ):
        open_coordinator(f"kafka://127.0.0.1:{broker.port}/p", None)
    assert threading.active_count() == 1


def test_a_log_without_brokers_keeps_what_it_gets_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    log = open_log(f"kafka://{nobody()}/p", None)
    try:
        log.append("meta", b"1")
        log.append("task/1", b"x")
        assert log.unwritten() == 2
        wait_until(lambda: "the state waits here" in caplog.text)
        with pytest.raises(BusError, match="no answer"):
            log.read(0.5)
    finally:
        log.close()
    assert threading.active_count() == 1


def test_a_log_says_each_trouble_once_though_brokers_take_turns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trogdor_bus.transports.kafka.statelog.make_topics", lambda *_: None)
    librdkafka = "trogdor_bus.transports.kafka.librdkafka"
    with caplog.at_level(logging.DEBUG, librdkafka):
        log = open_log(f"kafka://{nobody()},{nobody()}/p", None)
        try:
            log.append("meta", b"1")
            tried = 12  # each broker some times
            wait_until(lambda: sum("refused" in one.getMessage() for one in caplog.records) > tried, 20, "tries")
        finally:
            log.close()
    said = [one.getMessage() for one in caplog.records if one.name != librdkafka]
    assert 1 <= len(said) == len(set(said)), said
