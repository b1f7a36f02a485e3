"""Chains of ours in a firewall, as typed data: nothing else can reach the kernel."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
ChainName = Annotated[str, msgspec.Meta(pattern=r"\ATB-[0-9a-f]{16}\Z")]
Tool = Annotated[str, msgspec.Meta(pattern=r"\A(/[A-Za-z0-9._+-]+)+/ip6?tables(-nft|-legacy)?\Z")]
Hook = Literal["INPUT", "OUTPUT"]


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One rule of a chain of ours; empty fields match everything, `not_loopback` spares the interface lo.

    `original_port`: the connection was opened to that port, whatever it is called since (0: any), and the packet goes
    the way in which it was opened. `answering`: the packet comes back on a connection, and that address sent it,
    whatever it is called since. The kernel must track connections to know.
    """

    target: Literal["DROP", "RETURN"] = "DROP"
    source: str = ""
    destination: str = ""
    not_loopback: Literal["", "in", "out"] = ""
    protocol: Literal["", "tcp", "udp"] = ""
    source_ports: tuple[Port, ...] = ()
    destination_ports: tuple[Port, ...] = ()
    icmpv6_type: Literal[0, 135, 136] = 0
    original_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    answering: str = ""


class Chain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A chain of ours, jumped to from position 1 of `hook`."""

    name: ChainName
    hook: Hook
    rules: tuple[Rule, ...]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Our chains in the filter table of one family; `tool` is the absolute path of the iptables that made them."""

    tool: Tool
    chains: tuple[Chain, ...]


class OwnedChains(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The names of our chains in the filter table of one family."""

    tool: Tool
    chains: tuple[ChainName, ...]
