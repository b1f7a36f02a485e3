"""Processes of a node: which there are, which are meant, and who they are beyond their pid."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from trogdor_bus.actions import ProcessMatch
from trogdor_bus.agents.platforms.linux import privileges
from trogdor_bus.agents.platforms.linux.files import read_regular
from trogdor_bus.agents.platforms.linux.java import ReadFile, main_line, read_argument_file
from trogdor_bus.agents.platforms.linux.namespace import Namespace, UnseenError
from trogdor_bus.agents.platforms.linux.ours import Ours
from trogdor_bus.agents.platforms.linux.reader import Reader
from trogdor_bus.errors import GoneError, HostError, NotFoundError, RefusedError
from trogdor_bus.host import boot_id, identity
from trogdor_bus.platform import ProcessIdentity, Surroundings
from trogdor_bus.supervisor import tree

DEAD = "ZXx"
"""The states of what has ended (proc(5))."""
ENDED = (FileNotFoundError, ProcessLookupError)
"""What is said of a process, or a thread, that has ended."""
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)
"""How a pid file is refused that is none, or is none any more."""
KERNEL_THREAD = 0x00200000
"""PF_KTHREAD (include/linux/sched.h)."""
MOST_LISTS = 100
"""So often the threads of one process are listed for one look."""
NOBODY_NEW = 2
"""So often in a row there is nobody new where no thread lives: one that is just being born may be in no list."""
MOST_SPARED = 5
"""So many of those that match and are not touched are named."""
MOST_SILENT = 10
"""With more processes that hang, nobody waits for each of them."""
LISTEN = "0A"
"""TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h)."""


class Stat(msgspec.Struct, frozen=True):
    """What /proc/PID/stat says: name, state, parent, session, kernel flags, start in ticks since boot (proc(5))."""

    comm: str
    state: str
    parent: int
    session: int
    flags: int
    start_ticks: int


class Process(msgspec.Struct, frozen=True):
    """A process of the node."""

    identity: ProcessIdentity
    argv: tuple[str, ...]
    comm: str = ""
    """The kernel's name of one that does not tell its command line."""

    @property
    def pid(self) -> int:
        """Return its pid."""
        return self.identity.pid

    @property
    def name(self) -> str:
        """Return what people call it: the last part of its program, without unprintable characters."""
        program = self.argv[0].rpartition("/")[2] if self.argv else self.comm
        return "".join(char for char in program[:64] if char.isprintable()) or "unnamed"


class Found(msgspec.Struct, frozen=True):
    """The processes that match and may be touched; if there are none, why.

    `silent` says which others may be meant as well, and do not tell what they are.
    """

    processes: tuple[Process, ...]
    why_none: str = ""
    silent: str = ""

    def needed(self, required: bool) -> Found:
        """Return this; HostError if it is `required` that there are any, and there are none."""
        if self.why_none and required:
            raise HostError(self.why_none)
        return self

    def warnings(self) -> tuple[str, ...]:
        """Return what people should know."""
        return tuple(filter(None, (self.why_none or self.silent,)))


class ManyHangError(UnseenError):
    """So many processes hang that nobody waits for them."""


def read_stat(path: str) -> Stat | None:
    """Return the stat of a process or thread (`path` is its folder in /proc), None if it is gone."""
    try:
        text = Path(f"{path}/stat").read_text(errors="replace")
    except OSError:
        return None
    name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
    return Stat(name, fields[0], int(fields[1]), int(fields[3]), int(fields[6]), int(fields[19]))


def identify(pid: int) -> ProcessIdentity | None:
    """Return who has that pid now, None if nobody."""
    try:
        return identity(pid)
    except NotFoundError:
        return None


