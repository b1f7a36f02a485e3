from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from trogdor_bus.errors import NotFoundError
from trogdor_bus.host import boot_id, identity, own_identity, start_ticks


def test_the_start_time_is_found_behind_any_name(tmp_path: Path) -> None:
    tricky = tmp_path / ") R 1 2"
    tricky.symlink_to("/bin/sleep")
    with subprocess.Popen([tricky, "60"]) as sleeper:
        who = identity(sleeper.pid)
        line = Path(f"/proc/{sleeper.pid}/stat").read_bytes()
        sleeper.kill()
    hertz = os.sysconf("SC_CLK_TCK")
    now_ticks = float(Path("/proc/uptime").read_text().split()[0]) * hertz
    assert b"() R 1 2)" in line and who.start_ticks == start_ticks(line)
    assert now_ticks - 60 * hertz < who.start_ticks <= now_ticks + 1  # a tick is the clock's whole precision
    assert who.pid == sleeper.pid and who.boot_id == boot_id() == own_identity().boot_id
    assert own_identity().pid == os.getpid() and len(boot_id()) == 36


def test_no_such_process() -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    with pytest.raises(NotFoundError, match=str(gone.pid)):
        identity(gone.pid)
