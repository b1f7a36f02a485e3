"""The demo: a partition cuts a cluster in two, a process freezes, and both heal, before your eyes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from subprocess import Popen
from typing import Protocol

from trogdor_bus.document import parse, read_file
from trogdor_bus.errors import ConflictError, HostError, NotFoundError, TrogdorBusError
from trogdor_bus.lab import namespaces
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.interrupts import Interrupted, Interrupts
from trogdor_bus.lab.labs import existing, remove
from trogdor_bus.lab.probe import PING, WAYS, Matrix
from trogdor_bus.lab.processes import LabProcess
from trogdor_bus.lab.screen import LEGEND, Screen
from trogdor_bus.lab.snapshot import difference

NAME = "demo"
HOLD_S = 10.0
SETTLE_S = 15.0
LATE_S = 5.0
"""For starting the command line, addressing the agents, and noticing."""

Expected = Callable[[str, str], Iterable[str]]


class Stage(Protocol):
    """Where a demo plays."""

    def matrix(self) -> Matrix:
        """Return who reaches whom now."""
        ...

    def down(self) -> None:
        """Remove everything."""
        ...


class Demo:
    """Shows a stage and counts the expectations that were `seen` and `missed`."""

    def __init__(self, stage: Stage, screen: Screen) -> None:
        self.seen = self.missed = 0
        self._stage, self._screen = stage, screen

    def expect(self, seen: bool, text: str, detail: str = "") -> None:
        """Count and tell an expectation."""
        self.seen, self.missed = self.seen + seen, self.missed + (not seen)
        self._screen.check(seen, text, detail)

    def watch(self, expected: Expected, now: str, then: str, timeout_s: float = SETTLE_S, total_s: float = 0) -> float:
        """Show the matrix until it is as expected; return the seconds that took, -1 if it did not come to be.

        `now` and `then` say what goes on before and after.
        """
        began = time.monotonic()
        while (passed := time.monotonic() - began) < timeout_s:
            if self._sample(expected, now, passed, total_s):
                self._screen.show(self._stage.matrix(), then)
                return time.monotonic() - began
        return -1.0

    def hold(self, expected: Expected, caption: str, hold_s: float, total_s: float) -> bool:
        """Show the matrix for a while; tell whether every sample was as expected."""
        began, samples = time.monotonic(), []
        while (passed := time.monotonic() - began) < hold_s:
            samples.append(self._sample(expected, caption, passed, total_s))
        return all(samples)

    def freeze(self, victim: LabProcess, frozen: Expected, thawed: Expected, name: str, lasts_s: float) -> None:
        """Expect a process to freeze, and to run again by itself `lasts_s` after the submit, which was just now."""
        submitted = time.monotonic()
        took = self.watch(frozen, f"{name} is about to freeze", f"{name} is frozen")
        self.expect(
            took >= 0 and victim.state() == "stopped",
            f"{name} is frozen: the service is silent, its process stopped ({took:.1f} s)",
        )
        took = self.watch(thawed, f"{name} is frozen", f"{name} runs again", lasts_s + SETTLE_S, lasts_s)
        passed_s = time.monotonic() - submitted
        self.expect(
            took >= 0 and lasts_s - 1 <= passed_s <= lasts_s + LATE_S and victim.state() == "running",
            f"it ended by itself, on time: the service answers again {passed_s:.1f} s after the submit",
        )

    def ended(self, command: Popen[str], code: int, what: str) -> None:
        """Expect a command line to end with that exit code."""
        said, complained = command.communicate(timeout=SETTLE_S)
        self.expect(command.returncode == code, f"{what} ended with exit code {command.returncode}", said + complained)

    def _sample(self, expected: Expected, caption: str, passed_s: float, total_s: float) -> bool:
        matrix = self._stage.matrix()
        self._screen.show(matrix, caption, passed_s, total_s)
        time.sleep(0.05)
        return matrix.agrees(expected)


def conclude(
    screen: Screen, stage: Stage, tell: Callable[[Demo], None], after: Callable[[Demo], None] | None = None
) -> int:
    """Let `tell` play on the stage, remove it whatever happens, and return the exit code.

    0: everything expected was seen. 1: something was not. 128 + N: ended by signal N.
    """
    demo = Demo(stage, screen)
    trouble, code = "", 0
    with Interrupts(last=True) as interrupts, screen:
        try:
            try:
                tell(demo)
            finally:
                interrupts.close()
        except TrogdorBusError as error:
            trouble, code = f"it could not go on: {error}", 1
        except Interrupted as told:
            trouble, code = f"ended by {told.number.name}, everything is removed", 128 + told.number
        finally:
            stage.down()
        if code == 1 and interrupts.first:  # it met a program of ours before it met us
            trouble, code = f"ended by {interrupts.first.name}, everything is removed", 128 + interrupts.first
        if after:
            after(demo)
        code = code or int(demo.missed > 0)
        screen.verdict(code == 0, trouble or f"{demo.seen} of {demo.seen + demo.missed} expectations seen")
    return code


def run_demo(screen: Screen, nodes: int = 3) -> int:
    """Make a lab, run the two examples in it, take it down; the exit code is that of `conclude`.

    ConflictError if a demo is running already; what a killed one left is removed first.
    """
    with contextlib.suppress(NotFoundError):
        if (maker := existing(NAME).state.maker).state() != "gone":
            raise ConflictError(f"a demo is running already (pid {maker.pid}): wait for its end, or end it")
    remove(NAME)
    lab = Lab(nodes, NAME, screen.say)

    def tell(demo: Demo) -> None:
        screen.say(f"making a lab of {nodes} nodes and a coordinator")
        lab.up()
        states = lab.snapshots()
        screen.say(LEGEND)
        demo.expect(demo.watch(whole, "before any fault", "before any fault") >= 0, "everybody reaches everybody")
        _partition(demo, lab, screen)
        _process_stop(demo, lab, screen)
        now = lab.snapshots()
        changed = {node: difference(states[node], now[node]) for node in states if states[node] != now[node]}
        what = "rules, queueing disciplines and process states of every node equal those from before"
        demo.expect(not changed, what, json.dumps(changed, indent=2))

    def after(demo: Demo) -> None:
        left = [name for name in namespaces.listed() if name.startswith(f"tb-{NAME}-")]
        demo.expect(not left, "nothing of the demo is left in the host's `ip netns list`", " ".join(left))

    return conclude(screen, lab, tell, after)


def _partition(demo: Demo, lab: Lab, screen: Screen) -> None:
    path = examples() / "partition.json"
    spec = parse(read_file(path), str(path))
    cut = cut_between(spec["partitions"])
    what = " | ".join(" ".join(group) for group in spec["partitions"])
    screen.say(f"submit {path.name}: partition {what}")
    submit = lab.begin_trogdor("submit", str(path), "--id", "demo-partition")
    took = demo.watch(cut, "a partition is about to begin", f"partition {what}")
    demo.expect(took >= 0, f"cut exactly as the spec says, {what}, and the coordinator hears all ({took:.1f} s)")
    demo.ended(submit, 0, "submit")
    held = demo.hold(cut, f"partition {what}", HOLD_S, spec["durationMs"] / 1000)
    demo.expect(held, f"it held for {HOLD_S:.0f} s")
    screen.say("end it early: trogdor-bus stop demo-partition")
    stop = lab.begin_trogdor("stop", "demo-partition")
    took = demo.watch(whole, "the partition is about to end", "healed")
    demo.expect(took >= 0, f"healed: everybody reaches everybody again ({took:.1f} s)")
    demo.ended(stop, 0, "stop")


def _process_stop(demo: Demo, lab: Lab, screen: Screen) -> None:
    path = examples() / "process-stop.json"
    spec = parse(read_file(path), str(path))
    (node,) = spec["nodes"]
    screen.say(f"submit {path.name}: freeze what listens on port {spec['port']} of {node}")
    submit = lab.begin_trogdor("submit", str(path), "--id", "demo-freeze", "--wait")
    demo.freeze(lab.process("echo", node), silent(node), whole, f"{node}'s service", spec["durationMs"] / 1000)
    demo.ended(submit, 0, "submit --wait")


def examples() -> Path:
    """Return the directory of the shipped examples; HostError if this installation lacks them."""
    package = Path(__file__).resolve().parents[1]
    for directory in (package / "examples", package.parent / "examples"):
        if (directory / "partition.json").is_file():
            return directory
    raise HostError(f"the examples are missing from {package}: install trogdor-bus again")


def whole(source: str, target: str) -> Iterable[str]:
    """Expect everybody to reach everybody in every way."""
    return WAYS


def cut_between(groups: Iterable[Iterable[str]]) -> Expected:
    """Expect nothing between different groups, and everything else."""
    group_of = {name: number for number, group in enumerate(groups) for name in group}

    def expected(source: str, target: str) -> Iterable[str]:
        both = source in group_of and target in group_of
        return () if both and group_of[source] != group_of[target] else WAYS

    return expected


def silent(node: str) -> Expected:
    """Expect the node's service to be silent and everything else, ping included, to answer."""

    def expected(source: str, target: str) -> Iterable[str]:
        return PING if target == node else WAYS

    return expected
