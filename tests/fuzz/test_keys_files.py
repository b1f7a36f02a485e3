"""Key files and the text that travels between machines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from tests.fuzz.judge import decoded, keeps_nothing
from tests.fuzz.mutants import DEEP, mangled, mutated, values, written
from trogdor_bus import keys
from trogdor_bus.errors import ConflictError, SpecError, TrogdorBusError

COORDINATOR = {"public": "0" * 64, "secret": "1" * 64}
MEMBER = {"coordinator": "0" * 64, "public": "2" * 64, "secret": "3" * 64}


def store(directory: Path, name: str, data: bytes) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    (directory / name).write_bytes(data)
    (directory / name).chmod(0o600)


def secrets_in(words: object) -> bool:
    return any(digit * 20 in str(words) for digit in "13")


@examples(120)
@given(st.data())
def test_files(tmp_path: Path, data: st.DataObject) -> None:
    for name, value in ((keys.COORDINATOR_FILE, COORDINATOR), (keys.MEMBER_FILE, MEMBER)):
        text = data.draw(st.just(written(value)) | mangled(written(value)) | mutated(value).map(written))
        store(tmp_path / "keys", name, text)
    member = decoded(lambda: keys.load_member(tmp_path / "keys"))
    both = decoded(lambda: keys.load_coordinator(tmp_path / "keys"))
    for found in (member, both):
        if isinstance(found, SpecError):
            assert found.remedy and not secrets_in(found)
        else:
            assert not isinstance(found, TrogdorBusError) or isinstance(found, ConflictError)
    if isinstance(member, keys.MemberKeys):
        assert all(len(bytes.fromhex(key)) == 32 for key in (member.coordinator, member.public, member.secret))
        assert keys.export(tmp_path / "keys") == json.dumps(
            json.loads(keys.export(tmp_path / "keys")), separators=(",", ":")
        )


@examples(80)
@given(st.data())
def test_imports(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("import") / "keys"
    text = data.draw(
        st.text(st.characters(), max_size=20) | mangled(written(MEMBER)).map(lambda raw: raw.decode("latin-1"))
    )
    error = decoded(lambda: keys.import_(directory, text))
    if error is None:
        assert keys.load_member(directory)
    else:
        assert isinstance(error, SpecError) and error.remedy and not secrets_in(error)
        assert not directory.exists()


@pytest.mark.parametrize(
    "text",
    [b"", b"\0" * 40, b"\xff", b"[" * DEEP, b'{"x":' + b"[" * DEEP, b"x" * (10 << 20), b'{"' + b"x" * 50_000 + b'":1}'],
    ids=["empty", "zeros", "bytes", "deep", "deep field", "ten megabytes", "a long name"],
)
def test_bombs(tmp_path: Path, text: bytes) -> None:
    store(tmp_path / "keys", keys.MEMBER_FILE, text)
    error = decoded(lambda: keys.load_member(tmp_path / "keys"))
    assert isinstance(error, SpecError) and error.remedy
    assert isinstance(decoded(lambda: keys.import_(tmp_path / "other", text.decode("latin-1"))), SpecError)
    if len(text) > 1 << 20:
        return
    keeps_nothing(lambda: keys.load_member(tmp_path / "keys"), calls=5)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    (tmp_path / "keys" / keys.MEMBER_FILE).mkdir(mode=0o700)
    assert isinstance(decoded(lambda: keys.load_member(tmp_path / "keys")), TrogdorBusError)
    (tmp_path / "keys" / keys.MEMBER_FILE).rmdir()
    (tmp_path / "keys" / keys.MEMBER_FILE).symlink_to("/dev/zero")
    assert isinstance(decoded(lambda: keys.load_member(tmp_path / "keys")), TrogdorBusError)
    assert isinstance(decoded(lambda: keys.load_member(tmp_path / "a\0b")), TrogdorBusError)
    assert isinstance(decoded(lambda: keys.load_member(tmp_path / ("x" * 300))), TrogdorBusError)


def test_a_secret_is_not_repeated(tmp_path: Path) -> None:
    store(tmp_path / "keys", keys.MEMBER_FILE, written({**MEMBER, MEMBER["secret"]: 1}))
    error = decoded(lambda: keys.load_member(tmp_path / "keys"))
    assert isinstance(error, SpecError) and not secrets_in(error)


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "keys" / keys.MEMBER_FILE, 0o600)
    assert isinstance(decoded(lambda: keys.load_member(tmp_path / "keys")), TrogdorBusError)


@examples(40)
@given(values)
def test_nothing_but_keys_is_a_key(tmp_path: Path, value: object) -> None:
    store(tmp_path / "keys", keys.MEMBER_FILE, written({**MEMBER, "secret": value}))
    assert isinstance(decoded(lambda: keys.load_member(tmp_path / "keys")), SpecError)
