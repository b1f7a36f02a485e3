"""Running a tool of the system: argument lists, never a shell, a deadline, and the tool's own words when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from trogdor_bus.errors import HostError

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S = 20.0


def find_tool(name: str) -> str | None:
    """Return the absolute path of a tool, or None; the sbin directories are searched whatever PATH says."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")


def require_tool(name: str, package: str) -> str:
    """Return the absolute path of a tool; HostError names the package to install."""
    path = find_tool(name)
    if path is None:
        raise HostError(f"{name} is not installed on this machine; install the package {package}")
    return path


def run(
    argv: Sequence[str], stdin: str = "", timeout_s: float = TIMEOUT_S, environment: Mapping[str, str] | None = None
) -> str:
    """Run a tool and return what it printed; HostError carries its own words.

    Of the agent's environment it sees PATH only, and what `environment` adds.
    """
    tool = Path(argv[0]).name
    own = {"PATH": f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv,
            input=stdin.encode(),
            capture_output=True,
            timeout=timeout_s,
            check=False,
            cwd="/",
            env={**(environment or {}), **own},
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"{tool} did not end within {timeout_s:g} s") from None
    except (OSError, ValueError) as error:
        raise HostError(f"{tool} cannot be run: {error}") from None
    if done.returncode != 0:
        words = " ".join(done.stderr.decode(errors="replace").split())
        raise HostError(f"{tool} failed ({done.returncode}): {words or 'it gave no reason'}")
    return done.stdout.decode(errors="replace")
