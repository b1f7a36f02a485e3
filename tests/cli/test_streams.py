"""Standard streams that are closed, full, or read by nobody, and Ctrl-C before there is anything to interrupt."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import clean_environment

FULL = "error: cannot write to standard output: No space left on device\n"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `tb` is the command line; the exit code is the first one that is not 0."""
    script = f'tb() {{ "{sys.executable}" -m trogdor_bus "$@"; }}; set -o pipefail; {line}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60, env=clean_environment()
    )


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("tb faults >&-", 0, ""),
        ("tb faults --json <&- >&- 2>&-", 0, ""),
        ("tb faults >/dev/full", 1, FULL),
        ("tb faults --json >/dev/full", 1, FULL),
        ("tb --version >/dev/full", 1, FULL),
        ("tb faults | true", 141, ""),
        ("{ sleep 0.5; tb faults; } | true", 141, ""),
        ("tb validate nosuch 2>/dev/full", 2, ""),
        ("tb validate nosuch 2>&-", 2, ""),
        ("tb validate nosuch >/dev/full", 2, "error: there is no file 'nosuch'\n"),
    ],
)
def test_an_exit_code_and_no_traceback(line: str, code: int, said: str) -> None:
    done = shell(line)
    assert (done.returncode, done.stderr) == (code, said)


def test_who_reads_a_part_and_goes_is_as_who_reads_nothing() -> None:
    """The pipe holds less than what is written, so that it cannot all be written before the reader has gone."""
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    command = [sys.executable, "-m", "trogdor_bus", "faults", "--json"]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=clean_environment()) as writer:
        os.close(theirs)
        assert len(os.read(ours, 3)) == 3
        os.close(ours)
        assert writer.stderr is not None
        assert (writer.wait(60), writer.stderr.read()) == (141, b"")


def test_no_file_of_ours_becomes_a_standard_stream(tmp_path: Path) -> None:
    """With standard error closed, the first file that is opened has its number, and gets what is told there."""
    state = tmp_path / "state"
    done = shell(f"tb heal --state-dir {state} 2>&-; tb heal --dry-run --state-dir {state} 2>&-")
    assert done.returncode == 2
    held = f"import os, trogdor_bus.streams as m; m.open_missing(); fd = os.open('{tmp_path}/x', 65); print(fd)"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{held}" 2>&- <&-'], capture_output=True, text=True, check=False
    )
    assert int(done.stdout) > 2, done.stderr


@pytest.mark.parametrize("module", ["typer.main", "trogdor_bus.cli.options", "trogdor_bus.cli", "msgspec"])
@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_while_modules_are_imported_ends_without_a_word(module: str, ignored: bool) -> None:
    """As it does not where a shell started it in the background, to ignore Ctrl-C."""
    trap = "trap '' INT;" if ignored else ""
    tell = f'{trap} exec "{sys.executable}" -X importtime -m trogdor_bus faults'
    with subprocess.Popen(["sh", "-c", tell], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as begun:
        assert begun.stderr is not None
        for line in begun.stderr:
            if line.split("|")[-1].strip() == module:
                break
        else:
            pytest.fail(f"{module} was not imported")
        begun.send_signal(signal.SIGINT)
        rest = [line for line in begun.stderr.read().splitlines() if not line.startswith("import time:")]
        assert begun.wait(20) == (0 if ignored else 130)
    assert rest == []
