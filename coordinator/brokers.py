"""Which node is which Kafka broker or controller: by configuration, else by its agent, else by address. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from trogdor_bus.bus import BusBroker
from trogdor_bus.errors import SpecError
from trogdor_bus.topology import canonical


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a node: the ids of its configuration and of its agent, its host name and addresses."""

    configured: int | None = None
    announced: int | None = None
    hostname: str = ""
    addresses: tuple[str, ...] = ()

    @property
    def claim(self) -> int | None:
        """Return the id that counts; None if nobody gave one."""
        return self.announced if self.configured is None else self.configured


def candidates(nodes: Mapping[str, Seat], broker: BusBroker) -> tuple[str, ...]:
    """Return the nodes that may be the broker's, sorted.

    Those that claim its id, else those that claim none and have its host name or one of its addresses.
    """
    claiming = tuple(sorted(name for name, seat in nodes.items() if seat.claim == broker.id))
    return claiming or tuple(sorted(name for name, seat in nodes.items() if seat.claim is None and _at(seat, broker)))


def broker_map(
    nodes: Mapping[str, Seat], brokers: Iterable[BusBroker], what: Literal["broker", "controller"] = "broker"
) -> dict[int, str]:
    """Return the node of each broker, by broker id, in the order of the ids; a broker of no node is left out.

    A node that claims an id stands for that broker whether it is among `brokers` (those that are up) or not. SpecError
    names two that cannot both be right. So of controllers, if that is `what` they are.
    """
    found = _claimed(nodes, what)
    by_address: dict[str, BusBroker] = {}
    for broker in sorted(brokers, key=lambda one: one.id):
        if broker.id in found:
            continue
        names = candidates(nodes, broker)
        if len(names) > 1:
            raise SpecError(
                f"nodes {names[0]} and {names[1]} both have the address of {_shown(broker, what)}",
                path="$.nodes",
                remedy=_remedy(what),
            )
        for name in names:
            if name in by_address:
                raise SpecError(
                    f"node {name} has the address of both {_shown(by_address[name], what)} and {_shown(broker, what)}",
                    path="$.nodes",
                    remedy=f"give the one that is meant as `{what}: ID` of {name} in the configuration",
                )
            by_address[name] = broker
            found[broker.id] = name
    return dict(sorted(found.items()))


def _claimed(nodes: Mapping[str, Seat], what: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, seat in sorted(nodes.items()):
        if seat.claim is None:
            continue
        if seat.announced not in (None, seat.claim):
            raise SpecError(
                f"node {name} is {what} {seat.configured} by configuration, and its agent announces {what} "
                f"{seat.announced}",
                path=f"$.nodes.{name}.{what}",
                remedy="correct the configuration, or what the agent is attached to",
            )
        if seat.claim in found:
            raise SpecError(
                f"nodes {found[seat.claim]} and {name} both claim to be {what} {seat.claim}",
                path="$.nodes",
                remedy=_remedy(what),
            )
        found[seat.claim] = name
    return found


def _at(seat: Seat, broker: BusBroker) -> bool:
    if seat.hostname and seat.hostname.casefold() == broker.host.casefold():
        return True
    return not {*map(canonical, seat.addresses)}.isdisjoint(map(canonical, broker.addresses))


def _remedy(what: str) -> str:
    return f"give each of these nodes its own `{what}: ID` in the configuration"


def _shown(broker: BusBroker, what: str) -> str:
    return f"{what} {broker.id} ({broker.host}:{broker.port})"
