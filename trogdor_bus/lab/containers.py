"""Containers on one Docker network: the border to testcontainers and to Docker's own library.

All that is made carries the name of its lab as a label, by which it is found again, and removed, whoever made it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import ipaddress
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from trogdor_bus.errors import ConflictError, HostError, NotFoundError, RefusedError

if TYPE_CHECKING:
    from testcontainers.core.docker_client import DockerClient

LAB = "trogdor-bus.lab"
NODE = "trogdor-bus.node"
BROKER_ID = "trogdor-bus.broker-id"
"""Labels: whose container it is, the name of its node, and the id of the broker in it."""
OFFICIAL = "apache/kafka"
BUILT = "trogdor-kafka"
"""The images: that of the Kafka project, and that of contrib/kafka-image/build."""
EXTRA = "testcontainers: pip install 'trogdor-bus[lab]'"
"""What a base installation lacks."""
TRIES = 10
"""So often a lab looks for free addresses that others look for at the same time."""


class Wanted(msgspec.Struct, frozen=True):
    """A container to be made. `published`: ports inside, and where each is found on 127.0.0.1."""

    node: str
    address: str
    environment: Mapping[str, str] = {}
    published: Mapping[int, int] = {}
    labels: Mapping[str, str] = {}
    command: tuple[str, ...] = ()


class Containers:
    """The containers of one lab, by the names of their nodes; Docker is asked when something is."""

    def __init__(self, lab: str) -> None:
        self.lab, self.network = lab, f"tb-{lab}"
        self._image = ""

    @functools.cached_property
    def _client(self) -> DockerClient:
        return _client()

    def name(self, node: str) -> str:
        """Return what Docker calls the container of a node."""
        return f"tb-{self.lab}-{node}"

    def find_image(self, version: str, *, pull: bool = True) -> str:
        """Choose and return the image: the official one, or the one built here.

        What is not here is pulled, and HostError if it cannot be; without `pull` it is "".
        """
        for name in (f"{OFFICIAL}:{version}", f"{BUILT}:{version}"):
            with contextlib.suppress(NotFoundError), _asking(f"the image {name}"):
                self._client.client.images.get(name)
                self._image = name
                return name
        return self.pull(version) if pull else ""

    def pull(self, version: str) -> str:
        """Pull, choose and return the official image; HostError if it cannot be had."""
        image = f"{OFFICIAL}:{version}"
        try:
            with _asking(f"the image {image}"):
                self._client.client.images.pull(OFFICIAL, tag=version)
        except (HostError, NotFoundError) as error:
            raise HostError(
                f"{error}\n  if no image can be pulled here: contrib/kafka-image/build --version {version}"
            ) from None
        self._image = image
        return image

    def make_network(self) -> ipaddress.IPv4Network:
        """Make the network of the lab, where nobody else is, and return its addresses; ConflictError if it exists."""
        require_library()
        from docker.types import IPAMConfig, IPAMPool
        from testcontainers.core.network import Network

        if self._networks() or self._all():
            raise ConflictError(
                f"Docker has containers or a network of a lab {self.lab} already; "
                f"`trogdor-bus lab down --name {self.lab}` or choose another --name"
            )

        def make(**wanted: Any) -> Any:
            network = Network(docker_network_kw={"labels": {LAB: self.lab}, "check_duplicate": True, **wanted})
            network.name = self.network
            with _asking(f"the network {self.network}"):
                network.create()
                return network._unwrap_network

        for tries_left in reversed(range(TRIES)):
            found = make()  # Docker knows which addresses are free, but fixes none in a network for which it chose them
            with _asking(f"the network {self.network}"):
                found.reload()
                subnet = found.attrs["IPAM"]["Config"][0]["Subnet"]
                found.remove()
            try:
                make(ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=subnet)]))
                break
            except HostError as error:  # another lab was as quick and has them now
                if not tries_left or "overlap" not in str(error):
                    raise
        return ipaddress.IPv4Network(subnet)

    def start(self, wanted: Wanted) -> None:
        """Make and start a container, which is not started again by itself; return at once."""
        require_library()
        import docker
        from docker.types import EndpointConfig
        from testcontainers.core.container import DockerContainer

        container = DockerContainer(
            self._image,
            command=list(wanted.command) or None,  # type: ignore[arg-type]  # a list is taken, too
            env=dict(wanted.environment),
            name=self.name(wanted.node),
            hostname=wanted.node,
            network=None,
            labels={LAB: self.lab, NODE: wanted.node, **wanted.labels},
            restart_policy={"Name": "no"},
        )
        endpoint = EndpointConfig(docker.constants.DEFAULT_DOCKER_API_VERSION, ipv4_address=wanted.address)
        container._kwargs |= {"network": self.network, "networking_config": {self.network: endpoint}}
        for inside, outside in wanted.published.items():
            container.ports[f"{inside}/tcp"] = ("127.0.0.1", outside)  # type: ignore[assignment]  # as Docker takes it
        try:
            with _asking(f"the container {container._name}"):
                container.start()
        finally:
            container.get_docker_client().client.close()

    # --- one of them --------------------------------------------------------------------------------------------------

    def get(self, node: str) -> Any:
        """Return Docker's own object of a container, as it is now; NotFoundError if there is none."""
        with _asking(f"the container {self.name(node)}"):
            return self._client.client.containers.get(self.name(node))

    def pid(self, node: str) -> int:
        """Return the pid of the container's pid 1 as this machine knows it, 0 while it does not run."""
        return int(self.get(node).attrs["State"]["Pid"])

    def logs(self, node: str, lines: int | None = None) -> str:
        """Return what it printed, over all its lives, or the last lines of that."""
        with _asking(f"the container {self.name(node)}"):
            printed: bytes = self.get(node).logs(tail="all" if lines is None else lines)
        return printed.decode(errors="replace")

    def tell(self, node: str, verb: str, **how: Any) -> None:
        """Have Docker do something to it: start, stop, kill, pause, unpause, restart."""
        with _asking(f"{verb} {self.name(node)}"):
            getattr(self.get(node), verb)(**how)

    def run(self, node: str, *argv: str) -> str:
        """Return what a command prints inside the container; HostError if it fails."""
        with _asking(f"the container {self.name(node)}"):
            code, printed = self.get(node).exec_run(list(argv))
        told = str(printed.decode(errors="replace"))
        if code != 0:
            raise HostError(f"{' '.join(argv)} ended {code} in {self.name(node)}: {told.strip()}")
        return told

    # --- all of them --------------------------------------------------------------------------------------------------

    def sweep(self) -> bool:
        """Remove every container and network of the lab, whoever made them; False if there was nothing."""
        containers, networks = self._all(), self._networks()
        for container in containers:
            with contextlib.suppress(NotFoundError), _asking(f"the container {container.name}"):
                container.remove(force=True, v=True)
        for network in networks:
            with contextlib.suppress(NotFoundError), _asking(f"the network {network.name}"):
                network.remove()
        return bool(containers or networks)

    def close(self) -> None:
        """Let go of Docker; the containers stay."""
        if client := self.__dict__.pop("_client", None):
            client.client.close()

    def _all(self) -> list[Any]:
        with _asking("its containers"):
            return list(self._client.client.containers.list(all=True, filters={"label": f"{LAB}={self.lab}"}))

    def _networks(self) -> list[Any]:
        with _asking("its networks"):
            return list(self._client.client.networks.list(filters={"label": f"{LAB}={self.lab}"}))


