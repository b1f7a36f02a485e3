"""A coordinator but for what waits: machine, store and bus in one shell. Daemon and simulation both run this one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from trogdor_bus.coordinator.api import Api
from trogdor_bus.coordinator.changes import Change, DropTask, PutMeta, PutRow, PutTask, PutWorker
from trogdor_bus.coordinator.events import (
    BeatHeard,
    Effect,
    EndExperiment,
    Event,
    Exit,
    LookAtCluster,
    Publish,
    StartExperiment,
    StrangerHeard,
    Ticked,
)
from trogdor_bus.coordinator.herald import Herald
from trogdor_bus.coordinator.hub import EventHub
from trogdor_bus.coordinator.machine import CoordinatorMachine
from trogdor_bus.errors import BusError, HostError, TrogdorBusError, VersionError
from trogdor_bus.messages import AnyEvent, Beat, WorkerChanged, decode, encode, stranger
from trogdor_bus.shell import Machine, Shell
from trogdor_bus.states import WorkerState

log = logging.getLogger("trogdor_bus.coordinator")
MOST_GARBAGE = 10
"""So many frames that cannot be read are told of."""


class Keeps(Protocol):
    """Where changes are stored, such as a `Store`."""

    def commit(self, changes: Sequence[Change], *, durable: bool) -> None:
        """Store all of them or none; HostError says why not."""
        ...


class Sends(Protocol):
    """The part of a `CoordinatorBus` that a machine makes use of."""

    def publish(self, node: str, frame: bytes) -> None:
        """Send a frame to whoever listens under that node name."""
        ...

    def announce(self, topic: str, frame: bytes) -> None:
        """Send a frame about `topic` to every monitor."""
        ...


class Runs(Protocol):
    """Whoever runs the programs of experiments."""

    def perform(self, effect: StartExperiment | EndExperiment) -> None:
        """Start a program, or have it end."""
        ...

    def forget(self, task_id: str) -> None:
        """Forget what an experiment told and found."""
        ...


class CoordinatorCore:
    """What a coordinator hears, decides, stores and says. All that it decides goes out through its `hub`.

    `soon` calls back in a moment, so that what came in together is handled at once. `follow` replicates what is stored,
    `look` looks at the cluster under test, and its event is to be fed. `ended` is told why it must end, and whether
    another one is in charge: from then on nothing is handled, and what is fed is refused. `fed` and `broken` are the
    shell's; `watched` is the machine as the shell sees it, if somebody stands between.
    """

    def __init__(
        self,
        machine: CoordinatorMachine,
        store: Keeps,
        bus: Sends,
        now_ms: Callable[[], int],
        *,
        soon: Callable[[Callable[[], None]], None],
        follow: Callable[[Sequence[Change]], None],
        look: Callable[[LookAtCluster], None],
        ended: Callable[[str, bool], None],
        shutdown: Callable[[], None],
        behind_ms: Callable[[], int] | None,
        fed: Callable[[], None],
        broken: Callable[[BaseException], None],
        watched: Machine[Event, Effect] | None = None,
    ) -> None:
        self.machine = machine
        self.experiments: Runs | None = None
        """Whoever runs the programs of experiments; set before the first of them."""
        self._store, self._bus = store, bus
        self._soon, self._look, self._ended = soon, look, ended
        self._pending: dict[tuple[str, str], Beat] = {}
        self._strangers: dict[str, StrangerHeard] = {}
        self._gathering, self._garbage = False, 0
        self._over = ""
        self.shell: Shell[Event, Effect] = Shell(
            watched or machine, self._perform, now_ms, ticked=Ticked(), fed=fed, broken=broken
        )
        self.api = Api(machine, self.feed, now_ms, shutdown, behind_ms)
        self.hub, self._herald = EventHub(), Herald(bus)
        self.hub.keep(self._commit)
        self.hub.keep(follow)
        self.hub.subscribe(_log)
        self.hub.subscribe(self._herald.hear)

    def hear(self, frame: bytes) -> None:
        """Take in a frame of the status channel, in a moment."""
        if self._over:
            return
        try:
            beat: Beat = decode(frame, Beat)
        except VersionError as error:
            who = stranger(frame)
            self._strangers[who.node] = StrangerHeard(who.node, who.journal, who.version, str(error))
        except BusError as error:
            self._garbage += 1
            if self._garbage <= MOST_GARBAGE:
                log.warning("a frame on the status channel was dropped: %s", error)
            return
        else:
            known = self._pending.get((beat.node, beat.journal))
            if known is None or known.counter < beat.counter:  # a beat is whole: the newest says everything
                self._pending[beat.node, beat.journal] = beat
        if not self._gathering:
            self._gathering = True
            self._soon(self.flush)

    def flush(self) -> None:
        """Handle what was heard until now."""
        self._gathering = False
        heard: list[BeatHeard | StrangerHeard] = [*map(BeatHeard, self._pending.values()), *self._strangers.values()]
        self._pending, self._strangers = {}, {}
        for event in heard if not self._over else ():
            try:
                self.shell.feed(event)
            except HostError:  # said already, and the end of this coordinator
                return
            except TrogdorBusError as error:  # one agent's nonsense must not cost the others' words
                node = event.beat.node if isinstance(event, BeatHeard) else event.node
                log.error("a beat of node %s could not be taken in: %s", node, error)

    def feed(self, event: Event) -> None:
        """Let something happen, after all that was heard before; raise the TrogdorBusError by which it is refused."""
        self.flush()
        if self._over:
            raise HostError(self._over)
        self.shell.feed(event)

    def tick(self) -> None:
        """Tell the machine the time, if that is due."""
        self.flush()
        if not self._over:
            self.shell.tick()

    def beat(self) -> None:
        """Tell monitors that this coordinator is there, and what its view is."""
        self._herald.beat(self.api.pulse())

    def _perform(self, effects: Sequence[Effect]) -> None:
        self.hub.publish([effect for effect in effects if isinstance(effect, Change)])
        for effect in effects:
            match effect:
                case Publish(snapshot=snapshot):
                    self._bus.publish(snapshot.node, encode(snapshot))
                case StartExperiment() | EndExperiment() if self.experiments:
                    self.experiments.perform(effect)
                case DropTask(id=task_id) if self.experiments:
                    self.experiments.forget(task_id)
                case LookAtCluster():
                    self._look(effect)
                case Exit(reason=reason, fenced=fenced):
                    self._end(reason, fenced=fenced)

    def _commit(self, changes: Sequence[Change]) -> None:
        try:
            self._store.commit(changes, durable=any(map(must_last, changes)))
        except HostError as error:
            self._end(f"cannot store the state, so nothing is published: {error}", fenced=False)
            raise

    def _end(self, reason: str, *, fenced: bool) -> None:
        """Hear, handle and say nothing more: what is in memory is not what is stored, or somebody else leads."""
        self._over = f"this coordinator ends: {reason}"
        self._ended(reason, fenced)


def _log(event: AnyEvent) -> None:
    if event.text:
        log.log(logging.DEBUG if isinstance(event, WorkerChanged) else logging.INFO, "%s", event.text)


def must_last(change: Change) -> bool:
    """Return whether a loss of power must not lose this change: what was promised, what ended, who leads."""
    if isinstance(change, PutRow):
        return change.row.state in (WorkerState.RECEIVING, WorkerState.DONE, WorkerState.STUCK)
    return isinstance(change, PutMeta | PutTask | PutWorker | DropTask)
