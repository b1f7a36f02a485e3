"""The options that several commands share, and what they mean."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trogdor_bus.errors import BusError, NoCoordinatorError, NotFoundError, SpecError

if TYPE_CHECKING:
    from trogdor_bus.bus import MonitorBus
    from trogdor_bus.client import Client
    from trogdor_bus.transports import Transport as TransportModule

DEFAULT_PORT = 5560
MAX_PORT = 65532
"""The bus takes four ports in a row."""
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
ADDRESS_VARIABLE = "TROGDOR_BUS_COORDINATOR"

_HOST = re.compile(r"[A-Za-z0-9_.-]+")

Coordinator = Annotated[
    str,
    typer.Option(
        "--coordinator",
        envvar=ADDRESS_VARIABLE,
        metavar="HOST[:PORT]",
        help="Where the coordinator is; [::1]:5560 too.",
    ),
]
Transport = Annotated[str, typer.Option("--transport", metavar="NAME", help="The bus: zmq.")]
Keys = Annotated[
    Path | None,
    typer.Option("--keys", metavar="DIR", help="Directory of the keys; `trogdor-bus keys path` prints the default."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Without keys: no encryption, and anybody who reaches the port is obeyed.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines; errors too, on standard error.")]
LogLevel = Annotated[str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log JSON lines.")]
StateDir = Annotated[
    Path | None, typer.Option("--state-dir", metavar="DIR", help="Where state is kept across restarts.")
]


@dataclass(frozen=True)
class Reach:
    """How a client verb reaches the coordinator."""

    coordinator: str
    transport: str
    keys: Path | None
    insecure: bool

    def client(self) -> Client:
        """Return a client of the coordinator; call it inside the event loop."""
        from trogdor_bus.client import Client

        transport, url, keys = self._opener()
        with self._opening():
            return Client(transport.open_client(url, keys), self.where())

    def monitor(self) -> MonitorBus:
        """Return a monitor's end of the bus; call it inside the event loop."""
        transport, url, keys = self._opener()
        with self._opening():
            return transport.open_monitor(url, keys)

    def where(self) -> str:
        """Return the address as people write it."""
        host, port = parse_address(self.coordinator)
        return join_address(host, port)

    def advice(self) -> str:
        """Return what to do when nobody answers there."""
        host, port = parse_address(self.coordinator)
        here = host in ("127.0.0.1", "localhost", "::1")
        start = "trogdor-bus coordinator" + ("" if port == DEFAULT_PORT else f" --port {port}")
        start += "" if here else f" --bind {host}"
        start += " --insecure" if self.insecure else ""
        keys = (
            "a coordinator that was started without --insecure ignores this command"
            if self.insecure
            else f"those in {keys_dir(self.keys, self.insecure)} must come from that coordinator "
            "(trogdor-bus keys export there, import here), or use --insecure on both sides"
        )
        return (
            f"\n  is one running there?   {start}{'' if here else '   (on that host)'}"
            f"\n  is it another address?  --coordinator HOST:PORT or {ADDRESS_VARIABLE} (now {self.where()})"
            f"\n  are the keys right?     {keys}"
        )

    def _opener(self) -> tuple[TransportModule, str, Path | None]:
        from trogdor_bus.transports import transport

        url = bus_url(self.transport, *parse_address(self.coordinator))
        return transport(url), url, keys_dir(self.keys, self.insecure)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, BusError) as error:  # no keys; a host name that nobody knows
            raise NoCoordinatorError(f"cannot ask a coordinator at {self.where()}: {error}") from None


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST, HOST:PORT, ::1 or [::1]:PORT; SpecError for a port that is none."""
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if rest or not closed:
            port = rest.removeprefix(":") if rest.startswith(":") else "?"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= MAX_PORT):
        raise SpecError(
            f"the port of the address {text!r} is not a number from 1 to {MAX_PORT}", remedy=_ADDRESS_REMEDY
        )
    return host, int(port)


_ADDRESS_REMEDY = f"write HOST or HOST:PORT, such as 10.0.0.1:{DEFAULT_PORT} or [::1]:{DEFAULT_PORT}"


def join_address(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bus_url(transport: str, host: str, port: int) -> str:
    """Return the URL of a bus; SpecError for one that is unknown or stays in its process, and for no address."""
    from trogdor_bus.transports import TRANSPORTS

    if transport == "memory":
        raise SpecError("the memory transport works inside one process only", remedy="use --transport zmq")
    if transport not in TRANSPORTS:
        known = ", ".join(sorted(set(TRANSPORTS) - {"memory"}))
        raise SpecError(f"no transport is called {transport!r}", remedy=f"there is {known}")
    if not (host == "*" or (_is_ipv6(host) if ":" in host else _HOST.fullmatch(host))):
        raise SpecError(f"{host!r} is not an address", remedy=_ADDRESS_REMEDY)
    return f"{transport}://{join_address(host, port)}"


def keys_dir(keys: Path | None, insecure: bool) -> Path | None:
    """Return the directory of the keys, or None without encryption; SpecError if both were asked for."""
    if insecure:
        if keys is not None:
            raise SpecError("--keys and --insecure exclude each other", remedy="drop one")
        return None
    if keys is not None:
        return keys
    from trogdor_bus.keys import default_dir

    return default_dir()


def state_dir(given: Path | None, name: str) -> Path:
    """Return where a daemon called `name` keeps its state: /var/lib for root, the user's state directory otherwise."""
    if given is not None:
        return given
    if os.geteuid() == 0:
        return Path("/var/lib/trogdor-bus") / name
    from platformdirs import user_state_path

    return user_state_path("trogdor-bus") / name


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
