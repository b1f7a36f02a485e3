"""The agent's shell: receive, decode, handle, perform, repeat."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Collection, Coroutine, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from trogdor_bus import __version__, logs, stacks
from trogdor_bus.agents.contact import likely_causes
from trogdor_bus.agents.core import AgentCore
from trogdor_bus.agents.disk import FileDisk, lock
from trogdor_bus.agents.events import AddressesRead, EndRequested, Stirred, StraysSeen
from trogdor_bus.agents.heal import AgentNote, leave_note
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.agents.leash import Leash
from trogdor_bus.agents.looplanes import LoopLanes
from trogdor_bus.agents.machine import AgentMachine, Limits
from trogdor_bus.agents.neighbours import Strays
from trogdor_bus.agents.perform import RESTARTED, UNREADABLE, Performer
from trogdor_bus.agents.platforms import open_platform
from trogdor_bus.agents.recovery import by_hand_of, recover
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
from trogdor_bus.platform import BrokerPlatform, ControllerPlatform, StirringPlatform
from trogdor_bus.spec import Texts
from trogdor_bus.states import Outcome, WorkerState
from trogdor_bus.transports import transport

log = logging.getLogger("trogdor_bus.agents")
ADDRESSES_S = 5.0
LONELY_FIRST_S, LONELY_AGAIN_S = 3.0, 30.0
WRITE_AGAIN_S = 15.0
COUNTED_MS = 100
"""In a life that is not on disk beats are counted on from the time in this unit: its last one may have sent some."""
RECOVER_S = 5.0
"""So long an agent that starts undoes what an earlier life left before it talks to anybody; the rest goes on."""
LOOK_S = 2.0
"""So long its first look at its node may take before it listens."""
SETTLE_S = 2.0
"""How long lanes may take to end what they are at when all is undone."""
UNTOLD = "cannot be read in the journal"


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
    journal, unwritable = _journal(disk)
    note = functools.partial(leave_note, disk, AgentNote(platform=settings.platform, attach=settings.attach))
    return asyncio.run(_run(settings, Performer(journal, platform), leash, note, fuse, unwritable=unwritable))


def _journal(disk: FileDisk) -> tuple[Journal, HostError | None]:
    """Return the journal; on a disk that cannot be written now the one of an earlier life, which must be undone.

    With an error it is for that only, and nothing else may be begun.
    """
    try:
        return Journal(disk), None
    except HostError as error:
        try:
            journal = Journal.to_begin(disk)
        except HostError:
            return Journal.read_only(disk), error
        log.error("%s; what an earlier life left is undone, and nothing is begun until that is mended", error)
        return journal, None


async def _run(
    settings: AgentSettings,
    performer: Performer,
    leash: Leash,
    note: Callable[[], None],
    fuse: Fuse,
    *,
    unwritable: HostError | None,
) -> int:
    loop, ending = asyncio.get_running_loop(), asyncio.Event()

    def end(why: str) -> None:
        log.info("%s: undoing everything, then ending", why)
        ending.set()

    for number in logs.ending_signals():
        loop.add_signal_handler(number, end, logs.terminating(number))
    held = asyncio.create_task(leash.hold(lambda: end("the guard is gone")))
    heed(held, fuse.blow)
    lanes = LoopLanes(fuse.blow)
    for line in performer.broken():
        log.warning("%s", line)
    await recover(performer, lanes, fuse.blow, RECOVER_S)
    if unwritable is not None:
        raise unwritable  # whatever was there must not stay in force
    bus = await _open_bus(settings, lanes, ending)
    if bus is None:
        await recover(performer, lanes, fuse.blow, wait=True)
        journal = performer.journal
        return _ended(settings, [*(entry.task for entry in journal.live()), *map(journal.task_of, journal.unreadable)])
    leash.serve()
    try:
        by_hand = await lanes.done(by_hand_of(performer, performer.left()))
        return await Service(settings, performer, bus, fuse, note, lanes=lanes, by_hand=by_hand).run(ending)
    finally:
        held.cancel()
        bus.close()


async def _open_bus(settings: AgentSettings, lanes: LoopLanes, ending: asyncio.Event) -> AgentBus | None:
    """Return the open bus, however long that takes; None if the agent is to end before."""
    opener = functools.partial(transport(settings.url).open_agent, settings.url, settings.node, settings.keys)
    ends = asyncio.ensure_future(ending.wait())
    while not ending.is_set():
        opening = lanes.call("bus", opener)
        first: list[asyncio.Future[Any]] = [opening, ends]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            break
        try:
            return opening.result()
        except (BusError, NotFoundError) as error:  # a name that does not resolve yet, keys that are not here yet
            log.error("%s; trying again in %d s", error, LONELY_FIRST_S)
            await asyncio.wait({ends}, timeout=LONELY_FIRST_S)
    return None


def _ended(settings: AgentSettings, stuck: Collection[str]) -> int:
    """Say how the agent ended, and return the exit code."""
    for task in stuck:
        log.error("the undo of task %s is stuck; its journal is in %s", task, settings.state_dir)
    log.info("agent ended, %s", "faults are left" if stuck else "nothing is left")
    return 1 if stuck else 0


class Service:
    """One running agent on an open journal, platform and bus."""

    def __init__(
        self,
        settings: AgentSettings,
        performer: Performer,
        bus: AgentBus,
        fuse: Fuse,
        note: Callable[[], None] = lambda: None,
        *,
        lanes: LoopLanes | None = None,
        by_hand: Mapping[int, tuple[str, ...]] = MappingProxyType({}),
    ) -> None:
        """Take what was opened; `note` writes down what healers must know, if that is not there yet.

        `by_hand` is what a person would type to undo the workers that an earlier life left.
        """
        self._fuse = fuse
        self._settings, self._performer, self._bus, self._note = settings, performer, bus, note
        self._journal, self._platform = performer.journal, performer.platform
        self._clock = BootClock()
        self._work = Work(performer, bus.control, settings.state_dir)
        self.lanes = lanes or LoopLanes(fuse.blow)
        machine = AgentMachine(
            settings.node,
            self._journal.id,
            self._journal.life,
            self._remembered(by_hand),
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
        self._core = AgentCore(
            machine, bus, self._work, self.lanes, self._clock.now_ms, fed=self._wake.set, broken=self._fuse.blow
        )
        self._listening = asyncio.Event()
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
        chores = [self._chore(self._read_addresses())]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._listening.wait(), LOOK_S)
        self._listen()
        chores += map(self._chore, (self._watch_contact(), self._write_down(), self._end(ending)))
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
            await self.lanes.settle(SETTLE_S)
        workers = self._core.machine.workers.values()
        return _ended(self._settings, [worker.task for worker in workers if worker.state is WorkerState.STUCK])

    def _remembered(self, by_hand: Mapping[int, tuple[str, ...]]) -> tuple[Worker, ...]:
        """Return what the journal tells of earlier lives; what it cannot tell is stuck, and so tried again."""
        entries = self._journal.entries.values()
        known = [remembered(entry, by_hand.get(entry.worker, ())) for entry in entries]
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

    def _stirred(self, worker: int) -> None:
        """Have the machine look at a worker, whatever thread says so."""
        self.lanes.soon(functools.partial(self._core.feed, Stirred(worker)))

    # --- chores -----------------------------------------------------------------------------------------------------

    def _chore(self, chore: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(chore)
        heed(task, self._fuse.blow)
        return task

    async def _read_addresses(self) -> None:
        found = await self._read_once()
        strays = await self._find_strays() if found else None
        self._listen()
        self._take(found, strays)  # the first beat; what answers it is heard
        while True:
            await asyncio.sleep(ADDRESSES_S)
            found = await self._read_once()
            self._take(found)
            if found and self._strays.wanted:  # while nobody tells where the node is, they would hold up its lane
                self._take(await self._find_strays())

    def _listen(self) -> None:
        if not self._listening.is_set():
            self._bus.receive(self._hear)
            self._listening.set()

    def _take(self, *found: AddressesRead | StraysSeen | None) -> None:
        for event in found:
            if event is not None:
                self._core.feed(event)

    async def _read_once(self) -> AddressesRead | None:
        """Return the node's addresses, or say why that cannot be: again when it changes, and now and then."""
        try:
            found = await self.lanes.call("eyes", self._read)  # an engine that is asked for addresses may hang
        except TrogdorBusError as error:
            text, now_ms = str(error), self._clock.now_ms()
            if text != self._unread or now_ms - self._unread_ms > LONELY_AGAIN_S * 1_000:
                log.warning("cannot read this node's addresses, so no fault can hit it; trying on: %s", text)
                self._unread, self._unread_ms = text, now_ms
            return None
        self._unread = ""
        return found

    async def _write_down(self) -> None:
        """Write what could not be written at the start, as soon as it can be."""
        while True:
            try:
                await self.lanes.done(self._performer.begin(self._note))
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

    async def _find_strays(self) -> StraysSeen | None:
        return await self.lanes.done(self._strays.look())

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
    if entry.state in (JournalState.INTENDED, JournalState.APPLIED):  # its undo was not told of yet
        entry = msgspec.structs.replace(entry, outcome=Outcome.RESTARTED, error=RESTARTED)
    states = {JournalState.UNDONE: WorkerState.DONE, JournalState.STUCK: WorkerState.STUCK}
    return Worker(
        id=entry.worker,
        task=entry.task,
        state=states.get(entry.state, WorkerState.STOPPING),
        texts=entry.texts,
        ends_ms=entry.ends_ms,
        spec=entry.spec,
        error=entry.error,
        outcome=entry.outcome,
        warnings=entry.warnings,
        residue=entry.residue,
        by_hand=() if entry.state is JournalState.UNDONE else by_hand,
        late_ms=entry.late_ms,
        due_ms=entry.ends_ms,
    )
