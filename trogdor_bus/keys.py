"""CURVE keys on disk: who may speak to whom.

A directory (0700) holds at most two files (0600). `coordinator.json` is the coordinator's own key pair and never leaves
its machine. `member.json` is what every agent, client and monitor needs: the coordinator's public key and the key
pair that members share. The text of `member.json` is also what travels to other machines. A key is 32 bytes, in hex.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from trogdor_bus.errors import ConflictError, HostError, NotFoundError, RefusedError, SpecError
from trogdor_bus.names import shown

COORDINATOR_FILE = "coordinator.json"
MEMBER_FILE = "member.json"
MAX_BYTES = 4096
"""No key file is larger: what stands behind that is not read, and so it is not JSON."""
GET_KEYS = "run `‹export-keys›` on the coordinator's machine and `‹import-keys›` here"

Key = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
MakePair = Callable[[], tuple[bytes, bytes]]


class CoordinatorKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The coordinator's own pair, in hex."""

    public: Key
    secret: Key


class MemberKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The coordinator's public key and the pair that members share, in hex."""

    coordinator: Key
    public: Key
    secret: Key


Keys = TypeVar("Keys", CoordinatorKeys, MemberKeys)


def default_dir() -> Path:
    """Return $TROGDOR_BUS_KEYS, else /var/lib/trogdor-bus/keys for root, else a folder of the user's state."""
    if chosen := os.environ.get("TROGDOR_BUS_KEYS"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/trogdor-bus/keys")
    import platformdirs

    return platformdirs.user_state_path("trogdor-bus") / "keys"


def ensure(directory: Path, make_pair: MakePair) -> None:
    """Make whatever keys of a coordinator are missing; two processes may do so at once, and nothing is overwritten.

    `make_pair` returns a new (public, secret) of 32 bytes each. ConflictError if the directory holds the keys of
    another machine's coordinator.
    """
    _make_directory(directory)
    if (directory / MEMBER_FILE).exists() and not (directory / COORDINATOR_FILE).exists():
        raise ConflictError(
            f"the keys in {directory} were imported from another machine's coordinator; "
            "to run a coordinator here, set TROGDOR_BUS_KEYS to another directory, or remove this one"
        )
    if not (directory / COORDINATOR_FILE).exists():
        public, secret = make_pair()
        _create(directory / COORDINATOR_FILE, CoordinatorKeys(public.hex(), secret.hex()))
    if not (directory / MEMBER_FILE).exists():
        coordinator = _read(directory / COORDINATOR_FILE, CoordinatorKeys)
        public, secret = make_pair()
        _create(directory / MEMBER_FILE, MemberKeys(coordinator.public, public.hex(), secret.hex()))
    load_coordinator(directory)


def load_coordinator(directory: Path) -> tuple[CoordinatorKeys, MemberKeys]:
    """Return the coordinator's keys and those of its members; the errors of `load_member`, or ConflictError."""
    coordinator = _read(directory / COORDINATOR_FILE, CoordinatorKeys)
    member = _read(directory / MEMBER_FILE, MemberKeys)
    if member.coordinator != coordinator.public:
        raise ConflictError(
            f"{directory / MEMBER_FILE} belongs to another coordinator than {directory / COORDINATOR_FILE}; "
            "remove the one that is wrong"
        )
    return coordinator, member


def load_member(directory: Path) -> MemberKeys:
    """Return a member's keys; NotFoundError, RefusedError (permissions) or SpecError (content) say what to do."""
    return _read(directory / MEMBER_FILE, MemberKeys)


def export(directory: Path) -> str:
    """Return one line of text with what other machines need; it holds the members' secret, not the coordinator's."""
    return msgspec.json.encode(load_member(directory)).decode()


def import_(directory: Path, text: str, *, force: bool = False) -> None:
    """Write keys that `export` printed; ConflictError if other keys are there already, unless `force`."""
    try:
        member = msgspec.json.decode(text, type=MemberKeys)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise SpecError(
            f"this is no text of trogdor-bus keys: {_words(error)}",
            remedy="pass the whole line that `‹export-keys›` prints on the coordinator's machine",
        ) from None
    _make_directory(directory)
    path = directory / MEMBER_FILE
    if _create(path, member, replace=force) or _read(path, MemberKeys) == member:
        return
    raise ConflictError(f"{path} holds other keys; to replace them, run `‹replace-keys›`")


def _make_directory(directory: Path) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot make the directory {directory}: {error.strerror}") from None


def _create(path: Path, keys: CoordinatorKeys | MemberKeys, *, replace: bool = False) -> bool:
    """Write the file, whole or not at all; return False if it was there already."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(keys) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if replace:
                draft.rename(path)
            else:
                path.hardlink_to(draft)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None
    return True


def _read(path: Path, kind: type[Keys]) -> Keys:
    try:
        for place, forbidden, mode in ((path.parent, 0o022, 700), (path, 0o077, 600)):
            if place.stat().st_mode & forbidden:
                raise RefusedError(f"others may use the keys in {place}: run `chmod {mode} {place}`")
        return msgspec.json.decode(_content(path), type=kind)
    except FileNotFoundError:
        raise NotFoundError(f"there are no keys at {path}: {GET_KEYS}, or use ‹insecure› on both sides") from None
    except PermissionError:
        raise RefusedError(f"{path} belongs to another user: run this as that user, or {GET_KEYS}") from None
    except NotADirectoryError:
        raise SpecError(f"{path.parent} is no directory", path="$.keys", remedy=f"name one; {GET_KEYS}") from None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise SpecError(f"{path} holds no keys: {_words(error)}", remedy=f"remove it, then {GET_KEYS}") from None
    except ValueError as error:  # a path with U+0000
        raise SpecError(f"{str(path)!r} is not a path: {error}", remedy=GET_KEYS) from None


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.read(descriptor, MAX_BYTES)
    finally:
        os.close(descriptor)


def _words(error: Exception) -> str:
    """Return what is wrong, without anything that may be a secret."""
    return re.sub("[0-9A-Fa-f]{16,}", "...", shown(str(error)))
