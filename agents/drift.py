"""Addresses that peers of a running block announce and no rule names yet. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from trogdor_bus.actions import Peer


class Drift(msgspec.Struct):
    """What is known of one worker: addresses that are `open`, and those that are `blocked` since."""

    open: tuple[Peer, ...] = ()
    blocked: tuple[Peer, ...] = ()

    def heed(self, peers: Iterable[Peer]) -> tuple[str, ...]:
        """Take in what peers announce beside what was ordered; return a line for people for each that is open."""
        self.open = beyond(together(self.open, peers), self.blocked)
        return told(self.open)

    def close(self, blocked: Iterable[Peer]) -> tuple[str, ...]:
        """Note what is blocked now; return the lines of what is open still."""
        self.blocked = together(self.blocked, blocked)
        return self.heed(())


def beyond(peers: Iterable[Peer], named: Iterable[Peer]) -> tuple[Peer, ...]:
    """Return the peers with those of their addresses that are not among the `named` ones; a peer without any is not."""
    known = {(peer.node, address) for peer in named for address in peer.addresses}
    rest = (Peer(one.node, tuple(a for a in one.addresses if (one.node, a) not in known)) for one in peers)
    return tuple(peer for peer in rest if peer.addresses)


def together(peers: Iterable[Peer], more: Iterable[Peer]) -> tuple[Peer, ...]:
    """Return all of them, each peer once, each address once."""
    found: dict[str, dict[str, None]] = {}
    for peer in (*peers, *more):
        found.setdefault(peer.node, {}).update(dict.fromkeys(peer.addresses))
    return tuple(Peer(node, tuple(addresses)) for node, addresses in found.items())


def told(peers: Iterable[Peer]) -> tuple[str, ...]:
    """Return a line for people for each address."""
    return tuple(f"{one.node} announces {address}, which no rule names" for one in peers for address in one.addresses)
