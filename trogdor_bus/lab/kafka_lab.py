"""A lab of Kafka: a real cluster in containers, an agent for each node, and a coordinator on a node of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from trogdor_bus.errors import HostError, RefusedError, SpecError
from trogdor_bus.lab.containers import EXTRA, Containers, has_library
from trogdor_bus.lab.kafka import DEFAULT_VERSION, KafkaCluster
from trogdor_bus.lab.namespaces import COORDINATOR, check_name
from trogdor_bus.lab.processes import LabProcess
from trogdor_bus.lab.site import TROGDOR, KafkaPart, LabState, Site

TOOLS = {"nsenter": "util-linux", "iptables-restore": "iptables", "docker": "'^docker\\.io$'"}
TRANSPORTS = ("zmq", "kafka", "kafka+zmq")
LATE = "5s"
"""What is undone later is late here: brokers, containers and agents share the cores of one machine."""


class KafkaLab(Site):
    """The cluster in containers; agents in this machine's own namespaces, attached to the containers.

    The coordinator's node is a container that does nothing, and the coordinator a process in its network namespace.
    """

    def __init__(
        self,
        brokers: int = 3,
        name: str = "lab",
        on_step: Callable[[str], None] = lambda step: None,
        *,
        mode: str = "combined",
        version: str = DEFAULT_VERSION,
        transport: str = "zmq",
        seats: tuple[str, ...] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Choose; `seats` are further nodes like the coordinator's, where daemons may be started, or cut off.

        `settings`: further settings of every broker and controller, by their names in Kafka.
        """
        check_name(name)
        if transport not in TRANSPORTS:
            raise SpecError(f"no transport is called {transport!r}", remedy=f"there are {', '.join(TRANSPORTS)}")
        everybody = (COORDINATOR, *seats)
        self.cluster = KafkaCluster(
            brokers, name, on_step, mode=mode, version=version, settings=settings, seats=everybody
        )
        super().__init__(len(self.cluster.nodes), name, on_step)
        self.transport = transport
        self.state.kafka = KafkaPart(brokers, mode, version, transport)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the names of brokers, controllers and ZooKeeper."""
        return self.cluster.nodes

    @property
    def members(self) -> tuple[str, ...]:
        """Return the names of all that has an address of its own: nodes, the coordinator's, further seats."""
        return (*self.nodes, *self.cluster.seats)

    @property
    def address(self) -> str:
        """Return the address of the coordinator."""
        return self.cluster.addresses[COORDINATOR]

    def up(self) -> None:
        """Bring up the cluster, the coordinator and the agents; all of it, or nothing."""
        require()
        self.cluster.find_image()  # before anything is made that only Docker could take away
        self.claim()
        try:
            self.cluster.up()
            assert self.state.kafka is not None
            self.state.kafka.addresses, self.state.kafka.ports = self.cluster.addresses, self.cluster.ports
            for member in self.members:
                (self.directory / member).mkdir(mode=0o700)
            self.write_variables()
            self.start_coordinator()
            self.wait_keys()
            for node in self.nodes:
                self.start_agent(node)
            self.step(f"coordinator and {len(self.nodes)} agents started, on {self.transport}")
            self.wait_ready()
        except BaseException:
            self.down()
            raise

    def take_away(self) -> None:
        """Remove every container and the network of the lab."""
        self.cluster.down()

    def command(self, member: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` in a member's network, with this machine's files."""
        pid = self.cluster.pid(member)
        if not pid:
            container = self.cluster.container(member)
            raise HostError(f"{member} is down; `docker start {container}` starts it")
        return ["nsenter", f"--net=/proc/{pid}/ns/net", "--", *argv]

    def bus(self) -> dict[str, str]:
        """Return where the bus is, as variables that every command takes."""
        found = {"TROGDOR_BUS_TRANSPORT": self.transport, "TROGDOR_BUS_CLUSTER": self.cluster.bootstrap_inside}
        if "kafka" in self.transport:
            found["TROGDOR_BUS_BOOTSTRAP_SERVER"] = self.cluster.bootstrap_inside
        if "zmq" in self.transport:
            found["TROGDOR_BUS_COORDINATOR"] = self.address
        return found

    def variables(self) -> dict[str, str]:
        """Return what to export in a terminal of this machine; `BOOTSTRAP` is for other programs."""
        return {**self.bus(), "TROGDOR_BUS_KEYS": str(self.directory / "keys"), "BOOTSTRAP": self.cluster.bootstrap}

    def write_variables(self) -> None:
        """Write `variables` into the file `env`, to be sourced."""
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in self.variables().items()]
        (self.directory / "env").write_text("".join(lines))

    def status(self) -> dict[str, Any]:
        """Return the members with their containers and processes, for showing."""
        members = []
        for member in self.members:
            found = self.cluster.containers.get(member)
            members.append(
                {
                    "name": member,
                    "container": found.name,
                    "addresses": [self.cluster.addresses[member]],
                    "state": found.status,
                    "pid": self.cluster.pid(member),
                    "processes": self.processes_told(member),
                }
            )
        about = {"name": self.name, "directory": str(self.directory), "transport": self.transport}
        return {**about, "bootstrap": self.cluster.bootstrap, "members": members}

    def start_coordinator(self, *options: str, seat: str = COORDINATOR) -> LabProcess:
        """Start the coordinator on its own node, or another on a further seat; what it stored there is picked up."""
        argv = ["coordinator", *self._transport(), "--state-dir", str(self.directory / seat)]
        argv += ["--bind", self.cluster.addresses[seat]] if "zmq" in self.transport else []
        argv += ["--cluster", self.cluster.bootstrap_inside] if self.transport == "zmq" else []
        return self.start_process("coordinator", seat, [*TROGDOR, *argv, *options])

    def start_agent(self, node: str, *options: str, seat: str = "") -> LabProcess:
        """Start the agent of a node outside of its container, which it may start again.

        It reaches the bus by this machine's network, or by that of a seat.
        """
        container, directory = self.cluster.container(node), self.directory / node
        config = directory / "agent.yaml"
        settings = {"allowCommands": [["docker", "start", container]], "late": LATE}
        config.write_text(json.dumps({"agent": settings}))
        argv = [*TROGDOR, "agent", "--node", node, "--attach", f"container:{container}", *self._transport()]
        argv += ["--state-dir", str(directory), "--config", str(config), *options]
        return self.start_process("agent", node, self.command(seat, argv) if seat else argv, outside=True)

    def _transport(self) -> list[str]:
        return ["--transport", self.transport]

    def told(self, state: LabState) -> Self:
        """Take over what somebody else's lab of this name is."""
        super().told(state)
        assert state.kafka is not None
        self.cluster.addresses, self.cluster.ports = state.kafka.addresses, state.kafka.ports
        self.cluster.seats = tuple(name for name in self.cluster.addresses if name not in self.nodes) or (COORDINATOR,)
        return self


def again(state: LabState) -> KafkaLab:
    """Return the lab that was written down."""
    part = state.kafka
    assert part is not None
    lab = KafkaLab(part.brokers, state.name, mode=part.mode, version=part.version, transport=part.transport)
    return lab.told(state)


def sweep(name: str) -> bool:
    """Remove the containers and the network of a lab of which nothing was written down; False if there are none."""
    containers = Containers(name)
    try:
        return containers.sweep()
    except (HostError, RefusedError):  # without Docker there cannot be any
        return False
    finally:
        containers.close()


def require() -> None:
    """Raise RefusedError that says what this machine lacks to make or handle a lab of Kafka."""
    lacking = [] if sys.platform.startswith("linux") else ["it needs Linux"]
    lacking += [] if os.geteuid() == 0 else ["it needs root: run it with sudo"]
    where = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacking += [
        f"it needs {tool}: apt-get install {pkg}" for tool, pkg in TOOLS.items() if not shutil.which(tool, path=where)
    ]
    lacking += [] if has_library() else [f"it needs {EXTRA}"]
    if lacking:
        raise RefusedError(f"no lab of Kafka here: {'; '.join(lacking)}")
