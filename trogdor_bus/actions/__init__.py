"""What a fault asks of a node, in words that no operating system owns.

A spec, asked with a node and the topology, answers with actions. They are data: a preview shows them, a frame carries
them, and the platform of the agent lowers each to steps (see `trogdor_bus.platform`).

Actions are found, not listed: whatever class stands in a module of this folder, or in one that a package names as an
entry point of the group "trogdor_bus.actions".
"""

from __future__ import annotations

import msgspec

from trogdor_bus.errors import BusError
from trogdor_bus.names import shown
from trogdor_bus.plugins import Kinds


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another node, with the addresses (IPv4 and IPv6, as text) by which its packets are known."""

    node: str
    addresses: tuple[str, ...]


class ProcessMatch(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which processes are meant: exactly one of the fields is set.

    `java`: substring of the line that jcmd prints (pid, main class or jar, arguments). `command`: substring of the
    command line. `pid_file`: path of a file that holds the pid. `port`: listens on that TCP port.
    """

    java: str = ""
    command: str = ""
    pid_file: str = ""
    port: int = 0

    def describe(self) -> str:
        """Return the match in words."""
        if self.java:
            return f"JVMs whose jcmd line contains {self.java!r}"
        if self.command:
            return f"processes whose command line contains {self.command!r}"
        if self.pid_file:
            return f"the process named in {self.pid_file}"
        return f"the process that listens on TCP port {self.port}"


class Impact(msgspec.Struct, frozen=True, kw_only=True):
    """What an action takes from its node: all that a coordinator must know to keep the cluster and the bus alive.

    `deaf_to`: whose packets do not come in any more. `shut_in`, `shut_out`: TCP ports that nobody reaches there, or
    from there. `hits`: the processes that do not answer. `leads`: a partition whose leader changes. `lasts`: it is
    not taken back at the end.
    """

    deaf_to: tuple[Peer, ...] = ()
    shut_in: tuple[int, ...] = ()
    shut_out: tuple[int, ...] = ()
    hits: ProcessMatch | None = None
    leads: tuple[str, int] | None = None
    lasts: bool = False


class Action(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="action", omit_defaults=True, forbid_unknown_fields=True
):
    """One thing that a node is asked to do, and to take back later.

    Defaults do not travel, so a field that is not known means another thing, and the action is not known.
    """

    def describe(self) -> tuple[str, str]:
        """Return what is done and how it is undone, one line each, for people."""
        raise NotImplementedError

    def impact(self) -> Impact:
        """Return what it takes from the node; nothing, unless a subclass says so."""
        return Impact()


class _Named(msgspec.Struct):
    action: str = ""


def decode_action(raw: bytes | msgspec.Raw) -> Action:
    """Return the action in a JSON object; BusError says which action, or what of it, is not known here."""
    name = name_of(raw)
    try:
        kind = KINDS.of(name)
        if kind is None:
            why = (
                "; ".join((f"the action {shown(repr(name))}", *KINDS.broken))
                if name
                else "not an action: it has no name"
            )
            raise BusError(why)
        action: Action = msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BusError(f"the action {shown(name)} ({shown(str(error))})") from None
    return action


def name_of(raw: bytes | msgspec.Raw) -> str:
    """Return the name of the action in a JSON object, known or not; "" if there is none."""
    try:
        return msgspec.json.decode(raw, type=_Named).action
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


KINDS = Kinds(Action, __name__, "trogdor_bus.actions")
"""Every action."""
