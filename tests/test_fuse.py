"""How a daemon ends at what nobody foresaw, seen on real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from trogdor_bus import fuse
from trogdor_bus.fuse import CRASHED, ENDS, Fuse

PROGRAM = """
import logging, pathlib, sys
from trogdor_bus.fuse import Fuse
logging.basicConfig()
mine = Fuse(pathlib.Path(sys.argv[1]))
def here():
    raise ZeroDivisionError("about " + sys.argv[2])
def there():
    raise ZeroDivisionError("about " + sys.argv[2])
try:
    (here if sys.argv[3] == "here" else there)()
except ZeroDivisionError as error:
    mine.blow(error, sys.argv[2])
print("goes on", sorted(mine.aside), mine.said())
"""


def end(directory: Path, about: str = "", where: str = "here") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(directory), about, where]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_it_ends_with_an_exit_code_of_its_own_and_says_where_and_what_to_type(tmp_path: Path) -> None:
    ended = end(tmp_path)
    assert (ended.returncode, ended.stdout) == (CRASHED, "")
    assert "ZeroDivisionError" in ended.stderr
    assert "this process ends. What watches it starts it again; else type: -c" in ended.stderr


def test_three_ends_at_one_place_blow_it_and_the_next_life_goes_on_without_what_failed(tmp_path: Path) -> None:
    for about in ("t1", "t2", "t1")[:ENDS]:
        assert end(tmp_path, about).returncode == CRASHED
    alive = end(tmp_path, "t3")
    assert alive.returncode == 0
    assert "goes on ['t1', 't2'] it ended 3 times within 60 s in" in alive.stdout
    assert "going on without it" in alive.stderr
    assert end(tmp_path, "t1").returncode == CRASHED, "the next life is as any other"


def test_ends_at_other_places_do_not_blow_it(tmp_path: Path) -> None:
    for where in ("here", "there", "here"):
        assert end(tmp_path, where=where).returncode == CRASHED
    assert end(tmp_path).returncode == CRASHED


def test_ends_that_are_far_apart_or_of_another_boot_do_not_blow_it(tmp_path: Path) -> None:
    for _ in range(ENDS):
        end(tmp_path)
    file = tmp_path / fuse.FILE
    text = file.read_text()
    assert Fuse(tmp_path).blown is not None
    assert Fuse(tmp_path).blown is None
    first = text.index('"at_s":') + len('"at_s":')
    file.write_text(text[:first] + "1.5" + text[text.index(",", first) :])
    assert Fuse(tmp_path).blown is None
    file.write_text(text.replace(fuse._boot_id(), "another"))
    assert Fuse(tmp_path).blown is None
    file.write_text("{")
    assert Fuse(tmp_path).blown is None


def test_a_directory_that_cannot_be_written_changes_nothing_of_the_end(tmp_path: Path) -> None:
    assert end(tmp_path / "missing").returncode == CRASHED
