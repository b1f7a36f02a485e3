"""What happens in a soak: random faults, and random deaths of those who perform them."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import psutil

from tests.e2e.steps import below_guard
from trogdor_bus.errors import HostError
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.namespaces import COORDINATOR
from trogdor_bus.lab.snapshot import NodeState

HEAL_DEADLINE_S = 30.0
SLEEP_S = 7_654_321
"""What the victims sleep; each node adds its number, so that a command line names one of them."""


class Seen(msgspec.Struct):
    """What was seen so far; `heal_s` from the death of an agent with a living guard until its node was as before."""

    faults: Counter[str] = msgspec.field(default_factory=Counter)
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    deaths: Counter[str] = msgspec.field(default_factory=Counter)
    notes: Counter[str] = msgspec.field(default_factory=Counter)
    heal_s: list[float] = msgspec.field(default_factory=list)
    broken: list[str] = msgspec.field(default_factory=list)


class Chaos:
    """Does random things to a lab that is up; `say` is told what."""

    def __init__(self, lab: Lab, random: Random, seen: Seen, say: Callable[[str], None]) -> None:
        self._lab, self._random, self._seen, self._say = lab, random, seen, say
        self._numbers = iter(range(1, 10**9))
        self.tasks: list[str] = []
        self.before = {node: self.look(node) for node in lab.nodes}

    def look(self, node: str) -> NodeState:
        """Return the state of a node, without the process that may be killed and started again."""
        state = self._lab.snapshot(node)
        others = {role: what for role, what in state.processes.items() if role != "victim"}
        return msgspec.structs.replace(state, processes=others)

    def act(self) -> None:
        """Do one thing, mostly a fault."""
        deaths = (
            self._kill_agent,
            self._freeze_agent,
            self._kill_guard,
            self._kill_both,
            self._end_agent,
            self._kill_coordinator,
            self._flush,
        )
        self._random.choice((*[self._fault] * 14, self._stop, self._stop, *deaths))()

    # --- faults -------------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        kind, spec = self._spec()
        task = f"{kind}-{next(self._numbers)}"
        spec["durationMs"] = self._random.randint(1_000, 20_000)
        if kind != "noop" and self._random.random() < 0.3:
            spec["onDisturbed"] = "reapply"
        done = self._lab.trogdor("submit", "-", "--id", task, given=json.dumps(spec))
        self._seen.faults[kind] += 1
        self.tasks.append(task)
        self._say(f"{task}: exit {done.returncode}")

    def _spec(self) -> tuple[str, dict[str, Any]]:
        random, nodes = self._random, list(self._lab.nodes)
        random.shuffle(nodes)
        node, cut = nodes[0], random.randint(1, len(nodes) - 1)
        match kind := random.choice(("partition", "port-block", "process-stop", "process-kill", "noop")):
            case "partition":
                return kind, {"class": kind, "partitions": [nodes[:cut], nodes[cut:]]}
            case "port-block":
                return kind, {"class": kind, "nodes": nodes[:cut], "ports": [9092]}
            case "process-stop":
                return kind, {"class": kind, "nodes": nodes[:cut], "port": 9092}
            case "process-kill":
                pid_file, command = self.victim(node)
                return kind, {"class": kind, "nodes": [node], "pidFile": pid_file, "restart": command}
        return kind, {"class": kind}

    def victim(self, node: str) -> tuple[str, list[str]]:
        """Return the pid file and the command of the service of a node that is killed and started again."""
        pid_file = str(self._lab.directory / node / "victim.pid")
        seconds = SLEEP_S * 100 + int(node.removeprefix("node"))
        return pid_file, ["sh", "-c", f"echo $$ >{pid_file}; exec sleep {seconds}"]

    def _stop(self) -> None:
        if self.tasks:
            task = self._random.choice(self.tasks)
            self._say(f"stop {task}: exit {self._lab.trogdor('stop', task).returncode}")

    # --- deaths -------------------------------------------------------------------------------------------------------

    def _kill_agent(self) -> None:
        node = self._node("agent killed")
        agent, held = below_guard(self._lab, node), self.look(node) != self.before[node]
        began = time.monotonic()
        if agent.send(signal.SIGKILL) and held:
            while self.look(node) != self.before[node]:
                if time.monotonic() - began > HEAL_DEADLINE_S:
                    self._seen.broken.append(
                        f"{node} is not as before {HEAL_DEADLINE_S:g} s after its agent was killed"
                    )
                    return
            self._seen.heal_s.append(time.monotonic() - began)

    def _freeze_agent(self) -> None:
        node, pause_s = self._node("agent frozen"), self._random.choice((1.0, 6.0))
        agent = below_guard(self._lab, node)
        agent.send(signal.SIGSTOP)
        time.sleep(pause_s)
        agent.send(signal.SIGCONT)  # if its guard has not killed it

    def _kill_guard(self) -> None:
        self._end_guard(self._node("guard killed"), signal.SIGKILL)

    def _end_agent(self) -> None:
        self._end_guard(self._node("guard told to end"), signal.SIGTERM)

    def _kill_both(self) -> None:
        node = self._node("guard and agent killed")
        guard, agent = self._lab.process("agent", node), below_guard(self._lab, node)
        guard.send(signal.SIGSTOP)
        agent.send(signal.SIGKILL)
        self._lab.end(guard, signal.SIGKILL)
        if self._random.random() < 0.5:
            state = str(self._lab.directory / node)
            self._say(f"heal {node}: {self._lab.run(node, 'trogdor-bus', 'heal', '--state-dir', state).stdout.strip()}")
        self.start_agent(node)

    def _end_guard(self, node: str, number: signal.Signals) -> None:
        guard, agent = self._lab.process("agent", node), below_guard(self._lab, node)
        self._lab.end(guard, number, timeout_s=70)
        deadline = time.monotonic() + HEAL_DEADLINE_S
        while agent.state() != "gone":  # it undoes, then it ends
            if time.monotonic() > deadline:
                self._seen.broken.append(f"the agent of {node} outlives its guard by {HEAL_DEADLINE_S:g} s")
                agent.send(signal.SIGKILL)
            time.sleep(0.02)
        self.start_agent(node)

    def _kill_coordinator(self) -> None:
        self._seen.deaths["coordinator killed"] += 1
        self._say("coordinator killed")
        self._lab.end(self._lab.process("coordinator", COORDINATOR), signal.SIGKILL)
        if self._random.random() < 0.3:
            aborted = self._lab.trogdor("abort", "--state-dir", str(self._lab.directory / COORDINATOR))
            self._seen.notes[f"one-shot aborts, exit {aborted.returncode}"] += 1
            self._say(f"abort in its place: exit {aborted.returncode}")
        self._lab.start_coordinator()
        self._lab.wait_ready()
        self._lab.trogdor("resume")

    def _flush(self) -> None:
        node = self._node("our rules removed by somebody")
        rules = self._lab.run(node, "iptables", "-S", "INPUT").stdout.splitlines()
        for rule in [line for line in rules if "-j TB-" in line][:1]:
            self._lab.run(node, "iptables", *rule.replace("-A", "-D", 1).split())

    def start_agent(self, node: str) -> None:
        """Start the agent of a node, which may run the command of its victim."""
        config = self._lab.directory / node / "allowed.yaml"
        config.write_text(json.dumps({"agent": {"allowCommands": [self.victim(node)[1]]}}))
        self._lab.start_agent(node, "--config", str(config))

    def _node(self, what: str) -> str:
        node = self._random.choice(self._lab.nodes)
        self._seen.deaths[what] += 1
        self._say(f"{node}: {what}")
        with contextlib.suppress(HostError):
            self._lab.wait_ready()  # one at a time
        return node


def sleepers(argument: str) -> list[int]:
    """Return the pids of the processes that sleep so long."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] == ["sleep", argument]:
            found.append(process.pid)
    return found
