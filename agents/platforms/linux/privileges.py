"""Why the kernel refuses something: the user, a capability that a container or a unit took away, or neither."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Capability = Literal["CAP_KILL", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]
_BITS: dict[Capability, int] = {
    "CAP_KILL": 5,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}
"""Their numbers in linux/capability.h."""
_ALL_USERS = 0xFFFF_FFFF
STATUS, UID_MAP = Path("/proc/thread-self/status"), Path("/proc/self/uid_map")


def missing(*needed: Capability) -> str:
    """Return what this process lacks, and what to do, where the kernel refuses what asks for these capabilities."""
    effective = _effective()
    lacking = [name for name in needed if effective is not None and not effective >> _BITS[name] & 1]
    if os.geteuid() != 0 and (lacking or effective is None):
        return "run the agent as root"
    if lacking:
        named = " and ".join(lacking)
        short = " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name in lacking)
        where = f"its container (docker run {short}) or unit (CapabilityBoundingSet=)"
        return f"the agent lacks {named}: give it to {where}"
    if _in_user_namespace():
        return "the agent is root of a user namespace only: run it as root of the machine"
    return (
        "the agent has every right that this needs, so something else forbids it: a read-only mount, SELinux, AppArmor "
        "or a seccomp profile; the kernel's log may name it"
    )


def _effective() -> int | None:
    """Return the effective capabilities as bits, None if /proc does not tell."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), None)


def _in_user_namespace() -> bool:
    try:
        first = UID_MAP.read_text().split()
    except OSError:
        return False
    return first[:3] != ["0", "0", str(_ALL_USERS)]
