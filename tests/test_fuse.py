"""How a daemon ends at what nobody foresaw, seen on real processes; and when the lives that follow do without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from trogdor_bus import fuse
from trogdor_bus.fuse import CRASHED, ENDS, MANY, WITHIN_LONG_S, WITHIN_S, Crash, Fuse, Record, begun, crashed

PROGRAM = """
import logging, pathlib, sys
from trogdor_bus.fuse import Fuse
logging.basicConfig()
mine = Fuse(pathlib.Path(sys.argv[1]), "trogdor-bus coordinator")
if sys.argv[3] == "look":
    print(sorted(mine.aside), mine.bare, mine.said())
    mine.ended()
    sys.exit()
def here():
    raise ZeroDivisionError("about " + sys.argv[2])
def there():
    try:
        here()
    except ZeroDivisionError as error:
        raise RuntimeError("passed on") from error
try:
    (here if sys.argv[3] == "here" else there)()
except Exception as error:
    mine.blow(error, sys.argv[2])
"""


def end(directory: Path, about: str = "", where: str = "here") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(directory), about, where]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def crash(at_s: float, place: str = "a.py:1 in f", about: str = "", boot_id: str = "b") -> Crash:
    return Crash(boot_id=boot_id, at_s=at_s, place=place, about=about)


def after(*crashes: Crash, at_s: float = 0.0, boot_id: str = "b") -> Record:
    """Return with what a life begins after these ends, each of a life of its own."""
    record = Record()
    for one in crashes:
        record = crashed(begun(record, one.boot_id, one.at_s), one)
    return begun(record, boot_id, at_s or (crashes[-1].at_s if crashes else 0))


def test_it_ends_with_an_exit_code_of_its_own_and_says_where_and_what_to_type(tmp_path: Path) -> None:
    ended = end(tmp_path)
    assert (ended.returncode, ended.stdout) == (CRASHED, "")
    assert "ZeroDivisionError" in ended.stderr
    assert "so this process ends, unless something watches it, start it again: trogdor-bus coordinator" in ended.stderr


def test_the_lives_after_three_ends_at_one_place_do_without_it_until_one_is_ended_in_good_order(tmp_path: Path) -> None:
    for about in ("t1", "t2", "t1")[:ENDS]:
        assert end(tmp_path, about).returncode == CRASHED
    assert end(tmp_path, "t3").returncode == CRASHED, "whatever fails then ends it, too"
    told = end(tmp_path, where="look").stdout
    assert told.startswith("['t1', 't2', 't3'] False it crashed again and again in ")
    assert "ZeroDivisionError: about t1" in told
    assert end(tmp_path, where="look").stdout == "[] False \n"


def test_the_place_and_the_text_are_those_of_the_cause(tmp_path: Path) -> None:
    for _ in range(ENDS):
        assert end(tmp_path, "t1", "there").returncode == CRASHED
    assert "ZeroDivisionError: about t1" in end(tmp_path, where="look").stdout


def test_few_ends_or_ends_far_apart_or_of_another_boot_or_long_ago_do_not_blow_it() -> None:
    assert after(crash(1), crash(2)).blown is None
    assert after(crash(1), crash(2), crash(2 + WITHIN_S)).blown is None
    assert after(crash(1), crash(2), crash(3)).blown is not None
    assert after(crash(1), crash(2), crash(3), boot_id="c").blown is None
    assert after(crash(1, boot_id="a"), crash(2), crash(3)).blown is None
    assert after(crash(1), crash(2), crash(3), at_s=4 + WITHIN_LONG_S) == Record()
    assert after(crash(1, "x"), crash(2, "y"), crash(3, "x")).blown is None


def test_many_ends_blow_it_wherever_they_are() -> None:
    many = [crash(number * 10, f"{number}", f"t{number % 2}") for number in range(MANY)]
    assert after(*many[:-1]).blown is None
    assert after(*many).aside == ("t0", "t1")


@pytest.mark.parametrize(("about", "bare"), [("t2", False), ("t1", True), ("", True)])
def test_a_life_that_does_without_what_failed_and_fails_all_the_same_adds_to_it(about: str, bare: bool) -> None:
    blown = after(*[crash(number, about="t1") for number in range(ENDS)])
    assert (blown.aside, blown.bare) == (("t1",), False)
    again = begun(crashed(blown, crash(10, "elsewhere", about)), "b", 20)
    assert (set(again.aside), again.bare) == ({"t1", about} - {""}, bare)
    assert again.blown == blown.blown
    assert begun(again, "b", 20 + 10 * WITHIN_LONG_S) == again, "as long as nobody ends one in good order"
    assert begun(again, "c", 30) == Record()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"[" * 100_000])
def test_a_file_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / fuse.FILE).write_bytes(content)
    assert Fuse(tmp_path).said() == ""


def test_a_long_error_is_cut(tmp_path: Path) -> None:
    assert end(tmp_path, "x" * 10_000).returncode == CRASHED
    (kept,) = msgspec.json.decode((tmp_path / fuse.FILE).read_bytes(), type=Record).crashes
    assert len(kept.error) == fuse.MOST_TEXT


def test_a_directory_that_cannot_be_written_changes_nothing_of_the_end(tmp_path: Path) -> None:
    assert end(tmp_path / "missing").returncode == CRASHED
