"""How a command reaches the bus: the options that say so, written once, and what they mean together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints
from urllib.parse import quote

import typer

from trogdor_bus.cli import options
from trogdor_bus.cli.addresses import (
    DEFAULT_ADDRESS,
    DEFAULT_PORT,
    MAX_PORT,
    bound,
    check_brokers,
    check_prefix,
    join_address,
    parse_addresses,
    zmq_url,
)
from trogdor_bus.errors import BusError, NoCoordinatorError, NotFoundError, SpecError

if TYPE_CHECKING:
    from trogdor_bus.bus import MonitorBus
    from trogdor_bus.client import Client
    from trogdor_bus.transports import Transport

ADDRESS_VARIABLE = "TROGDOR_BUS_COORDINATOR"
TRANSPORT_VARIABLE = "TROGDOR_BUS_TRANSPORT"
BOOTSTRAP_VARIABLE = "TROGDOR_BUS_BOOTSTRAP_SERVER"
KAFKA_CONFIG_VARIABLE = "TROGDOR_BUS_KAFKA_CONFIG"
TRANSPORTS = {"zmq": ("zmq",), "kafka": ("kafka",), "kafka+zmq": ("kafka", "zmq")}
DEFAULT_PREFIX = "trogdor"
_KAFKA_OPTIONS = {"bootstrap": "--bootstrap-server", "kafka_config": "--kafka-config", "topic_prefix": "--topic-prefix"}


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Which bus it is, as the options say; `typed` are those that stood on the command line, `chosen` also variables.

    A field without an option is no part of the command line.
    """

    transport: Annotated[
        str,
        typer.Option(
            "--transport", envvar=TRANSPORT_VARIABLE, metavar="NAME", help="The bus: zmq, kafka, or kafka+zmq for both."
        ),
    ] = "zmq"
    bootstrap: Annotated[
        str,
        typer.Option(
            "--bootstrap-server",
            envvar=BOOTSTRAP_VARIABLE,
            metavar="HOST:PORT[,...]",
            help="Brokers of the Kafka that is the bus.",
        ),
    ] = ""
    kafka_config: Annotated[
        Path | None,
        typer.Option(
            "--kafka-config",
            envvar=KAFKA_CONFIG_VARIABLE,
            metavar="FILE",
            help="Properties of librdkafka for it: TLS, SASL and so on.",
        ),
    ] = None
    topic_prefix: Annotated[
        str, typer.Option("--topic-prefix", metavar="NAME", help="What the names of its topics begin with.")
    ] = DEFAULT_PREFIX
    keys: options.Keys = None
    insecure: options.Insecure = False
    typed: frozenset[str] = field(default=frozenset())
    chosen: frozenset[str] = field(default=frozenset())

    def url(self) -> str:
        """Return the URL of the bus, one or several with blanks between; SpecError for what cannot be meant."""
        links = {"kafka": self._kafka_urls, "zmq": self._zmq_urls}
        return " ".join(url for scheme in self.schemes() for url in links[scheme]())

    def schemes(self) -> tuple[str, ...]:
        """Return the transports; SpecError if there is no such, or an option belongs to another one."""
        if self.transport == "memory":
            raise SpecError("the memory transport works inside one process only", remedy="use --transport zmq")
        if self.transport not in TRANSPORTS:
            raise SpecError(f"no transport is called {self.transport!r}", remedy=f"there are {', '.join(TRANSPORTS)}")
        schemes = TRANSPORTS[self.transport]
        if "kafka" not in schemes and (wrong := [o for n, o in _KAFKA_OPTIONS.items() if n in self.typed]):
            raise SpecError(
                f"{wrong[0]} is for Kafka, and the transport is {self.transport}",
                remedy=f"add --transport kafka or --transport kafka+zmq, or drop {wrong[0]}",
            )
        if "zmq" not in schemes and (wrong := [o for n, o in self._zmq_options().items() if n in self.typed]):
            raise SpecError(
                f"{wrong[0]} is for ZeroMQ, and the transport is {self.transport} alone",
                remedy=f"drop {wrong[0]}, or use --transport kafka+zmq",
            )
        return schemes

    def keys_dir(self) -> Path | None:
        """Return the directory of the keys, or None without encryption; SpecError if both were asked for."""
        return options.keys_dir(self.keys, self.insecure)

    def kafka(self) -> str:
        """Return the options that a peer of this Kafka bus is started with."""
        parts = [f"--transport {self.transport} --bootstrap-server {self.bootstrap}"]
        parts += [f"--kafka-config {self.kafka_config}"] if self.kafka_config else []
        parts += [f"--topic-prefix {self.topic_prefix}"] if self.topic_prefix != DEFAULT_PREFIX else []
        return " ".join(parts)

    def cluster(self, brokers: str, properties: Path | None) -> tuple[str, Path | None]:
        """Return brokers ("" for none) and properties of the Kafka cluster under test: those given, else the bus's own.

        SpecError or NotFoundError for what cannot be meant.
        """
        if not brokers:
            if properties is not None:
                raise SpecError("--cluster-config is of no cluster", remedy="give --cluster HOST:PORT, too")
            return (self.bootstrap, self.kafka_config) if "kafka" in self.schemes() else ("", None)
        if properties is not None and not properties.is_file():
            remedy = f"check --cluster-config or {options.CLUSTER_CONFIG_VARIABLE}"
            raise NotFoundError(f"there is no file {properties}: {remedy}")
        return check_brokers(brokers, "--cluster HOST:PORT"), properties

    def _zmq_options(self) -> dict[str, str]:
        """Return the options that belong to ZeroMQ, by field."""
        raise NotImplementedError

    def _zmq_urls(self) -> list[str]:
        raise NotImplementedError

    def _kafka_urls(self) -> list[str]:
        brokers = check_brokers(self.bootstrap, f"--bootstrap-server HOST:PORT, or {BOOTSTRAP_VARIABLE}")
        url = f"kafka://{brokers}/{check_prefix(self.topic_prefix)}"
        if self.kafka_config is None:
            return [url]
        if not self.kafka_config.is_file():
            remedy = f"check --kafka-config or {KAFKA_CONFIG_VARIABLE}"
            raise NotFoundError(f"there is no file {self.kafka_config}: {remedy}")
        return [f"{url}?config={quote(str(self.kafka_config.absolute()))}"]


