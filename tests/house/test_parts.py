"""The parts of the long suites together are all of them, and what passed is remembered for its tree alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crashes import matrix
from tests.house.repository import ROOT
from tests.part import WHOLE, Part, parse
from tests.sim import hunt
from tests.sim.__main__ import CORE, chunks

PARTS = [Part(number, 4) for number in range(1, 5)]


def test_a_name_is_in_one_part_whatever_else_there_is() -> None:
    names = [f"tests/test_{number}.py::test" for number in range(400)]
    found = [[name for name in names if part.has(name)] for part in PARTS]
    assert sorted(name for part in found for name in part) == sorted(names)
    assert all(70 < len(part) < 130 for part in found)
    assert all(WHOLE.has(name) for name in names)
    assert [part.number for part in PARTS if part.has("a name")] == [3], "another hash would move every test"


@pytest.mark.parametrize("size", [0, 1, 3, 4, 9_001])
def test_a_range_is_in_the_parts_once(size: int) -> None:
    assert [one for part in PARTS for one in part.of_range(size)] == list(range(size))
    assert WHOLE.of_range(size) == range(size)


def test_a_part_is_named_by_two_numbers() -> None:
    assert (parse(""), parse("1/1"), parse("4/4")) == (WHOLE, WHOLE, Part(4, 4))
    for text in ("0/4", "5/4", "2", "2/4/4", "-1/4", "x"):
        with pytest.raises(ValueError, match=f"TROGDOR_PART={text} names no part; the second of four is 2/4"):
            parse(text)


def test_every_seed_and_every_range_of_mutants_is_in_a_part_and_a_core_in_all() -> None:
    def seeds(part: Part) -> list[int]:
        return [seed for first, size in chunks(7, 10_000, part) for seed in range(first, first + size)]

    core, found = set(range(7, 7 + CORE)), [seeds(part) for part in PARTS]
    assert seeds(WHOLE) == list(range(7, 10_007)) == sorted({seed for part in found for seed in part})
    assert all(len(part) == CORE + 9_000 // 4 and core <= set(part) for part in found)
    assert [seed for first, size in chunks(0, 30) for seed in range(first, first + size)] == list(range(30))
    assert [hunt.turns(part) for part in PARTS] == [[0, turn] for turn in range(1, hunt.RANGES)]
    assert hunt.turns(WHOLE) == list(range(hunt.RANGES))


def test_every_cell_of_the_matrix_is_in_a_part_and_the_sample_in_all() -> None:
    whole = matrix.generate()
    found = [matrix.in_part(whole, part) for part in PARTS]
    assert set(whole.cells) == {cell for part in found for cell in part}
    assert all(set(matrix.sample(whole)) <= set(part) for part in found)
    assert all(len(part) < len(whole.cells) / 2 for part in found)
    assert matrix.in_part(whole, WHOLE) == whole.cells


TESTS = """
import pytest

@pytest.mark.parametrize("number", range(40))
def test_any(number): pass

@pytest.mark.core
def test_core(): pass

@pytest.mark.together
@pytest.mark.parametrize("number", range(40))
def test_together(number): pass
"""


COLLECT = """
import os, sys, pytest

markers = ["-o", "markers=core\\ntogether\\nkafka", "-p", "no:cacheprovider", "-p", "no:xdist"]
for part in sys.argv[1:]:
    print("part", part)
    os.environ["TROGDOR_PART"] = part.replace("whole", "")
    assert pytest.main(["-q", "--collect-only", *markers, "test_it.py"]) == 0
"""


def test_pytest_runs_the_core_and_a_part(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_collection_modifyitems\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    argv = (sys.executable, "-c", COLLECT, "whole", *(f"{part.number}/{part.of}" for part in PARTS))
    where = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "yes"}
    done = subprocess.run(
        argv,
        cwd=tmp_path,
        env=os.environ | where,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    told = re.split(r"^part .*$", done.stdout, flags=re.M)[1:]
    whole, *found = [{line.split("::")[1] for line in one.splitlines() if "::" in line} for one in told]
    assert len(whole) == 81 and set.union(*found) == whole
    assert set.intersection(*found) == {"test_core"} and sum(map(len, found)) == 80 + len(PARTS)
    together = [{name for name in part if "together" in name} for part in found]
    assert sorted(map(len, together)) == [0, 0, 0, 40]


class Repository:
    """A small repository with our scripts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / ".ci").mkdir(parents=True)
        for name in ("once", "part"):
            shutil.copy(ROOT / ".ci" / name, directory / ".ci" / name)
        (directory / ".gitignore").write_text("ran\n")
        self.git("init", "-q")
        self.commit("first")

    def git(self, *argv: str) -> None:
        who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *argv], cwd=self.directory, check=True, capture_output=True)

    def commit(self, text: str, *options: str) -> None:
        (self.directory / "text").write_text(text)
        self.git("add", ".")
        self.git("commit", "-q", "-m", text, *options)

    def script(self, name: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = [str(self.directory / ".ci" / name), *argv]
        return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False)

    def once(self, suite: str, then: str = "true", **environment: str) -> tuple[int, bool, str]:
        """Return the exit code, whether the suite was run, and what was said."""
        ran = self.directory / "ran"
        ran.unlink(missing_ok=True)
        done = self.script("once", suite, "sh", "-c", f"touch '{ran}'; {then}", **environment)
        return done.returncode, ran.exists(), done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "some where")


