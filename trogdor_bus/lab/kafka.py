"""A real Kafka cluster in containers: fixed addresses, names that are known before it starts."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from trogdor_bus.errors import HostError, NotFoundError, SpecError
from trogdor_bus.lab.containers import BROKER_ID, Containers, Wanted
from trogdor_bus.lab.metadata import brokers_of

MODES = ("combined", "isolated", "zookeeper")
LAST_WITH_ZOOKEEPER = "3.9.2"
DEFAULT_VERSION = "4.4.0"
READY_S = 120.0
MAX_BROKERS = 9
PORT, CONTROLLER_PORT, PUBLISHED_PORT = 9092, 9093, 9094
"""Where a broker listens: for the others in its network, for controllers, and for this machine's loopback."""
ZOOKEEPER_PORT = 2181
CLIENT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
PORT_TRIES = 50
# For small machines: little memory, little work at the start and when idle.
_JVM = {"KAFKA_HEAP_OPTS": "-Xmx256m", "KAFKA_JVM_PERFORMANCE_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"}
# What both kinds of images have in it: Kafka's own start script, and the jars of ZooKeeper beside those of Kafka 3.
_BIN, _DATA = "/opt/kafka/bin", "/var/lib/kafka/data"
_ZOOKEEPER = {
    "KAFKA_OPTS": "-Dzookeeper.admin.enableServer=false -Dzookeeper.4lw.commands.whitelist=ruok,stat,dump",
    "KAFKA_LOG4J_OPTS": "-Dlog4j.configuration=file:/opt/kafka/config/log4j.properties",
}
_FIRST, _FIRST_SEAT = 10, 201
"""The last number of a node's address is its id and this; seats come last."""


