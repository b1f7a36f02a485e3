"""The agent's shell: receive, decode, handle, perform, repeat."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trogdor_bus import __version__
from trogdor_bus.agents.disk import FileDisk, lock
from trogdor_bus.agents.events import (
    AddressesRead,
    Effect,
    EndRequested,
    Event,
    Exit,
    Forget,
    Heal,
    Healed,
    Inject,
    Injected,
    KeepLatch,
    LatchKept,
    Look,
    Looked,
    NotHealed,
    NotInjected,
    NotYet,
    ReadBack,
    Reapplied,
    Reapply,
    SendBeat,
    SnapshotHeard,
    Ticked,
)
from trogdor_bus.agents.heal import AgentNote, leave_note
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.agents.leash import Leash
from trogdor_bus.agents.machine import AgentMachine, Limits
from trogdor_bus.agents.perform import NotInjectedError, Performer
from trogdor_bus.agents.platforms import open_platform
from trogdor_bus.agents.worker import Worker
from trogdor_bus.bus import AgentBus
from trogdor_bus.clock import BootClock
from trogdor_bus.config import AgentSettings
from trogdor_bus.errors import BusError, CannotHealError, HostError, NotFoundError, NotYetError, TrogdorBusError
from trogdor_bus.messages import Snapshot, decode, encode
from trogdor_bus.names import check_name
from trogdor_bus.platform import BrokerPlatform, ControllerPlatform, Surroundings
from trogdor_bus.states import Outcome, WorkerState
from trogdor_bus.transports import transport

log = logging.getLogger("trogdor_bus.agents")
ADDRESSES_S = 5.0
LONELY_FIRST_S, LONELY_AGAIN_S = 3.0, 30.0


def run(settings: AgentSettings, leash: Leash | None = None) -> int:
    """Run an agent until it is told to end; return the exit code. What it did is undone before it ends."""
    check_name(settings.node, "node name", "$.node")
    held = lock(settings.state_dir)
    try:
        disk = FileDisk(settings.state_dir)
        platform = open_platform(
            settings.platform, {"attach": settings.attach, "allowCommands": [list(c) for c in settings.allow_commands]}
        )
        try:
            journal = Journal(disk)
        except HostError:  # a disk that cannot be written must not keep an earlier life's fault in force
            _recover(Performer(Journal.read_only(disk), platform))
            raise
        performer = Performer(journal, platform)
        _recover(performer)
        if unread := [name for name in journal.broken if name.startswith("worker-")]:
            raise HostError(
                f"{settings.state_dir}: cannot read {', '.join(unread)}; a fault of an earlier life may still be "
                "there: look at the file, undo it by hand, then delete it"
            )
        leave_note(disk, AgentNote(platform=settings.platform, attach=settings.attach))
        return asyncio.run(_run(settings, performer, leash or Leash()))
    finally:
        held.close()


def _recover(performer: Performer) -> None:
    for line in performer.recover():
        log.warning("%s", line)


async def _run(settings: AgentSettings, performer: Performer, leash: Leash) -> int:
    loop, ending = asyncio.get_running_loop(), asyncio.Event()

    def end(why: str) -> None:
        log.info("%s: undoing everything, then ending", why)
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, f"{number.name} received")
    held = asyncio.create_task(leash.hold(lambda: end("the guard is gone")))
    bus = await _open_bus(settings, ending)
    if bus is None:
        return 0
    try:
        return await Service(settings, performer, bus).run(ending)
    finally:
        held.cancel()
        bus.close()


async def _open_bus(settings: AgentSettings, ending: asyncio.Event) -> AgentBus | None:
    """Return the open bus, however long that takes; None if the agent is to end before."""
    opener = transport(settings.url).open_agent
    while not ending.is_set():
        try:
            return await asyncio.to_thread(opener, settings.url, settings.node, settings.keys)
        except (BusError, NotFoundError) as error:  # a name that does not resolve yet, keys that are not here yet
            log.error("%s; trying again in %d s", error, LONELY_FIRST_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), LONELY_FIRST_S)
    return None


class Service:
    """One running agent on an open journal, platform and bus."""

    def __init__(self, settings: AgentSettings, performer: Performer, bus: AgentBus) -> None:
        self._settings, self._performer, self._bus = settings, performer, bus
        self._journal, self._platform = performer.journal, performer.platform
        self._clock = BootClock()
        self._machine = AgentMachine(
            settings.node,
            self._journal.id,
            self._journal.life,
            tuple(remembered(entry, performer.by_hand(entry.worker)) for entry in self._journal.entries.values()),
            Limits(beat_ms=settings.beat_ms, lease_ms=settings.lease_ms, ceiling_ms=settings.ceiling_ms),
            version=__version__,
            pid=os.getpid(),
            now_ms=self._clock.now_ms(),
            latch=self._journal.latch,
            attached=bool(settings.attach),
        )
        self._hands = ThreadPoolExecutor(1, "hands")
        self._eyes = ThreadPoolExecutor(1, "eyes")  # an engine that is asked for addresses may hang
        self._wake = asyncio.Event()
        self._ended = False
        self._epoch = 0

    async def run(self, ending: asyncio.Event) -> int:
        """Serve until `ending` is set and everything is undone; return the exit code."""
        loop = asyncio.get_running_loop()
        log.info("Starting agent process.")
        log.info(
            "node %s, journal %s, state in %s", self._settings.node, self._journal.id[:8], self._settings.state_dir
        )
        if self._journal.latch:
            log.warning("this node is aborted: nothing starts here until `trogdor-bus resume`")
        self._handle(await loop.run_in_executor(self._eyes, self._read))
        self._bus.receive(self._on_snapshot)
        chores = [
            asyncio.create_task(chore) for chore in (self._read_addresses(), self._watch_contact(), self._end(ending))
        ]
        try:
            while not self._ended:
                delay_ms = max(0, self._machine.deadline() - self._clock.now_ms())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), delay_ms / 1000)
                self._wake.clear()
                if self._clock.now_ms() >= self._machine.deadline():
                    self._handle(Ticked())
        finally:
            for chore in chores:
                chore.cancel()
            self._hands.shutdown()
            self._eyes.shutdown(wait=False, cancel_futures=True)
        stuck = [w.task for w in self._machine.workers.values() if w.state is WorkerState.STUCK]
        for task in stuck:
            log.error("the undo of task %s is stuck; its journal is in %s", task, self._settings.state_dir)
        log.info("agent ended, %s", "faults are left" if stuck else "nothing is left")
        return 1 if stuck else 0

    # --- events -----------------------------------------------------------------------------------------------------

    def _on_snapshot(self, frame: bytes) -> None:
        try:
            snapshot = decode(frame, Snapshot)
        except BusError as error:
            log.warning("a frame of the control channel was dropped: %s", error)
            return
        self._handle(SnapshotHeard(snapshot))
        stamp = self._machine.stamp
        if stamp is not None and stamp.epoch != self._epoch and self._machine.fresh_ms is not None:
            self._epoch = stamp.epoch
            log.info("obeying coordinator %s, epoch %d", stamp.coordinator[:8], stamp.epoch)

    async def _end(self, ending: asyncio.Event) -> None:
        await ending.wait()
        self._handle(EndRequested())

    def _handle(self, event: Event) -> None:
        before = self._machine.deadline()
        for effect in self._machine.handle(event, self._clock.now_ms()):
            self._perform(effect)
        if self._ended or self._machine.deadline() < before:
            self._wake.set()

    # --- effects ----------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendBeat(beat=beat):
                self._bus.send(encode(beat))
            case Inject(order=order):
                if not self._machine.workers[order.worker].awaits:
                    log.info("task %s: %s", order.task, order.texts.starting)
                self._by_hand(functools.partial(self._inject, effect))
            case Heal(worker=worker):
                if not self._machine.workers[worker].awaits:
                    log.info("task %s: undoing", self._machine.workers[worker].task)
                self._by_hand(functools.partial(self._heal, effect))
            case Look(workers=workers):
                self._by_hand(functools.partial(self._look, workers))
            case Reapply(worker=worker):
                self._by_hand(functools.partial(self._reapply, worker))
            case KeepLatch(id=latch):
                log.warning("aborted: nothing starts here until it is resumed" if latch else "resumed")
                self._by_hand(functools.partial(self._keep_latch, latch))
            case Forget(worker=worker):
                self._by_hand(functools.partial(self._forget, worker))
            case Exit():
                self._ended = True

    def _by_hand(self, work: Callable[[], Event | None]) -> None:
        """Run blocking work in the one thread that touches the machine; its event comes back to the loop."""
        future = asyncio.get_running_loop().run_in_executor(self._hands, work)
        future.add_done_callback(self._worked)

    def _worked(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            log.error("internal error", exc_info=error)
        elif (event := future.result()) is not None:
            if isinstance(event, NotInjected | NotHealed):
                log.error("task %s: %s", self._machine.workers[event.worker].task, event.error)
            elif isinstance(event, NotYet) and not self._machine.workers[event.worker].awaits:
                log.info("task %s: %s", self._machine.workers[event.worker].task, event.why)
            self._handle(event)

    def _inject(self, effect: Inject) -> Event:
        order = effect.order
        surroundings = Surroundings(control=self._bus.control(), coordinator=effect.coordinator, force=order.force)
        try:
            warnings = self._performer.inject(order, effect.ends_ms, surroundings)
            return Injected(order.worker, warnings, self._journal.entries[order.worker].met_nothing)
        except NotInjectedError as error:
            by_hand = self._performer.by_hand(order.worker) if error.stuck else ()
            return NotInjected(order.worker, str(error), error.residue, by_hand, error.stuck)
        except NotYetError as error:
            return NotYet(order.worker, str(error), error.notes)
        except Exception as error:  # a bug of ours must not leave a fault behind
            log.exception("task %s: internal error", order.task)
            return self._rescue(order.worker, f"internal error: {error!r}")

    def _rescue(self, worker: int, error: str) -> NotInjected:
        if worker in self._journal.entries:
            healed = self._heal(Heal(worker, Outcome.FAILED, error))
            if isinstance(healed, NotHealed):
                return NotInjected(worker, f"{error}; {healed.error}", healed.residue, healed.by_hand, stuck=True)
            if isinstance(healed, NotYet):
                return NotInjected(worker, f"{error}; {healed.why}", (), self._performer.by_hand(worker), stuck=True)
        return NotInjected(worker, error)

    def _heal(self, effect: Heal) -> Healed | NotHealed | NotYet:
        if not self._journal.knows(effect.worker):
            return Healed(effect.worker)  # it was stopped before anything was written down
        seen: list[ReadBack] = []
        worker, heal = effect.worker, self._performer.heal
        try:
            notes = heal(worker, effect.outcome, effect.error, effect.held_ms, seen.append)
            entry = self._journal.entries[worker]
            return Healed(worker, notes, seen[0] if seen else ReadBack(), entry.outcome, entry.error)
        except NotYetError as error:
            return NotYet(worker, str(error), error.notes, seen[0] if seen else ReadBack())
        except CannotHealError as error:
            entry = self._journal.entries[worker]
            by_hand, last = self._performer.by_hand(worker), seen[0] if seen else ReadBack()
            return NotHealed(worker, str(error), entry.residue, by_hand, last)
        except Exception as error:  # stuck is loud, and tried again
            log.exception("worker %d: internal error while undoing", effect.worker)
            return NotHealed(effect.worker, f"internal error while undoing: {error!r}")

    def _look(self, workers: tuple[int, ...]) -> Looked:
        return Looked({worker: self._performer.look(worker) for worker in workers})

    def _reapply(self, worker: int) -> Reapplied:
        try:
            after = self._performer.reapply(worker)
        except TrogdorBusError as error:
            return Reapplied(worker, str(error))
        except Exception as error:
            log.exception("worker %d: internal error while putting it back", worker)
            return Reapplied(worker, f"internal error: {error!r}")
        return Reapplied(worker, after=after)

    def _keep_latch(self, latch: str) -> LatchKept:
        try:
            self._journal.keep_latch(latch)
        except HostError as error:
            log.error("the abort cannot be written down, so it holds until this agent ends: %s", error)
        return LatchKept(latch)

    def _forget(self, worker: int) -> None:
        if worker in self._journal.entries:
            try:
                self._performer.forget(worker)
            except TrogdorBusError as error:
                log.warning("worker %d stays in the journal: %s", worker, error)

    # --- chores -----------------------------------------------------------------------------------------------------

    async def _read_addresses(self) -> None:
        while True:
            await asyncio.sleep(ADDRESSES_S)
            try:
                found = await asyncio.get_running_loop().run_in_executor(self._eyes, self._read)
            except TrogdorBusError as error:
                log.warning("cannot read this node's addresses: %s", error)
            else:
                self._handle(found)

    def _read(self) -> AddressesRead:
        addresses = self._platform.addresses()
        broker, controller = self._settings.broker, self._settings.controller
        if broker is None and isinstance(self._platform, BrokerPlatform):
            broker = self._platform.broker()
        if controller is None and isinstance(self._platform, ControllerPlatform):
            controller = self._platform.controller()
        return AddressesRead(addresses, broker, controller)

    async def _watch_contact(self) -> None:
        """Say so when no coordinator answers, with the likely causes, and go on trying."""
        await asyncio.sleep(LONELY_FIRST_S)
        while True:
            if self._machine.lonely(self._clock.now_ms()):
                trouble = (
                    self._bus.trouble() or "connected, but no word yet (is it still starting? are the keys its own?)"
                )
                log.warning(
                    "no word from the coordinator at %s: %s. %s, do the keys match (`trogdor-bus keys export` there)? "
                    "Trying on.",
                    self._settings.url.replace(" ", " or "),
                    trouble,
                    likely_causes(self._settings.url),
                )
            await asyncio.sleep(LONELY_AGAIN_S)


def likely_causes(url: str) -> str:
    """Return what people should check when no coordinator answers at that URL."""
    schemes = {one.partition("://")[0] for one in url.split(" ")}
    dialled = "kafka" not in schemes or len(schemes) > 1
    option = "--bind ADDRESS" if "kafka" not in schemes else f"--transport {'kafka+zmq' if dialled else 'kafka'} ..."
    asked = [f"Is it running there (`trogdor-bus coordinator {option}`)"]
    asked += ["is the address right, does a firewall block the port"] if dialled else []
    asked += ["are these its brokers and topics"] if "kafka" in schemes else []
    return ", ".join(asked)


def remembered(entry: Entry, by_hand: tuple[str, ...] = ()) -> Worker:
    """Return the journal's entry as the machine knows it: ended in an earlier life, stuck, or on its way out."""
    states = {JournalState.UNDONE: WorkerState.DONE, JournalState.UNKNOWN: WorkerState.STOPPING}
    return Worker(
        id=entry.worker,
        task=entry.task,
        state=states.get(entry.state, WorkerState.STUCK),
        texts=entry.texts,
        ends_ms=entry.ends_ms,
        spec=entry.spec,
        error=entry.error,
        outcome=entry.outcome,
        warnings=entry.warnings,
        residue=entry.residue,
        by_hand=by_hand,
    )
