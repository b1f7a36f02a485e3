"""A limit of processes, as a container has one."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from tests.support import require, wait_until

_numbers = itertools.count(1)


@contextlib.contextmanager
def group_of_pids() -> Iterator[Path]:
    """Make a control group of pids, of whatever version there is; who is in it afterwards is brought up."""
    name = f"tb-pids-{os.getpid()}-{next(_numbers)}"
    for root in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        group = root / name
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / "pids.max").exists():
                break
            group.rmdir()
    require((group / "pids.max").exists(), "no control group of pids can be made here", "run it as root")
    try:
        yield group
    finally:
        wait_until(lambda: _removed(group), what="the control group to be empty")


def _removed(group: Path) -> bool:
    """Bring whoever is in a control group up, and remove it."""
    with contextlib.suppress(OSError):
        for pid in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(pid)
        group.rmdir()
    return not group.exists()
