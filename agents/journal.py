"""The undo log: one small JSON file per worker, on disk before anything is done, readable with cat.

A file is replaced whole: temporary file, sync, rename, sync of the directory. So a crash leaves the old entry or the
new one, never half of one, and what `put` returned from is there after a power cut.
"""

from __future__ import annotations

import contextlib
import enum
import re
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Annotated

import msgspec

from trogdor_bus import late
from trogdor_bus.agents.disk import Disk
from trogdor_bus.errors import BusError, HostError, NotFoundError
from trogdor_bus.platform import Step
from trogdor_bus.spec import Texts
from trogdor_bus.states import Outcome

VERSION = 1
BUSY_S = 4.0
"""So long is waited for other writing to be done."""
MAX_ID = 2**62
"""The largest number that a message holds."""
_IDENTITY = "journal.json"
_LATCH = "latch.json"
_ENTRY = re.compile(r"worker-.*\.json")
_NUMBERED = re.compile(r"worker-([1-9][0-9]{0,18})\.json")
_TEMPORARY = re.compile(r"(journal|latch|worker-.*)\.json\.tmp")
_SET_ASIDE = re.compile(r"journal\.json\..*\.broken")
_UNREADABLE = (BusError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_UNWRITABLE = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)


class JournalState(enum.StrEnum):
    """Where a worker is. All but UNDONE are undone when the agent starts; STUCK means that an undo failed."""

    INTENDED = "intended"
    APPLIED = "applied"
    UNKNOWN = "unknown"
    UNDONE = "undone"
    STUCK = "stuck"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One worker and all that is needed to take it back. `ends_ms` is on CLOCK_BOOTTIME of the boot `boot_id`.

    `met_nothing`: why there was nothing to do. Of one that is stuck, `cause` is why it was ended, and `trouble` why its
    undo failed. `late_ms` is how long after it was due it was seen to be undone.
    """

    v: int = VERSION
    worker: int
    task: str
    state: JournalState
    boot_id: str
    ends_ms: int
    spec: msgspec.Raw
    texts: Texts
    steps: tuple[Step, ...] = ()
    outcome: Outcome = Outcome.NONE
    error: str = ""
    warnings: tuple[str, ...] = ()
    residue: tuple[str, ...] = ()
    met_nothing: str = ""
    cause: str = ""
    trouble: str = ""
    late_ms: int = 0


_TOLD = frozenset(Entry.__struct_fields__) - {"v", "worker", "task", "boot_id", "ends_ms", "spec", "steps"}
"""What only tells of a worker: without it, it can still be undone."""


class _OnlyTask(msgspec.Struct, frozen=True):
    task: Annotated[str, msgspec.Meta(min_length=1, max_length=250)]


class _Identity(msgspec.Struct, frozen=True):
    id: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._-]{1,100}\Z")]
    life: Annotated[int, msgspec.Meta(ge=1, le=2**30)]  # the counter of beats is made of it


class _Latch(msgspec.Struct, frozen=True):
    id: Annotated[str, msgspec.Meta(min_length=1)]


class Journal:
    """The undo log of one agent.

    `id` names it for ever, `life` counts its openings, `entries` are its workers by id, and `broken` the files that
    cannot be read (they are kept: somebody must look whether their faults are gone); `unreadable` are those of them
    that are a worker's, by its id (a negative one where the name tells none). `latch` is the id of the abort under
    which nothing may start, "" for none. `begun`: this life is on disk.
    """

    def __init__(
        self, disk: Disk, *, writable: bool = True, new_id: Callable[[], str] = lambda: uuid.uuid4().hex
    ) -> None:
        """Load every entry and begin a new life; HostError if that cannot be made durable."""
        self._disk = disk
        self._writable = writable
        self._writing = threading.RLock()
        self.id, self.life, self.latch, self.begun = "", 0, "", False
        self.entries: dict[int, Entry] = {}
        self._tasks: dict[str, str] = {}
        broken: list[str] = []
        names = disk.names()
        for name in names:
            if _ENTRY.fullmatch(name):
                self._load(name, broken)
            elif _SET_ASIDE.fullmatch(name):
                broken.append(name)
        if _IDENTITY in names:
            self._identify(broken)
        if _LATCH in names:
            self._latch()
        if writable:
            self._begin(names, broken, new_id)
        self.broken = tuple(broken)
        self.unreadable = {
            _number(name) or -index: name for index, name in enumerate(self.broken, 1) if _ENTRY.fullmatch(name)
        }

    @classmethod
    def read_only(cls, disk: Disk) -> Journal:
        """Return the journal as it is, for tools and for undoing on a disk that cannot be written.

        No life begins, nothing is written, `put` and `forget` raise HostError; `id` is "" if there is none yet.
        """
        return cls(disk, writable=False)

    @classmethod
    def to_begin(cls, disk: Disk) -> Journal:
        """Return the journal as it is, in a life that begins on disk as soon as that can be written (see `begin`).

        HostError if there is no journal yet: without an id on disk nothing that it does could be proven later.
        """
        journal = cls(disk, writable=False)
        if not journal.id:
            raise HostError("there is no journal yet, and none can be begun")
        journal.life += 1
        journal._writable = True
        return journal

    def begin(self) -> None:
        """Have this life on disk; HostError if it cannot be written yet."""
        with self._alone():
            if self.begun:
                return
            self._begin(self._disk.names(), list(self.broken), lambda: self.id, grown=0)

    def put(self, entry: Entry) -> None:
        """Write an entry; it is durable when this returns. After a HostError the memory is as before."""
        self.keep(self.write(entry))

    def write(self, entry: Entry) -> Entry:
        """Write an entry and return it as another life would read it, so that both undo the same; `keep` is to come.

        HostError also if other writing is not done within `BUSY_S`.
        """
        try:
            data = msgspec.json.format(msgspec.json.encode(entry), indent=2)
            kept = _compact(msgspec.json.decode(data, type=Entry))
        except _UNWRITABLE as error:
            raise HostError(f"worker {entry.worker} cannot be written as JSON: {error}") from None
        self._write(_name(entry.worker), data)
        return kept

    def keep(self, entry: Entry) -> None:
        """Have the entry in memory."""
        self.entries[entry.worker] = entry

    def forget(self, worker: int) -> None:
        """Remove an entry for good; after a HostError the memory still has it."""
        self.remove(worker)
        self.drop(worker)

    def remove(self, worker: int) -> None:
        """Remove an entry from the disk; `drop` is to come."""
        self._check_writable()
        self._disk.remove(_name(worker))
        self._disk.sync_directory()

    def drop(self, worker: int) -> None:
        """Have the entry in memory no more."""
        self.entries.pop(worker, None)

    def keep_latch(self, latch: str) -> None:
        """Keep the id of an abort over restarts, "" for none; after a HostError it counts for this life only."""
        self.latch = latch
        self.write_latch(latch)

    def write_latch(self, latch: str) -> None:
        """Have the latch on disk, or ("") none."""
        if latch:
            self._write(_LATCH, msgspec.json.encode(_Latch(latch)))
        else:
            self._check_writable()
            self._disk.remove(_LATCH)
            self._disk.sync_directory()

    def knows(self, worker: int) -> bool:
        """Return whether the worker was here before, even if its file can no longer be read."""
        return worker in self.entries or _name(worker) in self.broken

    def read_again(self, worker: int) -> str:
        """Read the file of an `unreadable` worker once more; return "" if it is readable now or gone, else its name."""
        name, broken = self.unreadable.get(worker), list[str]()
        if name is None:  # an earlier reading, that nobody waited for, has found it
            return ""
        self._load(name, broken)
        if broken:
            return name
        del self.unreadable[worker]
        self.broken = tuple(other for other in self.broken if other != name)
        return ""

    def task_of(self, worker: int) -> str:
        """Return which task an `unreadable` worker is of, as far as its file tells; else a name made of that one."""
        name = self.unreadable[worker]
        return self._tasks.get(name) or f"of-{name.removesuffix('.json')}"

    def live(self) -> tuple[Entry, ...]:
        """Return the entries that may still hold the machine, by worker id; any thread may ask."""
        live = [entry for entry in tuple(self.entries.values()) if entry.state is not JournalState.UNDONE]
        return tuple(sorted(live, key=lambda entry: entry.worker))

    def held(self, excluding: Collection[int] = ()) -> tuple[Step, ...]:
        """Return the steps of all live entries but some; any thread may ask."""
        return tuple(step for entry in self.live() if entry.worker not in excluding for step in entry.steps)

    def _load(self, name: str, broken: list[str]) -> None:
        data = b""
        try:
            data = self._disk.read(name)
            entry = _decode(data)
        except NotFoundError:
            return  # a reader beside a running agent: forgotten between the two looks
        except (HostError, *_UNREADABLE):
            broken.append(name)
            self._tasks[name] = _task(data)
            return
        if entry.v > VERSION or name != _name(entry.worker):
            broken.append(name)
            self._tasks[name] = _task(data)
        else:
            self.entries[entry.worker] = entry

    def _identify(self, broken: list[str]) -> None:
        try:
            identity = msgspec.json.decode(self._disk.read(_IDENTITY), type=_Identity)
        except _UNREADABLE:
            broken.append(_IDENTITY)
        else:
            self.id, self.life = identity.id, identity.life

    def _latch(self) -> None:
        try:
            self.latch = msgspec.json.decode(self._disk.read(_LATCH), type=_Latch).id
        except NotFoundError:
            return
        except (HostError, *_UNREADABLE):
            self.latch = "unreadable"  # an abort of unknown id is one all the same

    def _begin(self, names: tuple[str, ...], broken: list[str], new_id: Callable[[], str], *, grown: int = 1) -> None:
        for name in names:
            if _TEMPORARY.fullmatch(name):
                self._disk.remove(name)
        self.id = self.id or new_id()
        if _IDENTITY in broken:
            aside = f"{_IDENTITY}.{self.id}.broken"
            self._disk.rename(_IDENTITY, aside)
            broken[broken.index(_IDENTITY)] = aside
        self.life += grown
        data = msgspec.json.encode(_Identity(self.id, self.life))
        self._replace(_IDENTITY, msgspec.json.format(data, indent=2))
        self.begun = True

    def _write(self, name: str, data: bytes) -> None:
        with self._alone():
            self._check_writable()
            self._replace(name, data)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._writing.acquire(timeout=BUSY_S):
            raise HostError(f"other writing to the journal is not done within {BUSY_S:g} s: does its disk hang?")
        try:
            yield
        finally:
            self._writing.release()

    def _replace(self, name: str, data: bytes) -> None:
        temporary = f"{name}.tmp"
        try:
            self._disk.create(temporary, data)
            self._disk.sync(temporary)
            self._disk.rename(temporary, name)
            self._disk.sync_directory()
        except HostError:
            with contextlib.suppress(HostError):
                self._disk.remove(temporary)
            raise

    def _check_writable(self) -> None:
        if not self._writable:
            raise HostError("the journal was opened for reading only")
        self.begin()


def _name(worker: int) -> str:
    return f"worker-{worker}.json"


def _number(name: str) -> int:
    """Return the worker's id in the name of its file, 0 if there is none that could be told to others."""
    found = _NUMBERED.fullmatch(name)
    return int(found[1]) if found and int(found[1]) <= MAX_ID else 0


def _task(data: bytes) -> str:
    """Return which task a file tells of that cannot be read, "" for none."""
    with contextlib.suppress(*_UNREADABLE):
        return msgspec.json.decode(data, type=_OnlyTask).task
    return ""


def _decode(data: bytes) -> Entry:
    """Return an entry, if what it takes to undo it can be read; of a state that is not known that is not known."""
    try:
        return _compact(msgspec.json.decode(data, type=Entry))
    except late.UNREADABLE:
        found = late.read(data, Entry, _TOLD)
    stand_ins = {"state": JournalState.UNKNOWN, "texts": Texts("starting", "active", "stopping", "done")}
    outcome = {"outcome": Outcome.UNKNOWN} if "outcome" in found.unread else {}
    entry = Entry(**{**stand_ins, **outcome, **found.known})
    why = f"of its entry in the journal cannot be read: {found.words()}; a newer agent has written it"
    return _compact(msgspec.structs.replace(entry, warnings=(*entry.warnings, why)))


def _compact(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, spec=msgspec.Raw(msgspec.json.format(bytes(entry.spec), indent=-1)))
