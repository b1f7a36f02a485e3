"""Text for iptables-restore out of typed rules, and typed rules out of what iptables-save prints. Pure.

Nothing here passes a string on: addresses go through `ipaddress`, ports are integers, everything else is one of a few
words, and chain names are ours.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import msgspec

from trogdor_bus.actions import Peer
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents.platforms.linux.chains import Chain, Hook, Rule
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Endpoint

Family = Literal[4, 6]
MULTIPORT_MAX = 15
NEIGHBOURS = (Rule(target="RETURN", icmpv6_type=135), Rule(target="RETURN", icmpv6_type=136))
"""Neighbour discovery is to IPv6 what ARP is to IPv4: without it, spared traffic on the same link would die too."""
_CHAIN = re.compile(r"TB-[0-9a-f]{16}")
_COUNTERS = re.compile(r"^\[[0-9]+:[0-9]+\] (?=-A )")
_OUR_JUMP = re.compile(r"-j TB-[0-9a-f]{16}")


def address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IP address, IPv4-mapped ones as IPv4; HostError if `text` is none or carries a scope."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise HostError(f"{text!r} is not an IP address") from None
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            raise HostError(f"{text!r} carries a scope, which no rule can name")
        return ip.ipv4_mapped or ip
    return ip


def drop_sources(peers: Sequence[Peer], family: Family, *, tracked: bool = False) -> tuple[Rule, ...]:
    """Return one DROP for each address of the peers in that family; in IPv6, neighbour discovery goes on.

    Where connections are `tracked`, one that was opened here to another address may lead to a peer (DNAT): its answers
    come by that other address, and are dropped, too.
    """
    found = dict.fromkeys(address(text) for peer in peers for text in peer.addresses)
    ours = [str(ip) for ip in found if ip.version == family]
    drops = (*(Rule(source=ip) for ip in ours), *(Rule(answering=ip) for ip in ours if tracked))
    return NEIGHBOURS + drops if drops and family == 6 else drops


def drop_ports(action: BlockPorts, hook: Hook, *, tracked: bool = False) -> tuple[Rule, ...]:
    """Return the DROPs of the ports, loopback spared.

    Where connections are `tracked`, a port may be another one by the time a packet comes here (REDIRECT, DNAT): then
    those are dropped, too, that were opened to one of the ports, a rule each.
    """
    way: Literal["in", "out"] = "in" if hook == "INPUT" else "out"
    chunks = tuple(_chunks(action.ports))
    now = [Rule(not_loopback=way, protocol=action.protocol, destination_ports=ports) for ports in chunks]
    asked = [port for ports in chunks for port in ports] if tracked else ()
    return (*now, *(Rule(not_loopback=way, protocol=action.protocol, original_port=port) for port in asked))


def spare_control(
    control: Sequence[Endpoint], own: Sequence[str], *, local: bool, hook: Hook, family: Family
) -> tuple[Rule, ...]:
    """Return the RETURNs for the control traffic, exactly: these addresses, these TCP ports.

    Where the coordinator runs here (an endpoint is one of the node's `own` addresses, or `local` and loopback), other
    nodes reach it at any of the node's addresses, so its ports are spared at each of them.
    """
    ours = dict.fromkeys(address(text) for text in own)
    rules: dict[Rule, None] = {}
    for endpoint in control:
        ip = address(endpoint.address)
        nobody = ip.is_loopback or ip.is_unspecified
        for ports in _chunks(endpoint.ports):
            if not nobody:
                rules[_to_or_from(ip, ports, remote=True, hook=hook)] = None
            for mine in ours if ip in ours or (nobody and local) else ():
                rules[_to_or_from(mine, ports, remote=False, hook=hook)] = None
    return tuple(rule for rule in rules if address(rule.source or rule.destination).version == family)


def _to_or_from(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, ports: tuple[int, ...], *, remote: bool, hook: Hook
) -> Rule:
    if remote == (hook == "INPUT"):
        return Rule(target="RETURN", source=str(ip), protocol="tcp", source_ports=ports)
    return Rule(target="RETURN", destination=str(ip), protocol="tcp", destination_ports=ports)


def _chunks(ports: Iterable[int]) -> Iterable[tuple[int, ...]]:
    kept = tuple(dict.fromkeys(ports))
    for port in kept:
        if type(port) is not int or not 1 <= port <= 65535:
            raise HostError(f"{port!r} is not a port; ports are 1 to 65535")
    return (kept[start : start + MULTIPORT_MAX] for start in range(0, len(kept), MULTIPORT_MAX))


class Ruleset(msgspec.Struct, frozen=True):
    """The filter table of one family as it is: the rules of each chain, in order, as iptables-save words them."""

    chains: dict[str, tuple[str, ...]]

    def jumps(self, chain: str) -> list[str]:
        """Return the chains that jump to `chain` and do nothing else with it, one entry per rule."""
        return [name for name, rules in self.chains.items() for rule in rules if rule == f"-j {chain}"]

    def other_references(self, chain: str) -> list[str]:
        """Return rules of somebody else that lead to `chain`."""
        leads = re.compile(rf".* ?(-j|-g) {re.escape(chain)}( .*)?")
        return [
            f"-A {name} {rule}"
            for name, rules in self.chains.items()
            for rule in rules
            if rule != f"-j {chain}" and leads.fullmatch(rule)
        ]


def parse(saved: str) -> Ruleset:
    """Return the filter table in the output of iptables-save, with or without counters.

    HostError if iptables cannot read it.
    """
    chains: dict[str, list[str]] = {}
    table = ""
    for counted in saved.splitlines():
        line = _COUNTERS.sub("", counted)
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("#") and "is incompatible" in line and "filter" in line:
            raise HostError(f"iptables cannot read the filter table: {line.lstrip('# ')}")
        elif table == "filter" and line.startswith(":"):
            chains.setdefault(line[1:].split()[0], [])
        elif table == "filter" and line.startswith("-A "):
            name, _, rule = line[3:].partition(" ")
            chains.setdefault(name, []).append(rule)
    return Ruleset({name: tuple(rules) for name, rules in chains.items()})


def ours(rules: Ruleset) -> tuple[str, ...]:
    """Return the chains that have a name of ours."""
    return tuple(name for name in rules.chains if _CHAIN.fullmatch(name))


def dropped(saved: str, chains: Collection[str]) -> int:
    """Return how many packets these chains dropped, by the output of iptables-save with counters."""
    found = re.findall(r"^\[([0-9]+):[0-9]+\] -A (\S+) .*-j DROP$", saved, re.MULTILINE)
    return sum(int(count) for count, chain in found if chain in chains)


def rewrites(saved: str) -> bool:
    """Return whether what iptables-save printed, of all tables, holds a rule that rewrites addresses or ports."""
    _, _, nat = saved.partition("*nat\n")
    return any(line.startswith("-A ") for line in nat.partition("\nCOMMIT")[0].splitlines())


def has_rules(saved: str) -> bool:
    """Return whether what iptables-save printed, of any table, holds a rule, a chain, or a policy but ACCEPT."""
    return any(
        line.startswith("-A ") or (line.startswith(":") and line.split()[1:2] != ["ACCEPT"])
        for line in saved.splitlines()
    )


def render_install(chains: Sequence[Chain], before: Ruleset) -> str:
    """Return the input of `iptables-restore --noflush` after which our chains hold our rules and come first."""
    lines = ["*filter", *(f":{_name(chain.name)} - [0:0]" for chain in chains)]
    for chain in chains:
        lines += [f"-A {chain.name} {_text(rule)}" for rule in chain.rules]
        if before.chains.get(chain.hook, ())[:1] != (f"-j {chain.name}",) or len(before.jumps(chain.name)) != 1:
            lines += [f"-D {hook} -j {chain.name}" for hook in before.jumps(chain.name)]
            lines.append(f"-I {chain.hook} 1 -j {chain.name}")
    return "\n".join([*lines, "COMMIT", ""])


def render_remove(names: Sequence[str], before: Ruleset) -> str:
    """Return the input after which nothing of these chains is left; "" if nothing is there.

    A chain to which a rule of somebody else leads is emptied and stays.
    """
    present = [_name(name) for name in names if name in before.chains]
    lines = [f":{name} - [0:0]" for name in present]
    for name in present:
        lines += [f"-D {hook} -j {name}" for hook in before.jumps(name)]
        if not before.other_references(name):
            lines.append(f"-X {name}")
    return "\n".join(["*filter", *lines, "COMMIT", ""]) if present else ""


def deviation(chain: Chain, now: Ruleset) -> str:
    """Return "" if the chain holds our rules and comes first (chains of ours aside), else what is different."""
    if chain.name not in now.chains:
        return f"chain {chain.name} is gone"
    if tuple(_rule(text) for text in now.chains[chain.name]) != chain.rules:
        return f"chain {chain.name} holds other rules than ours"
    hook = now.chains.get(chain.hook, ())
    if f"-j {chain.name}" not in hook:
        return f"the jump from {chain.hook} to chain {chain.name} is gone"
    for number, rule in enumerate(hook[: hook.index(f"-j {chain.name}")], 1):
        if not _OUR_JUMP.fullmatch(rule):
            return f"rule {number} of {chain.hook} is not ours and comes first: {rule}"
    return ""


def _name(name: str) -> str:
    if not _CHAIN.fullmatch(name):
        raise HostError(f"{name!r} is not the name of a chain of ours")
    return name


def _text(rule: Rule) -> str:
    words: list[str] = []
    if rule.source:
        words += ["-s", str(address(rule.source))]
    if rule.destination:
        words += ["-d", str(address(rule.destination))]
    if rule.not_loopback:
        words += ["!", "-i" if rule.not_loopback == "in" else "-o", "lo"]
    if rule.protocol:
        words += ["-p", "tcp" if rule.protocol == "tcp" else "udp"]
    if rule.icmpv6_type:
        words += ["-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type", str(int(rule.icmpv6_type))]
    for flag, ports in (("--sports", rule.source_ports), ("--dports", rule.destination_ports)):
        if ports:
            words += ["-m", "multiport", flag, ",".join(str(int(port)) for port in ports)]
    if rule.original_port:
        words += ["-m", "conntrack", "--ctorigdstport", str(int(rule.original_port)), "--ctdir", "ORIGINAL"]
    if rule.answering:
        words += ["-m", "conntrack", "--ctreplsrc", str(address(rule.answering)), "--ctdir", "REPLY"]
    return " ".join([*words, "-j", "DROP" if rule.target == "DROP" else "RETURN"])


def _rule(text: str) -> Rule | None:
    """Return the rule that iptables-save printed, None if it is not of a form that we write."""
    form = re.fullmatch(
        r"(?:-s (?P<source>[0-9a-f.:]+)/(?:32|128) )?(?:-d (?P<destination>[0-9a-f.:]+)/(?:32|128) )?"
        r"(?:! -(?P<way>[io]) lo )?(?:-p (?P<protocol>tcp|udp) )?"
        r"(?:-p ipv6-icmp -m icmp6 --icmpv6-type (?P<icmpv6>[0-9]+) )?"
        r"(?:-m multiport --sports (?P<sports>[0-9,]+) )?(?:-m multiport --dports (?P<dports>[0-9,]+) )?"
        r"(?:-m conntrack --ctorigdstport (?P<original>[0-9]+) --ctdir ORIGINAL )?"
        r"(?:-m conntrack --ctreplsrc (?P<answering>[0-9a-f.:]+) --ctdir REPLY )?"
        r"-j (?P<target>DROP|RETURN)",
        text,
    )
    if form is None:
        return None
    named = ("source", "destination", "answering")
    plain = {name: "" if not form[name] else str(address(form[name])) for name in named}
    ports = {name: tuple(map(int, form[name].split(","))) if form[name] else () for name in ("sports", "dports")}
    return Rule(
        target=form["target"],  # type: ignore[arg-type]
        source=plain["source"],
        destination=plain["destination"],
        not_loopback={"i": "in", "o": "out", None: ""}[form["way"]],  # type: ignore[arg-type]
        protocol=form["protocol"] or "",  # type: ignore[arg-type]
        source_ports=ports["sports"],
        destination_ports=ports["dports"],
        icmpv6_type=int(form["icmpv6"] or 0),  # type: ignore[arg-type]
        original_port=int(form["original"] or 0),
        answering=plain["answering"],
    )
