"""This machine: who a process is (boot, pid and start time, read from /proc), and the addresses."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

from trogdor_bus.errors import HostError, NotFoundError
from trogdor_bus.platform import ProcessIdentity

_PROC = Path("/proc")
_START_FIELD = 22
_FIRST_AFTER_COMM = 3


def boot_id() -> str:
    """Return the kernel's id of this boot (a UUID); HostError if /proc does not tell."""
    path = _PROC / "sys/kernel/random/boot_id"
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}; is /proc mounted?") from None


def identity(pid: int) -> ProcessIdentity:
    """Return the identity of a process; NotFoundError if there is none, HostError if /proc does not tell."""
    path = _PROC / str(pid) / "stat"
    try:
        stat = path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise NotFoundError(f"no process has the pid {pid}") from None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}; is /proc mounted?") from None
    return ProcessIdentity(boot_id=boot_id(), pid=pid, start_ticks=start_ticks(stat))


def own_identity() -> ProcessIdentity:
    """Return the identity of this process."""
    return identity(os.getpid())


def start_ticks(stat: bytes) -> int:
    """Return the start time, in clock ticks since boot, from the text of /proc/PID/stat (proc(5), field 22)."""
    after_comm = stat[stat.rindex(b")") + 1 :].split()  # the name before it may hold spaces and parentheses
    return int(after_comm[_START_FIELD - _FIRST_AFTER_COMM])


def addresses_of(host: str) -> tuple[str, ...]:
    """Return the IP addresses of a host name, each once; () if it cannot be resolved."""
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(info[4][0]) for info in infos))


def local_addresses() -> tuple[str, ...]:
    """Return the IP addresses of this machine (of this process's network namespace), link-local ones excluded."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    found = [a.address for nic in psutil.net_if_addrs().values() for a in nic if a.family in families]
    return tuple(sorted({address for address in found if not ipaddress.ip_address(address).is_link_local}))