def has_library() -> bool:
    """Return whether Docker's library is installed, which a base installation lacks."""
    return importlib.util.find_spec("testcontainers") is not None


def require_library() -> None:
    """Raise RefusedError that says what to install if Docker's library is missing."""
    if not has_library():
        raise RefusedError(f"Kafka in containers needs {EXTRA}")


def _client() -> DockerClient:
    require_library()
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.docker_client import DockerClient, get_docker_host

    testcontainers_config.ryuk_disabled = True  # labels and the state file tell what is left, and no image is needed
    _require_listening(get_docker_host() or "unix:///var/run/docker.sock")
    with _asking("what it is"):
        client = DockerClient()
        client.client.ping()
    return client


def _require_listening(host: str) -> None:
    """Raise HostError if it is the path of a socket where nobody listens; Docker's library would tell riddles."""
    if not host.startswith("unix://"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        try:
            door.connect(host.removeprefix("unix://"))
        except OSError as error:
            raise HostError(
                f"no Docker daemon answers at {host}: {error.strerror}; start it, or say in DOCKER_HOST where it is"
            ) from None


@contextlib.contextmanager
def _asking(what: str) -> Iterator[None]:
    """Translate what Docker's library raises; RefusedError if it is not installed."""
    require_library()
    import docker.errors
    import requests

    try:
        yield
    except docker.errors.NotFound as error:
        raise NotFoundError(f"Docker knows nothing of {what}: {error.explanation or error}") from None
    except docker.errors.APIError as error:
        raise HostError(f"Docker refused {what}: {error.explanation or error}") from None
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise HostError(f"Docker does not tell {what}: {error}; is its daemon running?") from None
