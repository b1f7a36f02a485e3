"""A container restarted in mid-fault: its agent stands outside, and what the undo meets is another container."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable

from tests.crashes.cases import (
    CASES,
    CONTAINER,
    JAVA,
    STEADY,
    WAYS_IN,
    alias,
    program_command,
    program_file,
    spec_of,
)
from tests.crashes.slot import Asker, reading, until
from tests.e2e.docker import SERVICE, WORKER, Docker, require_docker
from trogdor_bus.lab import namespaces, probe
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.namespaces import COORDINATOR
from trogdor_bus.lab.snapshot import difference
from trogdor_bus.messages import TaskInfo
from trogdor_bus.spec import TaskSpec
from trogdor_bus.states import Outcome, TaskState

COMMAND = f"busybox sh /{JAVA}"
RUN_JAVA = f"""
test -e /never || mkfifo /never; test -e /bin/java || cp /bin/busybox /bin/java; echo 'read line </never' >/{JAVA}
exec -a busybox /bin/java sh /{JAVA}
"""
FROZEN = {"java": COMMAND, "service": SERVICE}
FOREIGN = "INPUT -p udp -m udp --dport 7 -j DROP"


class Harbour:
    """A lab, a Docker of its own with one container on the lab's bridge, and an agent for it that stands outside."""

    def __init__(self, name: str) -> None:
        self.lab = Lab(2, name)
        self.docker = Docker()
        self.asker = Asker(self.lab)
        self.addresses = ("", "")
        self._plugs = 100

    def up(self) -> None:
        """Make everything; skip if this machine has no Docker."""
        require_docker()
        self.lab.up()
        self.docker.__enter__()
        self.asker.up()
        self.docker.create(CONTAINER)
        self.furnish()
        config = self.lab.directory / "agent.yaml"
        program_file(self.lab.directory).touch()
        allowed = [["docker", "start", CONTAINER], program_command(self.lab.directory)]
        config.write_text(json.dumps({"agent": {"allowCommands": allowed}}))
        agent = [
            sys.executable,
            "-m",
            "trogdor_bus",
            "agent",
            "--node",
            CONTAINER,
            "--attach",
            f"container:{CONTAINER}",
        ]
        settings = [f"{name}={value}" for name, value in self.docker.settings.items()]
        more = ["--state-dir", str(self.lab.directory / "outside"), "--config", str(config)]
        self.lab.start_process("agent outside", COORDINATOR, ["env", *settings, *agent, *more])
        self.before = self.lab.snapshots()

    def down(self) -> None:
        """Take everything away."""
        self.asker.down()
        self.docker.close()
        self.lab.down()

    def furnish(self) -> None:
        """Wire the running container to the lab's bridge, with new addresses, and start its java."""
        self._plugs += 1
        pid, end = str(self.docker.pid(CONTAINER)), f"plug{self._plugs}"
        v4, v6 = str(namespaces.SUBNET4[self._plugs]), str(namespaces.SUBNET6[self._plugs])
        bridge = ["ip", "-n", namespaces.bridge(self.lab.name)]
        namespaces.run([*bridge, *f"link add {end} type veth peer name eth0 netns {pid}".split()])
        namespaces.run([*bridge, *f"link set {end} master br0 up".split()])
        namespaces.run([*self.inside(), "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0"])
        for command in (f"address add {v4}/24 dev eth0", f"address add {v6}/64 dev eth0 nodad", "link set eth0 up"):
            namespaces.run([*self.inside(), "ip", *command.split()])
        self.addresses = (v4, v6)
        self.docker.run("exec", "-d", CONTAINER, "/bin/busybox", "sh", "-c", RUN_JAVA)
        until(lambda: COMMAND in self.processes(), "java to run in the container")

    def inside(self) -> list[str]:
        """Return the beginning of a command line that runs in the container's network namespace."""
        return ["nsenter", "--net", "--target", str(self.docker.pid(CONTAINER)), "--"]

    def rules(self) -> list[str]:
        """Return the rules in the container's namespace, IPv4 and IPv6."""
        lines = (namespaces.run([*self.inside(), f"{tool}-save"]).splitlines() for tool in ("iptables", "ip6tables"))
        return [line for line in itertools.chain(*lines) if line.startswith(("-A", ":TB-"))]

    def processes(self) -> dict[str, str]:
        """Return the state of each process of the container that is ours to watch, by command line."""
        seen = self.docker.processes(CONTAINER)
        return {args: seen[args].state for args in (SERVICE, WORKER, COMMAND) if args in seen}

    def reached(self) -> tuple[str, ...]:
        """Return the ways by which the steady node makes a round trip to the container."""

        def trips() -> dict[str, probe.RoundTrip]:
            made = {way: probe.RoundTrip(way, self.addresses[way.endswith("6")]) for way in WAYS_IN}
            probe.finish(made.values(), 500)
            return made

        found = self.lab.call_on(STEADY, trips)
        return tuple(sorted(way for way, trip in found.items() if trip.answered))

    def announced(self) -> bool:
        """Return whether the coordinator knows the container at the addresses that it has."""
        rows = {row.name: row for row in self.asker.ask(lambda client: client.nodes())}
        return CONTAINER in rows and rows[CONTAINER].alive and set(rows[CONTAINER].addresses) == set(self.addresses)


