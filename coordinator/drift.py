"""What the peers of running blocks announce since those were ordered: addresses that no rule names yet. Pure.

Only the nodes that a block was ordered against are followed, whoever holds a role by now. What was left out when it was
planned stays left out, and what a peer announces no more stays blocked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from trogdor_bus.actions import Peer
from trogdor_bus.coordinator.fleet import Fleet
from trogdor_bus.states import WorkerRow, WorkerState
from trogdor_bus.topology import LeftOut, Topology, canonical

if TYPE_CHECKING:
    from trogdor_bus.coordinator.ledger import Ledger

SETTLED_MS = 5_000
"""A coordinator that has just started waits so long for the agents: who has an address alone is not known before."""
FOLLOWED = (WorkerState.RECEIVING, WorkerState.STARTING, WorkerState.RUNNING)


class Drift:
    """Kept with the ledger, in memory: after a restart it is found again, as actions and addresses are."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._seen: dict[str, tuple[str, ...]] = {}
        self._news: dict[int, tuple[Peer, ...]] = {}

    def of(self, worker_id: int) -> tuple[Peer, ...]:
        """Return what the rules of a worker should name beside what it was ordered."""
        return self._news.get(worker_id, ())

    def forget(self, worker_id: int) -> None:
        """Drop what is known of a worker that has ended."""
        self._news.pop(worker_id, None)

    def follow(self, ledger: Ledger, topology: Callable[[], Topology], since_start_ms: int) -> set[str]:
        """Compare what nodes announce with what running workers were ordered; return the nodes that must be told.

        New addresses that no rule may name are kept as left out.
        """
        if since_start_ms < SETTLED_MS:
            return set()
        nodes = self._fleet.nodes
        changed = {name for name, node in nodes.items() if self._seen.get(name, ()) != node.addresses}
        if not changed:
            return set()
        self._seen.update((name, nodes[name].addresses) for name in changed)
        now = topology()
        open_ = [worker_id for node in nodes.values() for worker_id in node.open]
        return {ledger.row(worker_id).node for worker_id in open_ if self._look(ledger, worker_id, changed, now)}

    def _look(self, ledger: Ledger, worker_id: int, changed: set[str], now: Topology) -> bool:
        row = ledger.row(worker_id)
        if row.state not in FOLLOWED or not row.wanted:
            return False
        before, left_out = self.of(worker_id), row.left_out
        for action in ledger.actions(worker_id) or ():
            for peer in action.impact().deaf_to:
                if peer.node in changed and peer.node in now.nodes:
                    left = [one for one in now.left_out(row.node, peer.node) if not _told(row, one)]
                    left_out += tuple(str(one) for one in left if str(one) not in left_out)
                    fresh = tuple(_fresh(row, peer, now))
                    self._add(worker_id, Peer(peer.node, fresh))
        if left_out != row.left_out:
            ledger.put_worker(msgspec.structs.replace(row, left_out=left_out))
        return self.of(worker_id) != before

    def _add(self, worker_id: int, fresh: Peer) -> None:
        known = {one.node: one.addresses for one in self.of(worker_id)}
        together = tuple(dict.fromkeys((*known.get(fresh.node, ()), *fresh.addresses)))
        if together:
            known[fresh.node] = together
            self._news[worker_id] = tuple(Peer(node, addresses) for node, addresses in sorted(known.items()))


def _fresh(row: WorkerRow, ordered: Peer, now: Topology) -> Iterator[str]:
    """Yield the addresses of a peer by now that a rule may name and none does."""
    node = now.nodes[ordered.node]
    skipped = {one.address for one in now.left_out(row.node, ordered.node)}
    for address in dict.fromkeys(node.addresses):
        named = canonical(address) in ordered.addresses
        if not named and address not in skipped and not _told(row, LeftOut(ordered.node, address, "")):
            yield canonical(address)


def _told(row: WorkerRow, left: LeftOut) -> bool:
    """Return whether people were told already that this address is left out, for whatever reason."""
    return any(one.startswith(f"{left.address} of {left.node}: ") for one in row.left_out)
