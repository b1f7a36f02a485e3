"""Whether a coordinator may start on its own store, and how it takes over the state of one that is gone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from trogdor_bus.bus import StateLog
from trogdor_bus.coordinator.changes import Loaded, Meta, Owes, history
from trogdor_bus.coordinator.replica import CLAIM, Found, read
from trogdor_bus.errors import BusError, RefusedError
from trogdor_bus.messages import encode
from trogdor_bus.roles import Chosen
from trogdor_bus.states import Disturbance, TaskRow, WorkerRow

READ_S = 5.0
"""How long the log may take to be read."""
FIRST_READ_S = 20.0
"""And how long if nothing can be done without: the brokers may just have been started."""
AGAIN_S = 0.5
CLAIM_S = 5.0
"""How long it may take to acknowledge a claim."""
STEP = 1_000
"""A take-over leaves out so many epochs: the old coordinator may have started that often while the log was out."""
SEQ_STEP = 1_000_000
"""And so many numbers of events, which are not replicated."""


_KINDS = (Meta, Owes, TaskRow, Chosen, WorkerRow, Disturbance)
_SHAPE = hashlib.sha256(repr([kind.__struct_fields__ for kind in _KINDS]).encode()).hexdigest()[:8]
"""What tells versions apart that would write one state in several ways: their digests say nothing to each other."""


class Keeping(Protocol):
    """The local store, as far as a take-over needs it."""

    def load(self) -> Loaded:
        """Return everything that is kept."""
        ...

    def replace(self, loaded: Loaded) -> None:
        """Keep exactly that instead of everything that is here, or change nothing."""
        ...


class Taken(msgspec.Struct, frozen=True):
    """A successful take-over: its coordinator leads in an epoch above `epoch`; `said` tells what it has."""

    epoch: int
    said: str


def check_start(store: Keeping, log: StateLog) -> str:
    """Return "" if a coordinator may lead on its own store, or why that cannot be known (the log is out).

    RefusedError if the log knows better, or if it is out and the store has nothing of its own.
    """
    local = store.load()
    needed = local.fresh or local.meta.copied
    try:
        found = _read_within(FIRST_READ_S if needed else READ_S, log)
    except BusError as error:
        if needed:
            raise RefusedError(
                f"this coordinator's store is empty or a copy, and what the log has cannot be known: {error}; "
                "start again when it can be read"
            ) from None
        return str(error)
    _check_cluster(local, found)
    if found.state is not None and local.fresh:
        raise RefusedError(
            f"this coordinator's store is empty, but the log has a state of epoch {found.epoch}; "
            "start with ‹take-over› to go on with it, or with another ‹topic-prefix› to begin afresh"
        )
    if _is_newer(found, local):
        raise RefusedError(
            f"another coordinator has led since: the log has a state of epoch {found.epoch}, this store is of epoch "
            f"{local.meta.epoch}; start with ‹take-over› to go on with what is in the log"
        )
    return ""


def take_over(store: Keeping, log: StateLog, me: str, *, first: bool = False) -> Taken:
    """Make the store the newest state there is, so that a coordinator starts on it as after a restart.

    Of several that try at a time one succeeds at most. RefusedError if the log cannot be read and written, if it has no
    state (unless this may be the `first` coordinator), or if another one takes over; the store is then as before.
    """
    local, found = store.load(), _read(log)
    if found.state is None and local.fresh and not first:
        raise RefusedError("there is nothing to take over: the log has no state; start without ‹take-over›")
    _check_cluster(local, found)
    claim, epoch = f"{CLAIM}/{me}", max([local.meta.epoch, found.epoch, *found.claims.values()]) + STEP
    log.append(claim, msgspec.json.encode(epoch))
    if not _within(CLAIM_S, lambda: not log.unwritten()):
        log.append(claim, b"")
        raise RefusedError("the log does not acknowledge what is written: nobody may take over while it is out")
    found = _read(log)  # whoever claimed before us is in it now, and whoever does so later finds us
    if max([found.epoch, *(other for name, other in found.claims.items() if name != me)]) >= epoch:
        log.append(claim, b"")
        raise RefusedError("another coordinator takes over at this moment")
    if found.state is not None and _is_newer(found, local):
        meta = msgspec.structs.replace(
            found.state.meta,
            copied=True,
            led=history(found.state.meta),
            copy=f"{_SHAPE} {_digest(found.state)}",
            copy_epoch=epoch,
            next_seq=max(found.state.meta.next_seq, local.meta.next_seq) + SEQ_STEP,
        )
        store.replace(msgspec.structs.replace(found.state, meta=meta))
        return Taken(epoch, f"{len(found.state.tasks)} task(s) of epoch {found.epoch} are taken over from the log")
    if local.fresh:
        return Taken(epoch, "nobody has led here yet: this is the first coordinator")
    return Taken(epoch, f"this store, of epoch {local.meta.epoch}, is the newest there is")


def _is_newer(found: Found, local: Loaded) -> bool:
    """Return whether the log has what the store has not.

    That is so, too, if the coordinator from which it was copied has gone on, and nothing in the log is of a later one.
    """
    meta = local.meta
    if found.state is None:
        return False
    if not _has_led(meta, found.epoch) or (meta.copied and found.epoch == meta.epoch):
        return True
    shape, _, digest = meta.copy.partition(" ")
    return found.epoch <= meta.copy_epoch and shape == _SHAPE and digest != _digest(found.state)


def outrun(found: Found, store: Loaded, me: str) -> str:
    """Return why the coordinator `me`, who leads on that store, is not in charge by what the log has; "" if it is."""
    epoch = store.meta.epoch
    if found.state is None or found.generation.startswith(f"{me}-"):
        return ""
    if found.epoch >= epoch:
        return f"the log has a state of epoch {found.epoch}, ours is {epoch}"
    if not _has_led(store.meta, found.epoch):
        return f"another coordinator has led in epoch {found.epoch} since this one started: this store has none of that"
    return ""


def _has_led(meta: Meta, epoch: int) -> bool:
    return any(first <= epoch <= last for first, last in history(meta))


def _digest(state: Loaded) -> str:
    """Return what tells two states apart; where a coordinator listened and how its store came about do not."""
    meta = msgspec.structs.replace(state.meta, url="", next_seq=0, copied=False, copy="", copy_epoch=0)
    tasks = sorted((task.id, encode(task)) for task in state.tasks)
    workers = sorted((task, one.row.id, encode(one)) for task, some in state.workers.items() for one in some)
    return hashlib.sha256(repr((encode(meta), tasks, workers)).encode()).hexdigest()


def _check_cluster(local: Loaded, found: Found) -> None:
    if found.state is not None and not local.fresh and found.state.meta.cluster != local.meta.cluster:
        raise RefusedError(
            f"the log belongs to another cluster ({found.state.meta.cluster[:8]}, this store is of "
            f"{local.meta.cluster[:8]}); choose another ‹topic-prefix› or another ‹state-dir›"
        )


def _read(log: StateLog) -> Found:
    try:
        return read(log, READ_S)
    except BusError as error:
        raise RefusedError(f"{error}; nobody may take over while the log is out") from None


def _read_within(timeout_s: float, log: StateLog) -> Found:
    until = time.monotonic() + timeout_s
    while True:
        try:
            return read(log, READ_S)
        except BusError:
            if time.monotonic() + READ_S > until:
                raise
        time.sleep(AGAIN_S)


def _within(timeout_s: float, predicate: Callable[[], bool]) -> bool:
    until = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