class KafkaCluster:
    """N brokers; as a context manager it is up and whole inside, and gone after.

    `combined`: each of the first three brokers, or the only one, is a controller as well; `isolated`: controllers are
    nodes of their own; `zookeeper`: a node zookeeper1 instead of controllers, which only Kafka 3 can do. `settings`:
    further settings of every broker and controller, by their names in Kafka.
    `seats`: names of containers that do nothing, and are there for their network namespace.
    """

    def __init__(
        self,
        brokers: int = 3,
        name: str = "kafka",
        on_step: Callable[[str], None] = lambda step: None,
        *,
        mode: str = "combined",
        version: str = DEFAULT_VERSION,
        settings: Mapping[str, str] | None = None,
        seats: tuple[str, ...] = (),
    ) -> None:
        if not 1 <= brokers <= MAX_BROKERS:
            raise SpecError(f"a cluster cannot have {brokers} brokers", remedy=f"ask for 1 to {MAX_BROKERS}")
        if mode not in MODES:
            raise SpecError(f"a cluster cannot be {mode!r}", remedy=f"it is {', '.join(MODES[:-1])} or {MODES[-1]}")
        if mode == "zookeeper" and not version.startswith("3."):
            raise SpecError(
                f"Kafka {version} does not speak to ZooKeeper", remedy=f"use {LAST_WITH_ZOOKEEPER}, or another mode"
            )
        self.name, self.mode, self.version = name, mode, version
        self.containers = Containers(name)
        self.brokers = {number: f"broker{number}" for number in range(1, brokers + 1)}
        """The nodes of the brokers, by broker id."""
        quorum = range(1, 4 if brokers >= 3 else 2)
        self.controllers = {
            "combined": {number: self.brokers[number] for number in quorum},
            "isolated": {100 + number: f"controller{number}" for number in quorum},
            "zookeeper": {},
        }[mode]
        """The nodes of the controllers, by node id."""
        self.zookeepers = ("zookeeper1",) if mode == "zookeeper" else ()
        """The nodes of ZooKeeper."""
        self.seats = seats
        self.addresses: dict[str, str] = {}
        """The IPv4 address of every node, which stays the same over all its lives."""
        self.ports: dict[str, int] = {}
        """Where each broker is published on 127.0.0.1."""
        self._settings, self._step = dict(settings or {}), on_step

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the names of all that is Kafka or ZooKeeper, those of their containers without the lab's."""
        return tuple(dict.fromkeys([*self.brokers.values(), *self.controllers.values(), *self.zookeepers]))

    @property
    def bootstrap(self) -> str:
        """Return HOST:PORT,... by which this machine reaches the brokers."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports.values())

    @property
    def bootstrap_inside(self) -> str:
        """Return HOST:PORT,... by which those in the cluster's own network reach the brokers; so does this machine."""
        return ",".join(f"{self.addresses[node]}:{PORT}" for node in self.brokers.values())

    def container(self, node: str) -> str:
        """Return what Docker calls the container of a node or a seat; NotFoundError if there is no such node."""
        if node not in (*self.nodes, *self.seats):
            known = ", ".join((*self.nodes, *self.seats))
            raise NotFoundError(f"cluster {self.name} has no node {node!r}; it has {known}")
        return self.containers.name(node)

    # --- up and down --------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Make network and containers, all of them before any is waited for, and wait until the cluster is whole."""
        began = time.monotonic()
        try:
            self._step(f"the image is {self.find_image()}")
            self._assign(self.containers.make_network())
            for seat in self.seats:
                self.containers.start(Wanted(seat, self.addresses[seat], command=("sleep", "infinity")))
            for node in self.zookeepers:
                self.containers.start(self._wanted_zookeeper(node))
            for number in sorted({*self.controllers, *self.brokers}, reverse=True):
                self.containers.start(self._wanted(number))
            self._step(f"{len(self.nodes)} JVMs started: {', '.join(self.nodes)} ({time.monotonic() - began:.1f} s)")
            self.wait_ready()
        except BaseException:
            self.down()
            raise

    def find_image(self) -> str:
        """Return the image, which was pulled if need be; HostError if there is none, or no Docker."""
        return self.containers.find_image(self.version)

    def down(self) -> None:
        """Remove all of it; harmless if it is gone already."""
        try:
            self.containers.sweep()
        finally:
            self.containers.close()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.down()

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Return when every broker answers and knows all the others; HostError with the end of a log if not in time."""
        began = time.monotonic()
        waiting = dict(self.brokers)
        while waiting:
            for number, node in list(waiting.items()):
                if brokers_of(f"127.0.0.1:{self.ports[node]}") == set(self.brokers):
                    del waiting[number]
                    self._step(f"{node} answers and knows all brokers ({time.monotonic() - began:.1f} s)")
            self._require_running()
            if waiting and time.monotonic() > began + timeout_s:
                silent = next(iter(waiting.values()))
                raise HostError(
                    f"the cluster is not whole after {timeout_s:g} s: {', '.join(waiting.values())} "
                    f"did not answer or did not know all brokers\n{self._tail(silent)}"
                )
            if waiting:
                time.sleep(0.2)

    def mend(self) -> None:
        """Start again what is down, let go on what is paused, and wait until the cluster is whole."""
        for node in self.nodes:
            match self.containers.get(node).status:
                case "paused":
                    self.unpause(node)
                case "exited":
                    self.start(node)
        self.wait_ready()

    def _require_running(self) -> None:
        for node in self.nodes:
            if self.containers.get(node).status == "exited":
                raise HostError(f"{node} ended\n{self._tail(node)}")

    def _tail(self, node: str) -> str:
        return "\n".join([f"{node} said last:", *(f"  {line}" for line in self.logs(node, 8).splitlines())])

    def _assign(self, subnet: ipaddress.IPv4Network) -> None:
        numbers = {node: _FIRST + number for number, node in (self.brokers | self.controllers).items()}
        numbers |= {node: _FIRST + 100 + number for number, node in enumerate(self.zookeepers, 1)}
        numbers |= {seat: _FIRST_SEAT + number for number, seat in enumerate(self.seats)}
        self.addresses = {node: str(subnet[number]) for node, number in numbers.items()}
        self.ports = dict(zip(self.brokers.values(), free_ports(len(self.brokers)), strict=True))

    def _wanted(self, number: int) -> Wanted:
        """Return the container of a broker, a controller, or both.

        With KRaft it is told its settings by variables, as the official image takes them. That has no way for ZooKeeper
        (it insists on a storage to format), so with ZooKeeper Kafka's own script is started with the same settings.
        """
        broker = number in self.brokers
        node = self.brokers[number] if broker else self.controllers[number]
        settings = self._common(node) | self._roles(number) | self._settings
        if self.zookeepers:
            overrides = (word for name, value in settings.items() for word in ("--override", f"{name}={value}"))
            environment, command = _JVM, (f"{_BIN}/kafka-server-start.sh", "/dev/null", *overrides)
        else:
            environment, command = _JVM | {_variable(name): value for name, value in settings.items()}, ()
        published = {PUBLISHED_PORT: self.ports[node]} if broker else {}
        labels = {BROKER_ID: str(number)} if broker else {}
        return Wanted(node, self.addresses[node], environment, published, labels, command)

    def _common(self, node: str) -> dict[str, str]:
        """Return the settings of every node and, if it is a broker, where it is reached."""
        address, replicas = self.addresses[node], min(3, len(self.brokers))
        settings = {
            "listener.security.protocol.map": "BROKER:PLAINTEXT,HOST:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": _DATA,
            "default.replication.factor": str(replicas),
            "min.insync.replicas": str(min(2, replicas)),
            "offsets.topic.replication.factor": str(replicas),
            "transaction.state.log.replication.factor": str(replicas),
            "transaction.state.log.min.isr": str(min(2, replicas)),
            "group.initial.rebalance.delay.ms": "0",
        }
        if node in self.ports:
            settings["listeners"] = f"BROKER://{address}:{PORT},HOST://{address}:{PUBLISHED_PORT}"
            settings["advertised.listeners"] = f"BROKER://{address}:{PORT},HOST://127.0.0.1:{self.ports[node]}"
            settings["inter.broker.listener.name"] = "BROKER"
            settings["broker.rack"] = node.replace("broker", "r")
        return settings

    def _roles(self, number: int) -> dict[str, str]:
        """Return the settings that say who a node is, and where the others are who decide."""
        if self.zookeepers:
            return {
                "broker.id": str(number),
                "zookeeper.connect": ",".join(f"{self.addresses[one]}:{ZOOKEEPER_PORT}" for one in self.zookeepers),
                "zookeeper.connection.timeout.ms": str(int(READY_S * 1000)),  # they all start at once
            }
        broker, controller = number in self.brokers, number in self.controllers
        node = self.brokers[number] if broker else self.controllers[number]
        listeners = [self._common(node)["listeners"]] if broker else []
        if controller:
            listeners.append(f"CONTROLLER://{self.addresses[node]}:{CONTROLLER_PORT}")
        return {
            "node.id": str(number),
            "process.roles": ",".join(["broker"] * broker + ["controller"] * controller),
            "listeners": ",".join(listeners),
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": ",".join(
                f"{one}@{self.addresses[other]}:{CONTROLLER_PORT}" for one, other in self.controllers.items()
            ),
        }

    def _wanted_zookeeper(self, node: str) -> Wanted:
        """Return the container of a ZooKeeper that stands alone, out of the image of Kafka."""
        main = ("org.apache.zookeeper.server.ZooKeeperServerMain", str(ZOOKEEPER_PORT), _DATA)
        command = (f"{_BIN}/kafka-run-class.sh", *main)
        return Wanted(node, self.addresses[node], _JVM | _ZOOKEEPER, command=command)

    # --- one node -----------------------------------------------------------------------------------------------------

    def start(self, node: str) -> None:
        """Start a node that was stopped or killed, as `docker start` does; return at once."""
        self.container(node)
        self.containers.tell(node, "start")

    def stop(self, node: str, timeout_s: int = 30) -> None:
        """Shut a node down in order; after that time it is killed."""
        self.container(node)
        self.containers.tell(node, "stop", timeout=timeout_s)

    def kill(self, node: str) -> None:
        """Kill a node's JVM."""
        self.container(node)
        self.containers.tell(node, "kill")

    def pause(self, node: str) -> None:
        """Freeze a node by its control group; no signal is sent."""
        self.container(node)
        self.containers.tell(node, "pause")

    def unpause(self, node: str) -> None:
        """Let a paused node go on."""
        self.container(node)
        self.containers.tell(node, "unpause")

    def pid(self, node: str) -> int:
        """Return the pid of a node's JVM, or of a seat's only process, as this machine knows it; 0 if it is down."""
        self.container(node)
        return self.containers.pid(node)

    def logs(self, node: str, lines: int | None = None) -> str:
        """Return what a node printed, over all its lives, or the last lines of that."""
        self.container(node)
        return self.containers.logs(node, lines)

    def run(self, node: str, *argv: str) -> str:
        """Return what a command prints inside a node, such as /opt/kafka/bin/kafka-topics.sh; HostError if it fails."""
        self.container(node)
        return self.containers.run(node, *argv)


def free_ports(number: int) -> list[int]:
    """Return so many ports of 127.0.0.1 that nobody has now, and that no client is given while a broker is down."""
    first_of_clients = max(2048, int(CLIENT_PORTS.read_text().split()[0]))
    candidates = random.sample(range(first_of_clients // 2, first_of_clients), number * PORT_TRIES)
    found: list[int] = []
    with ExitStack() as held:  # all at once, or one port would be found twice
        for port in candidates:
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
            if len(found) == number:
                return found
    raise HostError(f"no {number} ports of 127.0.0.1 are free below {first_of_clients}")


def _variable(setting: str) -> str:
    """Return the environment variable by which the image takes a setting of Kafka."""
    return "KAFKA_" + setting.upper().replace("_", "__").replace("-", "___").replace(".", "_")
