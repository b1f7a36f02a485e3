"""An agent but for what waits: machine and bus in one shell. The daemon and the simulation both run this one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from trogdor_bus.agents.events import (
    Effect,
    Event,
    Exit,
    Heal,
    Inject,
    KeepLatch,
    LatchKept,
    NotHealed,
    NotInjected,
    NotYet,
    SendBeat,
    SnapshotHeard,
    Ticked,
)
from trogdor_bus.agents.frames import frame_of
from trogdor_bus.agents.lanes import Lanes
from trogdor_bus.agents.machine import AgentMachine
from trogdor_bus.agents.neighbours import Refusal
from trogdor_bus.agents.strangers import Strangers
from trogdor_bus.agents.work import Chore, Work
from trogdor_bus.bus import AgentBus
from trogdor_bus.errors import BusError, VersionError
from trogdor_bus.messages import MAX_EPOCH, Beat, Snapshot, decode
from trogdor_bus.shell import Machine, Shell

log = logging.getLogger("trogdor_bus.agents")


class AgentCore:
    """What an agent hears, decides, and has done: its chores are jobs of `work` in `lanes`.

    `fed` and `broken` are the shell's. `ended`: the machine is at its end. `watched` is the machine as the shell sees
    it, if somebody stands between.
    """

    def __init__(
        self,
        machine: AgentMachine,
        bus: AgentBus,
        work: Work,
        lanes: Lanes,
        now_ms: Callable[[], int],
        *,
        fed: Callable[[], None],
        broken: Callable[[BaseException], None],
        watched: Machine[Event, Effect] | None = None,
    ) -> None:
        self.machine, self.ended = machine, False
        self.refusal, self.strangers = Refusal(machine.node, machine.journal), Strangers()
        self._bus, self._work, self._lanes, self._now_ms, self._broken = bus, work, lanes, now_ms, broken
        self._epoch = 0
        self.shell: Shell[Event, Effect] = Shell(
            watched or machine, self._perform, now_ms, ticked=Ticked(), fed=fed, broken=broken
        )

    def hear(self, frame: bytes) -> None:
        """Take in a frame of the control channel."""
        try:
            snapshot = decode(frame, Snapshot)
        except VersionError as error:
            self.strangers.refuse(error, self._now_ms())
            return
        except BusError as error:
            log.warning("a frame of the control channel was dropped: %s", error)
            return
        if not 0 <= snapshot.stamp.epoch <= MAX_EPOCH:
            log.warning("a word of epoch %d was refused: no coordinator starts that often", snapshot.stamp.epoch)
            return
        self.strangers.heed(snapshot)
        self.feed(SnapshotHeard(snapshot))
        machine = self.machine
        self.refusal.heed(machine.refused_by(self._now_ms()))
        if machine.stamp is not None and machine.stamp.epoch != self._epoch and machine.fresh_ms is not None:
            self._epoch = machine.stamp.epoch
            log.info("obeying coordinator %s, epoch %d", machine.stamp.coordinator[:8], self._epoch)

    def feed(self, event: Event) -> None:
        """Take in what happened; nothing of it can be refused."""
        self.shell.feed(event, ours=True)

    def done(self, event: Event) -> None:
        """Take in what came of a chore, and tell of what did not go well."""
        if isinstance(event, NotInjected | NotHealed):
            log.error("task %s: %s", self.machine.workers[event.worker].task, event.error)
        elif isinstance(event, NotYet) and not self.machine.workers[event.worker].awaits:
            log.info("task %s goes on by itself: %s", self.machine.workers[event.worker].task, event.why)
        elif isinstance(event, LatchKept) and event.error:
            log.error("the abort cannot be written down, so it holds until this agent ends: %s", event.error)
        self.feed(event)

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendBeat(beat=beat):
                    self._send(beat)
                case Exit():
                    self.ended = True
                case _:
                    self._tell(effect)
                    self._begin(effect)

    def _begin(self, chore: Chore) -> None:
        for job, key in self._work.jobs(chore):
            self._lanes.begin(job, self._came, key)

    def _came(self, outcome: Event | Exception | None) -> None:
        """Take in what came of a job; what it raised is what nobody foresaw."""
        if isinstance(outcome, Exception):
            self._broken(outcome)
        elif outcome is not None:
            self.done(outcome)

    def _send(self, beat: Beat) -> None:
        self._bus.send(frame_of(beat))

    def _tell(self, chore: Chore) -> None:
        match chore:
            case Inject(order=order) if not self.machine.workers[order.worker].awaits:
                log.info("task %s: %s", order.task, order.texts.starting)
            case Heal(worker=worker) if not self.machine.workers[worker].awaits:
                log.info("task %s: undoing", self.machine.workers[worker].task)
            case KeepLatch(id=latch):
                log.warning("aborted: nothing starts here until it is resumed" if latch else "resumed")