class Voyage:
    """One cell in the harbour."""

    healed_s: float | None = None

    def __init__(self, harbour: Harbour, fault: type[TaskSpec]) -> None:
        self.harbour, self.fault, self.case = harbour, fault, CASES[fault]
        self.task = f"{alias(fault)}-in-a-container"

    def happen(self) -> None:
        """Put the fault in force, restart the container, and stop the task: the new container is not touched."""
        harbour, docker = self.harbour, self.harbour.docker
        until(harbour.announced, "the container's addresses to be announced")
        assert harbour.reached() == WAYS_IN
        spec = json.dumps(spec_of(self.fault, harbour.lab.directory, inside=True)).encode()
        harbour.asker.ask(lambda client: client.create(self.task, spec))
        until(lambda: self.show().task.active, "the task to be in force")
        self._must_hold()
        docker.run("restart", "-t", "0", CONTAINER)
        harbour.furnish()
        namespaces.run([*harbour.inside(), "iptables", "-A", *FOREIGN.split()])
        docker.run("exec", CONTAINER, "/bin/busybox", "sh", "-c", "kill -STOP $(cat /run/worker.pid)")
        fresh = harbour.docker.processes(CONTAINER)
        self.stop()
        until(lambda: self.show().task.state is TaskState.DONE, "the task to be DONE")
        (worker,) = (one for one in self.show().workers if one.node == CONTAINER)
        held = self.case.kind in ("nothing", "program")  # that runs outside
        expected = Outcome.DONE if held else Outcome.DISTURBED
        assert (worker.outcome, worker.residue) == (expected, ()), worker
        note = {"nothing": "", "program": "", "restart": "already running"}.get(self.case.kind, "gone: ")
        assert not note or any(note in warning for warning in worker.warnings), worker
        assert harbour.rules() == [f"-A {FOREIGN}"]
        assert not reading(program_file(harbour.lab.directory))
        assert harbour.docker.processes(CONTAINER) == fresh, "the new container's processes were touched"

    def must_be_as_before(self) -> None:
        """See that the new container is reached, and that the other nodes are as they were."""
        until(lambda: self.harbour.reached() == WAYS_IN, "the container to be reached")
        for node, before in self.harbour.before.items():
            changed = difference(before, self.harbour.lab.snapshot(node))
            assert not changed, f"{node} is not as before: {changed}"

    def end(self) -> None:
        """Make the container plain again."""
        namespaces.run([*self.harbour.inside(), "iptables", "-D", *FOREIGN.split()])
        self.harbour.docker.run("exec", CONTAINER, "/bin/busybox", "sh", "-c", "kill -CONT $(cat /run/worker.pid)")

    def stop(self) -> None:
        """Ask for the end of the task."""
        self.harbour.asker.ask(lambda client: client.stop(self.task))

    def show(self) -> TaskInfo:
        """Return the task as the coordinator knows it."""
        return self.harbour.asker.ask(lambda client: client.show(self.task))

    def told(self) -> str:
        """Return all that is known, for a person who asks why the cell failed."""
        log = self.harbour.lab.log("agent outside", COORDINATOR).splitlines()[-30:]
        return "\n    ".join(["the log:", *log, *_tried(lambda: str(self.show())), *_tried(self.harbour.rules)])

    def _must_hold(self) -> None:
        harbour = self.harbour
        if self.case.kind == "restart":
            until(lambda: harbour.docker.pid(CONTAINER) == 0, "the container to be down")
            return
        assert harbour.reached() == self.case.answers
        if self.case.kind == "program":
            until(lambda: len(reading(program_file(harbour.lab.directory))) == 2, "the program to run")
        wanted = dict.fromkeys((SERVICE, WORKER, COMMAND), "S") | dict.fromkeys(map(FROZEN.get, self.case.frozen), "T")
        assert harbour.processes() == wanted
        assert any("TB-" in rule for rule in harbour.rules()) == (self.case.kind == "firewall")


def _tried(tell: Callable[[], str | list[str]]) -> list[str]:
    try:
        return [str(tell())]
    except Exception as error:
        return [f"(cannot be told: {error})"]