def test_the_tree_chooses_the_part(repository: Repository) -> None:
    part = repository.script("part").stdout.strip()
    repository.commit("first", "--allow-empty", "--amend", "--author=another <another@example.org>")
    assert repository.script("part").stdout.strip() == part, "the same tree is tested with the same part"
    found = {part}
    for number in range(60):
        repository.commit(f"change {number}")
        found.add(repository.script("part").stdout.strip())
        if len(found) == len(PARTS):
            break
    assert found == {f"{part.number}/{part.of}" for part in PARTS}


def test_what_passed_on_a_tree_is_not_run_again_on_it(repository: Repository) -> None:
    assert repository.once("sim", "exit 3")[:2] == (3, True)
    code, ran, said = repository.once("sim")
    assert (code, ran) == (0, True) and "remembered for tree" in said, "what failed is run again"
    code, ran, said = repository.once("sim")
    assert (code, ran) == (0, False) and "sim: passed on this tree, 2" in said
    assert repository.once("fuzz")[:2] == (0, True), "each suite by itself"
    assert repository.once("sim", AGAIN="yes")[:2] == (0, True)
    repository.commit("second")
    assert repository.once("sim")[:2] == (0, True)
    repository.commit("first")
    assert repository.once("sim")[:2] == (0, False), "it is that tree again"


def test_what_is_not_committed_is_not_remembered(repository: Repository) -> None:
    (repository.directory / "new file").write_text("x")
    for _ in range(2):
        code, ran, said = repository.once("sim")
        assert (code, ran) == (0, True)
        assert "not remembered: there are uncommitted changes" in said and "new file" in said
    (repository.directory / "new file").unlink()
    code, ran, said = repository.once("sim", f"echo more >>'{repository.directory}/text'")
    assert (code, ran) == (0, True) and "not remembered: the tree was changed meanwhile" in said
    repository.git("checkout", "text")
    assert repository.once("sim")[:2] == (0, True)
    shutil.rmtree(repository.directory / ".git")
    code, ran, said = repository.once("sim")
    assert (code, ran) == (0, True) and "not remembered: this is no repository" in said


# --- the Makefile -----------------------------------------------------------------------------------------------------


def dry(directory: Path, *words: str) -> str:
    """Return what `make` would do in a directory with our Makefile."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, directory / name)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    argv = ["make", "--no-print-directory", *words]
    done = subprocess.run(
        argv, cwd=directory, env={"PYTHON": sys.executable, **clean}, capture_output=True, text=True, check=True
    )
    return done.stdout


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_test_all_runs_every_suite_whole_whatever_is_asked_for(tmp_path: Path) -> None:
    script(tmp_path / ".ci" / "once", 'echo "suite $1"; shift; exec "$@" --dry-run')
    asked = ("SEEDS=5", "EFFORT=1", "PART=2/4", "TESTS=tests/kafka/test_lab.py", "KAFKA=4.4.0")
    said = dry(tmp_path, "test-all", "SUITES=sim fuzz test-kafka", *asked)
    assert [line.split()[1] for line in said.splitlines() if line.startswith("suite ")] == [
        "sim",
        "fuzz",
        "test-kafka",
    ]
    assert "--seeds 10000" in said and "TROGDOR_EFFORT=10 TROGDOR_FRESH= " in said and "4.4.0 3.9.2" in said
    assert "2/4" not in said and "test_lab" not in said
    assert "TROGDOR_PART=2/4" in dry(tmp_path, "--dry-run", "matrix", "PART=2/4")


def test_another_python_has_packages_of_its_own(tmp_path: Path) -> None:
    usual, other = script(tmp_path / ".venv/bin/python", "echo 3.11"), script(tmp_path / "other", "echo 3.13")
    assert ".venv/bin/ruff" in dry(tmp_path, "--dry-run", "fmt")
    assert ".venv/bin/ruff" in dry(tmp_path, "--dry-run", "fmt", f"PYTHON={usual}")
    said = dry(tmp_path, "--dry-run", "fmt", f"PYTHON={other}")
    assert ".venv-3.13/bin/ruff" in said and "-m venv --clear .venv-3.13" in said
    usual.unlink()
    assert ".venv/bin/ruff" in dry(tmp_path, "--dry-run", "fmt", f"PYTHON={other}")


def test_compiled_modules_are_kept_whatever_the_surroundings_wish(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    (tmp_path / "other").write_text("include Makefile\nshow:\n\t@env\n")
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHON": sys.executable}
    argv = ["make", "--no-print-directory", "-f", "other", "show"]
    told = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert "PYTHON=" in told and "PYTHONDONTWRITEBYTECODE" not in told
