"""What brokers are asked of the cluster, and their answers as our data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kafka.protocol.admin import DescribeConfigsRequest, DescribeQuorumRequest
from kafka.protocol.metadata import FindCoordinatorRequest, MetadataRequest

from trogdor_bus.cluster import NOBODY, ClusterView, Quorum, SeenBroker, SeenController, SeenPartition
from trogdor_bus.errors import HostError, SpecError
from trogdor_bus.kafka.asking import named

TOPIC, BROKER = 2, 4
"""The types of what has settings."""
MIN_IN_SYNC = "min.insync.replicas"
LISTENERS = ["listeners", "inter.broker.listener.name", "security.inter.broker.protocol", "controller.listener.names"]
LOG_OF_CONTROLLERS = "__cluster_metadata"
UNKNOWN_TOPIC, NOT_ALLOWED_TOPIC, NOT_ALLOWED_CLUSTER = 3, 29, 31
KINDS = {"group": 0, "transaction": 1}


def metadata(topics: Iterable[str] | None) -> Any:
    """Return the question for brokers and some topics, or all; none is made by being asked for."""
    wanted = None if topics is None else [MetadataRequest.MetadataRequestTopic(name=name) for name in topics]
    return MetadataRequest(topics=wanted, allow_auto_topic_creation=False)


def seen(answer: Any) -> ClusterView:
    """Return a cluster as one broker sees it, without topics that it does not know; HostError if one is forbidden."""
    partitions = []
    for topic in answer.topics:
        if topic.error_code == NOT_ALLOWED_TOPIC:
            raise HostError(f"the cluster does not let us see the topic {topic.name}: give us the right to Describe it")
        for row in topic.partitions if topic.name else ():
            partitions.append(
                SeenPartition(
                    topic=topic.name,
                    number=row.partition_index,
                    leader=row.leader_id,
                    epoch=-1 if row.leader_epoch is None else row.leader_epoch,
                    replicas=tuple(row.replica_nodes),
                    in_sync=tuple(row.isr_nodes),
                )
            )
    brokers = {
        one.node_id: SeenBroker(id=one.node_id, host=one.host, port=one.port, rack=one.rack or "")
        for one in answer.brokers
    }
    controller = NOBODY if answer.controller_id is None else answer.controller_id
    return ClusterView(
        cluster_id=answer.cluster_id or "", brokers=brokers, partitions=tuple(partitions), controller=controller
    )


def quorum() -> Any:
    """Return the question for the quorum of controllers, which a broker passes on to the active one."""
    partition = DescribeQuorumRequest.TopicData.PartitionData(partition_index=0)
    return DescribeQuorumRequest(
        topics=[DescribeQuorumRequest.TopicData(topic_name=LOG_OF_CONTROLLERS, partitions=[partition])]
    )


def quorum_seen(answer: Any) -> Quorum | str:
    """Return the quorum, or in words why it is not told; HostError if it is forbidden."""
    if answer.error_code == NOT_ALLOWED_CLUSTER:
        raise HostError("the cluster does not let us see its controllers: give us the right to Describe the cluster")
    if answer.error_code:
        return f"it does not know the controllers: {named(answer.error_code)}"
    partition = answer.topics[0].partitions[0]
    if partition.error_code:
        return f"it does not know the controllers: {named(partition.error_code)}"
    listeners = {node.node_id: node.listeners[0] for node in answer.nodes or () if node.listeners}
    caught_up = {voter.replica_id: _known(voter.last_caught_up_timestamp) for voter in partition.current_voters}
    now_ms = caught_up.get(partition.leader_id, -1)
    voters = []
    for number, at_ms in sorted(caught_up.items()):
        behind_ms = max(0, now_ms - at_ms) if now_ms >= 0 and at_ms >= 0 else -1
        listener = listeners.get(number)
        voters.append(
            SeenController(
                id=number,
                host=listener.host if listener else "",
                port=listener.port if listener else 0,
                behind_ms=0 if number == partition.leader_id else behind_ms,
            )
        )
    return Quorum(leader=partition.leader_id, epoch=partition.leader_epoch, voters=tuple(voters))


def settings(kind: int, names: Iterable[str], keys: list[str] | None = None) -> Any:
    """Return the question for the settings, all or those named, of topics or of the broker that is asked."""
    resource = DescribeConfigsRequest.DescribeConfigsResource
    return DescribeConfigsRequest(
        resources=[resource(resource_type=kind, resource_name=name, configuration_keys=keys) for name in names]
    )


def settings_seen(answer: Any) -> Mapping[str, Mapping[str, str]]:
    """Return effective settings by name of topic or broker, without secrets and the unknown; HostError if forbidden."""
    found: dict[str, dict[str, str]] = {}
    for row in answer.results:
        if row.error_code in (NOT_ALLOWED_TOPIC, NOT_ALLOWED_CLUSTER):
            what = f"topic {row.resource_name}" if row.resource_type == TOPIC else f"broker {row.resource_name}"
            raise HostError(f"the cluster hides the settings of {what} from us: give us the right DescribeConfigs")
        if not row.error_code:
            found[row.resource_name] = {one.name: one.value for one in row.configs if one.value is not None}
    return found


def listening(settings: Mapping[str, str]) -> tuple[int, tuple[int, ...]]:
    """Return the port where a broker of these settings listens for other brokers, and those for clients only.

    They are 0 and none if the settings do not tell.
    """
    ports = {}
    for listener in settings.get("listeners", "").split(","):
        name, _, address = listener.strip().partition("://")
        port = address.rpartition(":")[2]
        if port.isdecimal() and int(port):
            ports[name.upper()] = int(port)
    between = settings.get("inter.broker.listener.name") or settings.get("security.inter.broker.protocol", "")
    controllers = [name.strip() for name in settings.get("controller.listener.names", "").split(",")]
    others = {port for name, port in ports.items() if name not in {one.upper() for one in (between, *controllers)}}
    inside = ports.get(between.upper(), 0)
    return (inside, tuple(sorted(others - {inside}))) if inside else (0, ())


def coordinator(text: str) -> Any:
    """Return the question for the coordinator of "group:NAME" or "transaction:ID"; SpecError if it is neither."""
    kind, _, name = text.partition(":")
    if kind not in KINDS or not name:
        raise SpecError(f"nothing has a coordinator {text!r}", remedy="write group:NAME or transaction:ID")
    return FindCoordinatorRequest(key=name, key_type=KINDS[kind], max_version=3)


def coordinator_seen(answer: Any) -> int:
    """Return the broker, NOBODY if there is none now; HostError if it is forbidden."""
    name = named(answer.error_code)
    if "Authorization" in name:
        raise HostError(f"the cluster does not let us look for a coordinator: {name}; give us the right to Describe it")
    return NOBODY if answer.error_code else int(answer.node_id)


def _known(timestamp: int | None) -> int:
    return -1 if timestamp is None else timestamp
