"""The coordinator's shell: receive, decode, handle, store, publish, repeat."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import shlex
import socket
import sys
import uuid
from collections.abc import Callable, Collection, Coroutine
from typing import NoReturn, Protocol

from trogdor_bus import logs, stacks
from trogdor_bus.bus import Answer, BusBrokers, CoordinatorBus, StateLog
from trogdor_bus.clock import SteadyWallClock
from trogdor_bus.config import CoordinatorSettings
from trogdor_bus.coordinator.aside import set_aside
from trogdor_bus.coordinator.changes import Loaded
from trogdor_bus.coordinator.commands import Commands, answer
from trogdor_bus.coordinator.core import CoordinatorCore
from trogdor_bus.coordinator.events import (
    BrokersSeen,
    HostsResolved,
    LinksSeen,
    LookAtCluster,
)
from trogdor_bus.coordinator.experiments import Experiments, UnderTest
from trogdor_bus.coordinator.fleet import Fleet
from trogdor_bus.coordinator.lookout import Lookout
from trogdor_bus.coordinator.machine import CoordinatorMachine
from trogdor_bus.coordinator.place import Limits, Place
from trogdor_bus.coordinator.replication import Replication
from trogdor_bus.coordinator.seat import allowed, greeting, reachable_at
from trogdor_bus.coordinator.standby import Standby
from trogdor_bus.coordinator.store import Store
from trogdor_bus.coordinator.takeover import Taken, check_start, take_over
from trogdor_bus.errors import BusError, HostError, SpecError, TrogdorBusError
from trogdor_bus.experiment.destinations import Destinations
from trogdor_bus.fuse import Fuse, heed
from trogdor_bus.host import local_addresses, own_identity
from trogdor_bus.registry import registry
from trogdor_bus.remedies import Remedy
from trogdor_bus.transports import link_with_log, open_log, several

log = logging.getLogger("trogdor_bus.coordinator")
RESOLVE_AGAIN_S = 10.0
GATHER_S = 0.002
"""How long beats are gathered, to be stored and answered together."""


def run(settings: CoordinatorSettings) -> int:
    """Run a coordinator until it is told to end; return the exit code.

    0, 1 when it may not or cannot go on, or that of a crash, when it meets what nobody foresaw.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # an agent takes two
    fuse = Fuse(settings.state_dir, shlex.join(sys.orig_argv))
    try:
        code = asyncio.run(_run(settings, fuse))
    except TrogdorBusError:
        raise
    except Exception as error:
        fuse.blow(error)
    if not code:
        fuse.ended()
    return code


async def _run(settings: CoordinatorSettings, fuse: Fuse) -> int:
    if (settings.take_over or settings.standby_ms is not None) and not link_with_log(settings.url):
        raise SpecError(
            "there is no log to take a coordinator's state over from",
            path="$.take-over" if settings.take_over else "$.standby",
            remedy=f"use {Remedy('transport', {'kind': 'kafka'})} or kafka+zmq, on every coordinator",
        )
    with contextlib.ExitStack() as opened:
        store = opened.enter_context(contextlib.closing(Store(settings.state_dir)))
        for line in stacks.keep(str(settings.state_dir)):
            log.error("stack of an earlier life: %s", line)
        kept_in = open_log(settings.url, settings.keys)
        if kept_in is None:
            return (await _lead(settings, store, None, fuse))[0]
        opened.callback(kept_in.close)
        if settings.standby_ms is not None:
            return await _stand_by(settings, store, kept_in, fuse)
        taken: Taken | None = None
        if settings.take_over:
            taken = await asyncio.to_thread(take_over, store, kept_in, uuid.uuid4().hex)
            log.warning("%s", taken.said)
        elif unknown := await asyncio.to_thread(check_start, store, kept_in):
            log.warning("this coordinator starts on its own store, not replicated: %s", unknown)
        return (await _lead(settings, store, kept_in, fuse, taken))[0]


async def _stand_by(settings: CoordinatorSettings, store: Store, kept_in: StateLog, fuse: Fuse) -> int:
    standby = Standby(settings, store, kept_in)
    while taken := await standby.wait():
        try:
            code, fenced = await _lead(settings, store, kept_in, fuse, taken)
        except BusError as error:
            log.warning("cannot lead: %s", error)  # the one that was silent is back
            continue
        if not fenced:
            return code
    return 0


async def _lead(
    settings: CoordinatorSettings, store: Store, kept_in: StateLog | None, fuse: Fuse, taken: Taken | None = None
) -> tuple[int, bool]:
    """Return the exit code, and whether another coordinator is in charge now."""
    bus = several().open_coordinator(settings.url, settings.keys)
    try:
        service = Service(settings, store, bus, fuse, kept_in, above=taken.epoch if taken else 0)
        return await service.run(), service.fenced
    finally:
        bus.close()


