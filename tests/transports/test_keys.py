"""Keys on disk: made once, never overwritten, refused when others could read them."""

from __future__ import annotations

import itertools
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trogdor_bus import keys
from trogdor_bus.errors import ConflictError, NotFoundError, RefusedError, SpecError
from trogdor_bus.transports.zmq import new_key_pair


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_first_start_makes_keys_and_the_next_keeps_them(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "keys"
    keys.ensure(directory, new_key_pair)
    made = contents(directory)
    assert set(made) == {keys.COORDINATOR_FILE, keys.MEMBER_FILE}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    keys.ensure(directory, new_key_pair)
    assert contents(directory) == made
    coordinator, member = keys.load_coordinator(directory)
    assert member == keys.load_member(directory)
    assert member.coordinator == coordinator.public
    assert len({coordinator.public, coordinator.secret, member.public, member.secret}) == 4


def test_two_first_starts_at_once_agree(tmp_path: Path) -> None:
    for attempt in range(20):
        directory = tmp_path / str(attempt)
        together = threading.Barrier(8, timeout=20)

        def start(directory: Path = directory, together: threading.Barrier = together) -> object:
            together.wait()
            keys.ensure(directory, new_key_pair)
            return keys.load_coordinator(directory)

        with ThreadPoolExecutor(8) as pool:
            starts = [pool.submit(start) for _ in range(8)]
            first, *others = [done.result() for done in starts]
        assert all(other == first for other in others)
        assert set(contents(directory)) == {keys.COORDINATOR_FILE, keys.MEMBER_FILE}


def test_export_and_import_carry_a_member_without_the_coordinators_secret(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    keys.ensure(here, new_key_pair)
    text = keys.export(here)
    assert "\n" not in text
    assert keys.load_coordinator(here)[0].secret not in text
    keys.import_(there, text)
    keys.import_(there, text + "\n")
    assert keys.load_member(there) == keys.load_member(here)
    assert stat.S_IMODE((there / keys.MEMBER_FILE).stat().st_mode) == 0o600


def test_import_overwrites_other_keys_only_when_forced(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for directory in (one, other):
        keys.ensure(directory, new_key_pair)
    machine = tmp_path / "machine"
    keys.import_(machine, keys.export(one))
    with pytest.raises(ConflictError, match="‹replace-keys›"):
        keys.import_(machine, keys.export(other))
    assert keys.load_member(machine) == keys.load_member(one)
    keys.import_(machine, keys.export(other), force=True)
    assert keys.load_member(machine) == keys.load_member(other)
    assert set(contents(machine)) == {keys.MEMBER_FILE}


@pytest.mark.parametrize("text", ["", "{}", "nonsense", "[1]", '{"coordinator":"00","public":"00","secret":"00"}', "["])
def test_text_that_holds_no_keys_is_refused_with_a_remedy(text: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="export-keys"):
        keys.import_(tmp_path / "keys", text)
    assert not (tmp_path / "keys").exists()


def test_a_coordinator_does_not_start_on_imported_keys(tmp_path: Path) -> None:
    keys.ensure(tmp_path / "one", new_key_pair)
    keys.import_(tmp_path / "two", keys.export(tmp_path / "one"))
    with pytest.raises(ConflictError, match="imported"):
        keys.ensure(tmp_path / "two", new_key_pair)
    assert set(contents(tmp_path / "two")) == {keys.MEMBER_FILE}


def test_keys_of_two_coordinators_in_one_directory_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        keys.ensure(tmp_path / name, new_key_pair)
    keys.import_(tmp_path / "two", keys.export(tmp_path / "one"), force=True)
    with pytest.raises(ConflictError, match="another coordinator"):
        keys.ensure(tmp_path / "two", new_key_pair)


@pytest.mark.parametrize(("name", "mode"), [(keys.MEMBER_FILE, 0o640), (keys.MEMBER_FILE, 0o604), ("", 0o770)])
def test_keys_that_others_can_use_are_refused_naming_chmod(name: str, mode: int, tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    keys.ensure(directory, new_key_pair)
    (directory / name).chmod(mode)
    with pytest.raises(RefusedError, match=rf"chmod (600|700) {directory / name}"):
        keys.load_member(directory)


def test_missing_and_broken_keys_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="export-keys"):
        keys.load_member(tmp_path / "none")
    directory = tmp_path / "keys"
    keys.ensure(directory, new_key_pair)
    for text in (b"", b"\xff\xfe", b"{}", b"[" * 5000):
        (directory / keys.MEMBER_FILE).write_bytes(text)
        with pytest.raises(SpecError, match="export-keys"):
            keys.load_member(directory)


def test_where_keys_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TROGDOR_BUS_KEYS", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert keys.default_dir() == Path("/var/lib/trogdor-bus/keys")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert keys.default_dir() == tmp_path / "trogdor-bus" / "keys"
    monkeypatch.setenv("TROGDOR_BUS_KEYS", "/elsewhere")
    assert keys.default_dir() == Path("/elsewhere")


def test_a_failing_key_maker_leaves_nothing_behind(tmp_path: Path) -> None:
    attempts = itertools.count()

    def fails() -> tuple[bytes, bytes]:
        raise RuntimeError(f"no entropy {next(attempts)}")

    with pytest.raises(RuntimeError):
        keys.ensure(tmp_path / "keys", fails)
    assert contents(tmp_path / "keys") == {}
