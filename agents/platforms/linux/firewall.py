"""Our chains in the firewall of a namespace: which iptables, install, remove, and look."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from trogdor_bus.agents.platforms.linux import privileges, rules
from trogdor_bus.agents.platforms.linux.chains import OwnedChains, Table
from trogdor_bus.agents.platforms.linux.commands import ToolFailedError, find_tool, require_tool, run
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.agents.platforms.linux.rules import (
    Family,
    Ruleset,
    deviation,
    has_rules,
    parse,
    render_install,
    render_remove,
)
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Seen

PACKAGE = "iptables"
LOCK_WAIT_S = 5
"""How long the legacy iptables may wait for its lock; an undo is tried three times, and holds our own meanwhile."""
LOCK_IS_HELD = 4
"""The exit code of iptables for it, among other things (RESOURCE_PROBLEM in its xshared.h)."""
ATTEMPTS = 3
TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_count")
"""How many connections are tracked in the namespace of who reads it; no such file: the kernel cannot."""
NAMES: dict[Family, str] = {4: "iptables", 6: "ip6tables"}


class LockHeldError(HostError):
    """Somebody else held the lock of the legacy iptables all the time; nothing was changed."""


def choose_tool(namespace: Namespace, family: Family) -> str:
    """Return the absolute path of the iptables whose rules the namespace uses; HostError if it is not whole.

    That is the default one, unless it has no rules and the other backend (nft or legacy) has some.
    """
    tool = _pick_tool(namespace, NAMES[family])
    for needed in (f"{tool}-save", f"{tool}-restore"):
        require_tool(needed, PACKAGE)
    return tool


def _pick_tool(namespace: Namespace, name: str) -> str:
    default = _pinned(require_tool(name, PACKAGE))
    if not has_rules(_run(namespace, [f"{default}-save"])):
        for other in filter(None, (find_tool(f"{name}-nft"), find_tool(f"{name}-legacy"))):
            if other != default and _shows_rules(namespace, other):
                return other
    return default


def knows_ipv6(namespace: Namespace) -> bool:
    """Return whether the kernel speaks IPv6 in that namespace."""
    return namespace.call(lambda: Path("/proc/thread-self/net/if_inet6").exists())


def tracks(namespace: Namespace, family: Family) -> bool:
    """Return whether the kernel tracks connections in that namespace, or soon will: without, no port is rewritten.

    Where it does not, no rule of ours may ask for it: that would make it begin, which costs, and may overflow.
    """
    if namespace.call(_tracked_connections):
        return True
    name = NAMES[family]
    tools = filter(None, (find_tool(f"{name}{backend}") for backend in ("-nft", "-legacy", "")))
    return any(_rewrites(namespace, tool) for tool in dict.fromkeys(tools))


def _tracked_connections() -> int:
    """Return how many connections are tracked, in the namespace of the calling thread; 0 also if none could be."""
    try:
        return int(TRACKED.read_text())
    except (OSError, ValueError):
        return 0


def _rewrites(namespace: Namespace, tool: str) -> bool:
    try:
        return rules.rewrites(_run(namespace, [f"{tool}-save"]))
    except HostError:
        return False


def install(namespace: Namespace, table: Table) -> None:
    """Put our chains in place, first in their hooks, and read them back; doing it twice is the same as once."""
    try:
        _change(namespace, table.tool, lambda before: render_install(table.chains, before))
    except ToolFailedError as error:
        asked = any(rule.original_port or rule.answering for chain in table.chains for rule in chain.rules)
        if asked and "conntrack" in error.words:
            raise HostError(
                "addresses and ports may be rewritten here, and iptables cannot tell what they were: it needs the "
                f"kernel module xt_conntrack and its own extension conntrack ({error})"
            ) from None
        raise
    now = _read(namespace, table.tool)
    for chain in table.chains:
        if what := deviation(chain, now):
            raise HostError(f"our rules went in, but they do not hold: {what}")
        if now.chains[chain.hook][0] != f"-j {chain.name}":
            raise HostError(f"our rules are in place, but rule 1 of {chain.hook} is {now.chains[chain.hook][0]!r}")


def remove(namespace: Namespace, table: OwnedChains) -> None:
    """Take our chains out, and nothing else; HostError if that cannot be done. `residue` tells what stays."""
    _change(namespace, table.tool, lambda before: render_remove(table.chains, before))


def look(namespace: Namespace, tables: Sequence[Table]) -> list[Seen]:
    """Return of each table what changed of our chains, and how many packets they dropped since they are there."""
    saved = {
        tool: _run(namespace, [f"{tool}-save", "-c", "-t", "filter"])
        for tool in dict.fromkeys(table.tool for table in tables)
    }
    now = {tool: parse(text) for tool, text in saved.items()}
    return [
        Seen(
            _disturbance(table, now[table.tool]),
            rules.dropped(saved[table.tool], {chain.name for chain in table.chains}),
        )
        for table in tables
    ]


def _disturbance(table: Table, now: Ruleset) -> str:
    for chain in table.chains:
        if what := deviation(chain, now):
            reloaded = chain.name not in now.chains or not now.jumps(chain.name)
            return f"firewall rules were reloaded: {what}" if reloaded else what
    return ""


def residue(namespace: Namespace, tables: Sequence[OwnedChains]) -> list[tuple[str, ...]]:
    """Return of each table what is left of our chains, and why it is if a rule of somebody else keeps it."""
    now = {tool: _read(namespace, tool) for tool in dict.fromkeys(table.tool for table in tables)}
    return [
        tuple(_left(chain, table.tool, now[table.tool]) for chain in table.chains if chain in now[table.tool].chains)
        for table in tables
    ]


def _left(chain: str, tool: str, now: Ruleset) -> str:
    kept = now.other_references(chain)
    why = f": it is empty but stays, because a rule of somebody else leads to it: {'; '.join(kept)}" if kept else ""
    return f"chain {chain} in {Path(tool).name}{why}"


def rulesets(namespace: Namespace) -> Iterator[tuple[str, Ruleset]]:
    """Yield the filter table of a namespace as each iptables of this machine shows it, by its absolute path."""
    for name in NAMES.values():
        found = filter(None, (find_tool(name), find_tool(f"{name}-nft"), find_tool(f"{name}-legacy")))
        for tool in dict.fromkeys(map(_pinned, found)):
            if find_tool(f"{tool}-save"):
                yield tool, parse(_run(namespace, [f"{tool}-save"]))


def _read(namespace: Namespace, tool: str) -> Ruleset:
    return parse(_run(namespace, [f"{tool}-save", "-t", "filter"]))


def _change(namespace: Namespace, tool: str, render: Callable[[Ruleset], str]) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        text = render(_read(namespace, tool))
        if not text:
            return
        try:
            _restore(namespace, tool, text)
            return
        except HostError as error:  # changed between the reading and the writing?
            if attempt == ATTEMPTS or isinstance(error, LockHeldError):
                raise


def _restore(namespace: Namespace, tool: str, text: str) -> None:
    try:
        _run(namespace, [f"{tool}-restore", "--noflush", "-w", str(LOCK_WAIT_S)], text)
    except ToolFailedError as error:
        if error.code == LOCK_IS_HELD and "holding the xtables lock" in str(error):
            raise LockHeldError(
                f"another program held the lock of iptables (xtables.lock) for {LOCK_WAIT_S} s, so that no rule can be "
                "changed; lslocks names it"
            ) from None
        raise


def _run(namespace: Namespace, argv: Sequence[str], stdin: str = "") -> str:
    require_tool(argv[0], PACKAGE)
    try:
        return namespace.call(lambda: run(argv, stdin=stdin))
    except ToolFailedError as error:
        if not re.search("permission denied|not permitted", error.words, re.IGNORECASE):
            raise
        why = privileges.missing("CAP_NET_ADMIN", "CAP_NET_RAW")
        raise ToolFailedError(f"{error}; {why}", error.code, error.words) from None


def _shows_rules(namespace: Namespace, tool: str) -> bool:
    try:
        return has_rules(_run(namespace, [f"{tool}-save"]))
    except HostError:
        return False


def _pinned(tool: str) -> str:
    """Follow the links of the alternatives system up to the name of one backend, which stays what it is."""
    path = Path(tool)
    while path.is_symlink():
        target = path.parent / path.readlink()
        if not target.name.startswith(path.name):
            break
        path = target
    return str(path)
