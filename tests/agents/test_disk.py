from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import pytest

from tests.agents.simdisk import SimDisk
from tests.agents.test_journal import entry
from tests.support import require
from trogdor_bus.agents.disk import FileDisk, lock
from trogdor_bus.agents.journal import Journal
from trogdor_bus.errors import ConflictError, HostError, NotFoundError


def test_the_simulated_disk_loses_only_what_was_not_synced() -> None:
    outcomes: set[tuple[str, bytes]] = set()
    for seed in range(300):
        disk = SimDisk(Random(seed))
        disk.create("a", b"old")
        disk.sync("a")
        disk.sync_directory()
        disk.create("b.tmp", b"new!")
        disk.rename("b.tmp", "a")
        disk.crash()
        outcomes.add(("a", disk.read("a")))
        outcomes |= {(name, b"") for name in disk.names()}
    contents = {data for name, data in outcomes if data}
    assert contents == {b"old", b"n", b"ne", b"new", b"new!"} and ("b.tmp", b"") in outcomes


def test_modes_are_private_and_content_is_readable_with_cat(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "state"
    journal = Journal(FileDisk(directory))
    journal.put(entry(1))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    text = (directory / "worker-1.json").read_text()
    assert '\n  "state": "applied",\n' in text and json.loads(text)["worker"] == 1
    assert json.loads((directory / "journal.json").read_text()) == {"id": journal.id, "life": 1}


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    directory, victim = tmp_path / "state", tmp_path / "victim"
    victim.write_bytes(b"precious")
    disk = FileDisk(directory)
    (directory / "worker-1.json.tmp").symlink_to(victim)
    journal = Journal.read_only(disk)
    with pytest.raises(HostError, match=r"worker-1\.json\.tmp.*symbolic links"):
        disk.create("worker-1.json.tmp", b"evil")
    with pytest.raises(HostError, match="symbolic links"):
        disk.sync("worker-1.json.tmp")
    (directory / "lock").symlink_to(victim)
    with pytest.raises(HostError, match="symbolic links"):
        lock(directory)
    link = tmp_path / "link"
    link.symlink_to(directory)
    with pytest.raises(HostError, match="symbolic links"):
        FileDisk(link)
    assert victim.read_bytes() == b"precious" and journal.entries == {}


def test_a_pipe_in_the_way_does_not_hang(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path)
    os.mkfifo(tmp_path / "worker-1.json")
    assert Journal(disk).broken == ("worker-1.json",)


def test_a_directory_that_others_can_write_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o1777)
    with pytest.raises(HostError, match=r"mode 1777.*chmod 700"):
        FileDisk(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o1777


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "only root can give a directory away", "run it with sudo")
    os.chown(tmp_path, 65534, -1)
    with pytest.raises(HostError, match="belongs to user 65534"):
        FileDisk(tmp_path)


def test_a_missing_directory_is_not_made_for_a_reader(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no state directory"):
        FileDisk(tmp_path / "none", make=False)
    assert not (tmp_path / "none").exists()


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(HostError, match="name the real path of a directory"):
        FileDisk(tmp_path / "state")
    with pytest.raises(HostError, match="state"):
        FileDisk(tmp_path / "state" / "below")


def test_missing_files(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path)
    disk.remove("none")
    with pytest.raises(NotFoundError):
        disk.read("none")
    with pytest.raises(HostError):
        disk.sync("none")
    with pytest.raises(HostError):
        disk.rename("none", "other")
    disk.close()


def test_no_permission_says_what_to_do(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path / "state")
    journal = Journal(disk)
    try:
        if os.geteuid() == 0:
            os.seteuid(65534)
        else:
            disk.directory.chmod(0o500)
        with pytest.raises(HostError, match=r"cannot write .*worker-1\.json\.tmp: Permission denied; run as the user"):
            journal.put(entry(1))
    finally:
        os.seteuid(os.getuid())
        disk.directory.chmod(0o700)
    assert journal.entries == {}
    journal.put(entry(1))


def in_private_tmpfs(directory: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script whose `directory` is a 64 KiB file system that nobody else sees, and that is gone after it."""
    require(os.geteuid() == 0, "mounting a small file system needs root", "run it with sudo")
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", directory], check=False)
    require(probe.returncode == 0, "this machine allows no private mounts", "run it where CAP_SYS_ADMIN is allowed")
    shell = f'mount -t tmpfs -o size=64k,mode=700 tmpfs "{directory}" && exec "{sys.executable}" -'
    prelude = f"""
        import subprocess
        from pathlib import Path
        from trogdor_bus.agents.disk import FileDisk
        from trogdor_bus.agents.journal import Journal
        from trogdor_bus.errors import HostError
        from tests.agents.test_journal import entry
        directory = Path({str(directory)!r})
        journal = Journal(FileDisk(directory))
        journal.put(entry(1))
    """
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", shell],
        input=textwrap.dedent(prelude) + textwrap.dedent(script),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )


def test_a_really_full_disk(tmp_path: Path) -> None:
    done = in_private_tmpfs(
        tmp_path,
        """
        try:
            for worker in range(2, 1000):
                journal.put(entry(worker))
        except HostError as error:
            print(error)
        assert not list(directory.glob("*.tmp"))
        assert Journal.read_only(FileDisk(directory)).entries == journal.entries and worker not in journal.entries
        journal.forget(1)
        journal.put(entry(worker))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "No space left on device; free some space" in done.stdout


def test_a_really_read_only_disk(tmp_path: Path) -> None:
    done = in_private_tmpfs(
        tmp_path,
        """
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        for act in (lambda: journal.put(entry(2)), lambda: journal.forget(1), lambda: Journal(FileDisk(directory))):
            try:
                act()
            except HostError as error:
                print(error)
        assert Journal.read_only(FileDisk(directory)).entries == {1: entry(1)}
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Read-only file system; mount it for writing") == 3


def test_one_agent_per_state_directory(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    held = lock(directory)
    with pytest.raises(ConflictError, match=rf"pid {os.getpid()}\b"):
        lock(directory)
    held.close()
    lock(directory).close()


def test_the_lock_is_released_when_the_process_is_killed(tmp_path: Path) -> None:
    script = f"""
        from pathlib import Path
        from trogdor_bus.agents.disk import lock
        lock(Path({str(tmp_path)!r}))
        print("held", flush=True)
        input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ConflictError, match=rf"pid {holder.pid}\b"):
            lock(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    lock(tmp_path).close()


def test_a_lock_whose_holder_has_not_written_its_pid_yet(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="pid not written yet"):
            lock(tmp_path)
