"""What a simulated coordinator's process has to do with the log."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from tests.sim.store import SimStore
from trogdor_bus.coordinator.changes import Change
from trogdor_bus.coordinator.replica import Found, Replica, read
from trogdor_bus.coordinator.takeover import check_start, outrun, take_over
from trogdor_bus.errors import HostError, RefusedError
from trogdor_bus.states import TaskState
from trogdor_bus.transports.memory_log import MemoryKeeper

if TYPE_CHECKING:
    from tests.sim.world import World


class SimReplica:
    """The real replica of one process, on an end of its own."""

    def __init__(self, world: World, keeper: MemoryKeeper, me: str) -> None:
        self._world, self._log = world, keeper.open()
        self._replica = Replica(self._log, me)

    def admit(self, store: SimStore, *, takes_over: bool) -> int:
        """Return above which epoch the process leads; RefusedError if it may not start on that store."""
        try:
            if not takes_over:
                if (store.meta.epoch and not store.meta.copied) or self._log.keeper.reachable:
                    check_start(store, self._log)
                    return 0
                raise RefusedError("the log is out")  # without waiting for it in vain
            before = self._read() if self._log.keeper.reachable else None
            taken = take_over(store, self._log, self._replica.me, first=True)
        except RefusedError:
            self._log.close()
            raise
        old = self._world.leaders.get(before.generation.rpartition("-")[0]) if before else None
        if store.meta.copied and old is not None:
            begun = {task.id for task in store.tasks.values() if task.state is not TaskState.PENDING}
            store.meant_ends = {task: end for task, end in old.store.meant_ends.items() if task in begun}
        return taken.epoch

    def follow(self, changes: Sequence[Change]) -> None:
        """Write one commit."""
        self._replica.follow(changes)

    def break_off(self, changes: Sequence[Change], random: Random) -> None:
        """Write a part of a commit."""
        reachable, self._log.keeper.reachable = self._log.keeper.reachable, False
        self._replica.follow(changes)
        self._log.keeper.reachable = reachable
        self._log.hand_over(random.randint(0, self._log.unwritten()) if reachable else 0)
        self._log.close()

    def keep_up(self, store: SimStore) -> str:
        """Begin to follow the store once the log can be read; return why this process is not in charge, or ""."""
        if self._replica.following or self._log.unwritten() or not self._log.keeper.reachable:
            return ""
        found = self._read()
        loaded = store.load()
        if why := outrun(found, loaded, self._replica.me):
            return why
        self._replica.begin(loaded, found)
        return ""

    def difference(self, store: SimStore, epoch: int) -> str:
        """Return how the state in the log differs from the store, "" if it does not, or is not there yet."""
        if self._world.rivals or not (self._replica.complete() and self._log.keeper.reachable):
            return ""
        found = self._read()
        if found.epoch > epoch:
            return ""  # another one leads
        if found.state is None or found.epoch < epoch:
            return f"the log is of epoch {found.epoch}, the store of epoch {epoch}"
        kept = store.load()
        pairs = ((found.state.tasks, kept.tasks), (found.state.workers, kept.workers))
        return "; ".join(f"{there} is in the log, {here} in the store" for there, here in pairs if there != here)

    def holds_all(self, epoch: int) -> bool:
        """Return whether everything is in the log, and no other living process has claimed the lead there."""
        if not (self._replica.complete() and self._log.keeper.reachable):
            return False
        found = self._read()
        alive = {one.machine.place.me for one in self._world.running() if one.machine} - {self._replica.me}
        return found.epoch == epoch and not any(found.claims[me] > epoch for me in alive & found.claims.keys())

    def die(self, random: Random) -> None:
        """End with the process: of what is not in the log yet, some may have been on its way."""
        self._log.hand_over(random.randint(0, self._log.unwritten()))
        self._log.close()

    def _read(self) -> Found:
        try:
            return read(self._log, 1.0)
        except HostError as error:
            self._world.fail((self._replica.me,), str(error))
