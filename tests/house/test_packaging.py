"""The sdist and the wheel hold the package once, and nothing else; all three ways to install it work."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.house.repository import ROOT, copy_sources

IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import trogdor_bus
home = pathlib.Path(trogdor_bus.__file__).parent
for module in pkgutil.walk_packages(trogdor_bus.__path__, "trogdor_bus."):
    if module.name != "trogdor_bus.__main__":
        found = importlib.import_module(module.name).__file__
        assert pathlib.Path(found).is_relative_to(home), found
        print(module.name)
assert (home / "py.typed").is_file() and (home / "examples" / "partition.json").is_file()
assert (home / "experiment" / "page.html").is_file()
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def hatch(kind: str, source: Path, out: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", out, cwd=source)
    (built,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def package_files() -> set[str]:
    """Return what the package consists of, read through the links."""
    found: set[str] = set()
    for folder, names, files in os.walk(ROOT / "trogdor_bus", followlinks=True):
        names[:] = [name for name in names if name != "__pycache__"]
        found |= {Path(folder, name).relative_to(ROOT).as_posix() for name in files if not name.endswith(".pyc")}
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hatch("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    unpacked = tmp_path_factory.mktemp("unpacked")
    run("tar", "-xzf", sdist, "-C", unpacked, cwd=unpacked)
    (root,) = unpacked.iterdir()
    return hatch("wheel", root, tmp_path_factory.mktemp("wheel"))


def test_the_rooms_are_links_in_the_repository() -> None:
    for name in ("agents", "coordinator", "transports", "examples"):
        link = ROOT / "trogdor_bus" / name
        assert link.is_symlink() and link.readlink() == Path("..", name)


def test_the_sdist_holds_the_package_once_and_nothing_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        assert all(member.isfile() for member in archive.getmembers())
        names = [member.name.partition("/")[2] for member in archive.getmembers()]
    assert len(names) == len(set(names))
    assert set(names) - package_files() == {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", ".gitignore"}
    assert package_files() <= set(names)


def test_the_wheel_made_from_the_sdist_holds_the_package_once_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    rest = {name.partition(".dist-info/")[2] for name in set(names) - package_files()}
    assert rest == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert package_files() <= set(names)


@pytest.mark.parametrize("way", ["wheel", "directory", "editable"])
def test_it_installs_and_every_module_imports(way: str, source: Path, wheel: Path, tmp_path: Path) -> None:
    ways: dict[str, list[str | Path]] = {"wheel": [wheel], "directory": [source], "editable": ["--editable", source]}
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    # Our own dependencies, and nothing that a .pth file of this environment adds.
    beside = {"PYTHONPATH": sysconfig.get_path("purelib")}
    install = ("-m", "pip", "--python", python, "install", "--no-index", "--no-deps", "--no-build-isolation", "--quiet")
    run(sys.executable, *install, "--disable-pip-version-check", *ways[way], cwd=tmp_path, **beside)
    imported = run(python, "-c", IMPORT_ALL, cwd=tmp_path, **beside).split()
    assert {"trogdor_bus.agents.machine", "trogdor_bus.coordinator.machine", "trogdor_bus.transports.zmq"} <= {
        *imported
    }
    home = run(python, "-c", "import trogdor_bus; print(trogdor_bus.__path__[0])", cwd=tmp_path, **beside).strip()
    assert Path(home).is_relative_to(source if way == "editable" else tmp_path)
    said = run(tmp_path / "venv" / "bin" / "trogdor-bus", "--version", cwd=tmp_path, **beside)
    assert said.strip() in wheel.name


def test_every_dependency_is_pinned_once_and_nothing_else_stands_there() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    development = project["dependency-groups"]["dev"] + project["build-system"]["requires"]
    for requirement in development:
        name, version = requirement.split("==")
        assert pins[name] == version
    for requirement in project["project"]["dependencies"]:
        assert requirement.partition(">=")[0] in pins
