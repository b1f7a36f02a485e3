"""The network namespace that a node lives in: found by name, known by its cookie, entered by a thread."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import re
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import msgspec

from trogdor_bus.agents.platforms.linux import privileges
from trogdor_bus.agents.platforms.linux.announced import broker_id, controller_id
from trogdor_bus.agents.platforms.linux.commands import find_tool, run
from trogdor_bus.agents.platforms.linux.operations import NamespaceIdentity
from trogdor_bus.errors import HostError, SpecError
from trogdor_bus.host import boot_id

SO_NETNS_COOKIE = 71
CLONE_NEWNET = 0x40000000
OWN = "/proc/self/ns/net"
MACHINE = "/proc/1/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


class Attachment(msgspec.Struct, frozen=True):
    """Whose namespace is acted on: the agent's own, or the one of a `netns`, a `pid` or a `container`."""

    kind: Literal["own", "netns", "pid", "container"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


def parse_attachment(text: str) -> Attachment:
    """Return what `--attach` means; SpecError says how it is written."""
    if not text:
        return Attachment("own")
    kind, _, name = text.partition(":")
    good = {"netns": r"(?!\.\.?\Z)[^/\0]+", "pid": r"[1-9][0-9]{0,9}", "container": r"[A-Za-z0-9][A-Za-z0-9_.-]*"}
    if kind not in good or not re.fullmatch(good[kind], name):
        raise SpecError(
            f"cannot attach to {text!r}", path="$.attach", remedy="write netns:NAME, pid:PID or container:NAME"
        )
    return Attachment(kind, name)  # type: ignore[arg-type]


class Running(msgspec.Struct, frozen=True):
    """A running container: its id, name, the pid of its first process, and what Kafka knows it by, as it says."""

    identity: str
    name: str
    pid: int
    broker: int | None = None
    controller: int | None = None


class Namespace:
    """An open network namespace; close it, or use it in a `with`.

    `root_pid` is a process inside its container, or 0; `said` what that container says of itself, if it is one.
    """

    def __init__(self, path: str, container: str = "", root_pid: int = 0, said: Running | None = None) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            why = f"; {privileges.missing('CAP_SYS_PTRACE')}" if isinstance(error, PermissionError) else ""
            raise HostError(f"the network namespace {path} cannot be opened: {error.strerror}{why}") from None
        try:
            self.inode = _inode(os.fstat(self._fd))
            self._own = self.inode == _inode(Path(OWN).stat())
            cookie = self.call(_cookie) or "inode {}:{}".format(*self.inode)  # the best that older kernels can tell
            self.identity = NamespaceIdentity(boot_id(), cookie, path, container)
        except BaseException:
            os.close(self._fd)
            raise
        self.root_pid, self.said = root_pid, said

    @property
    def own(self) -> bool:
        """Return whether it is the namespace that the agent itself lives in."""
        return self._own

    def call(self, work: Callable[[], _T]) -> _T:
        """Return `work()`, called inside the namespace: its sockets, and the tools it runs, belong there."""
        if self._own:
            return work()
        future: Future[_T] = Future()

        def enter() -> None:
            try:
                if _libc.setns(self._fd, CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    why = f"; {privileges.missing('CAP_SYS_ADMIN')}" if number == errno.EPERM else ""
                    raise HostError(f"the network namespace cannot be entered: {os.strerror(number)}{why}")
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=enter, name="netns")
        thread.start()
        thread.join()
        return future.result()

    def addresses(self) -> tuple[str, ...]:
        """Return its IP addresses, loopback and link-local excluded."""
        import psutil  # late: a healer, which must start fast, asks for no address

        found: dict[str, None] = {}
        for entries in self.call(psutil.net_if_addrs).values():
            for entry in entries:
                if entry.family in (socket.AF_INET, socket.AF_INET6):
                    address = ipaddress.ip_address(entry.address.partition("%")[0])
                    if not (address.is_loopback or address.is_link_local):
                        found[str(address)] = None
        return tuple(found)

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_attached(attachment: Attachment) -> Namespace:
    """Return the namespace as it is now; HostError if there is none."""
    match attachment.kind:
        case "own":
            return Namespace(OWN)
        case "netns":
            return Namespace(f"/run/netns/{attachment.name}")
        case "pid":
            return Namespace(f"/proc/{attachment.name}/ns/net", root_pid=int(attachment.name))
        case "container":
            found = find_container(attachment.name)
            return Namespace(f"/proc/{found.pid}/ns/net", found.identity, found.pid, found)


def open_again(identity: NamespaceIdentity) -> Namespace | None:
    """Return that very namespace, wherever it is to be found now; None if it is no more."""
    if identity.boot_id != boot_id():
        return None
    seen: set[tuple[int, int]] = set()
    for path in (identity.path, *_known_paths()):
        inode = _inode_of(path)
        if inode is None or inode in seen:
            continue
        seen.add(inode)
        try:
            namespace = Namespace(path)
        except (OSError, ValueError, HostError):  # a path with NUL is a ValueError
            continue
        if namespace.identity.cookie == identity.cookie:
            return namespace
        namespace.close()
    return None


def typed_prefix(identity: NamespaceIdentity) -> str | None:
    """Return the words that a person types before a command to run it in that namespace; None if it is no more.

    "" if it is that of the machine itself (of pid 1), where people type; who may not look at that one enters any.
    """
    namespace = open_again(identity)
    if namespace is None:
        return None
    with namespace:
        if _inode_of(MACHINE) == namespace.inode:
            return ""
        path = next((path for path in _known_paths() if _inode_of(path) == namespace.inode), identity.path)
        return f"nsenter --net={shlex.quote(path)} "


def _inode_of(path: str) -> tuple[int, int] | None:
    try:
        return _inode(os.stat(path))  # noqa: PTH116 - a Path would be made for each process
    except OSError:
        return None


def _known_paths() -> Iterator[str]:
    for folder in ("/run/netns", "/run/docker/netns"):
        if Path(folder).is_dir():
            yield from (f"{folder}/{name}" for name in os.listdir(folder))  # noqa: PTH208
    yield from (f"/proc/{pid}/ns/net" for pid in os.listdir("/proc") if pid.isdecimal())  # noqa: PTH208


def find_container(name: str) -> Running:
    """Return a running container, by name or id; HostError says why there is none."""
    engine = find_tool("docker") or find_tool("podman")
    if engine is None:
        raise HostError(f"neither docker nor podman is installed, so container {name} cannot be found")
    wanted = "{{.Id}} {{.State.Pid}} {{.Name}}\n{{json .Config.Labels}}\n{{json .Config.Env}}"
    asked = [engine, "inspect", "--type", "container", "--format", wanted, name]
    told = run(asked, environment=os.environ)  # DOCKER_HOST, HOME and others say where its daemon is
    first, _, rest = told.partition("\n")
    answer = first.split()
    if len(answer) != 3 or not answer[1].isdecimal() or answer[1] == "0":
        raise HostError(f"container {name} is not running; start it first")
    identity, pid = answer[0], int(answer[1])
    if not _is_of_container(pid, identity):
        raise HostError(
            f"process {pid} of this machine is not of container {name}: it just ended, or {Path(engine).name} "
            "speaks of another machine; run the agent where the container runs"
        )
    return Running(identity, answer[2].removeprefix("/"), pid, broker_id(rest), controller_id(rest))


def _is_of_container(pid: int, identity: str) -> bool:
    """Return whether a process shows the container's id, as every engine has it in control groups or mounts."""
    try:
        return any(
            identity in Path(f"/proc/{pid}/{name}").read_text(errors="replace") for name in ("cgroup", "mountinfo")
        )
    except OSError:  # it ended
        return False


def _inode(stat: os.stat_result) -> tuple[int, int]:
    return (stat.st_dev, stat.st_ino)


def _cookie() -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            return str(int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little"))
        except OSError as error:
            if error.errno == errno.ENOPROTOOPT:  # before Linux 5.14
                return ""
            raise
