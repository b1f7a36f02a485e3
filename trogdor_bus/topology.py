"""The nodes of a cluster, their addresses, and pure pickers of nodes."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping, Sequence
from random import Random

import msgspec

from trogdor_bus.actions import Peer
from trogdor_bus.errors import SpecError
from trogdor_bus.names import shown

LOOPBACK = "loopback"
"""Why an address is left out from which nobody else can send."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One machine of the cluster.

    `addresses` are those that decide which packets are its own: the resolved `hostname` of the configuration, and what
    its agent announced. `given` are those of them that the configuration gives. `broker` and `controller` are the ids
    of the Kafka broker and of the KRaft controller that run there, None if it is unknown or there is none.
    """

    name: str
    addresses: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    hostname: str = ""
    tags: tuple[str, ...] = ()
    agent: bool = True
    config: dict[str, str] = {}
    broker: int | None = None
    controller: int | None = None


class LeftOut(msgspec.Struct, frozen=True):
    """An address that no rule may name, and why."""

    node: str
    address: str
    why: str

    def __str__(self) -> str:
        return f"{self.address} of {self.node}: {self.why}"


class Topology(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The nodes by name, and where the coordinator listens; when a node changes, make a new one.

    `coordinator_machine` are all addresses of the machine where it runs, which may be a node's, too. `cluster` is
    HOST:PORT,... of the brokers under test, "" unless they were looked at for this.
    """

    nodes: Mapping[str, Node]
    coordinator_addresses: tuple[str, ...] = ()
    coordinator_ports: tuple[int, ...] = ()
    coordinator_machine: tuple[str, ...] = ()
    cluster: str = ""

    def names(self) -> tuple[str, ...]:
        """Return the names of all nodes that have an agent, sorted."""
        return tuple(sorted(name for name, node in self.nodes.items() if node.agent))

    def left_out(self, acting: str, peer: str) -> tuple[LeftOut, ...]:
        """Return the addresses of `peer` that `acting` must not name in a rule, with the reasons."""
        if peer in self._plain and peer != acting:
            return ()
        return tuple(
            LeftOut(peer, address, why)
            for address in self._node(peer).addresses
            if (why := self._why_not(acting, peer, address))
        )

    def peer(self, acting: str, name: str) -> Peer:
        """Return `name` with the addresses that `acting` may name in a rule; SpecError if none is left."""
        if name in self._plain and name != acting:
            return self._plain[name]
        addresses = self._node(name).addresses
        usable = tuple(canonical(address) for address in addresses if not self._why_not(acting, name, address))
        if not usable:
            unusable = "; ".join(map(str, self.left_out(acting, name)))
            hostname = self._node(name).hostname
            remedy = f"give {name} a hostname of its own in the configuration, or start its agent"
            because = unusable or "it announced none and the configuration gives no hostname"
            if hostname and not addresses:
                because = f"it announced none, and its hostname {shown(hostname)} does not resolve on the coordinator"
                remedy = f"mend the hostname of {name} in the configuration, or DNS there; or start its agent"
            raise SpecError(
                f"node {name} has no address by which {acting} could tell its packets: {because}", remedy=remedy
            )
        return Peer(name, tuple(dict.fromkeys(usable)))

    def _node(self, name: str) -> Node:
        if name not in self.nodes:
            raise SpecError(f"node {name} is not in the cluster", remedy="`‹nodes›` lists the nodes")
        return self.nodes[name]

    @functools.cached_property
    def _owners(self) -> dict[str, list[str]]:
        owners: dict[str, list[str]] = {}
        for name, node in self.nodes.items():
            for address in dict.fromkeys(map(canonical, node.addresses)):
                owners.setdefault(address, []).append(name)
        return owners

    @functools.cached_property
    def _given(self) -> dict[str, list[str]]:
        given: dict[str, list[str]] = {}
        for name, node in self.nodes.items():
            for address in dict.fromkeys(map(canonical, node.given)):
                given.setdefault(address, []).append(name)
        return given

    @functools.cached_property
    def _coordinators(self) -> frozenset[str]:
        return _usable(self.coordinator_machine)

    def _runs_coordinator(self, name: str) -> bool:
        """Return whether the node may be the machine of the coordinator: one of the two has all the other has."""
        node = self.nodes[name]
        theirs = _usable(node.addresses) - _usable(node.given)
        return theirs <= self._coordinators or self._coordinators <= theirs

    @functools.cached_property
    def _plain(self) -> dict[str, Peer]:
        # The usual nodes: every address usable and nobody else's. Kept, as a partition asks for each n times.
        return {
            name: Peer(name, tuple(dict.fromkeys(map(canonical, node.addresses))))
            for name, node in self.nodes.items()
            if node.addresses and all(self._is_plain(name, address) for address in node.addresses)
        }

    def _is_plain(self, name: str, address: str) -> bool:
        return not self._why_not("", name, address) and self._owners[canonical(address)] == [name]

    def _why_not(self, acting: str, peer: str, address: str) -> str:
        if why := _unusable(address):
            return why
        owners = self._owners[canonical(address)]
        if acting in owners:
            return f"also an address of {acting}, which would block itself"
        given = self._given.get(canonical(address), [])
        if given == [peer]:
            return ""  # whoever announces it, too: the configuration says whose it is
        if others := [owner for owner in owners if owner != peer]:
            named = [other for other in given if other != peer]
            return f"the configuration gives it to {named[0]}" if named else f"{others[0]} announces it too"
        if canonical(address) in self._coordinators and not self._runs_coordinator(peer):
            return "also an address of the coordinator's machine"
        return ""


@functools.lru_cache(maxsize=1 << 16)
def canonical(address: str) -> str:
    """Return an IP address in its one shortest spelling, or any other text as it is."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address


@functools.lru_cache(maxsize=1 << 16)
def _unusable(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "not an IP address"
    if ip.is_loopback:
        return LOOPBACK
    if ip.is_link_local or "%" in address:
        return "link-local"
    if ip.is_unspecified or ip.is_multicast:
        return "not the address of one host"
    return ""


def _usable(addresses: Sequence[str]) -> frozenset[str]:
    return frozenset(canonical(address) for address in addresses if not _unusable(address))


def halves(names: Sequence[str], random: Random) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split `names` at random into two groups, the smaller first."""
    order = _shuffled(names, random)
    return tuple(sorted(order[: len(order) // 2])), tuple(sorted(order[len(order) // 2 :]))


def minority(names: Sequence[str], random: Random) -> tuple[str, ...]:
    """Pick at random the largest group that is less than half of `names`."""
    return tuple(sorted(_shuffled(names, random)[: (len(names) - 1) // 2]))


def ring(names: Sequence[str], random: Random) -> dict[str, tuple[str, ...]]:
    """Arrange `names` in a random ring where each hears a majority: itself and its nearest neighbours.

    Returns, for each node, the nodes from which it must hear nothing: none in a ring of three or fewer.
    """
    order = _shuffled(names, random)
    size = len(order)
    each_side = (size // 2 + 1) // 2
    blocked: dict[str, tuple[str, ...]] = {}
    for index, name in enumerate(order):
        seen = {order[(index + offset) % size] for offset in range(-each_side, each_side + 1)}
        blocked[name] = tuple(sorted(set(order) - seen))
    return blocked


def _shuffled(names: Sequence[str], random: Random) -> list[str]:
    order = sorted(names)
    random.shuffle(order)
    return order
