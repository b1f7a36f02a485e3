"""Reading late: the fields of a JSON object one by one, so that what a peer of another version wrote costs no more.

What is one worker's (an order, a report, a row) travels as raw JSON inside its frame, and is read by these functions
alone. A field that is not known is ignored; one that is known and cannot be read is told in words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from trogdor_bus.errors import BusError
from trogdor_bus.names import shown
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerRow, WorkerState

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be."""
Reader = Callable[[msgspec.Raw], Any]
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_PARTS = msgspec.json.Decoder(list[msgspec.Raw])
_WORDS = msgspec.json.Decoder(str)
_SHAPE = {
    TaskRow: frozenset({"state", "outcome", "error", "active", "allow", "own_topics", "chosen"}),
    WorkerRow: frozenset(
        {"state", "status", "progress", "error", "outcome", "warnings", "disturbed", "residue", "by_hand", "left_out"}
    ),
}
"""The fields that another version may have written in its own way; without the others a row is none."""


class Fields(msgspec.Struct, frozen=True):
    """The fields of an object by name, and in words those that cannot be read."""

    known: dict[str, Any]
    unread: dict[str, str]

    def words(self) -> str:
        """Return what cannot be read, "" for nothing."""
        return ", ".join(self.unread.values())


def read(raw: bytes | msgspec.Raw, kind: Any, late: Collection[str], readers: Mapping[str, Reader] = {}) -> Fields:
    """Return the fields of a Struct `kind` that are in a JSON object, those of `readers` as they read them.

    Only the `late` fields may be unreadable (or missing, if the kind needs them): BusError names any other.
    """
    try:
        given = _OBJECT.decode(raw)
    except UNREADABLE as error:
        raise BusError(shown(str(error))) from None
    known: dict[str, Any] = {}
    unread: dict[str, str] = {}
    for name, key, decoder, required in _fields(kind):
        try:
            if key in given:
                known[name] = readers[name](given[key]) if name in readers else decoder.decode(given[key])
            elif required:
                raise BusError("there is none")
        except (BusError, *UNREADABLE) as error:
            if name not in late:
                raise BusError(f"{key}: {shown(str(error))}") from None
            unread[name] = _told(key, given.get(key), error)
    return Fields(known, unread)


def parts(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """Return the parts of a JSON array, each to be read by itself."""
    return _PARTS.decode(raw)


def worker_row(raw: bytes | msgspec.Raw, remedy: str) -> WorkerRow:
    """Return the row of a worker; what another version wrote in it is told there, with the remedy.

    An unknown state counts as RUNNING, since something may be in force; an unknown outcome, and a success of which a
    part cannot be read, as UNKNOWN. BusError if it is no such row at all.
    """
    found = read(raw, WorkerRow, _SHAPE[WorkerRow])
    row = WorkerRow(**{"state": WorkerState.RUNNING, **found.known} if "state" in found.unread else found.known)
    if not found.unread:
        return row
    why = f"cannot be read: {found.words()}; {remedy}"
    outcome = outcome_of(row.state in (WorkerState.DONE, WorkerState.STUCK), row.outcome, found.unread)
    error = why if {"state", "outcome", "error"} & found.unread.keys() or outcome is not row.outcome else row.error
    return msgspec.structs.replace(row, outcome=outcome, error=error, warnings=(*row.warnings, why))


def task_row(raw: bytes | msgspec.Raw, remedy: str) -> tuple[TaskRow, bool]:
    """Return the row of a task as `worker_row` does, and whether its state can be read."""
    found = read(raw, TaskRow, _SHAPE[TaskRow])
    readable = "state" not in found.unread
    row = TaskRow(**found.known if readable else {**found.known, "state": TaskState.RUNNING})
    if {"state", "outcome", "error"}.isdisjoint(found.unread):
        return row, readable
    outcome = outcome_of(row.state is TaskState.DONE, row.outcome, found.unread)
    error = f"cannot be read: {found.words()}; {remedy}"
    return msgspec.structs.replace(row, outcome=outcome, error=error), readable


def outcome_of(over: bool, outcome: Outcome, unread: Collection[str]) -> Outcome:
    """Return the outcome of what cannot be read whole: no success is taken from it."""
    claims_nothing = outcome in (Outcome.NONE, Outcome.DONE) or "outcome" in unread
    return (Outcome.UNKNOWN if over else Outcome.NONE) if unread and claims_nothing else outcome


def _told(key: str, raw: msgspec.Raw | None, error: Exception) -> str:
    """Return in words what cannot be read: an unknown word by itself, else the field and what is wrong with it."""
    try:
        word = _WORDS.decode(raw) if raw is not None and isinstance(error, msgspec.ValidationError) else ""
    except UNREADABLE:
        word = ""
    if word:
        return f"the {key} {shown(repr(word))}"
    return str(error) if isinstance(error, BusError) and raw is not None else f"the field {key} ({shown(str(error))})"


@functools.cache
def _fields(kind: Any) -> tuple[tuple[str, str, msgspec.json.Decoder[Any], bool], ...]:
    return tuple(
        (field.name, field.encode_name, msgspec.json.Decoder(field.type), field.required)
        for field in msgspec.structs.fields(kind)
    )