@dataclass(frozen=True, kw_only=True)
class Reach(Connection):
    """How a client verb or an agent reaches the coordinator."""

    coordinator: Annotated[
        str,
        typer.Option(
            "--coordinator",
            envvar=ADDRESS_VARIABLE,
            metavar="HOST[:PORT][,...]",
            help="Where the coordinator is, or may be; [::1]:5560 too.",
        ),
    ] = DEFAULT_ADDRESS

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

    def places(self) -> list[tuple[str, int]]:
        """Return the addresses at which the coordinator may be, [] if nobody dials it."""
        return parse_addresses(self.coordinator) if "zmq" in self.schemes() else []

    def where(self) -> str:
        """Return the addresses as people write them."""
        dialled = [join_address(host, port) for host, port in self.places()]
        return " or ".join([*self._kafka_places(), *dialled])

    def agent(self) -> str:
        """Return how an agent of this bus is started."""
        kafka = [self.kafka()] if self._kafka_places() else []
        dialled = ["--coordinator HOST"] if self.places() else []
        return " ".join(["trogdor-bus agent --node NAME", *kafka, *dialled])

    def advice(self) -> str:
        """Return what to do when nobody answers there."""
        here, start = self._start()
        places = [f"--coordinator HOST:PORT or {ADDRESS_VARIABLE}"] if self.places() else []
        places += [f"--bootstrap-server HOST:PORT or {BOOTSTRAP_VARIABLE}"] if self._kafka_places() else []
        keys = (
            "a coordinator that was started without --insecure ignores this command"
            if self.insecure
            else f"those in {self.keys_dir()} must come from that coordinator "
            "(trogdor-bus keys export there, import here), or use --insecure on both sides"
        )
        return (
            f"\n  is one running there?   {start}{'' if here else '   (on that host)'}"
            f"\n  is it another address?  {', '.join(places)} (now {self.where()})"
            f"\n  are the keys right?     {keys}"
        )

    def _start(self) -> tuple[bool, str]:
        """Return whether the coordinator may be started on this machine, and how."""
        words, here = ["trogdor-bus coordinator"], True
        if self._kafka_places():
            words.append(self.kafka())
        if places := self.places():
            host, port = places[0]
            here = host in ("127.0.0.1", "localhost", "::1")
            words += [] if port == DEFAULT_PORT else [f"--port {port}"]
            words += [] if here else [f"--bind {host}"]
        return here, " ".join([*words, *(["--insecure"] if self.insecure else [])])

    def _kafka_places(self) -> list[str]:
        return [url.partition("?")[0] for url in self._kafka_urls()] if "kafka" in self.schemes() else []

    def _zmq_options(self) -> dict[str, str]:
        return {"coordinator": "--coordinator"}

    def _zmq_urls(self) -> list[str]:
        return [zmq_url(host, port) for host, port in self.places()]

    def _opener(self) -> tuple[Transport, str, Path | None]:
        from trogdor_bus.transports import transport

        url = self.url()
        return transport(url), url, self.keys_dir()

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, BusError) as error:  # no keys; a host name that nobody knows
            raise NoCoordinatorError(f"cannot ask a coordinator at {self.where()}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Seat(Connection):
    """Where a coordinator sits."""

    bind: Annotated[str, typer.Option("--bind", metavar="ADDR", help="The address to listen on; 0.0.0.0 for all.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option("--port", min=1, max=MAX_PORT, help="The first of four ports.")] = DEFAULT_PORT

    def _zmq_options(self) -> dict[str, str]:
        return {"bind": "--bind", "port": "--port"}

    def _zmq_urls(self) -> list[str]:
        return [zmq_url(bound(self.bind), self.port)]


def connected(verb: Callable[..., None]) -> Callable[..., None]:
    """Return the verb as a command: in place of its parameter that is a Reach or a Seat it has that one's options."""
    hints = get_type_hints(verb, include_extras=True)
    name, group = next((name, kind) for name, kind in hints.items() if isinstance(kind, type) and kind in _GROUPS)
    added = _options(group)
    told = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @functools.wraps(verb)
    def command(*arguments: Any, context: typer.Context, **values: Any) -> None:
        mine = {one.name: values.pop(one.name) for one in added}
        sources = {option: getattr(context.get_parameter_source(option), "name", "DEFAULT") for option in mine}
        chosen = frozenset(option for option, source in sources.items() if source != "DEFAULT")
        typed = frozenset(option for option in chosen if sources[option] == "COMMANDLINE")
        verb(*arguments, **values, **{name: group(**mine, typed=typed, chosen=chosen)})

    parameters = [told]
    for parameter in inspect.signature(verb).parameters.values():
        mine = added if parameter.name == name else [parameter.replace(annotation=hints[parameter.name])]
        parameters[-1:-1] = mine
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


_GROUPS = (Reach, Seat)


def _options(group: type[Connection]) -> list[inspect.Parameter]:
    """Return the options of a group as parameters of a command, its own ones first."""
    hints = get_type_hints(group, include_extras=True)
    known = {one.name: one.default for one in fields(group)}
    ordered = [*group.__annotations__, *Connection.__annotations__]
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=known[name], annotation=hints[name])
        for name in ordered
        if hasattr(hints[name], "__metadata__")
    ]
