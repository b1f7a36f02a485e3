"""The agent's shell: receive, decode, handle, perform, repeat."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from trogdor_bus import __version__, logs, stacks
from trogdor_bus.agents.contact import likely_causes
from trogdor_bus.agents.core import AgentCore
from trogdor_bus.agents.disk import FileDisk, lock
from trogdor_bus.agents.events import AddressesRead, EndRequested, Stirred
from trogdor_bus.agents.heal import AgentNote, leave_note
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.agents.lanes import Call, Carry, Job, Lanes
from trogdor_bus.agents.leash import Leash
from trogdor_bus.agents.machine import AgentMachine, Limits
from trogdor_bus.agents.neighbours import Strays
from trogdor_bus.agents.perform import UNREADABLE, Performer
from trogdor_bus.agents.platforms import open_platform
from trogdor_bus.agents.threads import Threads, run_in_lanes
from trogdor_bus.agents.work import Work
from trogdor_bus.agents.worker import Worker
from trogdor_bus.bus import AgentBus
from trogdor_bus.clock import BootClock
from trogdor_bus.config import AgentSettings
from trogdor_bus.errors import (
    BusError,
    GoneError,
    HostError,
    NotFoundError,
    TrogdorBusError,
)
from trogdor_bus.fuse import Fuse, heed
from trogdor_bus.names import check_name
from trogdor_bus.platform import BrokerPlatform, ControllerPlatform, Platform, StirringPlatform
from trogdor_bus.spec import Texts
from trogdor_bus.states import Outcome, WorkerState
from trogdor_bus.transports import transport

log = logging.getLogger("trogdor_bus.agents")
ADDRESSES_S = 5.0
LONELY_FIRST_S, LONELY_AGAIN_S = 3.0, 30.0
WRITE_AGAIN_S = 15.0
COUNTED_MS = 100
"""In a life that is not on disk beats are counted on from the time in this unit: its last one may have sent some."""
SETTLE_S = 2.0
"""How long lanes may take to end what they are at when all is undone."""
UNTOLD = "cannot be read in the journal"
T = TypeVar("T")


def run(settings: AgentSettings, leash: Leash | None = None) -> int:
    """Run an agent until it is told to end; return the exit code. What it did is undone before it ends.

    It is that of a crash when it meets what nobody foresaw: then the guard undoes what it did.
    """
    check_name(settings.node, "node name", "$.node")
    held = lock(settings.state_dir)
    fuse = Fuse(settings.state_dir)
    try:
        code = _run_alone(settings, leash or Leash(), fuse)
    except TrogdorBusError:
        raise
    except Exception as error:
        fuse.blow(error)
    else:
        fuse.ended()
        return code
    finally:
        held.close()


def _run_alone(settings: AgentSettings, leash: Leash, fuse: Fuse) -> int:
    for line in stacks.keep(str(settings.state_dir)):
        log.error("stack of an earlier life: %s", line)
    disk = FileDisk(settings.state_dir)
    platform = open_platform(
        settings.platform, {"attach": settings.attach, "allowCommands": [list(c) for c in settings.allow_commands]}
    )
    performer = Performer(_journal(disk, platform), platform)
    _recover(performer)
    note = functools.partial(leave_note, disk, AgentNote(platform=settings.platform, attach=settings.attach))
    return asyncio.run(_run(settings, performer, leash, note, fuse))


def _journal(disk: FileDisk, platform: Platform) -> Journal:
    """Return the journal; on a disk that cannot be written now the one of an earlier life, which must be undone."""
    try:
        return Journal(disk)
    except HostError as error:
        try:
            journal = Journal.to_begin(disk)
        except HostError:
            _recover(Performer(Journal.read_only(disk), platform))  # whatever is there must not stay in force
            raise error from None
        log.error("%s; what an earlier life left is undone, and nothing is begun until that is mended", error)
        return journal


def _recover(performer: Performer) -> None:
    for line in run_in_lanes(performer.recover()):
        log.warning("%s", line)


async def _run(
    settings: AgentSettings, performer: Performer, leash: Leash, note: Callable[[], None], fuse: Fuse
) -> int:
    loop, ending = asyncio.get_running_loop(), asyncio.Event()

    def end(why: str) -> None:
        log.info("%s: undoing everything, then ending", why)
        ending.set()

    for number in logs.ending_signals():
        loop.add_signal_handler(number, end, logs.terminating(number))
    held = asyncio.create_task(leash.hold(lambda: end("the guard is gone")))
    heed(held, fuse.blow)
    bus = await _open_bus(settings, ending)
    if bus is None:
        return 0
    leash.serve()
    try:
        return await Service(settings, performer, bus, fuse, note).run(ending)
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

    def __init__(
        self,
        settings: AgentSettings,
        performer: Performer,
        bus: AgentBus,
        fuse: Fuse,
        note: Callable[[], None] = lambda: None,
    ) -> None:
        """Take what was opened; `note` writes down what healers must know, if that is not there yet."""
        self._fuse = fuse
        self._settings, self._performer, self._bus, self._note = settings, performer, bus, note
        self._journal, self._platform = performer.journal, performer.platform
        self._clock = BootClock()
        self._work = Work(performer, bus.control, settings.state_dir)
        self.carry: Carry = Threads(self.carried, self._later).carry
        machine = AgentMachine(
            settings.node,
            self._journal.id,
            self._journal.life,
            self._remembered(),
            Limits(
                beat_ms=settings.beat_ms,
                lease_ms=settings.lease_ms,
                ceiling_ms=settings.ceiling_ms,
                late_ms=settings.late_ms,
            ),
            version=__version__,
            pid=os.getpid(),
            now_ms=self._clock.now_ms(),
            latch=self._journal.latch,
            attached=bool(settings.attach),
            counted=0 if self._journal.begun else self._clock.now_ms() // COUNTED_MS,
            barred=self._fuse.said(),
        )
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._lanes = Lanes(self._carry, self._later)
        self._core = AgentCore(
            machine, bus, self._work, self._lanes, self._clock.now_ms, fed=self._wake.set, broken=self._fuse.blow
        )
        self._eyes = ThreadPoolExecutor(1, "eyes")  # an engine that is asked for addresses may hang
        self._unread, self._unread_ms = "", 0
        self._trouble = ""
        self._strays = Strays(performer, settings.state_dir)
        if isinstance(self._platform, StirringPlatform):
            self._platform.call_when_stirred(self._stirred)

    async def run(self, ending: asyncio.Event) -> int:
        """Serve until `ending` is set and everything is undone; return the exit code."""
        log.info("Starting agent process.")
        log.info(
            "node %s, journal %s, state in %s", self._settings.node, self._journal.id[:8], self._settings.state_dir
        )
        if self._journal.latch:
            log.warning("this node is aborted: nothing starts here until `‹resume›`")
        strays = await self._done(self._strays.look())
        await self._read_once()  # the first beat; what answers it is heard
        if strays:
            self._core.feed(strays)
        self._bus.receive(self._hear)
        chores = [
            asyncio.create_task(chore)
            for chore in (self._read_addresses(), self._watch_contact(), self._write_down(), self._end(ending))
        ]
        for chore in chores:
            heed(chore, self._fuse.blow)
        try:
            while not self._core.ended:
                delay_ms = max(0, self._core.shell.due() - self._clock.now_ms())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), delay_ms / 1000)
                self._wake.clear()
                self._core.shell.tick()
        except TrogdorBusError:
            raise
        except Exception as error:  # before anything is waited for
            self._fuse.blow(error)
        finally:
            for chore in chores:
                chore.cancel()
            await self._settle()
            self._eyes.shutdown(wait=False, cancel_futures=True)
        stuck = [w.task for w in self._core.machine.workers.values() if w.state is WorkerState.STUCK]
        for task in stuck:
            log.error("the undo of task %s is stuck; its journal is in %s", task, self._settings.state_dir)
        log.info("agent ended, %s", "faults are left" if stuck else "nothing is left")
        return 1 if stuck else 0

    def _remembered(self) -> tuple[Worker, ...]:
        """Return what the journal tells of earlier lives; what it cannot tell is stuck, and so tried again."""
        known = [
            remembered(entry, run_in_lanes(self._performer.by_hand(entry.worker)))
            for entry in self._journal.entries.values()
        ]
        unreadable = [
            Worker(
                id=worker,
                task=self._journal.task_of(worker),
                state=WorkerState.STUCK,
                texts=Texts(UNTOLD, UNTOLD, UNTOLD, UNTOLD),
                ends_ms=0,
                error=UNREADABLE.format(name),
                outcome=Outcome.FAILED,
                residue=(f"{name} cannot be read",),
                by_hand=self._work.look_at(name),
            )
            for worker, name in self._journal.unreadable.items()
        ]
        return (*known, *unreadable)

    # --- what happens -----------------------------------------------------------------------------------------------

    async def _end(self, ending: asyncio.Event) -> None:
        await ending.wait()
        self._core.feed(EndRequested())

    def _hear(self, frame: bytes) -> None:
        try:
            self._core.hear(frame)
        except Exception as error:  # the bus would go on without that frame
            self._fuse.blow(error)

    async def _done(self, job: Job[T]) -> T:
        """Have a job done in lanes, and return what it returns."""
        future: asyncio.Future[T] = self._loop.create_future()

        def ended(outcome: T | Exception) -> None:
            if not future.cancelled():
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

        self._lanes.begin(job, ended)
        return await future

    def _later(self, seconds: float, go_on: Callable[[], None]) -> None:
        self._loop.call_later(seconds, self._guarded, go_on)

    def _carry(self, lane: str, calls: Sequence[Call[Any]]) -> None:
        self.carry(lane, calls)

    def carried(self, lane: str, outcomes: Sequence[object]) -> None:
        """Bring what a lane has done into the loop, if that goes on."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._guarded, functools.partial(self._lanes.carried, lane, outcomes))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # the loop would go on without what came of it
            self._fuse.blow(error)

    async def _settle(self) -> None:
        """Let the lanes end what they are at, but wait for none that hangs."""
        until_s = self._loop.time() + SETTLE_S
        while not self._lanes.idle() and self._loop.time() < until_s:
            await asyncio.sleep(0.01)

    def _stirred(self, worker: int) -> None:
        """Have the machine look at a worker, whatever thread says so; not while there is no loop any more."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._guarded, functools.partial(self._core.feed, Stirred(worker)))

    # --- chores -----------------------------------------------------------------------------------------------------

    async def _read_addresses(self) -> None:
        while True:
            await asyncio.sleep(ADDRESSES_S)
            await self._read_once()
            if self._strays.wanted:
                await self._find_strays()

    async def _read_once(self) -> None:
        """Take in the node's addresses, or say why that cannot be: again when it changes, and now and then."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._eyes, self._read)
        except TrogdorBusError as error:
            text, now_ms = str(error), self._clock.now_ms()
            if text != self._unread or now_ms - self._unread_ms > LONELY_AGAIN_S * 1_000:
                log.warning("cannot read this node's addresses, so no fault can hit it; trying on: %s", text)
                self._unread, self._unread_ms = text, now_ms
        else:
            self._unread = ""
            self._core.feed(found)

    async def _write_down(self) -> None:
        """Write what could not be written at the start, as soon as it can be."""
        while True:
            try:
                await self._done(self._performer.begin(self._note))
            except HostError as error:
                log.error("nothing can be begun here: %s", error)
            else:
                return
            await asyncio.sleep(WRITE_AGAIN_S)

    def _read(self) -> AddressesRead:
        addresses, trouble = tuple[str, ...](), ""
        try:
            addresses = self._platform.addresses()
        except GoneError as error:
            trouble = str(error)
        if trouble != self._trouble:
            log.warning("%s", trouble or "what this agent acts on is there again")
        self._trouble = trouble
        broker, controller = self._settings.broker, self._settings.controller
        if broker is None and isinstance(self._platform, BrokerPlatform):
            broker = self._platform.broker()
        if controller is None and isinstance(self._platform, ControllerPlatform):
            controller = self._platform.controller()
        return AddressesRead(addresses, broker, controller, trouble)

    async def _find_strays(self) -> None:
        if found := await self._done(self._strays.look()):
            self._core.feed(found)

    async def _watch_contact(self) -> None:
        """Say so when no coordinator answers, with the likely causes, and go on trying."""
        await asyncio.sleep(LONELY_FIRST_S)
        while True:
            self._core.refusal.heed(self._core.machine.refused_by(self._clock.now_ms()), again=True)
            if not self._core.refusal.by and self._core.machine.lonely(self._clock.now_ms()):
                trouble = (
                    self._core.strangers.refused(self._clock.now_ms())
                    or self._bus.trouble()
                    or "connected, but no word yet (is it still starting, or older? are the keys its own?)"
                )
                log.warning(
                    "no word from the coordinator at %s: %s. %s, do the keys match (`‹export-keys›` there)? Trying on.",
                    self._settings.url.replace(" ", " or "),
                    trouble,
                    likely_causes(self._settings.url),
                )
            await asyncio.sleep(LONELY_AGAIN_S)


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
        late_ms=entry.late_ms,
        due_ms=entry.ends_ms,
    )
