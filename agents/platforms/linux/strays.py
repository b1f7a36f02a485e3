"""Chains that look like ours and are in no journal of an agent of this machine; they are told, and never removed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from trogdor_bus.agents.platforms.linux import firewall, owners
from trogdor_bus.agents.platforms.linux.namespace import Namespace, typed_prefix
from trogdor_bus.agents.platforms.linux.rules import Ruleset, ours
from trogdor_bus.platform import Step
from trogdor_bus.remedies import Remedy

MOST = 20
"""So many are told."""


def find(namespace: Namespace, held: Sequence[Step], directory: str) -> tuple[str, ...]:
    """Return the chains of nobody in a namespace, a line each with what a person would type; HostError if it is closed.

    `held` are the live steps of the agent that asks, `directory` is its state directory. A chain that was there before
    the journals were read and still is afterwards would be in one, if it were anybody's: the intent is on disk first.
    """
    own = set(owners.chains_of(tuple(held)))
    before = {
        (tool, chain) for tool, rules in firewall.rulesets(namespace) for chain in ours(rules) if chain not in own
    }
    if not before:
        return ()
    found = tuple(owners.others(directory))
    running = {chain for owner in found if owner.runs for chain in owner.chains}
    dead = {chain: owner.directory for owner in found if not owner.runs for chain in owner.chains}
    lines = [
        _line(namespace, tool, rules, chain, dead.get(chain, ""))
        for tool, rules in firewall.rulesets(namespace)
        for chain in ours(rules)
        if (tool, chain) in before and chain not in running
    ]
    more = [f"and {len(lines) - MOST} more such chains"] if len(lines) > MOST else []
    return (*lines[:MOST], *more)


def _line(namespace: Namespace, tool: str, rules: Ruleset, chain: str, directory: str) -> str:
    what = f"chain {chain} in {Path(tool).name} cuts traffic and"
    if directory:
        return (
            f"{what} is of an agent that does not run, with its state in {directory}; by hand: "
            f"{Remedy('heal', {'directory': shlex.quote(directory)})}"
        )
    typed = f"{typed_prefix(namespace)}{tool}"
    jumps = [f"{typed} -D {hook} -j {chain} -w" for hook in rules.jumps(chain)]
    commands = [*jumps, f"{typed} -F {chain} -w", f"{typed} -X {chain} -w"]
    return f"{what} is in no journal that can be read; by hand: {'; '.join(commands)}"
