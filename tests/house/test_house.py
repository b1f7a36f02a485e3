"""The habits of the house, held by a test."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

from tests.house.repository import ROOT, code, files, is_venv

MAX_LINES = 420  # about 400
FORBIDDEN_NAMES = re.compile(r"(utils?|helpers?|misc|common|.*manager.*)\.py", re.I)
HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("repo1", "maven", "org"),
        ("repo", "maven", "apache", "org"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("quay", "io"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
    )
]
_QUIET = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(source: str) -> int:
    """Return how many lines hold code: blank lines, comments and docstrings do not count."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _QUIET:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_code_lines_counts_code() -> None:
    assert code_lines('"""A\ndocstring."""\n\n# a comment\nx = """two\nlines"""\n\n\ndef f():\n    """Do."""\n') == 3


def test_no_file_is_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines for path in code() if (lines := code_lines(path.read_text())) > MAX_LINES
    }
    assert not long, f"split them by noun: {long}"


def test_no_file_is_named_after_nothing() -> None:
    assert not [path for path in code() if FORBIDDEN_NAMES.fullmatch(path.name)]


def test_no_registry_host_is_named() -> None:
    pattern = re.compile("|".join(rf"(?<![\w-]){re.escape(host)}(?![\w.-])|\.{re.escape(host)}" for host in HOSTS))
    named = {
        str(path.relative_to(ROOT)): found[0]
        for path in files()
        if (found := pattern.findall(path.read_text(encoding="utf-8", errors="replace")))
    }
    assert not named


def test_every_link_stays_inside_the_repository() -> None:
    links = [
        path for folder, names, _ in os.walk(ROOT) for path in map(Path(folder).joinpath, names) if path.is_symlink()
    ]
    own = [link for link in links if not any(map(is_venv, link.parts))]
    assert {link.relative_to(ROOT).as_posix() for link in own} == {
        f"trogdor_bus/{name}" for name in ("agents", "coordinator", "transports", "examples")
    }


def make(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    return subprocess.run(
        ["make", *words], cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "verb",
    [
        "demo",
        "test",
        "check",
        "fmt",
        "sim",
        "bench",
        "fuzz",
        "matrix",
        "soak",
        "test-all",
        "clean",
        "help",
        "reference",
    ],
)
def test_the_makefile_has_the_verb_and_explains_it(verb: str) -> None:
    assert make("--dry-run", verb).returncode == 0
    assert re.search(rf"^make {verb} +\w", make("help").stdout, re.M)


def test_make_without_a_python_says_so(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = make("--directory", str(tmp_path), "check", "PYTHON=")
    assert done.returncode != 0
    assert "no Python 3.11 or newer was found" in done.stderr


def test_a_python_that_is_none_is_told() -> None:
    done = make("check", "PYTHON=false")
    assert done.returncode != 0
    assert "false is no Python 3.11 or newer" in done.stderr


def setup(*words: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(ROOT / ".ci" / "setup"), *words]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True, check=False)


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_setup_is_silent_when_nothing_is_missing(tmp_path: Path) -> None:
    script(tmp_path / "tool", "exit 0")
    done = setup("tool=package", path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_setup_installs_what_is_missing_as_root_and_says_so(tmp_path: Path) -> None:
    script(tmp_path / "id", "echo 0")
    script(tmp_path / "apt-get", f'echo "$@" >> {tmp_path}/asked')
    done = setup("tool-a=package-a", "tool-b=package-b", path=tmp_path)
    assert "installed package-a package-b" in done.stdout
    update, install = (tmp_path / "asked").read_text().splitlines()
    assert update.startswith("update") and install.endswith(" package-a package-b")


@pytest.mark.parametrize(("has_apt", "typed"), [(True, "sudo apt-get install package"), (False, "package manager")])
def test_setup_prints_the_command_elsewhere_and_goes_on(tmp_path: Path, has_apt: bool, typed: str) -> None:
    script(tmp_path / "id", "echo 1000")
    if has_apt:
        script(tmp_path / "apt-get", f"touch {tmp_path}/asked")
    done = setup("tool=package", path=tmp_path)
    assert done.returncode == 0
    assert typed in done.stderr and "package" in done.stderr
    assert not (tmp_path / "asked").exists()


def test_setup_goes_on_when_the_installation_fails(tmp_path: Path) -> None:
    script(tmp_path / "id", "echo 0")
    script(tmp_path / "apt-get", "exit 100")
    done = setup("tool=package", path=tmp_path)
    assert done.returncode == 0
    assert "sudo apt-get install package" in done.stderr
