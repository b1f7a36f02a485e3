"""The filter table of iptables in memory: does what iptables-restore does, as far as we and the tests write it."""

from __future__ import annotations

import re
import subprocess

from tests.agents.platforms.nodes import Node
from trogdor_bus.agents.platforms.linux.rules import Ruleset, parse
from trogdor_bus.errors import HostError

BUILT_IN = ("INPUT", "FORWARD", "OUTPUT")
TARGETS = ("ACCEPT", "DROP", "RETURN")


class Chains:
    """The chains and their rules, worded as iptables-save words them. A restore is done whole or not at all."""

    def __init__(self) -> None:
        self.chains: dict[str, list[str]] = {name: [] for name in BUILT_IN}

    def save(self) -> str:
        """Return what iptables-save would print."""
        declared = [f":{name} {'ACCEPT' if name in BUILT_IN else '-'} [0:0]" for name in self.chains]
        rules = [f"-A {name} {rule}" for name, rules in self.chains.items() for rule in rules]
        return "\n".join(["*filter", *declared, *rules, "COMMIT", ""])

    def read(self) -> Ruleset:
        """Return the table as our planner reads it."""
        return parse(self.save())

    def restore(self, text: str, *, flush: bool = False) -> None:
        """Do what iptables-restore does, --noflush unless `flush`; HostError, and nothing changed, if a line fails."""
        chains = {} if flush else {name: list(rules) for name, rules in self.chains.items()}
        for name in BUILT_IN:
            chains.setdefault(name, [])
        first, *lines, last, _ = text.split("\n")
        assert (first, last) == ("*filter", "COMMIT")
        for line in lines:
            self._line(chains, line)
        self.chains = chains

    def _line(self, chains: dict[str, list[str]], line: str) -> None:  # noqa: PLR0912 (one case per verb)
        if line.startswith(":"):
            name, policy, _ = line[1:].split()
            if policy == "-":  # a chain of a user is made, or emptied
                chains[name] = []
            return
        verb, name, *rest = line.split(" ", 2)
        rule = _worded(rest[0]) if rest else ""
        if name not in chains:
            raise HostError(f"{line}: there is no chain {name}")
        target = re.search(r"-[jg] (\S+)", rule)
        if target and target[1] not in (*TARGETS, *chains):
            raise HostError(f"{line}: there is no chain {target[1]}")
        match verb:
            case "-A":
                chains[name].append(rule)
            case "-I":
                number, _, rule = rule.partition(" ")
                if int(number) > len(chains[name]) + 1:
                    raise HostError(f"{line}: the chain is shorter")
                chains[name].insert(int(number) - 1, rule)
            case "-D":
                if rule not in chains[name]:
                    raise HostError(f"{line}: there is no such rule")
                chains[name].remove(rule)
            case "-F":
                chains[name].clear()
            case "-X":
                used = any(re.search(rf"-[jg] {name}(?: |$)", one) for rules in chains.values() for one in rules)
                if chains[name] or used or name in BUILT_IN:
                    raise HostError(f"{line}: the chain is in use")
                del chains[name]
            case _:
                raise AssertionError(line)


class KernelChains(Chains):
    """The same, and the table of a node beside it, by real tools; both must agree after each restore."""

    def __init__(self, node: Node, tool: str) -> None:
        super().__init__()
        self._node, self._tool = node, tool
        self._really("*filter\nCOMMIT\n", flush=True)

    def restore(self, text: str, *, flush: bool = False) -> None:
        """Restore both; HostError if both refuse."""
        try:
            super().restore(text, flush=flush)
        except HostError:
            assert not self._really(text, flush), f"the kernel takes what the interpreter refuses:\n{text}"
            raise
        else:
            assert self._really(text, flush), f"the kernel refuses what the interpreter takes:\n{text}"
        finally:
            saved = parse(self._node.run(f"{self._tool}-save", "-t", "filter"))
            assert saved == Ruleset({name: tuple(rules) for name, rules in self.chains.items()}) or (
                not saved.chains and not any(self.chains.values()) and len(self.chains) == len(BUILT_IN)
            )

    def _really(self, text: str, flush: bool) -> bool:
        how = [] if flush else ["--noflush"]
        argv = [f"{self._tool}-restore", *how, "-w", "5"]
        try:
            self._node.run(*argv, stdin=text)
        except subprocess.CalledProcessError:
            return False
        return True


def _worded(rule: str) -> str:
    return re.sub(r"(-[sd]) ([0-9.]+)(?= )", r"\1 \2/32", rule)
