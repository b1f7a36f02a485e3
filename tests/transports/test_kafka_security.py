"""The Kafka bus on a cluster with SASL/SCRAM and ACLs: the documented rights suffice, and less is refused and told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.conftest import require_kafka
from tests.contract.buses import Agent, Bus, Coordinator, Monitor, be_heard, be_seen, reach
from tests.support import async_wait_until, wait_until
from trogdor_bus import keys
from trogdor_bus.errors import BusError, HostError, NoCoordinatorError
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.reader import Reader
from trogdor_bus.lab.containers import Wanted
from trogdor_bus.lab.kafka import KafkaCluster
from trogdor_bus.transports.kafka import open_log, topics
from trogdor_bus.transports.kafka.access import ROLES, commands
from trogdor_bus.transports.kafka.address import Address, parse
from trogdor_bus.transports.kafka.settings import Clients
from trogdor_bus.transports.zmq import new_key_pair

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]  # each command that is pasted is a JVM
PORT = 9095
WRONG_LOGIN = "check sasl.username and sasl.password|uthentication failed"
TOOLS = {
    "kafka-acls": "org.apache.kafka.tools.AclCommand",
    "kafka-topics": "org.apache.kafka.tools.TopicCommand",
    "kafka-configs": "org.apache.kafka.tools.ConfigCommand",
}
LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
SECURITY = {
    "sasl.enabled.mechanisms": "SCRAM-SHA-256",
    "listener.name.sasl.scram-sha-256.sasl.jaas.config": LOGIN,
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
}
"""Who comes without a password, from inside, may do everything."""


class SecuredCluster(KafkaCluster):
    """A broker that asks whoever comes to a port of its own for a password, and looks what they may do."""

    def _wanted(self, number: int) -> Wanted:
        wanted = super()._wanted(number)
        environment, listener = dict(wanted.environment), f",SASL://{wanted.address}:{PORT}"
        environment["KAFKA_LISTENERS"] += listener
        environment["KAFKA_ADVERTISED_LISTENERS"] += listener
        environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"] += ",SASL:SASL_PLAINTEXT"
        return msgspec.structs.replace(wanted, environment=environment)

    @property
    def secured(self) -> str:
        return f"{self.addresses['broker1']}:{PORT}"

    def paste(self, command: str) -> str:
        """Do what a command of Kafka's does, as somebody who may do everything."""
        tool, *words = shlex.split(command.replace(self.secured, self.bootstrap_inside))
        return self.run("broker1", "/opt/kafka/bin/kafka-run-class.sh", TOOLS[tool], *words)


@pytest.fixture(scope="module")
def cluster() -> Iterator[SecuredCluster]:
    require_kafka()
    with SecuredCluster(1, f"sasl{os.getpid()}", print, settings=SECURITY) as cluster:
        yield cluster


class Members:
    """A prefix of its own, and members of each role, who have passwords and the documented rights of some roles."""

    def __init__(self, cluster: SecuredCluster, directory: Path) -> None:
        self.cluster, self.directory = cluster, directory
        self.prefix = f"acl-{secrets.token_hex(3)}"
        self.address = Address((cluster.secured,), self.prefix)
        self.keys = directory / "keys"
        keys.ensure(self.keys, new_key_pair)

    def enrol(self, *roles: str) -> None:
        """Give the principals of those roles the rights that the documentation tells."""
        for role in roles:
            for command in commands(self.address, role, f"User:{self.prefix}-{role}"):
                self.cluster.paste(command)

    def bus(self, role: str) -> Bus:
        user = f"{self.prefix}-{role}"
        admin = AdminClient({"bootstrap.servers": self.cluster.bootstrap_inside})
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        admin.alter_user_scram_credentials([UserScramCredentialUpsertion(user, scram, b"secret")])[user].result()
        path = self.directory / f"{role}.properties"
        path.write_text(
            "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=SCRAM-SHA-256\n"
            f"sasl.username={user}\nsasl.password=secret\n"
        )
        return Bus(f"kafka://{self.cluster.secured}/{self.prefix}?config={quote(str(path))}", self.keys)


@pytest.fixture
def members(cluster: SecuredCluster, tmp_path: Path) -> Members:
    return Members(cluster, tmp_path)


@pytest.mark.core
def test_with_the_documented_rights_everything_works_and_an_agent_cannot_command(members: Members) -> None:
    members.enrol(*ROLES)

    async def scenario() -> None:
        coordinator = Coordinator(members.bus("coordinator"))
        agent, monitor = Agent(members.bus("agent"), "n1"), Monitor(members.bus("client"))
        client, log = members.bus("client").client(), open_log(members.bus("coordinator").url, members.keys)
        try:
            await reach(coordinator, agent, b"do")
            await be_heard(agent, coordinator, b"done")
            await be_seen(coordinator, monitor, "view/", b"all")
            assert await client.request(b"ask", 10) == b"echo ask"
            assert agent.bus.trouble() == ""
            log.append("meta", b"1")
            await async_wait_until(lambda: log.unwritten() == 0)
            assert log.read(10) == {"meta": b"1"}
            await async_wait_until(lambda: coordinator.bus.brokers().quorum == (1,), what="the brokers to be seen")
            agent.bus._send(topics.CONTROL, b"n1", b"forged", partition=0)
            await async_wait_until(lambda: f"we may not write {members.prefix}.control" in agent.bus.trouble())
            for topic in (topics.REQUESTS, topics.REPLIES, topics.EVENTS, topics.STATE):
                assert refusal(members.bus("agent"), topic, "agent") == "TOPIC_AUTHORIZATION_FAILED"
            for topic in (topics.CONTROL, topics.STATUS, topics.REPLIES, topics.EVENTS, topics.STATE):
                assert refusal(members.bus("client"), topic, "client") == "TOPIC_AUTHORIZATION_FAILED"
            await reach(coordinator, agent, b"end")
            assert set(agent.snapshots) == {b"do", b"end"}
        finally:
            for end in (client, log, agent.bus, monitor.bus, coordinator.bus):
                end.close()

    asyncio.run(scenario())


