"""A package of a how-to page, installed in a folder as a package manager would, and Python beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.house.test_docs import blocks


def install(folder: Path, page: str) -> None:
    """Write what the page's TOML says of its project, so that its entry points are found."""
    (project,) = (tomllib.loads(text)["project"] for text in blocks(page, "toml"))
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def ran(package: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder, where the package is found; it must succeed."""
    paths = os.pathsep.join([str(package), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=package,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def python(package: Path, *words: str) -> str:
    """Return what it writes to standard output."""
    return ran(package, *words).stdout
