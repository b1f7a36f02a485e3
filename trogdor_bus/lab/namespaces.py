"""Network namespaces as machines: one per node, one for the coordinator, and one that holds only the bridge.

Nothing of the host's own network changes: every link is made in the bridge's namespace and moved from there, and the
addresses exist inside the namespaces only.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from trogdor_bus.errors import HostError, SpecError

T = TypeVar("T")

NETNS = Path("/run/netns")
SUBNET4 = ipaddress.IPv4Network("10.89.0.0/24")
SUBNET6 = ipaddress.IPv6Network("fd89:7462:6c61::/64")
COORDINATOR = "coordinator"
MAX_NODES = 200
_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71


class Member(msgspec.Struct, frozen=True):
    """One machine of the lab: its name, its namespace and its two addresses."""

    name: str
    namespace: str
    ipv4: str
    ipv6: str


def members(lab: str, nodes: int) -> tuple[Member, ...]:
    """Return node1 to nodeN and the coordinator; SpecError for a name or a number that cannot be."""
    check_name(lab)
    if not 1 <= nodes <= MAX_NODES:
        raise SpecError(f"a lab cannot have {nodes} nodes", remedy=f"ask for 1 to {MAX_NODES}")
    named = [(f"node{number}", number) for number in range(1, nodes + 1)] + [(COORDINATOR, 254)]
    return tuple(Member(name, f"tb-{lab}-{name}", str(SUBNET4[number]), str(SUBNET6[number])) for name, number in named)


def check_name(lab: str) -> None:
    """Raise SpecError for what no lab can be called."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", lab):
        raise SpecError(f"a lab cannot be called {lab!r}", remedy="use at most 32 of a-z, 0-9 and '-'")


def bridge(lab: str) -> str:
    """Return the name of the namespace that holds only the bridge."""
    return f"tb-{lab}-bridge"


def run(argv: Sequence[str], given: str | None = None) -> str:
    """Return what the command prints; HostError with its own words if it fails."""
    try:
        done = subprocess.run(
            argv, input=given, capture_output=True, text=True, check=False, timeout=60, start_new_session=True
        )
    except FileNotFoundError:
        raise HostError(f"{argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{' '.join(argv)} did not end within 60 s") from None
    if done.returncode != 0:
        raise HostError(f"{' '.join(argv)} failed: {(done.stderr or done.stdout).strip() or done.returncode}")
    return done.stdout


def inside(namespace: str, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs `argv` in the namespace, under the same pid."""
    return ["nsenter", f"--net={NETNS / namespace}", "--", *argv]


def exists(namespace: str) -> bool:
    """Tell whether `ip netns` knows the name."""
    return (NETNS / namespace).exists()


def identity(namespace: str) -> str:
    """Return what tells this namespace from a later one of the same name, "" if there is none of that name.

    It is the kernel's cookie of the namespace (Linux 5.14; the inode is given to the next one), else the inode.
    """
    if not exists(namespace):
        return ""
    try:
        return f"cookie {call_inside(namespace, _cookie)}"
    except HostError:
        return "no namespace"  # a file that an earlier boot left
    except OSError:
        return f"inode {(NETNS / namespace).stat().st_ino}"


def listed() -> tuple[str, ...]:
    """Return the names that `ip netns list` would print, sorted."""
    return tuple(sorted(path.name for path in NETNS.iterdir())) if NETNS.exists() else ()


def add_bridge(namespace: str) -> None:
    """Make the namespace with a bridge, and nothing else, in it."""
    run(["ip", "netns", "add", namespace])
    _ip(namespace, "link set lo up", "link add br0 type bridge mcast_snooping 0", "link set br0 up")


def add_member(member: Member, bridge_namespace: str) -> None:
    """Make the member's namespace and plug it into the bridge; its addresses are usable at once."""
    run(["ip", "netns", "add", member.namespace])
    _ip(
        bridge_namespace,
        f"link add {member.name} type veth peer name eth0 netns {member.namespace}",
        f"link set {member.name} master br0 up",
    )
    _ip(
        member.namespace,
        "link set lo up",
        f"address add {member.ipv4}/{SUBNET4.prefixlen} dev eth0",
        f"address add {member.ipv6}/{SUBNET6.prefixlen} dev eth0 nodad",
        "link set eth0 up",
    )


def remove_member(member: Member, bridge_namespace: str) -> None:
    """Unplug the member from the bridge and remove its namespace."""
    _ip(bridge_namespace, f"link delete {member.name}")  # the kernel would, but only when it gets to it
    delete(member.namespace)


def forget_neighbours(member: Member) -> None:
    """Have the member learn again which link address belongs to whom."""
    _ip(member.namespace, "neighbour flush all")


def delete(namespace: str) -> None:
    """Remove the namespace and with it everything that is inside."""
    run(["ip", "netns", "delete", namespace])


def call_inside(namespace: str, function: Callable[[], T]) -> T:
    """Return what `function` returns in a thread of its own inside the namespace; sockets it makes stay there."""

    def entered() -> T:
        enter(namespace)
        return function()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(entered).result()


def enter(namespace: str) -> None:
    """Move the calling thread into the namespace, for good: use a thread that ends soon after."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (NETNS / namespace).open() as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            raise HostError(f"cannot enter the namespace {namespace}: {os.strerror(ctypes.get_errno())}")


def _cookie() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)


def _ip(namespace: str, *lines: str) -> None:
    run(["ip", "-n", namespace, "-batch", "-"], "\n".join(lines) + "\n")