class Breaker(Protocol):
    """What a service does at what nobody foresaw, and without; see `trogdor_bus.fuse.Fuse`."""

    @property
    def aside(self) -> Collection[str]:
        """The ids of the tasks that are ended for good."""
        ...

    @property
    def bare(self) -> bool:
        """Whether all tasks are."""
        ...

    def said(self) -> str:
        """Return why, "" if nothing is."""
        ...

    def blow(self, error: BaseException, about: str = "") -> NoReturn:
        """End what failed, at that task."""
        ...


class Service:
    """One running coordinator on an open store and an open bus, replicated to a log if there is one.

    It leads in an epoch above `above`. `fenced`: it ended because another coordinator is in charge.
    """

    fenced = False

    def __init__(
        self,
        settings: CoordinatorSettings,
        store: Store,
        bus: CoordinatorBus,
        fuse: Breaker,
        kept_in: StateLog | None = None,
        *,
        above: int = 0,
    ) -> None:
        self._settings, self._store, self._bus, self._fuse = settings, store, bus, fuse
        self._clock = SteadyWallClock()
        config = settings.config
        addresses, ports = reachable_at(settings.url)
        place = Place(
            me=uuid.uuid4().hex,
            process=own_identity(),
            addresses=addresses,
            ports=ports,
            url=settings.url,
            machine=local_addresses(),
            cluster=settings.cluster,
        )
        self._lookout = Lookout(
            settings.cluster, settings.cluster_config, lambda brokers: self._destinations().check_brokers(brokers)
        )
        self._machine = CoordinatorMachine(
            load(store, fuse, self._clock.now_ms()),
            Fleet(config.nodes if config else None, settings.beat_ms),
            place,
            Limits(beat_ms=settings.beat_ms, lease_ms=settings.lease_ms),
            self._clock.now_ms(),
            orphans="adopt" if settings.adopt else "abort" if settings.abort_all else "refuse",
            above=above,
            barred=without(fuse),
        )
        self._replication = self._replicate(kept_in, place.me) if kept_in else None
        self._waiting: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._brokers: BusBrokers | None = None
        self._exit: int | None = None
        self._core = CoordinatorCore(
            self._machine,
            store,
            bus,
            self._clock.now_ms,
            soon=self._soon,
            follow=self._replication.follow if self._replication else lambda _: None,
            look=lambda order: self._beside(self._look(order)),
            ended=lambda reason, fenced: self._fail(reason, fenced=fenced),
            shutdown=lambda: self.end("a client asked for it"),
            behind_ms=self._replication.behind_ms if self._replication else None,
            fed=self._wake.set,
            broken=lambda error: fuse.blow(error, self._machine.about),
        )
        self._core.api.destinations = self._destinations
        self._experiments = self._core.experiments = Experiments(
            settings.state_dir / "experiments",
            UnderTest(bootstrap=settings.cluster, config=str(settings.cluster_config or "")),
            probe_commands=settings.allow_probe_commands,
            answer=lambda frame, parent: answer(self.commands, frame, parent),
            handle=self._core.feed,
            now_ms=self._clock.now_ms,
            broken=fuse.blow,
            destinations=self._destinations,
        )
        self.commands = Commands(
            self._core.api,
            look=self._lookout.look,
            told=self._experiments.told,
            kept=self._replication.kept if self._replication else None,
        )

    async def run(self) -> int:
        """Serve until told to end; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in logs.ending_signals():
            loop.add_signal_handler(number, self.end, logs.terminating(number))
        self._greet()
        if barred := self._machine.barred:
            log.error("no task is taken or started until this coordinator is ended and started anew: %s", barred)
        self._bus.receive(self._hear, self._on_request)
        beside = [asyncio.create_task(self._resolve())]
        if self._replication:
            beside.append(asyncio.create_task(self._replication.run()))
        for task in beside:
            heed(task, self._fuse.blow)
        announced_ms = 0
        try:
            while self._exit is None:
                delay_ms = max(0, self._core.shell.due() - self._clock.now_ms())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), delay_ms / 1000)
                self._wake.clear()
                self._core.tick()
                if (seen := self._bus.brokers()) != self._brokers:
                    self._brokers = seen
                    self._core.feed(BrokersSeen(seen))
                if self._clock.now_ms() - announced_ms >= self._settings.beat_ms:
                    announced_ms = self._clock.now_ms()
                    self._core.feed(LinksSeen(self._bus.links()))
                    self._core.beat()
        except TrogdorBusError:
            if self._exit is None:  # else it is said already, and the end of this coordinator
                raise
        except Exception as error:  # before anything is waited for
            self._fuse.blow(error)
        finally:
            for task in [*beside, *self._waiting]:
                task.cancel()
            self._lookout.close()
            await self._experiments.close()
        return self._exit

    # --- what arrives -----------------------------------------------------------------------------------------------

    def _hear(self, frame: bytes) -> None:
        try:
            self._core.hear(frame)
        except Exception as error:  # the bus would go on without that frame
            self._fuse.blow(error)

    def _on_request(self, frame: bytes, reply: Answer) -> None:
        self._beside(self._answer(frame, reply))

    async def _answer(self, frame: bytes, reply: Answer) -> None:
        try:
            reply(await answer(self.commands, frame))
        except Exception as error:  # while it is known at which task
            self._fuse.blow(error, self._machine.about)

    def _soon(self, flush: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(GATHER_S, flush)

    def _beside(self, work: Coroutine[None, None, None]) -> None:
        """Let something go on that nothing waits for; it ends with the coordinator."""
        waiting = asyncio.create_task(work)
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)
        heed(waiting, self._fuse.blow)

    async def _look(self, order: LookAtCluster) -> None:
        seen = await self._lookout.answer(order)
        with contextlib.suppress(HostError):  # said already, and the end of this coordinator
            self._core.feed(seen)

    def _destinations(self) -> Destinations:
        nodes = self._machine.view.nodes.values()
        return allowed(self._settings, self._machine.place.addresses, nodes)

    def _fail(self, reason: str, *, fenced: bool) -> None:
        log.error("%s", reason)
        self._exit, self.fenced = 1, fenced
        self._wake.set()

    def _replicate(self, kept_in: StateLog, me: str) -> Replication:
        return Replication(
            kept_in,
            me,
            load=self._store.load,
            epoch=lambda: 0 if self._machine.listening else self._machine.epoch,
            fenced=lambda reason: self._fail(reason, fenced=True),
            now_ms=self._clock.now_ms,
        )

    def end(self, why: str) -> None:
        """End soon; running faults go on to their deadlines."""
        log.info("%s: ending; running faults go on to their deadlines", why)
        self._exit = 0
        self._wake.set()

    # --- the surroundings -------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        place, settings = self._machine.place, self._settings
        log.info("Starting coordinator process.")
        log.info("coordinator %s, epoch after %d, state in %s", place.me[:8], self._machine.epoch, settings.state_dir)
        for level, text in greeting(settings.url, place.addresses, keys=settings.keys is not None):
            log.log(level, "%s", text)
        for line in registry().broken:
            log.error("%s", line)

    async def _resolve(self) -> None:
        """Resolve the configured host names, each once; those that fail are tried again."""
        nodes = self._settings.config.nodes if self._settings.config else {}
        missing = {node.name: node.hostname for node in nodes.values() if node.hostname}
        while missing:
            found: dict[str, tuple[str, ...]] = {}
            for name, host in missing.items():
                try:
                    infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
                    found[name] = tuple(dict.fromkeys(str(info[4][0]) for info in infos))
                except OSError as error:
                    log.warning("the host name %s of node %s cannot be resolved: %s", host, name, error)
            missing = {name: host for name, host in missing.items() if name not in found}
            if found:
                with contextlib.suppress(TrogdorBusError):
                    self._core.feed(HostsResolved(found))
            if missing:
                await asyncio.sleep(RESOLVE_AGAIN_S)


def load(store: Store, fuse: Breaker, now_ms: int) -> Loaded:
    """Return what is stored, with those tasks ended for good at which the coordinator crashed again and again."""
    if fuse.bare:
        with contextlib.suppress(Exception):  # one that cannot even be ended is left as it is, and not run
            everything = store.load()
            _, changes = set_aside(everything, [task.id for task in everything.tasks], fuse.said(), now_ms)
            store.commit(changes, durable=True)
        return store.load(tasks=False)
    loaded, changes = set_aside(store.load(), fuse.aside, fuse.said(), now_ms)
    if changes:
        store.commit(changes, durable=True)
    return loaded


def without(fuse: Breaker) -> str:
    """Return why a coordinator takes no task, and which it has ended for good; "" if it is as any other."""
    names = ", ".join(sorted(fuse.aside))
    aside = "all tasks are set aside" if fuse.bare else f"set aside: {names}" if names else "no task is set aside"
    return f"{fuse.said()}; {aside}" if fuse.said() else ""
