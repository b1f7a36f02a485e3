"""Cutting nodes off."""

from __future__ import annotations

from typing import Literal

from trogdor_bus.actions import Action, Impact, Peer

Protocol = Literal["all", "tcp", "udp", "icmp"]
Direction = Literal["in", "out", "both"]


class BlockFrom(Action, frozen=True, tag="block-from"):
    """Drop every packet that comes in from the peers, established connections included."""

    peers: tuple[Peer, ...]

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        who = ", ".join(f"{peer.node} ({' '.join(peer.addresses)})" for peer in self.peers)
        return f"drop everything that comes in from {who}", "remove exactly these rules"

    def impact(self) -> Impact:
        """Return the peers."""
        return Impact(deaf_to=self.peers)


class BlockPorts(Action, frozen=True, tag="block-ports"):
    """Drop packets to the given ports: coming `in` to this node, going `out` of it, or both; loopback is left alone."""

    ports: tuple[int, ...]
    protocol: Literal["tcp", "udp"] = "tcp"
    direction: Direction = "in"

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        ports = ", ".join(map(str, self.ports))
        how = {"in": "coming in to", "out": "going out to", "both": "coming in or going out to"}[self.direction]
        return f"drop {self.protocol} packets {how} port {ports}", "remove exactly these rules"

    def impact(self) -> Impact:
        """Return the ports, if they are of TCP."""
        shut = self.ports if self.protocol == "tcp" else ()
        return Impact(shut_in=shut if self.direction != "out" else (), shut_out=shut if self.direction != "in" else ())
