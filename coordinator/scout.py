"""Who waits for a look at the Kafka cluster under test. Kept by the machine; nothing of it outlives the process."""

from __future__ import annotations

from collections.abc import Container

import msgspec

from trogdor_bus.coordinator.events import ClusterSeen, LookAtCluster, OtherCluster
from trogdor_bus.coordinator.fleet import Fleet
from trogdor_bus.coordinator.place import Place
from trogdor_bus.coordinator.turn import Turn
from trogdor_bus.errors import NotNowError, RefusedError, SpecError, TrogdorBusError
from trogdor_bus.roles import Wanted
from trogdor_bus.spec import TaskSpec, guarded

DEADLINE_MS = 10_000
"""Roles that nobody holds are looked for again so long."""
AGAIN_MS = 500


class _Search(msgspec.Struct):
    number: int
    since_ms: int
    other: OtherCluster | None


class Scout:
    """The looks under way, at most one for each task."""

    def __init__(self, fleet: Fleet, place: Place, turn: Turn) -> None:
        self._fleet, self._place, self._turn = fleet, place, turn
        self._numbers = 0
        self._searches: dict[str, _Search] = {}

    def waits(self, task_id: str) -> bool:
        """Return whether a look for the task is under way."""
        return task_id in self._searches

    def ask(self, task_id: str, spec: TaskSpec, now_ms: int, other: OtherCluster | None = None) -> None:
        """Order a look for a task's sake, at our cluster or the `other`.

        RefusedError if there is no cluster, SpecError for a role that is none.
        """
        if other is None:
            require_cluster(self._place)
        self._numbers += 1
        order = LookAtCluster(task_id, self._numbers, wanted_of(spec, self._fleet.nodes), other=other)
        self._searches[task_id] = _Search(self._numbers, now_ms, other)
        self._turn.orders.append(order)

    def answers(self, event: ClusterSeen) -> bool:
        """Return whether this is what a task waits for."""
        search = self._searches.get(event.task)
        return search is not None and search.number == event.number

    def again(self, task_id: str, spec: TaskSpec, error: TrogdorBusError, now_ms: int) -> bool:
        """Order another look if that may mend the error; False once it took too long."""
        search = self._searches.get(task_id)
        if search is None or not isinstance(error, NotNowError) or now_ms - search.since_ms >= DEADLINE_MS:
            return False
        try:
            wanted = wanted_of(spec, self._fleet.nodes)
        except SpecError:
            return False
        self._turn.orders.append(LookAtCluster(task_id, search.number, wanted, AGAIN_MS, search.other))
        return True

    def forget(self, task_id: str) -> None:
        """Await nothing more for a task."""
        self._searches.pop(task_id, None)


def wanted_of(spec: TaskSpec, node_names: Container[str]) -> Wanted:
    """Return what must be seen of the cluster for a spec; SpecError for a role that is none, or if it cannot say."""
    with guarded(type(spec)):
        return msgspec.json.decode(msgspec.json.encode(spec.cluster_wanted(node_names)), type=Wanted)


def require_cluster(place: Place) -> None:
    """Raise RefusedError if there is no cluster to look at."""
    if not place.cluster:
        raise RefusedError(
            "this needs the Kafka cluster under test, and the coordinator knows none: start it with "
            "`‹cluster› HOST:PORT`"
        )
