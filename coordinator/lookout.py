"""Looks at the Kafka cluster under test, in a thread, for a machine that must not wait."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
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
MOST_OTHERS = 4


class Lookout:
    """Asks the brokers at `bootstrap`; `properties` is a file of librdkafka properties, None for none."""

    def __init__(self, bootstrap: str, properties: Path | None = None) -> None:
        self._bootstrap, self._properties = bootstrap, properties
        self._reader: Reader | None = None
        self._making = threading.Lock()  # looks go on side by side
        self._others: dict[OtherCluster, Lookout] = {}

    async def answer(self, order: LookAtCluster) -> ClusterSeen:
        """Return what was seen for a task."""
        await asyncio.sleep(order.after_ms / 1000)
        there = self if order.other is None else self._other(order.other)
        return ClusterSeen(order.task, order.number, await there.look(order.wanted))

    async def look(self, wanted: Wanted) -> Sighting:
        """Return what is seen now, or why nothing is; no later than `DEADLINE_S` from now."""
        seed = secrets.randbits(63)
        try:
            async with asyncio.timeout(DEADLINE_S):
                view, hosts = await asyncio.to_thread(self._read, wanted)
        except TrogdorBusError as error:
            return Sighting(error=str(error), seed=seed)
        except TimeoutError:
            return Sighting(error=f"{self._bootstrap} tells nothing within {DEADLINE_S:g} s", seed=seed)
        except Exception as error:  # or a task would wait for ever
            log.exception("looking at the cluster under test broke")
            return Sighting(error=f"looking at {self._bootstrap} broke: {error!r}", seed=seed)
        return Sighting(view=view, hosts=hosts, seed=seed)

    def close(self) -> None:
        """Close the connections; harmless if there are none."""
        for other in self._others.values():
            other.close()
        if self._reader is not None:
            self._reader.close()

    def _other(self, cluster: OtherCluster) -> Lookout:
        """Return who looks at another cluster; only the newest few are kept."""
        if cluster not in self._others:
            while len(self._others) >= MOST_OTHERS:
                self._others.pop(next(iter(self._others))).close()
            properties = Path(cluster.config) if cluster.config else None
            self._others[cluster] = Lookout(cluster.bootstrap, properties)
        return self._others[cluster]

    def _read(self, wanted: Wanted) -> tuple[ClusterView, dict[str, tuple[str, ...]]]:
        """Return the view of all topics, as a fault may hit any of them, and the addresses of the hosts in it."""
        from trogdor_bus.kafka.access import Access
        from trogdor_bus.kafka.reader import Reader

        with self._making:
            if self._reader is None:
                self._reader = Reader(Access(self._bootstrap, self._properties))
        view = self._reader.read(None, wanted.coordinators, ports=True)
        hosts = {one.host for one in view.brokers.values()} | {
            one.host for one in (view.quorum.voters if view.quorum else ())
        }
        return view, {host: addresses_of(host) for host in hosts if host}
