"""The repository as files: what tests of the house look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("trogdor_bus", "agents", "coordinator", "transports", "tests", "benchmarks")
_SKIPPED = {".git", "__pycache__", "dist", "build", "results"}


def is_venv(name: str) -> bool:
    """Return whether a folder holds what `make` installed, for one Python or another."""
    return name == ".venv" or name.startswith(".venv-")


def files() -> Iterator[Path]:
    """Yield every file that people wrote, links not followed."""
    for folder, names, found in os.walk(ROOT):
        names[:] = [
            name for name in names if name not in _SKIPPED and not name.endswith("_cache") and not is_venv(name)
        ]
        for name in found:
            if (path := Path(folder, name)).suffix != ".pyc":
                yield path


def code() -> list[Path]:
    """Return every Python file, each once."""
    return sorted(path for path in files() if path.suffix == ".py")


def pages() -> list[Path]:
    """Return every page of documentation."""
    return sorted(path for path in files() if path.suffix == ".md")


def copy_sources(to: Path) -> Path:
    """Copy what a build needs, links as links, and return the new root."""
    for name in ("trogdor_bus", "agents", "coordinator", "transports", "examples"):
        shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, to / name)
    return to
