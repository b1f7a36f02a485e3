"""The state of a node, normalised, so that "as before" is an equality."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from trogdor_bus.lab.namespaces import Member, inside, run
from trogdor_bus.lab.processes import LabProcess

SAVERS = ("iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save")


class NodeState(msgspec.Struct, frozen=True):
    """Filter rules of every backend, queueing disciplines, process states by role, and mounts under the lab."""

    rules: dict[str, tuple[str, ...]]
    qdiscs: tuple[str, ...]
    processes: dict[str, str]
    mounts: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the state as text, one fact a line."""
        rules = [f"{saver}: {line}" for saver, lines in sorted(self.rules.items()) for line in lines]
        processes = [f"process {role}: {state}" for role, state in sorted(self.processes.items())]
        return rules + list(self.qdiscs) + processes + [f"mount {line}" for line in self.mounts]


def take(member: Member, processes: Iterable[LabProcess], directory: Path) -> NodeState:
    """Read the state of a member; HostError if a tool refuses."""
    savers = [saver for saver in SAVERS if shutil.which(saver)] or ["iptables-save", "ip6tables-save"]
    saved = {saver: normal_rules(run(inside(member.namespace, [saver]))) for saver in savers}
    qdiscs = run(inside(member.namespace, ["tc", "qdisc", "show"])).splitlines()
    return NodeState(
        rules={saver: lines for saver, lines in saved.items() if lines},
        qdiscs=tuple(sorted(re.sub(r" refcnt \d+", "", line.strip()) for line in qdiscs)),
        processes={process.role: process.state() for process in processes},
        mounts=mounts_below(directory),
    )


def mounts_below(directory: Path) -> tuple[str, ...]:
    """Return where something is mounted in a directory, sorted."""
    mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return tuple(sorted(fields[4] for fields in mounts if Path(fields[4]).is_relative_to(directory)))


def normal_rules(saved: str) -> tuple[str, ...]:
    """Return the lines of an iptables-save without comments and counters; a table that says nothing is left out."""
    lines: list[str] = []
    table: list[str] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            table = [line]
        elif line.startswith((":", "-")):
            table.append(re.sub(r" \[\d+:\d+\]$", "", line))
        elif line == "COMMIT" and not all(re.fullmatch(r"\*\w+|:[A-Z]+ ACCEPT", entry) for entry in table):
            lines += table
    return tuple(lines)


def difference(before: NodeState, after: NodeState) -> list[str]:
    """Return what was lost ("-") and what is new ("+"), [] if the states are equal."""
    compared = difflib.ndiff(before.lines(), after.lines())
    return [line for line in compared if line[0] in "+-"]