def thread_states(process: ProcessIdentity) -> dict[int, str]:
    """Return the state letter of each living thread; {} if the process ended or is another one now.

    They are listed again while one has ended that was listed: it may have started another one, and the kernel's list
    ends where a thread does. Who goes on so all the time runs.
    """
    states: dict[int, str] = {}
    known, nobody_new = set[str](), 0
    with contextlib.suppress(OSError):
        for _ in range(MOST_LISTS):
            new = set(os.listdir(f"/proc/{process.pid}/task")) - known  # noqa: PTH208 - names only, once per beat
            known |= new
            stats = {int(task): read_stat(f"/proc/{process.pid}/task/{task}") for task in new}
            living = {task: stat.state for task, stat in stats.items() if stat is not None and stat.state not in DEAD}
            states |= living
            nobody_new = 0 if new else nobody_new + 1
            if len(living) == len(new) and (states or nobody_new == NOBODY_NEW):
                break
        else:
            states[process.pid] = "R"
        main = None if states else read_stat(f"/proc/{process.pid}")  # another thread may have become it (execve(2))
        states |= {process.pid: main.state} if main is not None and main.state not in DEAD else {}
    return states if identify(process.pid) == process else {}


def session_lives(leader: ProcessIdentity) -> bool:
    """Return whether any process of the session that `leader` began is alive; it may itself have ended."""
    if identify(leader.pid) not in (None, leader):  # the number is given anew only when the session is empty
        return False
    return any(stat.session == leader.pid and tree.lives(pid) for pid, stat in _all_stats().items())


def now_ticks() -> int:
    """Return the time since boot in the unit of start times, which are rounded down as well."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") // 1_000_000_000


def age_s(process: ProcessIdentity) -> float:
    """Return how many seconds ago a process of this boot was started."""
    return (now_ticks() - process.start_ticks) / os.sysconf("SC_CLK_TCK")


def unit_of(pid: int) -> str:
    """Return the unit of the machine's systemd that a process belongs to, "" if it is of none.

    Units of users and those inside a container stand below a unit that is not theirs, and are none.
    """
    for line in _lines(f"{tree.folder(pid)}/cgroup"):
        _, controllers, path = line.split(":", 2)
        parts = [part for part in path.split("/") if part and not part.endswith(".slice")]
        if controllers in ("", "name=systemd") and parts:
            return parts[0]
    return ""


def container_of(pid: int) -> str:
    """Return the id of the container that a process is in, "" if it is in none or in the one that we are in.

    The innermost control group that is called as one tells (docker and podman); else the host name's file, which they
    mount. Another container that shares the network has the same such file: look at its mounts, too.
    """
    folder = tree.folder(pid)
    groups = re.findall(r"[0-9a-f]{64}", "".join(_lines(f"{folder}/cgroup")))
    files = re.findall(r"/\S*containers/([0-9a-f]{64})/\S* /etc/hostname ", "\n".join(_lines(f"{folder}/mountinfo")))
    found = next(iter([*reversed(groups), *files]), "")
    return "" if pid != os.getpid() and found == container_of(os.getpid()) else found


def mounts_of(pid: int) -> str:
    """Return the mount namespace of a process, which all of a container share; "" if it is gone."""
    return _link(pid, "ns/mnt")


def network_of(pid: int) -> str:
    """Return the network namespace of a process, by inode; "" if it is gone."""
    return _link(pid, "ns/net")


def find(match: ProcessMatch, namespace: Namespace, surroundings: Surroundings) -> Found:
    """Return the processes of the node's namespace that match; RefusedError if the coordinator is among them."""
    if not (match.java or match.command or match.pid_file or match.port):
        raise HostError("the match is empty and would hit every process")
    with Look(namespace) as look:
        return look.find(match, surroundings)


