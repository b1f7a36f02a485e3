"""Running the real command line in a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(*arguments: str, stdin: str | bytes = b"", **environment: str) -> Ran:
    """Run `trogdor-bus` with the arguments to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "trogdor_bus", *arguments],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=60,
        env=clean_environment(**environment),
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def clean_environment(**extra: str) -> dict[str, str]:
    """Return the environment without what changes the output."""
    unset = ("COLUMNS", "NO_COLOR", "FORCE_COLOR")
    kept = {
        name: value for name, value in os.environ.items() if name not in unset and not name.startswith("TROGDOR_BUS_")
    }
    return {**kept, "TZ": "UTC", **extra}
