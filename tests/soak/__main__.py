"""`python -m tests.soak --minutes 10 [--nodes 8] [--seed N]`: exit code 0 if every promise held, else 1."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

from tests.soak.chaos import Chaos, Seen, sleepers
from trogdor_bus.errors import RefusedError
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.namespaces import COORDINATOR
from trogdor_bus.lab.snapshot import difference

ROUND_S = 20.0
SETTLE_S = 90.0
NO_PROOF = 3
"""The exit code of an abort to which some node gave no answer."""


class Soak:
    """Rounds of chaos; after each, everything must be as it was before the first."""

    def __init__(self, lab: Lab, seed: int, *, verbose: bool) -> None:
        self._lab, self._verbose = lab, verbose
        self._random, self.seen = Random(seed), Seen()
        self._began = time.monotonic()
        self._chaos = Chaos(lab, self._random, self.seen, self._say)
        self.rounds = 0

    def start(self) -> None:
        """Start the services that are killed, and agents that may start them again."""
        for node in self._lab.nodes:
            self._lab.start_process("victim", node, self._chaos.victim(node)[1])
            self._lab.end(self._lab.process("agent", node))
            self._chaos.start_agent(node)
        self._lab.wait_ready()

    def run(self, minutes: float) -> None:
        """Run rounds until the time is over, or a promise is broken."""
        while time.monotonic() - self._began < minutes * 60 and not self.seen.broken:
            self.rounds += 1
            end = time.monotonic() + ROUND_S
            while time.monotonic() < end:
                self._chaos.act()
            self._settle()
            left_s = minutes * 60 - (time.monotonic() - self._began)
            print(f"round {self.rounds}: {self._brief()}, {max(0, left_s):.0f} s left", flush=True)

    def _settle(self) -> None:
        """End everything that is left, in one of three ways, and compare."""
        self._lab.wait_ready()
        match self._random.choice(("wait", "stop", "abort")):
            case "stop":
                for task in self._chaos.tasks:
                    self._lab.trogdor("stop", task)
            case "abort":
                aborted = self._lab.trogdor("abort")
                self.seen.notes[f"aborts, exit {aborted.returncode}"] += 1
                if aborted.returncode == NO_PROOF:  # an agent that was killed just before was not back in time
                    self._lab.wait_ready()
                    aborted = self._lab.trogdor("abort")
                if aborted.returncode:
                    self.seen.broken.append(f"abort: {aborted.stdout}{aborted.stderr}")
                self._lab.trogdor("resume")
        deadline = time.monotonic() + SETTLE_S
        while going := [name for name, task in self._tasks().items() if task["state"] != "DONE"]:
            if time.monotonic() > deadline:
                self.seen.broken.append(f"after {SETTLE_S:g} s not DONE: {', '.join(going)}")
                return
            time.sleep(0.2)
        for task in self._tasks().values():
            self.seen.outcomes[task["outcome"]] += 1
            self.seen.notes["disturbed"] += sum(len(worker["disturbed"]) for worker in task["workers"])
            if left := [line for worker in task["workers"] for line in worker["residue"]]:
                self.seen.broken.append(f"residue of {task['id']}: {left}")
        for task in self._chaos.tasks:
            self._lab.trogdor("destroy", task)
        self._chaos.tasks.clear()
        self._compare()

    def _tasks(self) -> dict[str, Any]:
        found: dict[str, Any] = self._lab.ask("tasks")["tasks"]
        return {name: task for name, task in found.items() if name in self._chaos.tasks}

    def _compare(self) -> None:
        for node, before in self._chaos.before.items():
            if left := difference(before, self._chaos.look(node)):
                self.seen.broken.append(f"{node} is not as before: {'; '.join(left)}")
            pid_file, command = self._chaos.victim(node)
            running = sleepers(command[2].rpartition(" ")[2])
            if running != [int(Path(pid_file).read_text())]:
                self.seen.broken.append(f"the service of {node} runs as {running}, its pid file says otherwise")
            for task, times in self._injections(node).items():
                if times > 1:
                    self.seen.broken.append(f"{node} began {task} {times} times")

    def _injections(self, node: str) -> Counter[str]:
        """Return how often an agent began each task, from its log."""
        return Counter(re.findall(r" INFO    task (\S+): (?!undoing)", self._lab.log("agent", node)))

    def _brief(self) -> str:
        seen = self.seen
        return f"{sum(seen.faults.values())} faults, {sum(seen.deaths.values())} deaths, {len(seen.broken)} broken"

    def _say(self, text: str) -> None:
        if self._verbose:
            print(f"{time.monotonic() - self._began:7.1f} s  {text}", flush=True)

    def table(self) -> str:
        """Return what was seen."""
        seen = self.seen
        epoch = self._lab.ask("status")["epoch"]
        lines = [f"rounds {self.rounds}, coordinator epochs {epoch}"]
        for title, counter in (
            ("faults", seen.faults),
            ("outcomes", seen.outcomes),
            ("deaths", seen.deaths),
            ("other", seen.notes),
        ):
            lines.append(f"{title}: {sum(counter.values())}")
            lines += [f"  {count:>6} {name or '(none)'}" for name, count in sorted(counter.items())]
        if heal := sorted(seen.heal_s):
            p50, p99 = heal[len(heal) // 2], heal[min(len(heal) - 1, len(heal) * 99 // 100)]
            lines.append(
                f"agent killed until its node was as before, s: n={len(heal)} p50 {p50:.2f} p99 {p99:.2f} "
                f"worst {heal[-1]:.2f}"
            )
        lines.append(f"residue and broken promises: {len(seen.broken)}")
        return "\n".join([*lines, *(f"  {line}" for line in seen.broken)])


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10**6))
    parser.add_argument("--verbose", action="store_true", help="say everything that happens")
    parser.add_argument("--keep-logs", metavar="FILE", help="write the logs of the daemons there at the end, as JSON")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"seed {asked.seed}, {asked.nodes} nodes, {asked.minutes:g} minutes", flush=True)
    try:
        with Lab(asked.nodes, "soak") as lab:
            soak = Soak(lab, asked.seed, verbose=asked.verbose)
            soak.start()
            try:
                soak.run(asked.minutes)
                print(soak.table())
            finally:
                if asked.keep_logs:
                    logs = {node: lab.log("agent", node) for node in lab.nodes}
                    logs[COORDINATOR] = lab.log("coordinator", COORDINATOR)
                    Path(asked.keep_logs).write_text(json.dumps(logs))
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(bool(soak.seen.broken))


if __name__ == "__main__":
    sys.exit(main())
