"""The network namespace that a node lives in: found by name, known by its cookie, entered by a thread."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import itertools
import os
import re
import shlex
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import msgspec

from trogdor_bus.agents.platforms.linux import privileges
from trogdor_bus.agents.platforms.linux.announced import broker_id, controller_id
from trogdor_bus.agents.platforms.linux.commands import ToolFailedError, find_tool, run
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.errors import GoneError, HostError, NotFoundError, SpecError
from trogdor_bus.host import boot_id
from trogdor_bus.host import identity as identity_of
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.supervisor import tree

SO_NETNS_COOKIE = 71
CLONE_NEWNET = 0x40000000
OWN = "/proc/self/ns/net"
MACHINE = "/proc/1/ns/net"
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_PROCESS = r"[1-9][0-9]{0,9}(:[0-9]{1,18}:[0-9a-f-]{36})?"

_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


class Attachment(msgspec.Struct, frozen=True):
    """Whose namespace is acted on: the agent's own, or the one of a `netns`, a `pid` or a `container`.

    A name means what has it at the moment. A pid means one `process` for ever, None if there was none from the start.
    """

    kind: Literal["own", "netns", "pid", "container"]
    name: str = ""
    process: ProcessIdentity | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


def parse_attachment(text: str) -> Attachment:
    """Return the namespace that a text means; SpecError says how it is written.

    PID:START:BOOT, as `pinned` has it, is that process only; a PID alone is the one that has it now.
    """
    if not text:
        return Attachment("own")
    kind, _, name = text.partition(":")
    good = {"netns": r"(?!\.\.?\Z)[^/\0]+", "pid": _PROCESS, "container": r"[A-Za-z0-9][A-Za-z0-9_.-]*"}
    if kind not in good or not re.fullmatch(good[kind], name):
        raise SpecError(
            f"cannot attach to {text!r}", path="$.attach", remedy="write netns:NAME, pid:PID or container:NAME"
        )
    if kind != "pid":
        return Attachment(kind, name)  # type: ignore[arg-type]
    pid, start, boot = [*name.split(":"), "", ""][:3]
    process = ProcessIdentity(boot, int(pid), int(start)) if start else _identity(int(pid))
    return Attachment("pid", pid, process)


def pinned(text: str) -> str:
    """Return that namespace in words that mean the same process for ever; SpecError if it means none."""
    attachment = parse_attachment(text)
    if attachment.kind != "pid":
        return text
    if attachment.process is None:
        raise SpecError(
            f"no process has the pid {attachment.name}", path="$.attach", remedy="name a process that runs here"
        )
    return f"pid:{attachment.name}:{attachment.process.start_ticks}:{attachment.process.boot_id}"


def _identity(pid: int) -> ProcessIdentity | None:
    try:
        return identity_of(pid)
    except NotFoundError:
        return None


class Running(msgspec.Struct, frozen=True):
    """A running container: its id, name, its first process, and what Kafka knows it by, as it says."""

    identity: str
    name: str
    process: ProcessIdentity
    broker: int | None = None
    controller: int | None = None


class UnseenError(HostError):
    """It cannot be seen how it is: the machine has nothing to look with, or too much of it hangs."""


class Namespace:
    """An open network namespace; close it, or use it in a `with`.

    `root_pid` is a process inside its container, or 0; `said` what that container says of itself, if it is one.
    """

    def __init__(self, path: str, container: str = "", root_pid: int = 0, said: Running | None = None) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            why = f"; {privileges.missing('CAP_SYS_PTRACE')}" if isinstance(error, PermissionError) else ""
            kind = UnseenError if error.errno in SCARCE else HostError
            raise kind(f"the network namespace {path} cannot be opened: {error.strerror}{why}") from None
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
        """Return `work()`, called inside the namespace: its sockets, and the tools it runs, belong there.

        UnseenError if the machine refuses the thread that this takes.
        """
        if self._own:
            return work()
        future: Future[_T] = Future()

        def enter() -> None:
            try:
                if _libc.setns(self._fd, CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    why = f"; {privileges.missing('CAP_SYS_ADMIN')}" if number == errno.EPERM else ""
                    kind = GoneError if number == errno.EINVAL else HostError  # its name is that of a file
                    raise kind(f"the network namespace cannot be entered: {os.strerror(number)}{why}")
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=enter, name="netns")
        try:
            thread.start()
        except RuntimeError as error:
            raise UnseenError(
                f"the network namespace cannot be entered: {error}; end what uses up the processes of this machine, or "
                "raise the limit (pids.max of the control group, ulimit -u)"
            ) from None
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

    def own_path(self) -> str:
        """Return a path by which it can be opened as long as it is open here."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

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
    """Return the namespace as it is now; GoneError if there is none, HostError if it cannot be had."""
    match attachment.kind:
        case "own":
            return Namespace(OWN)
        case "netns":
            path = f"/run/netns/{attachment.name}"
            if not os.path.lexists(path):
                raise GoneError(f"no network namespace is called {attachment.name} (there is no {path})")
            return Namespace(path)
        case "pid":
            if attachment.process is None:
                raise GoneError(f"there was no process {attachment.name} when this agent started")
            return _open_of(attachment.process)
        case "container":
            found = find_container(attachment.name)
            return _open_of(found.process, found)


