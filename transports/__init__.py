"""Transports by URL scheme: `zmq://host:port`, `memory://name`. Each is one module, imported when first asked
for. Several URLs, with one blank between, are several links at once: the fan.

A transport module has four functions, each given the URL and `keys` (a directory of CURVE keys, or None for no
encryption; a transport that needs none ignores it):

    open_coordinator(url, keys) -> CoordinatorBus      binds
    open_agent(url, node, keys) -> AgentBus            dials
    open_client(url, keys) -> ClientBus                dials
    open_monitor(url, keys) -> MonitorBus              dials

and, if it can keep a coordinator's state on other machines:

    open_log(url, keys) -> StateLog                    dials
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from trogdor_bus.bus import AgentBus, ClientBus, CoordinatorBus, MonitorBus, StateLog
from trogdor_bus.errors import BusError

TRANSPORTS = {
    "kafka": "trogdor_bus.transports.kafka",
    "memory": "trogdor_bus.transports.memory",
    "zmq": "trogdor_bus.transports.zmq",
}


class Transport(Protocol):
    """What a transport module offers."""

    def open_coordinator(self, url: str, keys: Path | None) -> CoordinatorBus:
        """Bind and return the coordinator's end; TakenError if another has the address."""
        ...

    def open_agent(self, url: str, node: str, keys: Path | None) -> AgentBus:
        """Dial and return an agent's end; the coordinator need not be there yet."""
        ...

    def open_client(self, url: str, keys: Path | None) -> ClientBus:
        """Dial and return a client's end; the coordinator need not be there yet."""
        ...

    def open_monitor(self, url: str, keys: Path | None) -> MonitorBus:
        """Dial and return a monitor's end; the coordinator need not be there yet."""
        ...


def transport(url: str) -> Transport:
    """Return the transport of `url`, or of several with blanks between; BusError if there is none of that name."""
    if " " in url:
        return several()
    scheme = url.partition("://")[0]
    if scheme not in TRANSPORTS:
        raise BusError(f"no transport is called {scheme!r}; there are {', '.join(sorted(TRANSPORTS))}")
    module: Transport = importlib.import_module(TRANSPORTS[scheme])
    return module


def several() -> Transport:
    """Return the transport of any number of URLs with blanks between: all links at once."""
    module: Transport = importlib.import_module("trogdor_bus.transports.fan")
    return module


def link_with_log(url: str) -> str:
    """Return the first of the URL's links that has a log, "" if none has."""
    return next((link for link in url.split() if hasattr(transport(link), "open_log")), "")


def open_log(url: str, keys: Path | None) -> StateLog | None:
    """Return the log of the first of the URL's links that has one, or None."""
    link = link_with_log(url)
    return cast(StateLog, getattr(transport(link), "open_log")(link, keys)) if link else None  # noqa: B009
