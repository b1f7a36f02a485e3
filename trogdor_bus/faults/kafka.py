"""Faults that know Kafka: whom they hit is looked up in the cluster when they fire, how is the business of others."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Annotated, Any

import msgspec

from trogdor_bus.actions import Action
from trogdor_bus.actions.kafka import MoveLeader
from trogdor_bus.cluster import NOBODY
from trogdor_bus.errors import RefusedError, SpecError
from trogdor_bus.faults.network import NetworkPartitionFaultSpec, PortBlockFaultSpec
from trogdor_bus.faults.process import GraceMs, ProcessKillFaultSpec, ProcessStopFaultSpec, RestartSpec, Signal
from trogdor_bus.names import shown
from trogdor_bus.roles import Chosen, Role, Scene, Wanted, parse, resolve, wanted
from trogdor_bus.spec import FaultSpec, Port, TaskSpec, require_nodes
from trogdor_bus.topology import Topology

PartitionNumber = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
BROKER = "kafka.Kafka"
"""What stands in the command line of every broker and controller."""


class _KafkaFaultSpec(FaultSpec, frozen=True, kw_only=True):
    def needs_cluster(self, node_names: Container[str]) -> bool:
        """Return True."""
        return True

    def resolved(self, scene: Scene) -> tuple[TaskSpec, tuple[Chosen, ...]]:
        """Return the generic fault that this is now, and who was chosen."""
        raise NotImplementedError

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return nobody, as long as the cluster was not looked at."""
        return frozenset()

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Raise SpecError: nobody knows before the cluster was looked at."""
        raise SpecError("whom this hits is known only when it fires", remedy="ask a coordinator that knows the cluster")

    def _times(self) -> dict[str, Any]:
        """Return the fields that every fault has."""
        return {"start_ms": self.start_ms, "duration_ms": self.duration_ms, "on_disturbed": self.on_disturbed}


class KafkaKillLeaderFaultSpec(
    _KafkaFaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.kafka.KafkaKillLeaderFaultSpec"
):
    """Kill the broker that leads a partition when the fault fires, and start it again at the end.

    `signal`, `graceMs` and `restart` as in `process-kill`; `restart` true starts the container or the unit that the
    broker is found in, false nothing. `match` is what the broker's command line contains.
    """

    topic: str = ""
    partition: PartitionNumber = 0
    match: str = BROKER
    signal: Signal = "SIGKILL"
    grace_ms: GraceMs = 0
    restart: bool | RestartSpec = True

    aliases = ("kafka-kill-leader",)
    proven_by = ("process-stopped", "leader-moved")
    summary = "Kill the leader of a partition, and start it again at the end."
    example = {"class": "kafka-kill-leader", "durationMs": 20000, "topic": "orders", "partition": 0}

    def check(self) -> None:
        """Raise SpecError unless there is a topic, and what `process-kill` refuses."""
        self._role()
        self._killing(("somewhere",)).check()

    def cluster_wanted(self, node_names: Container[str]) -> Wanted:
        """Return the topic."""
        return wanted([self._role()])

    def resolved(self, scene: Scene) -> tuple[TaskSpec, tuple[Chosen, ...]]:
        """Return the kill of the leader."""
        chosen = resolve(self._role(), scene.view, scene.places, scene.seed)
        return self._killing(tuple(one.node for one in chosen)), chosen

    def _role(self) -> Role:
        return _leader(self.topic, self.partition)

    def _killing(self, nodes: tuple[str, ...]) -> ProcessKillFaultSpec:
        restart = (RestartSpec(found=True) if self.restart else ()) if isinstance(self.restart, bool) else self.restart
        return ProcessKillFaultSpec(
            nodes=nodes,
            match=self.match,
            signal=self.signal,
            grace_ms=self.grace_ms,
            restart=restart,
            **self._times(),
        )


class KafkaStopControllerFaultSpec(
    _KafkaFaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.kafka.KafkaStopControllerFaultSpec"
):
    """Freeze the active controller; where it is a broker as well, that is frozen, too.

    `match` is what its command line contains.
    """

    match: str = BROKER

    aliases = ("kafka-stop-controller",)
    proven_by = ("process-stopped", "controller-moved")
    summary = "Freeze the active controller."
    example = {"class": "kafka-stop-controller", "durationMs": 30000}

    def check(self) -> None:
        """Raise SpecError for a match that `process-stop` refuses."""
        self._stopping(("somewhere",)).check()

    def resolved(self, scene: Scene) -> tuple[TaskSpec, tuple[Chosen, ...]]:
        """Return the stop of the controller."""
        chosen = resolve(parse("controller"), scene.view, scene.places, scene.seed)
        return self._stopping(tuple(one.node for one in chosen)), chosen

    def _stopping(self, nodes: tuple[str, ...]) -> ProcessStopFaultSpec:
        return ProcessStopFaultSpec(nodes=nodes, match=self.match, **self._times())


class KafkaIsolateBrokerFaultSpec(
    _KafkaFaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.kafka.KafkaIsolateBrokerFaultSpec"
):
    """Cut a broker from all other nodes, both ways; clients elsewhere still reach it.

    `broker` is its id, or a role that one holds: leader(orders, 0), one-of(rack(r1)).
    """

    broker: int | str = ""

    aliases = ("kafka-isolate-broker",)
    proven_by = ("cut-off", "isr-shrank")
    summary = "Cut a broker from all other nodes, both ways."
    example = {"class": "kafka-isolate-broker", "durationMs": 30000, "broker": "leader(orders, 0)"}

    def check(self) -> None:
        """Raise SpecError unless there is a broker."""
        self._role()

    def cluster_wanted(self, node_names: Container[str]) -> Wanted:
        """Return what the role needs."""
        return wanted([self._role()])

    def resolved(self, scene: Scene) -> tuple[TaskSpec, tuple[Chosen, ...]]:
        """Return the partition; SpecError if several hold the role."""
        chosen = resolve(self._role(), scene.view, scene.places, scene.seed)
        if len(chosen) > 1:
            who = " and ".join(one.who for one in chosen)
            raise SpecError(f"is {who}", path="$.broker", remedy=f"choose one: one-of({self._role()})")
        alone = chosen[0].node
        others = tuple(name for name in scene.topology.names() if name != alone)
        return NetworkPartitionFaultSpec(partitions=((alone,), others), **self._times()), chosen

    def _role(self) -> Role:
        if self.broker == "":
            raise SpecError("is missing", path="$.broker", remedy="give its id, or a role such as leader(orders, 0)")
        text = str(self.broker)
        return parse(f"broker({text})" if text.strip().isdecimal() else text, "$.broker")


class _BrokersFaultSpec(_KafkaFaultSpec, frozen=True, kw_only=True):
    brokers: tuple[str, ...] = ("all",)

    node_fields = ("brokers",)

    def check(self) -> None:
        """Raise SpecError unless there are brokers."""
        require_nodes(self.brokers, "$.brokers")

    def _chosen(self, scene: Scene) -> tuple[tuple[str, ...], tuple[Chosen, ...]]:
        """Return the nodes of the brokers, each once, and who holds the roles among them."""
        placed, chosen = TaskSpec.resolved(self, scene)
        assert isinstance(placed, _BrokersFaultSpec)
        return placed.brokers, chosen


class KafkaCutControllersFaultSpec(
    _BrokersFaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.kafka.KafkaCutControllersFaultSpec"
):
    """Cut brokers from the quorum of controllers, both ways; they still hear each other.

    `brokers` are nodes or roles, all by default. Where ZooKeeper keeps the cluster, `zookeeper` are its nodes. A broker
    that is a controller as well can only be cut alone.
    """

    zookeeper: tuple[str, ...] = ()

    aliases = ("kafka-cut-controllers",)
    proven_by = ("cut-off",)
    summary = "Cut brokers from the controllers, or from ZooKeeper."
    example = {"class": "kafka-cut-controllers", "durationMs": 30000, "brokers": ["one-of"]}

    def resolved(self, scene: Scene) -> tuple[TaskSpec, tuple[Chosen, ...]]:
        """Return the partition; SpecError if the brokers cannot be told from the controllers."""
        nodes, chosen = self._chosen(scene)
        keepers = self._keepers(scene)
        both = [name for name in nodes if name in keepers]
        others = tuple(name for name in keepers if name not in nodes)
        if (both and len(nodes) > 1) or not others:
            raise SpecError(
                f"node {both[0]} is a broker and a controller" if both else "no controller is on another node",
                path="$.brokers",
                remedy="name one broker alone, such as one-of",
            )
        return NetworkPartitionFaultSpec(partitions=(nodes, others), **self._times()), chosen

    def _keepers(self, scene: Scene) -> tuple[str, ...]:
        if scene.view.quorum is None:
            if not self.zookeeper:
                raise SpecError("is missing", path="$.zookeeper", remedy="ZooKeeper keeps this cluster: name its nodes")
            return self.zookeeper
        if self.zookeeper:
            raise SpecError("names nodes, and this cluster has no ZooKeeper", path="$.zookeeper", remedy="leave it out")
        voters = sorted(one.id for one in scene.view.quorum.voters)
        homeless = [one for one in voters if one not in scene.places.controllers]
        if homeless:
            raise SpecError(
                f"controller {homeless[0]} is on no node",
                path="$.brokers",
                remedy=f"start an agent there, or give its node `controller: {homeless[0]}` in the configuration",
            )
        return tuple(dict.fromkeys(scene.places.controllers[one] for one in voters))


class KafkaBlockClientsFaultSpec(
    _BrokersFaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.kafka.KafkaBlockClientsFaultSpec"
):
    """Drop what clients send to brokers, which go on among themselves if they have a listener of their own for that.

    `brokers` are nodes or roles, all by default. `ports` are those of the clients' listeners on these nodes, by default
    of all listeners but those of brokers and controllers. Where brokers and clients share the only one, it is that.
    """

    ports: tuple[Port, ...] = ()

    aliases = ("kafka-block-clients",)
    proven_by = ("cut-off",)
    summary = "Block the listener of brokers that clients use."
    example = {"class": "kafka-block-clients", "durationMs": 30000, "brokers": ["leader(orders, 0)"], "ports": [9094]}

    def resolved(self, scene: Scene) -> tuple[TaskSpec, tuple[Chosen, ...]]:
        """Return the block of the ports."""
        nodes, chosen = self._chosen(scene)
        ports = self.ports or tuple(sorted(_client_ports(nodes, scene)))
        if not ports:
            raise SpecError("no broker there says where it listens", path="$.ports", remedy="name the ports")
        return PortBlockFaultSpec(nodes=nodes, ports=ports, **self._times()), chosen


class KafkaMoveLeaderFaultSpec(
    _KafkaFaultSpec, frozen=True, kw_only=True, tag="trogdor_bus.faults.kafka.KafkaMoveLeaderFaultSpec"
):
    """Make another replica lead a partition, by Kafka's own means; at the end the order found is restored.

    `to` is the id of the broker that is to lead, by default (-1) the next replica in sync. An agent asks the brokers
    for it, chosen as `node` when the fault fires; `config` is a file of librdkafka properties (TLS, SASL) on its host.
    """

    topic: str = ""
    partition: PartitionNumber = 0
    to: Annotated[int, msgspec.Meta(ge=NOBODY, le=2**31 - 1)] = NOBODY
    config: str = ""
    node: str = ""

    aliases = ("kafka-move-leader",)
    proven_by = ("leader-moved",)
    summary = "Make another replica the leader of a partition, and restore the order found at the end."
    example = {"class": "kafka-move-leader", "durationMs": 20000, "topic": "orders", "partition": 0}

    def check(self) -> None:
        """Raise SpecError unless there is a topic, and `config` is an absolute path."""
        _leader(self.topic, self.partition)
        if self.config and not self.config.startswith("/"):
            raise SpecError(f"{shown(self.config)!r} is no absolute path", path="$.config", remedy="begin it with /")

    def needs_cluster(self, node_names: Container[str]) -> bool:
        """Return whether it is still open which node does it."""
        return not self.node

    def cluster_wanted(self, node_names: Container[str]) -> Wanted:
        """Return the topic."""
        return wanted([_leader(self.topic, self.partition)])

    def resolved(self, scene: Scene) -> tuple[TaskSpec, tuple[Chosen, ...]]:
        """Return the same with `to` and `node`: if possible, one whose broker neither led nor will lead."""
        chosen = resolve(_leader(self.topic, self.partition), scene.view, scene.places, scene.seed)
        seen = scene.view.partition(self.topic, self.partition)
        assert seen is not None  # it has a leader
        if not seen.successors:
            raise RefusedError(f"only its leader {seen.leader} is in sync on {seen.name}: nobody can take over")
        to = seen.successors[0] if self.to == NOBODY else self.to
        if why := seen.unfit(to):
            others = ", ".join(map(str, seen.successors))
            raise SpecError(f"broker {to} {why} on {seen.name}", path="$.to", remedy=f"choose one of {others}")
        able = scene.places.brokers.keys() & scene.view.brokers.keys()
        asking = min(able | {seen.leader}, key=lambda number: (number == seen.leader, number == to, number))
        node = scene.places.brokers[asking]
        return msgspec.structs.replace(self, to=to, node=node), chosen

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return the node that was chosen."""
        return frozenset({self.node}) if self.node else frozenset()

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Return the move; SpecError unless the cluster was looked at."""
        if not self.node:
            return super().actions(node, topology)
        if not topology.cluster:
            raise SpecError("is chosen when the fault fires", path="$.node", remedy="leave it out")
        return (
            MoveLeader(
                topic=self.topic,
                partition=self.partition,
                to=self.to,
                bootstrap=topology.cluster,
                config=self.config,
            ),
        )


def _leader(topic: str, partition: int) -> Role:
    if not topic:
        raise SpecError("is missing", path="$.topic", remedy="name the topic whose leader is meant")
    return parse(f"leader({topic}, {partition})", "$.topic")


def _client_ports(nodes: Iterable[str], scene: Scene) -> set[int]:
    """Return where the brokers of some nodes listen for clients, if they do not tell, what they advertise."""
    wanted_nodes = set(nodes)
    ids = {number for number, node in scene.places.brokers.items() if node in wanted_nodes}
    brokers = [broker for number, broker in scene.view.brokers.items() if number in ids]
    return {port for one in brokers for port in one.client_ports or (one.inside_port or one.port,) if port}
