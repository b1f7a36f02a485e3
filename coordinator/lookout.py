"""Looks at the Kafka cluster under test, in a thread, for a machine that must not wait."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from asyncio import FIRST_COMPLETED
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from trogdor_bus.cluster import ClusterView
from trogdor_bus.coordinator.events import ClusterSeen, LookAtCluster, OtherCluster, Sighting
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.host import addresses_of
from trogdor_bus.roles import Wanted

if TYPE_CHECKING:
    from trogdor_bus.kafka.reader import Reader

log = logging.getLogger("trogdor_bus.coordinator")
DEADLINE_S = 10.0
"""How long a look may take, counted from its turn: those of one cluster come one after the other."""
MOST_OTHERS, MOST_WAITING = 4, 16
"""So many other clusters are remembered, and so many looks of one wait in threads; more wait without."""


class Lookout:
    """Asks the brokers at `bootstrap`; `properties` is a file of librdkafka properties, None for none.

    `check_others` refuses brokers that an experiment names and that may not be asked; `check` does it for this one.
    """

    def __init__(
        self,
        bootstrap: str,
        properties: Path | None = None,
        check_others: Callable[[str], None] | None = None,
        check: Callable[[str], None] | None = None,
    ) -> None:
        self._bootstrap, self._properties = bootstrap, properties
        self._check_others, self._check = check_others, check
        self._reader: Reader | None = None
        self._turn = threading.Lock()
        self._threads = ThreadPoolExecutor(MOST_WAITING, thread_name_prefix="look")  # nobody else's work waits for it
        self._under_way, self._counting, self._closing = 0, threading.Lock(), False
        self._others: dict[OtherCluster, Lookout] = {}

    async def answer(self, order: LookAtCluster) -> ClusterSeen:
        """Return what was seen for a task."""
        await asyncio.sleep(order.after_ms / 1000)
        there = self if order.other is None else self._other(order.other)
        return ClusterSeen(order.task, order.number, await there.look(order.wanted))

    async def look(self, wanted: Wanted) -> Sighting:
        """Return what is seen now, or why nothing is; no later than `DEADLINE_S` after it is its turn."""
        seed, loop, begun = secrets.randbits(53), asyncio.get_running_loop(), asyncio.Event()
        self._begin()
        job = self._threads.submit(self._read, wanted, lambda: loop.call_soon_threadsafe(begun.set))
        job.add_done_callback(lambda _: self._end())
        reading = asyncio.wrap_future(job)
        try:
            await asyncio.wait((reading, turn := asyncio.create_task(begun.wait())), return_when=FIRST_COMPLETED)
            turn.cancel()
            async with asyncio.timeout(DEADLINE_S):
                view, hosts = await reading
        except TrogdorBusError as error:
            return Sighting(error=str(error), seed=seed)
        except TimeoutError:
            return Sighting(error=f"{self._bootstrap} tells nothing within {DEADLINE_S:g} s", seed=seed)
        except Exception as error:  # or a task would wait for ever
            log.exception("looking at the cluster under test broke")
            return Sighting(error=f"looking at {self._bootstrap} broke: {error!r}", seed=seed)
        return Sighting(view=view, hosts=hosts, seed=seed)

    def close(self) -> None:
        """Close the connections, once no look is under way; harmless if there are none."""
        for other in self._others.values():
            other.close()
        with self._counting:
            self._closing = True
        self._close_if_idle()

    def _begin(self) -> None:
        with self._counting:
            self._under_way += 1

    def _end(self) -> None:
        with self._counting:
            self._under_way -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        with self._counting:
            idle = self._closing and not self._under_way
            reader, self._reader = (self._reader, None) if idle else (None, self._reader)
        if idle:
            self._threads.shutdown(wait=False)
        if reader is not None:
            reader.close()

    def _other(self, cluster: OtherCluster) -> Lookout:
        """Return who looks at another cluster; only the newest few are kept."""
        if cluster not in self._others:
            while len(self._others) >= MOST_OTHERS:
                self._others.pop(next(iter(self._others))).close()
            properties = Path(cluster.config) if cluster.config else None
            self._others[cluster] = Lookout(cluster.bootstrap, properties, check=self._check_others)
        return self._others[cluster]

    def _read(self, wanted: Wanted, begin: Callable[[], object]) -> tuple[ClusterView, dict[str, tuple[str, ...]]]:
        """Return the view of all topics, as a fault may hit any of them, and the addresses of the hosts in it."""
        from trogdor_bus.kafka.access import Access
        from trogdor_bus.kafka.reader import Reader

        with self._turn:
            begin()
            if self._check is not None:
                self._check(self._bootstrap)
            if self._reader is None:
                self._reader = Reader(Access(self._bootstrap, self._properties))
            view = self._reader.read(None, wanted.coordinators, ports=True)
        hosts = {one.host for one in view.brokers.values()} | {
            one.host for one in (view.quorum.voters if view.quorum else ())
        }
        return view, {host: addresses_of(host) for host in hosts if host}
