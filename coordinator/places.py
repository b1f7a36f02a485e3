"""Which node is which broker and which controller of the cluster under test, as it was seen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trogdor_bus.bus import BusBroker
from trogdor_bus.cluster import ClusterView, SeenBroker, SeenController
from trogdor_bus.coordinator.brokers import broker_map
from trogdor_bus.coordinator.fleet import NodeState
from trogdor_bus.roles import Places


def places_of(nodes: Mapping[str, NodeState], view: ClusterView, hosts: Mapping[str, Sequence[str]]) -> Places:
    """Return the node of each broker and controller; `hosts` are the addresses of the host names that they advertise.

    A controller that nobody claims is where the broker of its id is, as in KRaft that is one process, else where its
    address is. SpecError names two that cannot both be right.
    """
    seats = {name: state.seat() for name, state in nodes.items()}
    brokers = broker_map(seats, [_listening(one, hosts) for one in view.brokers.values()])
    if view.quorum is None:
        return Places(brokers)
    voters = {one.id: one for one in view.quorum.voters}
    seats = {name: state.controller_seat() for name, state in nodes.items()}
    apart = [_listening(one, hosts) for number, one in voters.items() if number not in brokers]
    found = broker_map(seats, apart, "controller")
    together = {number: brokers[number] for number in voters if number in brokers}
    return Places(brokers, together | found)


def _listening(one: SeenBroker | SeenController, hosts: Mapping[str, Sequence[str]]) -> BusBroker:
    return BusBroker(id=one.id, host=one.host, port=one.port, addresses=tuple(hosts.get(one.host, ())))