class Look:
    """One look at the processes of a namespace, for several who search; close it, or use it in a `with`."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace, self._reader = namespace, Reader()
        self._seen: _Seen | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__()

    def find(self, match: ProcessMatch, surroundings: Surroundings) -> Found:
        """Return what the function `find` does."""
        meant = _predicate(match, self._namespace, self._reader)
        if self._seen is None:
            self._seen = _see(self._namespace, self._reader)
        return _find(match, meant, self._seen, surroundings)


class _Seen(NamedTuple):
    living: list[Process]
    hidden: list[int]
    ours: Ours


def _see(namespace: Namespace, reader: Reader) -> _Seen:
    stats = _all_stats()
    hidden: list[int] = []
    living = list(_living(stats, namespace, reader, hidden))
    return _Seen(living, hidden, Ours({pid: stat.parent for pid, stat in stats.items()}))


def _find(match: ProcessMatch, meant: Callable[[Process], bool], seen: _Seen, surroundings: Surroundings) -> Found:
    living, hidden, ours = seen
    hits = [process for process in living if meant(process)]
    told = match.pid_file or match.port
    silent = "" if told else _silent([process for process in living if process.comm and process not in hits])
    chosen: list[Process] = []
    spared: list[str] = []
    for process in hits:
        if process.identity == surroundings.coordinator:
            if not surroundings.force:
                raise RefusedError(
                    f"{match.describe()}: process {process.pid} is the coordinator, and this would stop the "
                    "coordinator itself; ‹force› does it all the same"
                )
            chosen.append(process)
        elif why := ours.why(process.pid):
            spared.append(f"{process.pid} ({process.name}) is {why}")
        else:
            chosen.append(process)
    if chosen:
        return Found(tuple(chosen), silent=silent)
    more = f" and {len(spared) - MOST_SPARED} more" if len(spared) > MOST_SPARED else ""
    only = f"; what matches is never touched: {', '.join(spared[:MOST_SPARED])}{more}" if spared else ""
    why = privileges.missing("CAP_SYS_PTRACE") if hidden else ""
    blind = f"; {len(hidden)} processes may not be looked at: {why}" if hidden else ""
    deaf = f"; {silent}" if silent else ""
    return Found((), f"no process matches {match.describe()}{only}{blind}{deaf}", silent)


def _silent(processes: Sequence[Process]) -> str:
    if not processes:
        return ""
    named = ", ".join(f"{process.pid} ({process.name})" for process in processes[:MOST_SPARED])
    more = f" and {len(processes) - MOST_SPARED} more" if len(processes) > MOST_SPARED else ""
    return f"what these were started with cannot be read, they hang: {named}{more}; name them by port or pidFile"


def signal_mask(pid: int, name: str) -> int:
    """Return a signal mask (SigIgn, SigCgt ...) from /proc/PID/status; bit N-1 is signal N."""
    return int(status(pid).get(name, "0"), 16)


def is_init_of_namespace(pid: int) -> bool:
    """Return whether the process is pid 1 of a pid namespace below ours."""
    pids = status(pid).get("NSpid", "").split()
    return len(pids) > 1 and pids[-1] == "1"


def status(pid: int) -> dict[str, str]:
    """Return the lines of /proc/PID/status by name; {} if the process is gone."""
    lines = _lines(f"/proc/{pid}/status")
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _all_stats() -> dict[int, Stat]:
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208
    return {pid: stat for pid in pids if (stat := read_stat(f"/proc/{pid}")) is not None}


def _living(stats: dict[int, Stat], namespace: Namespace, reader: Reader, hidden: list[int]) -> Iterator[Process]:
    """Yield the processes of the namespace; the pids of those that we may not look at go to `hidden`."""
    boot, silent = boot_id(), 0
    for pid, stat in sorted(stats.items()):
        if stat.flags & KERNEL_THREAD:
            continue
        try:
            if _network(pid) != namespace.inode:
                continue
            raw = reader.of_process(pid, "cmdline")
        except PermissionError:
            hidden.append(pid)
            continue
        except TimeoutError:
            silent += 1
            if silent > MOST_SILENT:
                raise ManyHangError(f"more than {MOST_SILENT} processes hang, and do not tell what they are") from None
            yield Process(ProcessIdentity(boot, pid, stat.start_ticks), (), stat.comm or "unnamed")
            continue
        except ENDED:
            continue
        except OSError as error:
            raise UnseenError(f"process {pid} cannot be looked at: {error.strerror}") from None
        words = raw.decode(errors="replace").removesuffix("\0").split("\0") if raw else []
        yield Process(ProcessIdentity(boot, pid, stat.start_ticks), tuple(words))


def _network(pid: int) -> tuple[int, int] | None:
    """Return the network namespace of a process, None if it has ended."""
    for folder in tree.folders(pid):
        with contextlib.suppress(*ENDED):
            place = os.stat(f"{folder}/ns/net")  # noqa: PTH116
            return place.st_dev, place.st_ino
    return None


def _predicate(match: ProcessMatch, namespace: Namespace, reader: Reader) -> Callable[[Process], bool]:
    if match.java:
        return lambda process: match.java in java_line(process, reader.read)
    if match.command:
        return lambda process: match.command in " ".join(process.argv)
    if match.port:
        sockets = _listeners(match.port, namespace)
        return lambda process: bool(sockets & _sockets(process.pid)) if sockets else False
    wanted = _pid_in(match.pid_file, namespace.root_pid, reader)
    if namespace.root_pid:
        inside = _pid_namespace(namespace.root_pid)
        return lambda process: _pid_namespace(process.pid) == inside and _inner_pid(process.pid) == wanted
    return lambda process: process.pid == wanted


def java_line(process: Process, read: ReadFile = read_regular) -> str:
    """Return the line that jcmd prints for a JVM, "" for any other process; `read` reads its files of arguments."""
    program = _link(process.pid, "exe").removesuffix(" (deleted)") or next(iter(process.argv), "")
    if program.rpartition("/")[2] != "java":
        return ""
    main = main_line(process.argv, lambda name: read_argument_file(process.pid, name, read))
    return f"{process.pid} {main}" if main else ""


def _pid_in(pid_file: str, root_pid: int, reader: Reader) -> int:
    try:
        text = reader.read(pid_file, 64, f"{tree.folder(root_pid)}/root" if root_pid else "")
    except OSError as error:
        kind = GoneError if error.errno in NO_FILE else HostError
        raise kind(f"the pid file {pid_file} cannot be read: {error.strerror}") from None
    number = re.match(rb"\s*([0-9]{1,10})(\s|\Z)", text)
    if number is None:
        raise GoneError(f"the pid file {pid_file} holds no pid")
    return int(number[1])


def _pid_namespace(pid: int) -> str:
    return _link(pid, "ns/pid")


def _link(pid: int, name: str) -> str:
    for folder in tree.folders(pid):
        with contextlib.suppress(OSError):
            return os.readlink(f"{folder}/{name}")  # noqa: PTH115
    return ""


def _inner_pid(pid: int) -> int:
    pids = status(pid).get("NSpid", "").split()
    return int(pids[-1]) if pids else 0


def _listeners(port: int, namespace: Namespace) -> frozenset[str]:
    def lines() -> list[str]:
        files = (Path(f"/proc/thread-self/net/{name}") for name in ("tcp", "tcp6"))
        return [line for file in files if file.exists() for line in file.read_text().splitlines()[1:]]

    rows = (line.split() for line in namespace.call(lines))
    return frozenset(
        f"socket:[{row[9]}]" for row in rows if row[3] == LISTEN and int(row[1].rpartition(":")[2], 16) == port
    )


def _sockets(pid: int) -> frozenset[str]:
    links: set[str] = set()
    for folder in tree.folders(pid):
        with contextlib.suppress(OSError):
            for name in os.listdir(f"{folder}/fd"):  # noqa: PTH208
                with contextlib.suppress(OSError):
                    links.add(os.readlink(f"{folder}/fd/{name}"))  # noqa: PTH115
        if links:
            break
    return frozenset(links)