def _open_of(process: ProcessIdentity, said: Running | None = None) -> Namespace:
    """Return the namespace of that very process, which was there still when its namespace was open."""
    pid = process.pid
    try:
        namespace = Namespace(f"{tree.folder(pid)}/ns/net", said.identity if said else "", pid, said)
    except HostError:
        if _identity(pid) != process or not tree.lives(pid):
            raise _ended(process) from None
        raise
    if _identity(pid) != process:
        namespace.close()
        raise _ended(process)
    return namespace


def _ended(process: ProcessIdentity) -> GoneError:
    now = _identity(process.pid)
    other = "; another process has that pid now, and is not meant" if now not in (None, process) else ""
    text = f"process {process.pid} has ended{other}: no fault can hit this node until an agent is attached anew"
    return GoneError(text)


def open_again(identity: NamespaceIdentity) -> Namespace | None:
    """Return that very namespace by a name or a process that is in it now; None if neither leads there any more."""
    return open_first(identity, itertools.chain((identity.path,), _known_paths()))


def open_first(identity: NamespaceIdentity, paths: Iterable[str]) -> Namespace | None:
    """Return that very namespace by the first of the paths that leads to it; None if none does.

    UnseenError if that cannot be known now.
    """
    if identity.boot_id != boot_id():
        return None
    seen: set[tuple[int, int]] = set()
    for path in paths:
        inode = _inode_of(path)
        if inode is None or inode in seen:
            continue
        seen.add(inode)
        try:
            namespace = Namespace(path)
        except UnseenError:  # it may well be there
            raise
        except OSError as error:
            if error.errno in SCARCE:
                raise UnseenError(f"the network namespace {path} cannot be looked at: {error.strerror}") from None
            continue
        except (ValueError, HostError):  # a path with NUL is a ValueError
            continue
        if namespace.identity.cookie == identity.cookie:
            return namespace
        namespace.close()
    return None


def typed_prefix(namespace: Namespace) -> str:
    """Return the words that a person types before a command to run it in that namespace.

    "" if it is that of the machine itself (of pid 1), where people type; who may not look at that one enters any.
    """
    if _inode_of(MACHINE) == namespace.inode:
        return ""
    found = namespace.identity.path
    path = next((path for path in _known_paths() if _inode_of(path) == namespace.inode), found)
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
    yield from (f"{tree.folder(int(pid))}/ns/net" for pid in os.listdir("/proc") if pid.isdecimal())  # noqa: PTH208


def find_container(name: str) -> Running:
    """Return a running container, by name or id; GoneError if it does not run, HostError if that cannot be asked."""
    engine = find_tool("docker") or find_tool("podman")
    if engine is None:
        raise HostError(f"neither docker nor podman is installed, so container {name} cannot be found")
    wanted = "{{.Id}} {{.State.Pid}} {{.Name}}\n{{json .Config.Labels}}\n{{json .Config.Env}}"
    asked = [engine, "inspect", "--type", "container", "--format", wanted, name]
    try:
        told = run(asked, environment=os.environ)  # DOCKER_HOST, HOME and others say where its daemon is
    except ToolFailedError as error:
        if "no such" in error.words.lower():
            raise GoneError(f"there is no container {name} ({error})") from None
        raise
    first, _, rest = told.partition("\n")
    answer = first.split()
    if len(answer) != 3 or not answer[1].isdecimal() or answer[1] == "0":
        raise GoneError(f"container {name} is not running; start it first")
    container, pid = answer[0], int(answer[1])
    process = _identity(pid)
    if process is None or not tree.lives(pid):
        raise GoneError(f"container {name} is not running: its process {pid} just ended")
    if not _is_of_container(pid, container):
        raise HostError(
            f"process {pid} of this machine is not of container {name}: {Path(engine).name} speaks "
            "of another machine; run the agent where the container runs"
        )
    return Running(container, answer[2].removeprefix("/"), process, broker_id(rest), controller_id(rest))


def _is_of_container(pid: int, identity: str) -> bool:
    """Return whether a process shows the container's id, as every engine has it in control groups or mounts."""
    try:
        return any(
            identity in Path(tree.folder(pid), name).read_text(errors="replace") for name in ("cgroup", "mountinfo")
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