def refusal(bus: Bus, topic: topics.Topic, role: str) -> str:
    """Return what the cluster says to a member of that role that writes where it may not."""
    said: list[str] = []
    address = parse(bus.url)
    producer = Clients(address).producer(
        lambda error: None, lambda error, message: said.append(error.name() if error is not None else "accepted")
    )
    try:
        producer.produce(address.topic(topic.name), b"forged", b"n1")
        producer.flush(10)
    except KafkaException as error:
        said.append(error.args[0].name())
    return said[0]


def test_without_the_right_to_make_topics_the_coordinator_prints_what_to_paste_and_the_agent_waits(
    members: Members,
) -> None:
    members.enrol("agent", "client")
    members.cluster.paste(
        f"kafka-acls --bootstrap-server {members.cluster.secured} --add --allow-principal "
        f"User:{members.prefix}-coordinator --operation Read --operation Write --operation DescribeConfigs "
        f"--topic {members.prefix}. --resource-pattern-type prefixed"
    )

    async def scenario() -> None:
        agent, client = Agent(members.bus("agent"), "n1"), members.bus("client").client()
        try:
            await async_wait_until(lambda: f"no coordinator has made {members.prefix}.control" in agent.bus.trouble())
            with pytest.raises(NoCoordinatorError, match=rf"has made {members.prefix}\.replies"):
                await client.request(b"x", 2)
            with pytest.raises(BusError, match=rf"cannot make the topics {members.prefix}\.control.*Make them") as told:
                Coordinator(members.bus("coordinator"))
            pasted = str(told.value).splitlines()[1:]
            assert len(pasted) == len(topics.BUS)
            for command in pasted:
                members.cluster.paste(command)
            coordinator = Coordinator(members.bus("coordinator"))
            try:
                await reach(coordinator, agent, b"at last")
                assert await client.request(b"ask", 10) == b"echo ask"
            finally:
                coordinator.bus.close()
        finally:
            client.close()
            agent.bus.close()

    asyncio.run(scenario())


def test_a_wrong_policy_that_we_may_not_change_is_told_with_the_command(members: Members) -> None:
    members.cluster.paste(
        f"kafka-acls --bootstrap-server {members.cluster.secured} --add --allow-principal "
        f"User:{members.prefix}-coordinator --operation Read --operation Write --operation DescribeConfigs "
        f"--topic {members.prefix}. --resource-pattern-type prefixed"
    )
    for topic in topics.BUS:
        command = topics.create_command(members.address, topic, 1)
        members.cluster.paste(command.replace("cleanup.policy=compact", "cleanup.policy=delete"))
    with pytest.raises(BusError, match=r"has cleanup\.policy=delete and we may not change it") as told:
        Coordinator(members.bus("coordinator"))
    members.cluster.paste(str(told.value).splitlines()[-1])
    with pytest.raises(BusError, match=rf"{members.prefix}\.status has cleanup\.policy=delete"):
        Coordinator(members.bus("coordinator"))


def test_a_wrong_password_is_told(members: Members) -> None:
    async def scenario() -> None:
        bus = members.bus("agent")
        path = members.directory / "agent.properties"
        path.write_text(path.read_text().replace("sasl.password=secret", "sasl.password=wrong"))
        agent = Agent(bus, "n1")
        try:
            await async_wait_until(lambda: "uthentication failed" in agent.bus.trouble(), what="the trouble")
        finally:
            agent.bus.close()

    asyncio.run(scenario())


def test_the_cluster_under_test_is_seen_with_a_password_and_the_right_to(members: Members) -> None:
    members.bus("coordinator")
    path, user = members.directory / "coordinator.properties", f"User:{members.prefix}-coordinator"
    path.write_text(path.read_text().replace(f"={members.prefix}-coordinator", f"={members.prefix}-stranger"))
    with (
        Reader(Access(members.cluster.secured, path)) as reader,
        pytest.raises(HostError, match=WRONG_LOGIN),
    ):
        reader.read((), timeout_s=1.0)
    path.write_text(path.read_text().replace("-stranger", "-coordinator"))
    with Reader(Access(members.cluster.secured, path)) as reader:
        assert set(reader.read((), quorum=False).brokers) == {1}
        with pytest.raises(HostError, match="give us the right to Describe the cluster"):
            reader.read(())
        with pytest.raises(HostError, match="settings of broker 1 from us: give us the right DescribeConfigs"):
            reader.settings(1)
        members.cluster.paste(
            f"kafka-acls --bootstrap-server {members.cluster.secured} --add --allow-principal {user} "
            "--operation Describe --operation DescribeConfigs --cluster"
        )

        def is_allowed() -> bool:
            with contextlib.suppress(HostError):
                return reader.settings(1)["node.id"] == "1"
            return False

        wait_until(is_allowed)
        assert reader.read(()).controller == 1


def test_a_user_who_is_made_later_is_let_in_by_the_same_reader(members: Members) -> None:
    path = members.directory / "agent.properties"
    path.write_text(
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=SCRAM-SHA-256\n"
        f"sasl.username={members.prefix}-agent\nsasl.password=secret\n"
    )
    with Reader(Access(members.cluster.secured, path)) as reader:
        with pytest.raises(HostError, match=WRONG_LOGIN):
            reader.read((), timeout_s=1.0, quorum=False)
        members.bus("agent")
        assert set(reader.read((), timeout_s=10, quorum=False).brokers) == {1}
